"""Golden samples reveal what hashes cannot: a complete but wrong artifact, or a machine that computes differently."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve import image_files, preprocess
from edgeline.serve.artifact.reader import open_artifact
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import GoldenError

Seal = Callable[..., Path]


@pytest.fixture(name="folder")
def published(make_artifact: Callable[..., Path]) -> Path:
    return make_artifact()


def change_golden(folder: Path, seal: Seal, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "golden" / "golden.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    seal(folder)


def test_a_valid_artifact_passes(folder: Path) -> None:
    self_test = Classifier.open(folder).self_test
    assert self_test is not None
    assert (self_test.samples, self_test.tolerance, self_test.pixel_tolerance) == (4, 0.001, 2.0)
    assert self_test.max_difference < 1e-5
    assert self_test.max_pixel_difference < 0.5


def test_labels_in_another_order_are_rejected(folder: Path, seal: Seal) -> None:
    (folder / "labels.txt").write_text("green\nred\nblue\ndark\n")
    seal(folder, labels=["green", "red", "blue", "dark"])
    with pytest.raises(GoldenError, match=r"golden/0.jpg is 'red', but its class is 'green'.*not in the model's order"):
        Classifier.open(folder)


def test_a_machine_that_ignores_exif_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preprocess, "UPRIGHT", {})
    with pytest.raises(GoldenError, match="preprocessing on this machine produces different pixels"):
        Classifier.open(folder)


def test_a_machine_that_swaps_red_and_blue_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = preprocess.fit
    monkeypatch.setattr(preprocess, "fit", lambda image, spec, box: fit(image, spec, box)[..., ::-1])
    with pytest.raises(GoldenError, match="different pixels"):
        Classifier.open(folder)


def test_a_spec_with_another_crop_is_rejected(folder: Path, seal: Seal) -> None:
    spec = json.loads((folder / "manifest.json").read_text())["preprocess"]
    seal(folder, preprocess=spec | {"crop_fraction": 0.5})
    with pytest.raises(GoldenError, match="different pixels"):
        Classifier.open(folder)


def test_a_machine_that_cannot_decode_a_sample_is_rejected(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "FORMATS", ("PNG",))
    with pytest.raises(GoldenError, match=r"golden/0.jpg: .*check the decoder of this machine"):
        Classifier.open(folder)


@pytest.mark.parametrize("shift", [0.01, -0.5])
def test_changed_probabilities_are_rejected(folder: Path, seal: Seal, shift: float) -> None:
    def change(data: dict[str, Any]) -> None:
        data["samples"][1]["probabilities"][2] += shift

    change_golden(folder, seal, change)
    with pytest.raises(
        GoldenError, match=r"golden/1.jpg: a probability differs by .*tolerated 0.001, although the pixels agree"
    ):
        Classifier.open(folder)


def test_a_changed_weight_is_rejected(folder: Path, seal: Seal) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(folder / "model.onnx")
    [bias] = [value for value in model.graph.initializer if value.name == "bias"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.array([0.1, 0, 0, 0], np.float32), "bias"))
    onnx.save(model, folder / "model.onnx")
    seal(folder)
    with pytest.raises(GoldenError, match="the model or the runtime computes something else on this machine"):
        Classifier.open(folder)


def test_a_changed_weight_that_only_the_logits_show_is_rejected(folder: Path, seal: Seal) -> None:
    import onnx
    from onnx import numpy_helper

    # Scaled so that every probability is 0 or 1, the probabilities do not depend on a single weight.
    model = onnx.load(folder / "model.onnx")
    held = {value.name: value for value in model.graph.initializer}
    for name in ("weights", "bias"):
        held[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held[name]) * np.float32(1000), name))
    onnx.save(model, folder / "model.onnx")
    seal(folder)
    classifier = Classifier.open(folder, verify=False)

    def answer_again(data: dict[str, Any]) -> None:
        for sample in data["samples"]:
            pixels = np.array(Image.open(folder / sample["pixels"]))[None]
            [probabilities], [logits] = classifier.answer(pixels)
            assert set(probabilities.tolist()) == {0.0, 1.0}
            sample.update(probabilities=probabilities.tolist(), logits=logits.tolist())

    change_golden(folder, seal, answer_again)
    assert Classifier.open(folder).self_test is not None
    held["bias"].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held["bias"]) + np.float32([20, 0, 0, 0]), "bias"))
    onnx.save(model, folder / "model.onnx")
    seal(folder)
    with pytest.raises(GoldenError, match=r"golden/0.jpg: on the stored pixels a logit differs by .* of the largest"):
        Classifier.open(folder)


def test_a_difference_within_tolerance_is_measured(folder: Path, seal: Seal) -> None:
    def change(data: dict[str, Any]) -> None:
        data["samples"][1]["probabilities"][2] += 0.0005

    change_golden(folder, seal, change)
    self_test = Classifier.open(folder).self_test
    assert self_test is not None
    assert self_test.max_difference == pytest.approx(0.0005, abs=1e-5)


def test_samples_with_another_number_of_classes_are_rejected(folder: Path, seal: Seal) -> None:
    def change(data: dict[str, Any]) -> None:
        for name in ("probabilities", "logits"):
            data["samples"][0][name].append(0.0)

    change_golden(folder, seal, change)
    with pytest.raises(GoldenError, match="the model has 4 classes, the sample has 5"):
        Classifier.open(folder)


def test_pixels_of_another_size_are_rejected(folder: Path, seal: Seal) -> None:
    Image.new("RGB", (5, 4)).save(folder / "golden" / "0.png")
    seal(folder)
    with pytest.raises(GoldenError, match=r"produces the shape \(12, 16, 3\), the sample has \(4, 5, 3\)"):
        Classifier.open(folder)


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 12)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize("data", [b"", b"text", jpeg()], ids=["empty", "text", "a JPEG"])
def test_pixels_that_are_not_a_png_are_rejected(folder: Path, seal: Seal, data: bytes) -> None:
    (folder / "golden" / "0.png").write_bytes(data)
    seal(folder)
    with pytest.raises(GoldenError, match=r"golden/0.png is not a PNG file"):
        Classifier.open(folder)


UNREADABLE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no samples": (lambda d: d["samples"].clear(), "has no samples"),
    "samples missing": (lambda d: d.pop("samples"), "samples"),
    "no tolerance": (lambda d: d.pop("tolerance"), "tolerance"),
    "a tolerance that is not finite": (lambda d: d.update(pixel_tolerance=float("nan")), "pixel_tolerance must be a number"),
    "an infinite tolerance": (lambda d: d.update(tolerance=float("inf")), "tolerance must be a number"),
    "a sample without a label": (lambda d: d["samples"][0].pop("label"), "must have file, pixels, label"),
    "a sample that is text": (lambda d: d.update(samples=["golden/0.jpg"]), "cannot be read"),
    "probabilities that are text": (lambda d: d["samples"][0].update(probabilities=["high"]), "cannot be read"),
    "a probability that is NaN": (
        lambda d: d["samples"][0].update(probabilities=[float("nan"), 0, 0, 0]),
        "one of the probabilities is not finite",
    ),
    "an infinite logit": (
        lambda d: d["samples"][0].update(logits=[float("inf"), 0, 0, 0]),
        "one of the logits is not finite",
    ),
    "fewer logits than probabilities": (
        lambda d: d["samples"][0]["logits"].pop(),
        "the same number of logits and probabilities",
    ),
    "a sample without logits": (lambda d: d["samples"][0].pop("logits"), "must have file, pixels, label, probabilities and"),
    "ragged probabilities": (lambda d: d["samples"][0].update(probabilities=[[1], [2, 3]]), "cannot be read"),
}


@pytest.mark.parametrize(("change", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_samples_that_cannot_be_read_are_rejected(
    folder: Path, seal: Seal, change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    change_golden(folder, seal, change)
    with pytest.raises(GoldenError, match=reason):
        Classifier.open(folder)


def test_a_sample_outside_the_artifact_is_not_read(folder: Path, seal: Seal) -> None:
    change_golden(folder, seal, lambda data: data["samples"][0].update(file="../../secret"))
    artifact = open_artifact(folder)
    with pytest.raises(Exception, match="has no file"):
        Classifier.open(artifact.folder)


def with_own_answers(folder: Path, seal: Seal, shift: float, **tolerances: float) -> None:
    """Give the variant `onnx-fp32` its own expected outputs, all shifted, as if its file differed."""

    def change(data: dict[str, Any]) -> None:
        data["variants"] = {"onnx-fp32": tolerances}
        for sample in data["samples"]:
            own = {name: [value + shift for value in sample[name]] for name in ("probabilities", "logits")}
            sample["variants"] = {"onnx-fp32": own}

    change_golden(folder, seal, change)


def test_a_variant_is_compared_with_its_own_outputs(folder: Path, seal: Seal) -> None:
    with_own_answers(folder, seal, 0.04, tolerance=0.15, logit_tolerance=0.06)
    self_test = Classifier.open(folder).self_test
    assert self_test is not None
    assert (self_test.tolerance, self_test.logit_tolerance) == (0.15, 0.06)
    assert self_test.max_difference == pytest.approx(0.04, abs=1e-4)


def test_a_variant_has_its_own_tolerances(folder: Path, seal: Seal) -> None:
    with_own_answers(folder, seal, 0.04, tolerance=0.03, logit_tolerance=0.06)
    with pytest.raises(GoldenError, match=r"a probability differs by 0\.04, tolerated 0\.03"):
        Classifier.open(folder)


def test_logits_have_the_tolerance_of_the_probabilities_by_default(folder: Path, seal: Seal) -> None:
    with_own_answers(folder, seal, 0.0, tolerance=0.05)
    self_test = Classifier.open(folder).self_test
    assert self_test is not None
    assert self_test.logit_tolerance == 0.05


def test_a_variant_without_its_own_outputs_is_rejected(folder: Path, seal: Seal) -> None:
    change_golden(folder, seal, lambda data: data.update(variants={"onnx-fp32": {"tolerance": 0.1}}))
    with pytest.raises(GoldenError, match="cannot be read"):
        Classifier.open(folder)
