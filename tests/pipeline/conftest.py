"""Small data to train on: pictures of three shapes, networks, and one complete trained and evaluated run."""

import copy
import hashlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.samples import Prepared, Sample, write_samples
from edgeline.pipeline.models.backbones import Network, build
from edgeline.pipeline.runs.atomic_files import write_json
from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.pipeline.runs.run import Run, create_run, open_run
from edgeline.serve.preprocess import PreprocessSpec
from tests.support.shared_results import shared_result

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
KINDS = ("disc", "frame", "stripes")
SPLIT_SIZES = {"train": 12, "val": 4, "test": 4}
SPEC = PreprocessSpec(height=32, width=32)


def draw(kind: str, number: int) -> Image.Image:
    """A shape of any color at any place; the number decides."""
    rng = random.Random(f"{kind} {number}")
    picture = Image.new("RGB", (80, 64), tuple(rng.randrange(60) for _ in range(3)))
    pen = ImageDraw.Draw(picture)
    color = tuple(rng.randrange(120, 256) for _ in range(3))
    x, y, side = rng.randrange(14, 24), rng.randrange(8, 14), rng.randrange(30, 40)
    if kind == "disc":
        pen.ellipse((x, y, x + side, y + side), fill=color)
    elif kind == "frame":
        pen.rectangle((x, y, x + side, y + side), outline=color, width=5)
    else:
        for offset in range(0, side, 8):
            pen.line((x, y + offset, x + side, y + offset), fill=color, width=3)
    return picture


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights."""
    if not SHARED.is_dir():
        pytest.skip("no real photos and weights here (../shared/data)")
    return SHARED


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., Sample]:
    """`make_sample(path, **fields)`: the sample of an image file."""

    def make(path: Path, **fields: Any) -> Sample:
        given = {"label": "disc", "index": 0, "split": "train", "group": "", "pixels": "", "width": 0, "height": 0}
        digest, name = hashlib.sha256(path.read_bytes()).hexdigest(), f"{path.parent.name}/{path.name}"
        return Sample(path=str(path), name=name, sha256=digest, **given | fields)

    return make


@pytest.fixture(scope="session")
def shapes(request: pytest.FixtureRequest, make_sample: Callable[..., Sample]) -> Prepared:
    """Three classes of 12 training, 4 validation and 4 test pictures."""
    splits = [split for split, size in SPLIT_SIZES.items() for _ in range(size)]

    def build(folder: Path) -> None:
        for kind in KINDS:
            (folder / kind).mkdir()
            for number in range(len(splits)):
                draw(kind, number).save(folder / kind / f"{number:02}.png")

    root = shared_result(request.config, "shapes", build, code=(), inputs={"file": __file__})
    samples = [
        make_sample(root / kind / f"{number:02}.png", label=kind, index=index, split=split)
        for index, kind in enumerate(KINDS)
        for number, split in enumerate(splits)
    ]
    return Prepared(KINDS, tuple(samples), "shapes")


@pytest.fixture(scope="session")
def lite0_template() -> tuple[Network, PreprocessSpec]:
    return build("efficientnet_lite0", "imagenet", classes=len(KINDS), dropout=0.2)


@pytest.fixture
def lite0(lite0_template: tuple[Network, PreprocessSpec]) -> Network:
    """EfficientNet-Lite0 with its ImageNet weights and a new head; a separate copy for each test."""
    return copy.deepcopy(lite0_template[0])


@pytest.fixture(scope="session")
def small_template() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build("mobilenet_v3_small", "none", classes=len(KINDS), dropout=0.2)[0]
        _settle(network)
        return network


def _settle(network: Network) -> None:
    """Fit the statistics of the norms to noise; without them the signal of random weights vanishes."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randint(0, 256, (64, SPEC.height, SPEC.width, 3), dtype=torch.uint8))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    network.eval()


@pytest.fixture
def small(small_template: Network) -> Network:
    """A small network with random weights, the same each time; a separate copy for each test."""
    return copy.deepcopy(small_template)


@pytest.fixture
def spec() -> PreprocessSpec:
    """Small pictures: every network here pools over any size."""
    return SPEC


@pytest.fixture
def cache(tmp_path: Path) -> ContentCache:
    """An empty cache."""
    return ContentCache(tmp_path / "cache" / "features.sqlite")


@pytest.fixture
def many_threads() -> Iterator[None]:
    """Restores the number of threads after the test."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_run(shapes: Prepared) -> Callable[..., Run]:
    """`make_run(artifacts, prepared=shapes, **options)`: a run whose prepare step is finished."""

    def make(artifacts: Path, prepared: Prepared = shapes, **options: Any) -> Run:
        train = {"strategy": "head"} | options.pop("train", {})
        overrides = [f"train.{key}={value}" for key, value in train.items()]
        overrides.append("preprocess.size=96")  # a fifth of the time of 224
        config = load_config(None, overrides, artifacts=str(artifacts), name="shapes", **options)
        run = create_run(config, prepared.fingerprint)
        run.step("prepare").mkdir()
        write_samples(run.step("prepare") / "samples.csv", prepared.samples)
        summary = {"labels": list(prepared.labels), "fingerprint": prepared.fingerprint}
        write_json(run.step("prepare") / "summary.json", summary)
        return run

    return make


@pytest.fixture(scope="session")
def evaluated_run(request: pytest.FixtureRequest, make_run: Callable[..., Run]) -> Run:
    """A run whose checkpoint is Lite0 with a head trained on the shapes, evaluated. Copy it before changing anything."""

    def build(folder: Path) -> None:
        from edgeline.pipeline.evaluation.evaluate import build_evaluation
        from edgeline.pipeline.training.train import build_checkpoint

        run = make_run(folder)
        for name, build_step in (("train", build_checkpoint), ("evaluate", build_evaluation)):
            run.step(name).mkdir()
            build_step(run, run.step(name))

    code = ("edgeline.pipeline.evaluation.evaluate", "edgeline.pipeline.training.train")
    inputs = {"file": __file__, "config": load_config().model_dump(mode="json")}
    folder = shared_result(request.config, "trained-run", build, code=code, inputs=inputs)
    [run_folder] = (folder / "runs").iterdir()
    return open_run(run_folder)


@pytest.fixture(scope="session")
def trained_run(evaluated_run: Run) -> Run:
    """The same run, for tests of its checkpoint."""
    return evaluated_run
