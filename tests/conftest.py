"""Fixtures for every layer: a small, valid artifact, made without training."""

import gc
import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from PIL import Image

from edgeline.serve.artifact.manifest import FileEntry, Manifest, Variant
from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.session import create_session

SPEC = PreprocessSpec(height=12, width=16)
LABELS = ("red", "green", "blue", "dark")
COLORS = {"red": (200, 40, 30), "green": (30, 190, 50), "blue": (40, 30, 210), "dark": (15, 12, 10)}
ROLES = {"labels.txt": "labels", "model.onnx": "model", "evaluation.json": "evaluation", "card.md": "card"}

# As the command line does, before anything loads PyTorch; subprocesses inherit it. Workers and subprocesses keep all cores busy
# without a second thread in each, which takes a third more processor time for networks and images as small as these.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}

# A shared machine may stall any example, and a run leaves no folder behind. Each run draws other examples.
hypothesis.settings.register_profile("edgeline", deadline=None, database=None, max_examples=40)
hypothesis.settings.load_profile("edgeline")


MakeArtifact = Callable[..., Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute files, see `tests.support.scheduling`."""
    from tests.support.scheduling import ByFile

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect without the garbage collector: all that is imported and collected stays."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Generator[None]:
    """Order the files after their order has been shuffled."""
    from tests.support.scheduling import rank

    yield
    items.sort(key=lambda item: rank(item.nodeid))


@pytest.fixture(scope="module", autouse=True)
def imported_modules_are_not_collected() -> None:
    """Exclude what is loaded from garbage collection: a server collects after each model that it loads, for a second here."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    """Compute on one thread, whatever the tests before have set."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def photo(color: tuple[int, int, int], orientation: int = 1, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG with a dark corner, so that turning it wrongly shows, and an EXIF orientation."""
    picture = Image.new("RGB", size, color)
    picture.paste((0, 0, 0), (0, 0, size[0] // 2, size[1] // 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def color_model() -> bytes:
    """An ONNX model under the graph contract that names the color of a picture, by its mean."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.array([[8, -4, -4, -6], [-4, 8, -4, -6], [-4, -4, 8, -6]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["levels"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Div", ["mean", "scale"], ["mean01"]),
            helper.make_node("Gemm", ["mean01", "weights", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "colors",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SPEC.height, SPEC.width, 3])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(LABELS)])
            for name in ("probabilities", "logits")
        ],
        [
            numpy_helper.from_array(np.array(255, np.float32), "scale"),
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(np.array([0, 0, 0, 2], np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def reseal(folder: Path, **changes: Any) -> Path:
    """Write a manifest of the files in an artifact's folder, with changes, as a publisher or a capable forger would."""
    held = json.loads((folder / "manifest.json").read_text()) | changes
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    held["files"] = [
        {
            "path": path,
            "size": (folder / path).stat().st_size,
            "sha256": hashlib.sha256((folder / path).read_bytes()).hexdigest(),
            "role": ROLES.get(path, "golden"),
        }
        for path in paths
    ]
    (folder / "manifest.json").write_text(json.dumps(held))
    return folder


@pytest.fixture(scope="session")
def artifact_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete artifact in `<store>/colors/1`; copy it before changing anything."""
    folder = tmp_path_factory.mktemp("template") / "colors" / "1"
    (folder / "golden").mkdir(parents=True)
    model = color_model()
    session = create_session(model, threads=1)
    samples = []
    for index, label in enumerate(LABELS):
        # The last one is large enough to be decoded at an eighth.
        data = photo(COLORS[label], orientation=6, size=(40, 30) if label != LABELS[-1] else (640, 480))
        pixels = preprocess(data, SPEC)
        [probabilities], [logits] = session.run(["probabilities", "logits"], {"image": pixels[None]})
        names = {"file": f"golden/{index}.jpg", "pixels": f"golden/{index}.png"}
        (folder / names["file"]).write_bytes(data)
        Image.fromarray(pixels).save(folder / names["pixels"])
        answers = {"probabilities": probabilities.tolist(), "logits": logits.tolist()}
        samples.append({**names, "label": label, **answers})
    golden = {"tolerance": 0.001, "pixel_tolerance": 2.0, "samples": samples}
    (folder / "golden" / "golden.json").write_text(json.dumps(golden))
    (folder / "model.onnx").write_bytes(model)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS))
    (folder / "card.md").write_text("# Colors\n")
    (folder / "manifest.json").write_bytes(_manifest().to_json())
    return reseal(folder)


@pytest.fixture(scope="session")
def seal() -> Callable[..., Path]:
    """`seal(folder, **manifest_fields)`: write a manifest of the folder's files, as if they had been published."""
    return reseal


@pytest.fixture
def make_artifact(artifact_template: Path, tmp_path: Path) -> MakeArtifact:
    """`make_artifact(name="colors", version=1, **manifest_fields)`: the folder of a new artifact."""

    def make(name: str = "colors", version: int = 1, store: Path | None = None, **fields: Any) -> Path:
        folder = (store or tmp_path / "store") / name / str(version)
        shutil.copytree(artifact_template, folder)
        return reseal(folder, name=name, version=version, **fields)

    return make


def _manifest() -> Manifest:
    entry = FileEntry(path="model.onnx", size=0, sha256="0" * 64, role="model")
    gate = {"max_difference": 0.0}
    variant = Variant(name="onnx-fp32", file="model.onnx", format="onnx", precision="float32", max_batch=4, verification=gate)
    shape = ["batch", SPEC.height, SPEC.width, 3]
    return Manifest(
        name="colors",
        version=1,
        created="2026-11-01T12:00:00+00:00",
        labels=LABELS,
        preprocess=SPEC,
        inputs=({"name": "image", "dtype": "uint8", "shape": shape},),
        outputs=tuple(
            {"name": name, "dtype": "float32", "shape": ["batch", len(LABELS)]} for name in ("probabilities", "logits")
        ),
        variants=(variant,),
        files=(entry,),
        metrics={"accuracy": 1.0},
        verification={"passed": True},
        provenance={"model": "mean color"},
    )
