"""One small run of the whole pipeline on pictures like photos, shared by all tests of this layer.

The three kinds of picture are easy to distinguish, so the model is confident: its probabilities on held-out pictures are 0 and
1 up to a millionth. In this case a fault of its weights is hardest to detect.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.verification import variants
from edgeline.export.verification.report import Costs, PassedVariant, VerificationReport
from edgeline.flows.steps import run_pipeline
from edgeline.pipeline.config import PipelineConfig, VerifyConfig, load_config
from edgeline.pipeline.data.samples import Sample, read_prepared
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.pipeline.runs.run import Run
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.shared_results import shared_result

LABELS = ("bark", "leaf", "sky")
EACH = 14
SIZES = [(900, 720), (240, 330), (300, 240), (280, 280)]
ORIENTATIONS = (1, 6, 3, 8)
ORIENTATION, GPS = 0x0112, 0x8825
VARIANTS = ("onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8")
SETTINGS = [
    "train.strategy=head",
    "train.epochs=60",
    "preprocess.size=96",  # a fifth of the time of 224
    "publish.golden=5",
    "verify.max_batch=16",
    "export.calibration_images=24",
    "verify.int8.min_agreement=0.9",  # of 18 images, one between two classes may change its class
    "export.min_speedup=0",  # other tests may slow this machine down
    f"export.variants={json.dumps(VARIANTS)}",
]


def picture(label: str, index: int) -> Image.Image:
    """A picture with the colors, the grain and the texture of its kind, and no symmetry."""
    chance = np.random.default_rng([LABELS.index(label), index])
    width, height = SIZES[index % len(SIZES)]
    y, x = np.mgrid[0:height, 0:width] / 240
    base, texture = {
        "bark": ((120, 80, 40), 50 * np.sin(2 * np.pi * (8 * x + 0.6 * np.sin(6 * y + index)))),
        "leaf": ((60, 140, 50), 40 * np.sin(2 * np.pi * 5 * (x + y)) * np.sin(2 * np.pi * 5 * (x - 2 * y))),
        "sky": ((90, 140, 220), 60 * y - 20),
    }[label]
    blotches = Image.fromarray(chance.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((width, height))
    grain = sum(
        chance.normal(0, 20, (height // size + 1, width // size + 1)).repeat(size, 0).repeat(size, 1)[:height, :width]
        for size in (1, 2, 4, 8)
    )
    pixels = np.array(base) + 0.4 * (np.asarray(blotches) - 128.0) + (grain + texture)[..., None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save_photo(path: Path, image: Image.Image, orientation: int = 1) -> None:
    """Save a JPEG as a phone does: with its orientation, and where it was taken."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[GPS] = {1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)}
    image.save(path, "JPEG", quality=92, exif=exif)


def write_photos(folder: Path) -> Path:
    """A data folder: a third PNG, the others JPEG with EXIF orientation and location; no two pictures are equal."""
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for index in range(EACH):
            image, path = picture(label, index), folder / label / str(index)
            if index % 3:
                save_photo(path.with_suffix(".jpg"), image, ORIENTATIONS[index % 4])
            else:
                image.save(path.with_suffix(".png"))
    return folder


@dataclass(frozen=True)
class Finished:
    """A finished run and the artifact it published. Shared: tests that change a folder copy it first."""

    run: Run
    artifact: Path

    @property
    def config(self) -> PipelineConfig:
        return self.run.config

    @property
    def model(self) -> bytes:
        return (self.run.step("export") / "model.onnx").read_bytes()

    @property
    def preprocessing_fingerprint(self) -> Path:
        return self.run.step("train") / "preprocessing_fingerprint.npz"

    @property
    def settings(self) -> list[str]:
        """Its options on the command line."""
        return SETTINGS

    def copy_step(self, name: str, target: Path) -> None:
        shutil.copytree(self.run.step(name), target)

    def copy(self, artifacts: Path) -> Run:
        """A copy of the run in another folder, with its own store."""
        config = self.config.model_copy(update={"artifacts": str(artifacts)})
        folder = config.runs / self.run.folder.name
        shutil.copytree(self.run.folder, folder)
        return Run(folder, config)


@pytest.fixture(scope="session")
def finished_folder(request: pytest.FixtureRequest) -> Path:
    def build(folder: Path) -> None:
        write_photos(folder / "photos")
        run_pipeline(load_config(None, SETTINGS, data=str(folder / "photos"), artifacts=str(folder / "artifacts")))

    inputs = {"file": __file__, "config": load_config(None, SETTINGS).model_dump(mode="json")}
    return shared_result(request.config, "export-run", build, code=("edgeline.flows.steps",), inputs=inputs)


@pytest.fixture(scope="session")
def photos(finished_folder: Path) -> Path:
    """The data folder of the shared run."""
    return finished_folder / "photos"


@pytest.fixture(scope="session")
def finished(finished_folder: Path) -> Finished:
    config = load_config(None, SETTINGS, data=str(finished_folder / "photos"), artifacts=str(finished_folder / "artifacts"))
    [folder] = config.runs.iterdir()
    [artifact] = config.store.glob("photos/1")
    return Finished(Run(folder, config), artifact)


@pytest.fixture(scope="session")
def deployed(finished: Finished) -> CalibratedModel:
    """PyTorch's side; tests must not change it."""
    network, _ = load_checkpoint(finished.run.step("train"))
    return CalibratedModel(network, read_evaluation(finished.run.step("evaluate")).calibration.temperature)


@pytest.fixture(scope="session")
def spec(finished: Finished) -> PreprocessSpec:
    return load_checkpoint(finished.run.step("train"))[1].preprocess


@pytest.fixture(scope="session")
def held_out(finished: Finished) -> list[Sample]:
    """A few test samples of every class."""
    return read_prepared(finished.run.step("prepare")).of("test")[::2]


@pytest.fixture
def thresholds(finished: Finished) -> VerifyConfig:
    return finished.config.verify


@pytest.fixture
def run(finished: Finished, tmp_path: Path) -> Run:
    """A copy of the run for this test."""
    return finished.copy(tmp_path / "artifacts")


def redo(step: Path) -> None:
    """Rewrite a step's receipt, as if it had produced the files that are there now."""
    receipt = json.loads((step / "receipt.json").read_text())
    paths = [path for path in step.rglob("*") if path.is_file() and path.name != "receipt.json"]
    receipt["files"] = {
        path.relative_to(step).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    }
    (step / "receipt.json").write_text(json.dumps(receipt))


@pytest.fixture(name="redo")
def redo_fixture() -> Callable[[Path], None]:
    """`redo(step_folder)`: correct every hash after a step's result was changed."""
    return redo


@pytest.fixture
def artifact(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the published artifact for this test, with writable files."""
    folder = tmp_path / "published" / "photos" / "1"
    shutil.copytree(finished.artifact, folder, copy_function=shutil.copyfile)
    return folder


@pytest.fixture
def measured_costs(finished: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """The times and memory of every variant are those of the shared run: measuring takes longer than all checks of a file."""
    report = VerificationReport.read(finished.run.step("verify") / "verification.json")
    known = {result.name: result for result in (report.reference, *report.variants) if isinstance(result, PassedVariant)}

    def remember(*_: Any, variant: str, **__: Any) -> dict[str, Any]:
        return {name: getattr(known[variant], name) for name in Costs.model_fields}

    monkeypatch.setattr(variants, "costs", remember)


TINY = PreprocessSpec(height=16, width=16)


@pytest.fixture
def tiny() -> Callable[[], CalibratedModel]:
    """`tiny()`: a network of a few hundred weights for pixels of 16 x 16, not trained on anything."""

    def make() -> CalibratedModel:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        backbone = nn.Sequential(*layers)
        network = Network(backbone, 8, len(LABELS), 0.2, Normalization((127.0,) * 3, (128.0,) * 3))
        return CalibratedModel(network.eval(), 0.7)

    return make
