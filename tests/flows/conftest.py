"""A Prefect API for the tests of the flows, and one small run of the whole pipeline that they share."""

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import pytest
from PIL import Image

from edgeline.flows.steps import run_pipeline
from edgeline.pipeline.config import PipelineConfig, load_config
from tests.support.shared_results import shared_result

COLORS = {"warm": (200, 60, 40), "cold": (40, 70, 200)}
EACH = 20
TINY = ["model=timm:test_efficientnet", "weights=none", "preprocess.size=32"]
"""A network of 0.4 MB with random weights: the steps are tested here, not training."""
DEADLINE_S = 60

Value = TypeVar("Value")


@pytest.fixture(scope="session")
def wait_for() -> Callable[[Callable[[], Value | None]], Value]:
    """`wait_for(ask)`: call a function until it returns something, and return that."""

    def wait(ask: Callable[[], Value | None], deadline_s: float = DEADLINE_S) -> Value:
        deadline = time.monotonic() + deadline_s
        while not (found := ask()):
            assert time.monotonic() < deadline, f"nothing within {deadline_s} s"
            time.sleep(0.1)
        return found

    return wait


@pytest.fixture(scope="session")
def finished_folder(request: pytest.FixtureRequest) -> Path:
    """`tints/` with photos, `artifacts/` of a finished run, and `steps.json` with what each of its steps returned."""

    def build(folder: Path) -> None:
        _, steps = run_pipeline(configure(write_photos(folder / "tints"), folder / "artifacts"))
        (folder / "steps.json").write_text(json.dumps([asdict(step) | {"folder": str(step.folder)} for step in steps]))

    inputs = {"file": __file__, "config": configure(Path("tints"), Path("artifacts")).model_dump(mode="json")}
    return shared_result(request.config, "flows-run", build, code=("edgeline.flows.steps",), inputs=inputs)


@pytest.fixture(scope="session")
def photos(finished_folder: Path) -> Path:
    """The folder of photos."""
    return finished_folder / "tints"


def write_photos(folder: Path) -> Path:
    """Two classes of small, different pictures, one file that is broken and one that is not meant to be an image."""
    chance = random.Random(0)
    for label, color in COLORS.items():
        (folder / label).mkdir(parents=True)
        for index in range(EACH):
            picture = Image.new("RGB", (40, 32), tuple(level + chance.randint(-30, 30) for level in color))
            for _ in range(30):
                picture.putpixel((chance.randrange(40), chance.randrange(32)), tuple(chance.randbytes(3)))
            picture.save(folder / label / f"{index}.png")
    (folder / "warm" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
    (folder / "warm" / "Thumbs.db").write_bytes(bytes(64))
    return folder


def configure(photos: Path, artifacts: Path) -> PipelineConfig:
    """Settings that make a run short."""
    settings = ["train.strategy=head", "train.epochs=3", "publish.golden=2", "export.variants=[]", *TINY]
    return load_config(None, settings, data=str(photos), artifacts=str(artifacts))


@pytest.fixture(scope="session")
def small_config(photos: Path) -> Callable[[Path], PipelineConfig]:
    """`small_config(artifacts)`: a configuration whose run is short."""
    return lambda artifacts: configure(photos, artifacts)


@pytest.fixture(scope="session")
def finished(finished_folder: Path, small_config: Callable[[Path], PipelineConfig]) -> PipelineConfig:
    """The configuration of a published run; shared, so tests that change its folders copy them."""
    return small_config(finished_folder / "artifacts")


@pytest.fixture
def unpublished(finished: PipelineConfig, tmp_path: Path) -> PipelineConfig:
    """The configuration of a finished but unpublished run, in separate folders."""
    shutil.copytree(Path(finished.artifacts) / "runs", tmp_path / "runs")
    return finished.model_copy(update={"artifacts": str(tmp_path)})
