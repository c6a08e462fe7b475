"""The documents say what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"])


def test_the_readme_runs_something_before_its_thirtieth_line() -> None:
    assert "make demo" in "\n".join(README.splitlines()[:29])


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_tree_of_the_readme_names_every_module_and_no_other() -> None:
    tree = README.partition("## What is in the box")[2].partition("```")[2].partition("```")[0]
    for layer in ("serve", "serve/http", "pipeline", "export", "flows"):
        modules = {path.stem for path in (ROOT / layer).glob("*.py")} - {"__init__"}
        section = re.split(r"(?m)^\S", tree.partition(f"{layer}/ ")[2])[0]
        named = {name.strip() for line in section.splitlines()[1:] for name in line.strip().partition("  ")[0].split(",")}
        assert modules == named, f"{layer}/: not named {modules - named}, not there {named - modules}"


def test_the_page_of_settings_is_the_one_the_code_writes() -> None:
    from edgeline.pipeline.config_reference import config_markdown

    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == config_markdown()


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    assert set(re.findall(r"(?m)^make ([a-z]+)", README)) <= targets


def test_ci_calls_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^make \w+$", script) == ["make lint", "make test", "make long"]


def test_requirements_name_packages_versions_and_hashes_only() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path.name
        assert text.count("==") > 0, path.name
        assert "--index-url" not in text, path.name


PIPELINE = ["run", "prepare", "train", "evaluate", "export", "verify", "publish", "deploy"]
COMMANDS = [*PIPELINE, "predict", "check", "drift", "serve", "conformance"]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_teaches_with_an_example(command: str) -> None:
    done = subprocess.run([Path(sys.executable).with_name("edgeline"), command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"edgeline {command}" in done.stdout


def test_the_readmes_python_runs(make_artifact, tmp_path: Path) -> None:
    from PIL import Image

    artifact = make_artifact(name="birds", store=tmp_path / "artifacts" / "store")
    Image.new("RGB", (64, 48), "red").save(tmp_path / "photo.jpg")
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert artifact.is_relative_to(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert "Prediction(label=" in done.stdout, done.stderr
