"""The documentation matches the repository: links, paths, generated pages, commands and continuous integration."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from edgeline.flows.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "benchmarks" / "README.md"])
IMAGES = sorted(path for path in (DOCS / "images").iterdir() if path.suffix in (".svg", ".png"))
MAX_IMAGE_BYTES = 200_000


def test_the_readme_has_at_most_120_lines_and_runs_something_before_its_thirtieth() -> None:
    assert len(README.splitlines()) <= 120
    assert "make demo" in "\n".join(README.splitlines()[:29])


def test_the_tree_of_the_readme_names_folders_that_exist() -> None:
    tree = README.partition("## Where things are")[2].partition("```text\n")[2].partition("```")[0]
    parent = ROOT
    for line in tree.splitlines():
        names = re.findall(r"[\w-]+(?=/)", line.partition("   ")[0] if line[0] != " " else line)
        if line[0] != " ":
            parent = ROOT / names[0]
        base = parent if line[0] == " " else ROOT
        missing = [name for name in names if not (base / name).is_dir() and name != "support"]
        assert missing == [], line


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r"<img src=\"([^\"]+)", text)
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [ROOT / "CONTRIBUTING.md", DOCS / "guarantees.md", DOCS / "release.md", ROOT / "SECURITY.md"])
def test_a_path_that_a_page_names_exists_and_holds_the_name_behind_the_colons(page: Path) -> None:
    top = "serve|pipeline|export|flows|tests|docs|benchmarks|edgeline"
    found = re.findall(rf"`((?:{top})/[^`\s*<]*?)(?:::(\w+))?`", page.read_text(encoding="utf-8"))
    assert found
    assert [path for path, _ in found if not (ROOT / path).exists()] == []
    named = [(path, name) for path, name in found if name]
    assert [each for each in named if not re.search(rf"\b{each[1]}\b", (ROOT / each[0]).read_text(encoding="utf-8"))] == []


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_generated_from_the_code() -> None:
    from edgeline.pipeline.config_reference import config_markdown

    assert (DOCS / "config.md").read_text(encoding="utf-8") == config_markdown()


def test_the_page_of_commands_is_generated_from_their_help() -> None:
    written = _load(DOCS / "make_commands.py").commands_markdown()
    assert (DOCS / "commands.md").read_text(encoding="utf-8") == written, "run: make docs"


def test_the_list_of_decisions_has_each_title() -> None:
    pages = sorted((DOCS / "adr").glob("0*.md"))
    titles = [page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ") for page in pages]
    lines = [f"- [{title[:4]}]({page.name}) {title[5:]}" for title, page in zip(titles, pages, strict=True)]
    assert [line for line in (DOCS / "adr" / "README.md").read_text(encoding="utf-8").splitlines() if line[:1] == "-"] == lines


@pytest.mark.parametrize("image", IMAGES, ids=[image.name for image in IMAGES])
def test_a_picture_is_small_and_loads_nothing(image: Path) -> None:
    assert image.stat().st_size < MAX_IMAGE_BYTES
    if image.suffix == ".svg":
        text = image.read_text(encoding="utf-8")
        assert re.findall(r"(?:href=\"|url\([\"']?)(?!#)[^\"')]+", text) == []


def test_every_make_target_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", MAKEFILE))
    named = {name for page in PAGES for name in re.findall(r"(?:`|^)make ([a-z]+)\b", page.read_text(encoding="utf-8"), re.M)}
    assert named <= targets


def test_ci_runs_the_same_script_as_a_clone() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^make \w+$", script) == ["make lint", "make test", "make docs", "make long"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in steps if "uses" in step)


def test_the_hooks_are_local_and_run_what_make_lint_runs() -> None:
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    entries = [hook["entry"] for hook in repositories[0]["hooks"]]
    lint = MAKEFILE.partition("\nlint:")[2].partition("\n\n")[0]
    commands = [line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .") for line in lint.splitlines()[1:]]
    assert entries == [*commands, ".venv/bin/hadolint"]


def test_forms_for_issues_are_valid() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form.keys() >= {"name", "description", "body"}, path.name
        assert {each["type"] for each in form["body"]} <= {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_requirements_name_packages_versions_and_hashes_only() -> None:
    for path in (ROOT / "requirements").glob("*.txt"):
        text = path.read_text(encoding="utf-8")
        assert "://" not in text, path.name
        assert text.count("==") > 0, path.name
        assert "--index-url" not in text, path.name


def _commands() -> list[str]:
    group: Any = typer.main.get_command(app)
    return [name for name, command in group.commands.items() if not command.hidden]


@pytest.mark.parametrize("command", _commands())
def test_the_help_of_a_command_teaches_with_an_example(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0, shown.output
    assert f"edgeline {command}" in shown.output.replace(f"Usage: edgeline {command}", "")


@pytest.mark.long
def test_the_site_builds_without_warnings_and_its_pages_load_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1"})
    assert done.returncode == 0, done.stderr
    loaded = {
        url
        for page in tmp_path.rglob("*.html")
        for url in re.findall(r"<(?:script|img|link rel=\"stylesheet\")[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
    }
    assert loaded == set()
