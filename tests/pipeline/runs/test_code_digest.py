"""An edit changes exactly the keys of the steps whose code imports the edited module."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.flows.steps import STEPS
from edgeline.pipeline.runs import code_digest as module
from edgeline.pipeline.runs.code_digest import ROOT, closure, code_digest, forget_sources

BUILDS = {
    "prepare": "edgeline.pipeline.data.prepare",
    **{step.name: step.build.partition(":")[0] for step in STEPS},
    "publish": "edgeline.export.publishing.bundle",
    "the feature cache": "edgeline.pipeline.training.features",
    "the image cache": "edgeline.pipeline.data.validation",
}
AFTER_PREPARE = {"train", "evaluate", "export", "variants", "verify", "publish"}
AFTER_EXPORT = {"variants", "verify", "publish"}


@pytest.fixture(name="sources")
def copied_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's source files, with their times: what was parsed of the originals is not parsed again."""
    shutil.copytree(ROOT / "edgeline", tmp_path / "edgeline", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return tmp_path / "edgeline"


def digests() -> dict[str, str]:
    return {name: code_digest(build) for name, build in BUILDS.items()}


@pytest.fixture(scope="module")
def unedited() -> dict[str, str]:
    return digests()


EDITS = {
    "pipeline/data/split.py": {"prepare"},
    "pipeline/training/fine_tuning/layers.py": {"train"},
    "pipeline/training/features.py": {"train", "evaluate", "publish", "the feature cache"},  # of the learning curve
    "pipeline/training/augment.py": {
        "train",
        "evaluate",
        "publish",
        "the feature cache",
        "variants",
    },  # quantization-aware training augments too
    "pipeline/models/checkpoint.py": AFTER_PREPARE,
    "pipeline/evaluation/evaluate.py": {"evaluate"},
    "pipeline/evaluation/plots.py": {"evaluate", "verify", "publish"},
    "pipeline/evaluation/metrics.py": AFTER_PREPARE - {"train"},
    "pipeline/evaluation/report.py": {"evaluate", "verify", "publish"},
    "serve/preprocess.py": set(BUILDS),
    "export/graph/contract.py": AFTER_PREPARE - {"train", "evaluate"},
    "export/quantization/static_int8.py": AFTER_EXPORT,
    "export/converters/to_litert.py": AFTER_EXPORT,  # a script that runs elsewhere
    "serve/runtime/benchmark.py": AFTER_EXPORT,  # a subprocess
    "export/parity/layerwise.py": {"verify", "publish"},
    "export/publishing/report.py": {"publish"},
    "serve/inference/scheduler.py": set(),
    "serve/errors.py": set(),
    "pipeline/config.py": set(),
    "pipeline/train_config.py": set(),
    "flows/cli/run.py": set(),
}


@pytest.mark.parametrize(("path", "changed"), EDITS.items(), ids=EDITS)
def test_an_edit_changes_the_keys_of_the_steps_that_import_it(
    unedited: dict[str, str], sources: Path, path: str, changed: set[str]
) -> None:
    with (sources / path).open("a") as file:
        file.write("\nEDITED = True\n")
    edited = digests()
    assert {name for name in BUILDS if unedited[name] != edited[name]} == changed


def test_a_template_belongs_to_the_module_next_to_it(sources: Path) -> None:
    (sources / "export" / "publishing" / "templates").mkdir(exist_ok=True)
    before = digests()
    (sources / "export" / "publishing" / "templates" / "new.html").write_text("<p>new</p>")
    assert digests()["publish"] != before["publish"]


MENTIONS = {
    "an import": "import edgeline.serve.inputs.folder_watcher",
    "a name imported from a module": "from edgeline.serve.inputs.folder_watcher import watch",
    "a module imported from a package": "from edgeline.serve.inputs import folder_watcher as watch",
    "an import within a function": "def later():\n    from edgeline.serve.inputs import folder_watcher",
    "a subprocess": 'COMMAND = ["python", "-m", "edgeline.serve.inputs.folder_watcher"]',
    "a build function": 'BUILD = "edgeline.serve.inputs.folder_watcher:watch"',
}


@pytest.mark.parametrize("line", MENTIONS.values(), ids=MENTIONS)
def test_a_module_is_found_by_every_way_of_naming_it(sources: Path, line: str) -> None:
    (sources / "pipeline" / "data" / "split.py").write_text(f"{line}\n")
    assert closure("edgeline.pipeline.data.split").keys() >= {
        "edgeline.pipeline.data.split",
        "edgeline.serve.inputs.folder_watcher",
    }


def test_imports_for_type_checkers_are_ignored(sources: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import edgeline.serve.inputs.folder_watcher\n"
    text += "else:\n    import edgeline.serve.inputs.camera\n"
    (sources / "pipeline" / "data" / "split.py").write_text(text)
    found = closure("edgeline.pipeline.data.split")
    assert "edgeline.serve.inputs.camera" in found
    assert "edgeline.serve.inputs.folder_watcher" not in found


def test_every_excluded_module_exists() -> None:
    missing = [name for name in module.EXCLUDED if not ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file()]
    assert missing == []


def test_an_unknown_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no module edgeline.pipeline.missing"):
        code_digest("edgeline.pipeline.missing")


PROGRAM = """
import sys
from pathlib import Path
from edgeline.pipeline.runs.code_digest import code_digest
print(code_digest("edgeline.pipeline.training.train", cache=Path(sys.argv[1])))
assert "edgeline.pipeline.training.train" not in sys.modules
"""


def run_in_a_fresh_process(cache: Path) -> str:
    return subprocess.run([sys.executable, "-c", PROGRAM, str(cache)], capture_output=True, text=True, check=True).stdout


def test_a_digest_imports_nothing_and_is_the_same_with_and_without_its_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "code.json"
    first = run_in_a_fresh_process(cache)
    assert json.loads(cache.read_text())["edgeline.pipeline.training.train"]["sha256"]
    assert run_in_a_fresh_process(cache) == first


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut off": lambda cache: cache.write_text(cache.read_text()[:100]),
    "a list": lambda cache: cache.write_text("[]"),
    "entries of another version": lambda cache: cache.write_text('{"edgeline.pipeline.training.train": {"size": 1}}'),
    "not text": lambda cache: cache.write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_ignored(sources: Path, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    forget_sources()
    cache = tmp_path / "code.json"
    expected = code_digest("edgeline.pipeline.training.train", cache=cache)
    damage(cache)
    forget_sources()
    assert code_digest("edgeline.pipeline.training.train", cache=cache) == expected


def test_an_edit_is_noticed_when_the_cache_is_read(sources: Path, tmp_path: Path) -> None:
    forget_sources()
    cache, path = tmp_path / "code.json", sources / "pipeline" / "data" / "split.py"
    before = code_digest("edgeline.pipeline.data.prepare", cache=cache)
    size, text = path.stat().st_size, path.read_text()
    path.write_text(text.replace("seed", "sead"))
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == size
    forget_sources()
    assert code_digest("edgeline.pipeline.data.prepare", cache=cache) != before
