"""LiteRT files. The tools take 6 GB, so the tests that run them are opt-in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeline.export.converters.convert import convert
from edgeline.export.converters.environments import PACKAGES, environment, expose_device_package
from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.variants import build_variants
from edgeline.flows import steps
from edgeline.pipeline.runs.run import Run
from edgeline.serve.errors import ExportError, MissingExtraError
from edgeline.serve.runtime.backends import load_file

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("litert-fp32", "litert-int8")
heavy = pytest.mark.skipif(
    "litert" not in os.environ.get("EDGELINE_TEST_FORMATS", ""),
    reason="installs 6 GB into artifacts/cache/environments; EDGELINE_TEST_FORMATS=litert runs it",
)


def asking(run: Run, *names: str) -> Run:
    export = run.config.export.model_copy(update={"variants": names})
    return Run(run.folder, run.config.model_copy(update={"export": export}))


def listed(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "variants.json").read_text())["variants"]
    return found


def stand_in(path: Path, script: str) -> Path:
    """A program that is started like the Python of an environment: `-I SCRIPT FOLDER PRECISION PATH`."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_missing_runtime_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.tflite").touch()
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(MissingExtraError, match=r"'ai_edge_litert': pip install 'edgeline\[litert\]'$"):
        load_file("litert", tmp_path / "model.tflite")


def test_a_failed_installation_leaves_the_variant_out_with_the_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "litert", ("ai-edge-litert==0.0.0",))
    for name in ("UV_OFFLINE", "PIP_NO_INDEX"):
        monkeypatch.setenv(name, "1")
    build_variants(asking(run, *NAMES[:1]), tmp_path)
    [entry] = listed(tmp_path)
    assert not entry["made"]
    assert entry["why"].startswith("the tools for litert cannot be installed here (")
    assert entry["why"].endswith("; they are ai-edge-litert==0.0.0")
    assert "\n" not in entry["why"]
    assert list(run.config.environments.iterdir()) == []


@pytest.mark.long
def test_a_failed_conversion_leaves_the_variant_out_with_the_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = stand_in(tmp_path / "python", "echo progress >&2; echo 'Lowering not found: aten.erfcx' >&2; exit 1")
    monkeypatch.setattr("edgeline.export.converters.convert.environment", lambda *_: failing)
    build_variants(asking(run, *NAMES[:1]), tmp_path)
    [entry] = listed(tmp_path)
    assert not entry["made"]
    assert entry["why"] == (
        "litert-torch==0.10.0 cannot convert this network: Lowering not found: aten.erfcx; leave the format out of "
        "export.variants"
    )


@pytest.mark.long
def test_the_converter_gets_the_network_for_one_image_and_balanced_training_images(
    run: Run, deployed: CalibratedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {precision: tmp_path / precision for precision in ("float32", "int8")}
    for folder in given.values():
        folder.mkdir()
    copying = stand_in(tmp_path / "python", f'cp "$3"/* "{tmp_path}/$4"; echo a file > "$5"')
    monkeypatch.setattr("edgeline.export.converters.convert.environment", lambda *_: copying)
    build_variants(asking(run, *NAMES), tmp_path)
    assert [entry["made"] for entry in listed(tmp_path)] == [True, True]
    assert (tmp_path / "model.int8.tflite").read_text() == "a file\n"
    assert [path.name for path in given["float32"].iterdir()] == ["program.pt2"]
    images_NHW3 = np.load(given["int8"] / "calibration.npy")
    assert images_NHW3.dtype == np.uint8
    assert images_NHW3.shape == (run.config.export.calibration_images, 96, 96, 3)
    program = torch.export.load(given["int8"] / "program.pt2").module()
    image_1HW3 = torch.from_numpy(images_NHW3[:1])
    for found, expected in zip(program(image_1HW3), deployed(image_1HW3), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def environments() -> Path:
    """The folder that a run from here would use, so that they are installed once."""
    return ROOT / "artifacts" / "cache" / "environments"


@pytest.fixture(scope="module")
def published(finished: Any, environments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with both files, so both have been verified."""
    run = asking(finished.copy(tmp_path_factory.mktemp("litert") / "artifacts"), *NAMES)
    environments.mkdir(parents=True, exist_ok=True)
    run.config.cache.mkdir(exist_ok=True)
    run.config.environments.symlink_to(environments)
    steps.execute("variants", run)
    steps.execute("verify", run)
    return steps.publish(run).folder


@heavy
@pytest.mark.slow
def test_both_files_pass_the_release_gate(published: Path) -> None:
    verified = {entry["name"]: entry for entry in json.loads((published / "verification.json").read_text())["variants"]}
    assert {name: verified[name]["problems"] for name in NAMES} == {name: [] for name in NAMES}
    assert all(verified[name]["passed"] for name in NAMES)
    assert verified["litert-int8"]["bytes"] < 0.35 * verified["litert-fp32"]["bytes"]


SELF_TEST = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from edgeline.serve.classifier import Classifier

folder, name = Path(sys.argv[1]), sys.argv[2]
classifier = Classifier.open(folder, variant=name)
photos = [path.read_bytes() for path in sorted((folder / "golden").iterdir()) if path.suffix in (".jpg", ".png")]
alone = [classifier.predict([photo]) for photo in photos]
with ThreadPoolExecutor(4) as pool:
    together = list(pool.map(lambda photo: classifier.predict([photo]), photos * 8))
print(classifier.self_test.samples, together == alone * 8)
"""


@heavy
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_file_passes_its_self_test_on_a_device_and_is_thread_safe(published: Path, environments: Path, name: str) -> None:
    """The device has numpy, Pillow and the runtime, and no ONNX Runtime."""
    python = environment("litert", environments)
    with expose_device_package() as variables:
        command = [str(python), "-P", "-c", SELF_TEST, str(published), name]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.stdout == "5 True\n", done.stderr


class Rare(nn.Module):
    """Ends in an operator that LiteRT does not have."""

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits_NK = torch.special.bessel_j0(image.float().mean((1, 2)))
        return logits_NK.softmax(1), logits_NK


@heavy
@pytest.mark.slow
def test_an_operator_that_the_converter_lacks_is_named(environments: Path, tmp_path: Path) -> None:
    program = torch.export.export(Rare(), (torch.zeros(1, 8, 8, 3, dtype=torch.uint8),))
    sources = {"program.pt2": lambda path: torch.export.save(program, path)}
    with pytest.raises(ExportError, match=r"^litert-torch\S+ cannot convert this network: .*aten\.special_bessel_j0") as caught:
        convert("litert", "float32", sources, tmp_path / "model.tflite", environments)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
