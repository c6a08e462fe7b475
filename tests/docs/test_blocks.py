"""Every `bash` and `python` block of the documentation runs and prints what its page shows. See tests/support/doc_blocks.py."""

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.cases import cases
from tests.support.doc_blocks import EXECUTED, PageRun, matches, normalized, read_blocks
from tests.support.explaining import explain_itself

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("[ab]*/README.md")])
}
BLOCKS = {name: read_blocks(text) for name, text in PAGES.items()}
RUN = {name for name, blocks in BLOCKS.items() if any(each.language in EXECUTED and not each.reason for each in blocks)}
"""Pages with something to execute."""
OTHER_LANGUAGES = {"console", "json", "kotlin", "mermaid", "swift", "text", "toml"}
"""What is data, output, or a device's code, which tests/export/test_device_code.py compiles."""
LABELS = {
    "birds": ("robin", "wren", "kingfisher", "crow"),
    "flowers": ("rose", "fern", "cornflower", "pansy"),
    "insects": ("ants", "bees", "flies", "beetles"),
}
"""Of the artifacts that pages use, in the order of the template's colors: red, green, blue, dark."""

NOT_EXECUTED: dict[str, list[str]] = {
    "CONTRIBUTING.md": [
        "these run the linters and this suite itself",
    ],
    "README.md": [
        "installs all packages and trains; make demo and tests/flows run it",
    ],
    "docs/conformance.md": [
        "downloads packages",
        "tests/serve/conformance runs every check on this server; the other server is an example",
        "needs NVIDIA's perf_analyzer",
    ],
    "docs/devices/cpp/README.md": [
        "needs ONNX Runtime's C++ package; tests/export/test_device_code.py compiles and runs it",
    ],
    "docs/drift.md": [
        "needs the photos of ants and bees, and trains for a minute",
    ],
    "docs/index.md": [
        "installs all packages and trains; tests/flows run it",
    ],
    "docs/learn/beyond.md": [
        "the photos are not part of this repository; tests/docs/test_learn_examples.py runs the script on others",
        "the photos are not part of this repository; tests/docs/test_learn_examples.py runs the script on others",
        "the photos are not part of this repository; tests/docs/test_learn_examples.py runs the script on others",
    ],
    "docs/learn/comparing.md": [
        "the photos are not part of this repository, and training takes minutes",
        "the photos are not part of this repository, and training takes minutes",
        "the photos are not part of this repository, and training takes minutes",
        "the photos are not part of this repository, and training takes minutes",
        "the photos are not part of this repository, and training takes minutes",
        "the photos are not part of this repository, and training takes minutes",
        "the photos are not part of this repository, and training takes minutes",
        "training takes minutes",
    ],
    "docs/learn/medical.md": [
        "the pictures are not part of this repository",
        "the pictures are not part of this repository",
    ],
    "docs/learn/training.md": [
        "trains for minutes; tests/pipeline/training runs every strategy",
        "trains for minutes; tests/pipeline/training tests each setting",
        "the photos are not part of this repository, and training takes minutes",
        "trains for many minutes; tests/pipeline/training/test_distill.py trains on small pictures",
        "needs two machines; tests/pipeline/training/fine_tuning/test_distributed.py uses two processes",
        "trains for about a minute",
        "lists the runs of the commands above",
    ],
    "docs/learn/vehicles.md": [
        "the photos are yours",
        "the photos are yours",
        "the photos are yours",
    ],
    "docs/prefect.md": [
        "runs until it is stopped; tests/flows/up/test_run.py runs it",
        "needs a Prefect server and a worker as services; tests/flows/orchestration/test_worker.py runs a schedule",
        "needs a Prefect server; tests/flows/orchestration/deployments/test_deployment.py runs the command",
        "needs Docker or Kubernetes; tests/flows/orchestration/deployments/test_pools.py checks the templates",
        "needs a PostgreSQL server and its administrator; tests/flows/up/test_postgres.py runs with one",
    ],
    "docs/registries.md": [
        "needs an MLflow server; tests/export/registries/test_mlflow_models.py pushes to one",
    ],
    "docs/label.md": [
        "serves until it is stopped; tests/serve/inbox/test_keeper.py starts such a server",
        "serves a page until it is stopped; tests/serve/labeling/test_page_in_browser.py labels photos in a browser",
        "trains; tests/flows/operations/test_retrain.py runs it on small pictures",
    ],
    "docs/retrain.md": [
        "trains for a minute; tests/flows/operations/test_retrain.py runs it on small pictures",
    ],
    "docs/release.md": [
        "tests/test_wheel.py builds the wheel and reads it",
        "downloads the packages of the base install",
    ],
    "docs/scale.md": [
        "needs two machines; tests/pipeline/engines/test_dask_cluster.py starts a scheduler and workers",
    ],
    "docs/tutorial.md": [
        "trains for about a minute; tests/flows runs every step",
        "trains for about a minute; tests/flows runs every step",
        "trains for about a minute; examples/quickstart.ipynb is executed by tests/flows",
    ],
    "docs/understand.md": [
        "needs two finished runs; tests/flows/cli/test_compare.py compares them",
        "needs a finished run; tests/flows/cli/test_explain.py explains one",
    ],
    "docs/verify-any-onnx.md": [
        "imports torch for each command; tests/export/external/test_verify.py runs such files",
        "`model` is yours",
    ],
}
"""The reasons of the blocks that are not executed, by page, in order."""


@pytest.fixture(scope="module")
def workspace(
    artifact_template: Path, seal: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], Path]:
    """`workspace()`: a new folder with what pages assume: a store, photos, the code for devices."""
    template = tmp_path_factory.mktemp("docs")
    store = template / "artifacts" / "store"
    for name, labels in LABELS.items():
        folder = store / name / "1"
        shutil.copytree(artifact_template, folder)
        if name == "insects":  # this one has class activation maps
            explain_itself(folder, seal)
        relabel(folder, labels)
        seal(folder, name=name, labels=list(labels))
    flowers = store / "flowers" / "1"
    (flowers / "statistics.json").write_bytes(statistics(flowers, artifact_template / "golden"))
    seal(flowers)
    for code in (ROOT / "docs" / "devices" / "python").glob("*.py"):
        shutil.copy(code, template)
    for index, label in enumerate(LABELS["birds"]):
        (template / "photos" / label).mkdir(parents=True)
        shutil.copy(artifact_template / "golden" / f"{index}.jpg", template / "photos" / label / "1.jpg")
    shutil.copy(artifact_template / "golden" / "0.jpg", template / "photo.jpg")
    for name in ("model.onnx", "original.onnx"):
        shutil.copy(artifact_template / "model.onnx", template / name)
    counts = iter(range(1, 100))

    def make() -> Path:
        folder = template.parent / f"page-{next(counts)}-{template.name}"
        shutil.copytree(template, folder)
        return folder

    return make


def relabel(folder: Path, labels: Sequence[str]) -> None:
    """Rename the classes of an artifact."""
    path = folder / "golden" / "golden.json"
    golden = json.loads(path.read_text())
    for sample, label in zip(golden["samples"], labels, strict=True):
        sample["label"] = label
    path.write_text(json.dumps(golden))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels))


def statistics(folder: Path, images: Path) -> bytes:
    """A drift baseline of a few images."""
    command = [Path(sys.executable).with_name("edgeline"), "predict", folder, *images.glob("*.jpg"), "--json", "--drift"]
    subprocess.run([*command, folder / "statistics.json"], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)
    counted = json.loads((folder / "statistics.json").read_text())
    return json.dumps(counted | dict.fromkeys(("version", "manifest_sha256", "since", "until"))).encode()


LONG = ("verify-any-onnx.md", "learn/network.md", "index.md", "drift.md", "conformance.md")
QUICK = RUN - {f"docs/{name}" for name in LONG}
"""The first two import torch for each command; the others start more processes of kinds that other pages start too."""


@pytest.mark.parametrize("page", cases({page: page for page in sorted(RUN)}, quick=QUICK))
def test_the_blocks_of_a_page_run_and_print_what_it_shows(page: str, workspace: Callable[[], Path]) -> None:
    run = PageRun(workspace())
    with run.serving():
        for block in BLOCKS[page]:
            if block.language not in EXECUTED or block.reason is not None:
                continue
            printed = run.execute(block)
            if block.output is not None:
                assert matches(block.output, printed), f"{page}:{block.line} printed\n{printed}"


def test_blocks_that_are_not_executed_are_listed_with_their_reasons() -> None:
    found = {page: [block.reason for block in blocks if block.reason] for page, blocks in BLOCKS.items()}
    assert {page: reasons for page, reasons in found.items() if reasons} == NOT_EXECUTED


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language(page: str) -> None:
    languages = {block.language for block in BLOCKS[page]}
    assert languages <= {*EXECUTED, *OTHER_LANGUAGES}


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_an_indented_block(page: str) -> None:
    commands = ("edgeline ", "pip ", "python ", "curl ", "make ", "$ ")
    assert [line for line in PAGES[page].splitlines() if line.startswith("    ") and line.strip().startswith(commands)] == []


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if any(each.language == "toml" for each in blocks)])
def test_settings_shown_on_a_page_are_valid(page: str, tmp_path: Path) -> None:
    from edgeline.pipeline.config import load_config

    for index, block in enumerate(each for each in BLOCKS[page] if each.language == "toml"):
        assert tomllib.loads(block.code)
        (tmp_path / f"{index}.toml").write_text(block.code)
        load_config(tmp_path / f"{index}.toml")


def test_output_is_compared_without_numbers_and_digests() -> None:
    assert normalized("a  1.5e-4\n\nsha256 0123456789abcdef\n") == ["a <n>", "sha256 <digest>"]
    assert matches("took 1 ms\n...\ndone\n", "took 22.5 ms\nmore\nand more\ndone\n")
    assert matches('{"label": "robin", ...}\n', '{"label": "robin", "index": 0}\n')
    assert not matches("took 1 ms\n", "took 1 s\n")


def test_a_failing_block_fails_with_its_line_and_output(tmp_path: Path) -> None:
    [block] = read_blocks("text\n\n```bash\necho before; false\n```\n")
    with pytest.raises(AssertionError, match="(?s)line 3: exit code 1.*before"):
        PageRun(tmp_path).execute(block)


def test_a_marker_and_an_output_belong_to_their_block() -> None:
    blocks = read_blocks("<!-- not executed: needs a camera -->\n```bash\na\n```\n\n```python\nb\n```\n```text\nc\n```\n")
    assert [(block.code, block.reason, block.output) for block in blocks] == [
        ("a\n", "needs a camera", None),
        ("b\n", None, "c\n"),
    ]
