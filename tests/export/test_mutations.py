"""Plant one fault at a time, and see the gate refuse it by its cause; and, the control, let pass what has none.

Faults of the file are planted in the exported graph. Each is shown to change answers, to be refused by verification before
anything is published, and to be refused by the artifact's own golden samples, had it been published with all hashes right.
Faults of preprocessing are planted in its code: the witness of the checkpoint refuses them at the gate, golden samples on a
device.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from export.comparison import raise_problems
from export.to_onnx import Deployed
from export.verify import verify
from pipeline.config import VerifyConfig
from pipeline.hard_set import check_witness, hard_set
from pipeline.samples import Sample, read_image
from serve import preprocess
from serve.classifier import Classifier
from serve.errors import EdgelineError, ExportError, GoldenError, VerificationError
from serve.preprocess import PreprocessSpec
from serve.runtime import create_session

Graph = onnx.ModelProto
Seal = Callable[..., Path]
HEAD = "network.head.1.weight"


class Remembering(Deployed):
    """PyTorch's side, which computes an answer once: no fault of this file touches it."""

    def __init__(self, deployed: Deployed) -> None:
        super().__init__(deployed.network, deployed.temperature)
        self.known: dict[bytes, tuple[torch.Tensor, torch.Tensor]] = {}

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        key = hashlib.sha256(image.numpy().tobytes()).digest()
        if key not in self.known:
            self.known[key] = super().forward(image)
        return self.known[key]


@pytest.fixture(scope="module")
def reference(deployed: Deployed) -> Deployed:
    return Remembering(deployed)


Gate = Callable[[bytes], dict[str, Any]]


@pytest.fixture
def gate(reference: Deployed, spec: PreprocessSpec, held_out: list[Sample], bars: VerifyConfig) -> Gate:
    """`gate(model)`: verify an ONNX file as a run would, and raise what is wrong with it."""

    def hold(model: bytes) -> dict[str, Any]:
        report = verify(reference, model, spec, held_out, bars, opset=18)
        raise_problems(report)
        return report

    return hold


# Surgery.


def initializer(graph: Graph, name: str) -> TensorProto:
    [found] = [tensor for tensor in graph.graph.initializer if tensor.name == name]
    return found


def rewrite(graph: Graph, name: str, change: Callable[[np.ndarray], Any]) -> None:
    """Change an initializer's numbers."""
    tensor = initializer(graph, name)
    old = numpy_helper.to_array(tensor)
    new = np.empty_like(old)
    new[...] = change(old.copy())
    tensor.CopyFrom(numpy_helper.from_array(new, name))


def only(graph: Graph, kind: str, output: str | None = None) -> onnx.NodeProto:
    [found] = [node for node in graph.graph.node if node.op_type == kind and output in (None, *node.output)]
    return found


def before(graph: Graph, node: onnx.NodeProto, kind: str, **attributes: Any) -> onnx.NodeProto:
    """Put a node of one input in front of another's first input."""
    fresh = f"fault_{len(graph.graph.node)}"
    added = helper.make_node(kind, [node.input[0]], [fresh], name=fresh, **attributes)
    node.input[0] = fresh
    graph.graph.node.insert(list(graph.graph.node).index(node), added)
    return next(n for n in graph.graph.node if n.name == fresh)


def divisor(graph: Graph) -> str:
    """The name of the temperature."""
    return str(only(graph, "Div", "logits").input[1])


# Faults of the file.


def blue_for_red(graph: Graph) -> None:
    rewrite(graph, "network.backbone.conv_stem.weight", lambda w: w[:, ::-1])


def rows_for_columns(graph: Graph) -> None:
    only(graph, "Transpose").attribute[0].CopyFrom(helper.make_attribute("perm", [0, 3, 2, 1]))


def no_mean(graph: Graph) -> None:
    rewrite(graph, "network.mean", np.zeros_like)


def no_std(graph: Graph) -> None:
    rewrite(graph, "network.std", np.ones_like)


def the_mean_and_std_of_other_weights(graph: Graph) -> None:
    rewrite(graph, "network.mean", lambda _: 255 * np.array([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1))
    rewrite(graph, "network.std", lambda _: 255 * np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1))


def head_shifted_by_one(graph: Graph) -> None:
    rewrite(graph, HEAD, lambda w: np.roll(w, 1, axis=0))
    rewrite(graph, "network.head.1.bias", lambda b: np.roll(b, 1))


def head_of_an_older_run(graph: Graph) -> None:
    noise = np.random.default_rng(0)
    rewrite(graph, HEAD, lambda w: w + 0.05 * w.std() * noise.normal(size=w.shape))


def one_depthwise_channel_off_by_a_twentieth(graph: Graph) -> None:
    def scale(w: np.ndarray) -> np.ndarray:
        w[3] *= 1.05
        return w

    rewrite(graph, "network.backbone.blocks.4.0.conv_dw.weight", scale)


def the_sign_bit_of_one_weight(graph: Graph) -> None:
    def flip(w: np.ndarray) -> np.ndarray:
        w.view(np.uint32).reshape(-1)[np.abs(w).argmax()] ^= 1 << 31
        return w

    rewrite(graph, "network.backbone.conv_stem.weight", flip)


def weights_rounded_to_half_precision(graph: Graph) -> None:
    for tensor in graph.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 4:
            rewrite(graph, tensor.name, lambda w: w.astype(np.float16))


def probabilities_rounded_to_half_precision(graph: Graph) -> None:
    softmax = only(graph, "Softmax")
    softmax.output[0] = "exact"
    graph.graph.node.append(helper.make_node("Cast", ["exact"], ["half"], to=TensorProto.FLOAT16))
    graph.graph.node.append(helper.make_node("Cast", ["half"], ["probabilities"], to=TensorProto.FLOAT))


def symmetric_padding(graph: Graph) -> None:
    for node in graph.graph.node:
        for attribute in node.attribute:
            if attribute.name == "pads" and attribute.ints[0] != attribute.ints[2]:
                attribute.ints[:2] = attribute.ints[2:]


def activations_without_their_cap(graph: Graph) -> None:
    name = next(node.input[2] for node in graph.graph.node if node.op_type == "Clip")
    rewrite(graph, name, lambda _: 1e4)


def maximum_for_average(graph: Graph) -> None:
    only(graph, "GlobalAveragePool").op_type = "GlobalMaxPool"


def batch_norm_in_training_mode(graph: Graph) -> None:
    pool = only(graph, "GlobalAveragePool")
    norm = before(graph, pool, "BatchNormalization", training_mode=1)
    channels = numpy_helper.to_array(initializer(graph, HEAD)).shape[1]
    for name, value in (("scale", 1.0), ("shift", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        graph.graph.initializer.append(numpy_helper.from_array(np.full(channels, value, np.float32), f"fault_{name}"))
        norm.input.append(f"fault_{name}")
    norm.output.extend(["fault_mean_out", "fault_var_out"])


def answers_that_depend_on_the_batch(graph: Graph) -> None:
    """Each logit is drawn towards the batch's mean, of which a batch of one shows nothing."""
    division = only(graph, "Div", "logits")
    logits = division.input[0]
    graph.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "fault_axis"))
    graph.graph.initializer.append(numpy_helper.from_array(np.array(0.01, np.float32), "fault_share"))
    added = [
        helper.make_node("ReduceMean", [logits, "fault_axis"], ["fault_mean"], keepdims=1),
        helper.make_node("Sub", [logits, "fault_mean"], ["fault_apart"]),
        helper.make_node("Mul", ["fault_apart", "fault_share"], ["fault_drawn"]),
        helper.make_node("Sub", [logits, "fault_drawn"], ["fault_logits"]),
    ]
    for node in added:
        graph.graph.node.insert(list(graph.graph.node).index(division), node)
    only(graph, "Div", "logits").input[0] = "fault_logits"


def no_softmax(graph: Graph) -> None:
    softmax = only(graph, "Softmax")
    softmax.CopyFrom(helper.make_node("Identity", softmax.input, softmax.output))


def softmax_over_the_batch(graph: Graph) -> None:
    only(graph, "Softmax").attribute[0].CopyFrom(helper.make_attribute("axis", 0))


def outputs_exchanged(graph: Graph) -> None:
    names = {"logits": "probabilities", "probabilities": "logits"}
    for node in graph.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def temperature_ignored(graph: Graph) -> None:
    rewrite(graph, divisor(graph), np.ones_like)


def temperature_ignored_in_the_logits_alone(graph: Graph) -> None:
    division, softmax = only(graph, "Div", "logits"), only(graph, "Softmax")
    division.output[0] = softmax.input[0] = "fault_scaled"
    graph.graph.node.append(helper.make_node("Identity", [division.input[0]], ["logits"]))


def the_same_answer_for_every_image(graph: Graph) -> None:
    rewrite(graph, HEAD, np.zeros_like)


PROBABILITIES = "the probabilities of .* images differ by over 0.0001"
LOGITS = "the logits, as shares of the largest, of .* images differ by over 0.0001"
MODEL = "the model or the runtime computes something else here"

FAULTS: dict[Callable[[Graph], None], str] = {
    blue_for_red: PROBABILITIES,
    rows_for_columns: PROBABILITIES,
    no_mean: PROBABILITIES,
    no_std: PROBABILITIES,
    the_mean_and_std_of_other_weights: PROBABILITIES,
    head_shifted_by_one: "images have another best class although PyTorch is clear",
    head_of_an_older_run: LOGITS,
    the_sign_bit_of_one_weight: LOGITS,
    weights_rounded_to_half_precision: LOGITS,
    symmetric_padding: LOGITS,
    activations_without_their_cap: LOGITS,
    maximum_for_average: PROBABILITIES,
    batch_norm_in_training_mode: PROBABILITIES,
    no_softmax: "do not sum to 1 .*is the softmax missing",
    outputs_exchanged: "do not sum to 1 .*is the softmax missing",
    temperature_ignored: LOGITS,
    temperature_ignored_in_the_logits_alone: LOGITS,
    the_same_answer_for_every_image: "gives the same answer for every image",
}
"""What is wrong with the file, and what the gate says of it."""

HIDDEN_FAULTS: dict[Callable[[Graph], None], str] = {
    one_depthwise_channel_off_by_a_twentieth: LOGITS,
    answers_that_depend_on_the_batch: LOGITS,
    softmax_over_the_batch: "do not sum to 1",
}
"""Faults that golden samples need not show: they are answered one by one, and tolerate what other processors may differ by."""


def mutate(model: bytes, fault: Callable[[Graph], None]) -> bytes:
    graph = onnx.load_model_from_string(model)
    fault(graph)
    return bytes(graph.SerializeToString())


def named(fault: Callable[..., Any]) -> str:
    return fault.__name__.replace("_", " ")


def largest_change(before: bytes, after: bytes, pixels: np.ndarray) -> float:
    outputs = [create_session(model).run(["probabilities", "logits"], {"image": pixels}) for model in (before, after)]
    return max(float(np.abs(a - b).max()) for a, b in zip(*outputs, strict=True))


@pytest.fixture
def pixels(held_out: list[Sample], spec: PreprocessSpec) -> np.ndarray:
    files = [*map(read_image, held_out[:2]), hard_set()["scene"]]
    return np.stack([preprocess.preprocess(data, spec) for data in files])


def test_an_export_without_a_fault_passes(finished: Any, gate: Gate, artifact: Path) -> None:
    report = gate(finished.model)
    assert report["passed"]
    assert report["max_difference"] < 1e-5
    assert report["max_logit_difference"] < 1e-5
    assert check_witness(finished.witness, Classifier.open(artifact).manifest.preprocess) == 0


@pytest.mark.parametrize(("fault", "cause"), (FAULTS | HIDDEN_FAULTS).items(), ids=map(named, FAULTS | HIDDEN_FAULTS))
def test_a_file_with_a_fault_does_not_pass_the_gate(
    finished: Any, gate: Gate, pixels: np.ndarray, fault: Callable[[Graph], None], cause: str
) -> None:
    faulty = mutate(finished.model, fault)
    assert largest_change(finished.model, faulty, pixels) > 1e-4
    with pytest.raises(VerificationError, match=cause) as refusal:
        gate(faulty)
    assert "worst images: " in str(refusal.value)


@pytest.mark.parametrize("fault", FAULTS, ids=named)
def test_an_artifact_that_was_published_with_it_does_not_prove_itself(
    finished: Any, artifact: Path, seal: Seal, fault: Callable[[Graph], None]
) -> None:
    (artifact / "model.onnx").write_bytes(mutate(finished.model, fault))
    seal(artifact)
    with pytest.raises(GoldenError, match=MODEL):
        Classifier.open(artifact)


def test_probabilities_rounded_to_half_precision_are_refused(
    finished: Any, deployed: Deployed, spec: PreprocessSpec, bars: VerifyConfig
) -> None:
    """Zeros and ones survive any rounding, so the model is made less sure first."""
    temperature = 100 * deployed.temperature
    unsure = mutate(finished.model, lambda graph: rewrite(graph, divisor(graph), lambda _: temperature))
    less_sure = Remembering(Deployed(deployed.network, temperature))
    assert verify(less_sure, unsure, spec, [], bars)["passed"]
    with pytest.raises(VerificationError, match=PROBABILITIES):
        raise_problems(verify(less_sure, mutate(unsure, probabilities_rounded_to_half_precision), spec, [], bars))


def test_another_batch_norm_epsilon_is_refused(
    finished: Any, gate: Gate, pixels: np.ndarray, deployed: Deployed, artifact: Path, seal: Seal
) -> None:
    """The exporter folds batch norm into the convolution before it, so the fault is planted in the folded weights."""
    graph = onnx.load_model_from_string(finished.model)
    epsilons = set()
    layers = [(f"network.{name}", layer) for name, layer in deployed.network.named_modules()]
    for (name, convolution), (_, norm) in itertools.pairwise(
        p for p in layers if isinstance(p[1], (nn.Conv2d, nn.BatchNorm2d))
    ):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            epsilons.add(norm.eps)
            assert norm.running_var is not None
            ratio = ((norm.running_var + norm.eps) / (norm.running_var + 1e-5)).sqrt().numpy()
            shift = norm.bias.detach().numpy()
            rewrite(graph, f"{name}.weight", lambda w, ratio=ratio: w * ratio[:, None, None, None])
            rewrite(graph, f"{name}.weight_bias", lambda b, ratio=ratio, shift=shift: shift + (b - shift) * ratio)
    assert epsilons == {1e-3}
    faulty = graph.SerializeToString()
    assert largest_change(finished.model, faulty, pixels) > 1e-4
    with pytest.raises(VerificationError, match=LOGITS):
        gate(faulty)
    (artifact / "model.onnx").write_bytes(faulty)
    seal(artifact)
    with pytest.raises(GoldenError, match=MODEL):
        Classifier.open(artifact)


# Faults that are seen before anything runs.


def a_weight_that_is_not_a_number(graph: Graph) -> None:
    def spoil(w: np.ndarray) -> np.ndarray:
        w[0, 0] = np.nan
        return w

    rewrite(graph, HEAD, spoil)


def the_batch_fixed(graph: Graph) -> None:
    for value in [*graph.graph.input, *graph.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_value = 1


def weights_in_another_file(graph: Graph) -> None:
    onnx.external_data_helper.set_external_data(initializer(graph, HEAD), "model.data")
    initializer(graph, HEAD).ClearField("raw_data")


STATIC_FAULTS: dict[Callable[[Graph], None], tuple[str, str]] = {
    a_weight_that_is_not_a_number: (f"weights that are not finite: {re.escape(HEAD)}", "not finite"),
    the_batch_fixed: ("image has the fixed batch 1, it must be free", "each behind a free batch dimension"),
    weights_in_another_file: (f"weights lie in another file: {re.escape(HEAD)}", "cannot load the model"),
}
"""What is wrong, what the gate says of it, and what an artifact that has it says on a device."""


@pytest.mark.parametrize(("fault", "causes"), STATIC_FAULTS.items(), ids=map(named, STATIC_FAULTS))
def test_a_file_that_breaks_its_contract_is_not_even_run(
    finished: Any, gate: Gate, artifact: Path, seal: Seal, fault: Callable[[Graph], None], causes: tuple[str, str]
) -> None:
    faulty = mutate(finished.model, fault)
    with pytest.raises(ExportError, match=causes[0]):
        gate(faulty)
    (artifact / "model.onnx").write_bytes(faulty)
    seal(artifact)
    with pytest.raises(EdgelineError, match=causes[1]):
        Classifier.open(artifact)


def test_a_batch_that_the_exporter_froze_inside_is_refused(finished: Any, gate: Gate) -> None:
    graph = onnx.load_model_from_string(finished.model)
    rewrite(graph, only(graph, "Reshape").input[1], lambda shape: np.array([1, shape[1]]))
    with pytest.raises(EdgelineError, match="cannot run the file at batch 7|onnx.checker refuses it"):
        gate(graph.SerializeToString())


# Faults of preprocessing.

Patch = pytest.MonkeyPatch
FIT, BOX, TO_RGB = preprocess.fit, preprocess.crop_box, preprocess._to_rgb


def ignored_exif(patch: Patch) -> None:
    patch.setattr(preprocess, "UPRIGHT", {})


def exchanged_red_and_blue(patch: Patch) -> None:
    patch.setattr(preprocess, "fit", lambda image, spec: FIT(image, spec)[..., ::-1])


def bilinear_for_bicubic(patch: Patch) -> None:
    patch.setitem(preprocess.INTERPOLATIONS, "bicubic", Image.Resampling.BILINEAR)


def nearest_for_bicubic(patch: Patch) -> None:
    patch.setitem(preprocess.INTERPOLATIONS, "bicubic", Image.Resampling.NEAREST)


def no_antialias(patch: Patch) -> None:
    def fit(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
        cut = np.array(image.crop(BOX(image.width, image.height, spec)), np.float32)
        images_1CHW = torch.from_numpy(cut).permute(2, 0, 1)[None]
        size = (spec.height, spec.width)
        resized = nn.functional.interpolate(images_1CHW, size, mode="bicubic", antialias=False, align_corners=False)
        return resized[0].permute(1, 2, 0).clamp(0, 255).round().byte().numpy()

    patch.setattr(preprocess, "fit", fit)


def squashed_without_a_crop(patch: Patch) -> None:
    patch.setattr(preprocess, "crop_box", lambda width, height, spec: (0, 0, width, height))


def the_whole_shorter_side(patch: Patch) -> None:
    def crop_box(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    patch.setattr(preprocess, "crop_box", crop_box)


def cut_a_pixel_beside(patch: Patch) -> None:
    def beside(width: int, height: int, spec: PreprocessSpec) -> tuple[int, int, int, int]:
        left, top, right, bottom = BOX(width, height, spec)
        return left + 1, top + 1, right + 1, bottom + 1

    patch.setattr(preprocess, "crop_box", beside)


def resized_before_the_cut(patch: Patch) -> None:
    def fit(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
        scale = spec.height / spec.crop_fraction / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - spec.width) // 2, (image.height - spec.height) // 2
        return np.asarray(image.crop((left, top, left + spec.width, top + spec.height)))

    patch.setattr(preprocess, "fit", fit)


def shrunk_in_two_steps(patch: Patch) -> None:
    def fit(image: Image.Image, spec: PreprocessSpec) -> np.ndarray:
        cut = image.crop(BOX(image.width, image.height, spec))
        return np.asarray(cut.resize((spec.width, spec.height), Image.Resampling.BICUBIC, reducing_gap=1.01))

    patch.setattr(preprocess, "fit", fit)


def clipped_16_bits(patch: Patch) -> None:
    def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
        if image.mode.startswith("I;16"):
            image = Image.fromarray(np.minimum(np.asarray(image), 255).astype(np.uint8))
        return TO_RGB(image, background)

    patch.setattr(preprocess, "_to_rgb", to_rgb)


def dropped_alpha(patch: Patch) -> None:
    patch.setattr(preprocess, "_to_rgb", lambda image, background: image.convert("RGB"))


SEEN_BY_ALL: dict[Callable[[Patch], None], str] = {
    ignored_exif: "exif_rotated",
    exchanged_red_and_blue: "scene",
    bilinear_for_bicubic: "scene",
    nearest_for_bicubic: "huge",
    no_antialias: "huge",
    squashed_without_a_crop: "scene",
    the_whole_shorter_side: "scene",
    cut_a_pixel_beside: "scene",
}
"""What is wrong with the code, and one of the pictures of the hard set that the gate must name."""

SEEN_BY_THE_WITNESS: dict[Callable[[Patch], None], str] = {
    resized_before_the_cut: "scene",
    shrunk_in_two_steps: "huge",
    clipped_16_bits: "grey_16_bit",
    dropped_alpha: "alpha",
}
"""Faults that photos of a few hundred pixels may not show."""


@pytest.mark.parametrize(
    ("fault", "picture"), (SEEN_BY_ALL | SEEN_BY_THE_WITNESS).items(), ids=map(named, SEEN_BY_ALL | SEEN_BY_THE_WITNESS)
)
def test_preprocessing_with_a_fault_does_not_pass_the_gate(
    finished: Any,
    reference: Deployed,
    spec: PreprocessSpec,
    bars: VerifyConfig,
    monkeypatch: Patch,
    fault: Callable[[Patch], None],
    picture: str,
) -> None:
    fault(monkeypatch)
    with pytest.raises(VerificationError, match=rf"not what the model was trained with: .*\b{picture}\b") as refusal:
        verify(reference, finished.model, spec, [], bars, witness=finished.witness)
    assert refusal.value.code == "preprocess_changed"


@pytest.mark.parametrize("fault", SEEN_BY_ALL, ids=named)
def test_a_device_with_the_fault_does_not_prove_an_artifact(
    finished: Any, monkeypatch: Patch, fault: Callable[[Patch], None]
) -> None:
    fault(monkeypatch)
    with pytest.raises(GoldenError, match="this machine's preprocessing gives other pixels"):
        Classifier.open(finished.artifact)


WRONG_SPECS: dict[str, dict[str, Any]] = {
    "another filter": {"interpolation": "bilinear"},
    "another crop": {"crop_fraction": 1.0},
}


@pytest.mark.parametrize("wrong", WRONG_SPECS.values(), ids=WRONG_SPECS)
def test_a_manifest_with_another_preprocessing_is_refused(artifact: Path, seal: Seal, wrong: dict[str, Any]) -> None:
    spec = json.loads((artifact / "manifest.json").read_text())["preprocess"]
    seal(artifact, preprocess=spec | wrong)
    with pytest.raises(GoldenError, match="gives other pixels"):
        Classifier.open(artifact)


# Faults of the artifact.


def test_labels_shifted_by_one_are_refused_though_every_hash_is_right(artifact: Path, seal: Seal) -> None:
    labels = json.loads((artifact / "manifest.json").read_text())["labels"]
    shifted = [*labels[1:], labels[0]]
    (artifact / "labels.txt").write_text("".join(f"{label}\n" for label in shifted))
    seal(artifact, labels=shifted)
    with pytest.raises(EdgelineError, match="was exported for other labels, or for another order of them"):
        Classifier.open(artifact)


def test_labels_shifted_by_one_are_refused_by_the_golden_samples_too(artifact: Path, seal: Seal) -> None:
    labels = json.loads((artifact / "manifest.json").read_text())["labels"]
    shifted = [*labels[1:], labels[0]]
    (artifact / "labels.txt").write_text("".join(f"{label}\n" for label in shifted))
    graph = onnx.load(artifact / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, artifact / "model.onnx")
    seal(artifact, labels=shifted)
    with pytest.raises(GoldenError, match="they are not in the model's order"):
        Classifier.open(artifact)


def test_the_model_of_an_older_run_is_refused_though_every_hash_is_right(finished: Any, artifact: Path, seal: Seal) -> None:
    older = mutate(finished.model, head_of_an_older_run)
    (artifact / "model.onnx").write_bytes(older)
    verification = json.loads((artifact / "verification.json").read_text())
    verification["model_sha256"] = hashlib.sha256(older).hexdigest()
    (artifact / "verification.json").write_text(json.dumps(verification))
    seal(artifact)
    classifier = Classifier.open(artifact, prove=False)
    for sample in json.loads((artifact / "golden" / "golden.json").read_text())["samples"]:
        data = (artifact / sample["file"]).read_bytes()
        [[best]] = classifier.predict([data], top_k=1)
        assert (best.label, best.probability) == (sample["label"], pytest.approx(1, abs=0.02))  # it is just as sure
    with pytest.raises(GoldenError, match="on the stored pixels a logit differs by .* of the largest"):
        Classifier.open(artifact)
