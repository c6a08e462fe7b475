"""Verification of third-party files: a correct file passes, and the report on a wrong one names the cause."""

import io
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from edgeline.export.external.model import InputSpec
from edgeline.export.external.report import FileReport
from edgeline.export.external.verify import IMAGENET, VerificationRequest, as_outputs, is_distribution, verify_external
from edgeline.export.graph.ort_tools import suppress_output
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.stress_images import preprocessing_fingerprint
from edgeline.pipeline.data.unlabeled import read_photos
from edgeline.serve.errors import DataError, EdgelineError, VerificationError
from edgeline.serve.preprocess import PreprocessSpec

SIDE, CLASSES = 32, 5
FEW = VerifyConfig(images=6, max_batch=8)
Edit = Callable[[onnx.ModelProto], None]


class Small(nn.Module):
    """A small classifier: two convolutions, a batch norm, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 24, 3, stride=2)
        self.fc = nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))).mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in every format: model.onnx, model.ts, model.pt2, and the checkpoint model.pth."""
    folder = tmp_path_factory.mktemp("external")
    torch.manual_seed(3)
    network = Small()
    nn.init.uniform_(network.norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(network.norm.running_var, 0.5, 2)
    nn.init.normal_(network.fc.weight, std=3)
    network.eval()
    example, shapes = torch.zeros(2, 3, SIDE, SIDE), ({0: torch.export.Dim("batch", min=1, max=64)},)
    with suppress_output(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (example,), folder / "model.onnx", dynamo=True, external_data=False, dynamic_shapes=shapes, verbose=False
        )
        torch.jit.trace(network, example).save(str(folder / "model.ts"))  # type: ignore[no-untyped-call]
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), folder / "model.pt2")
    torch.save(network.state_dict(), folder / "model.pth")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few colorful photos in folders, and two files that are not images."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / "er").mkdir(parents=True)
    for index in range(6):
        chance = np.random.default_rng(index)
        picture = Image.fromarray(chance.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((90, 70))
        picture.save(folder / ("deep/er" if index % 2 else "") / f"{index}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def verify(files: Path, photos: Path, tmp_path: Path) -> Callable[..., FileReport]:
    """`verify(edit, against="model.onnx")`: the report on the small network's file after an edit."""

    def run(edit: Edit | None = None, against: str | Path | None = "model.onnx", **options: Any) -> FileReport:
        model = onnx.load(files / "model.onnx")
        if edit is not None:
            edit(model)
        (tmp_path / "edited.onnx").write_bytes(model.SerializeToString())
        request = VerificationRequest(
            file=tmp_path / "edited.onnx",
            data=photos,
            against=None if against is None else files / against,
            trusted=True,
            config=FEW,
        )
        return verify_external(replace(request, **options))

    return run


def weight(model: onnx.ModelProto, name: str) -> TensorProto:
    [found] = [tensor for tensor in model.graph.initializer if tensor.name == name]
    return found


def change(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """An edit of one weight."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = weight(model, name)
        changed = np.ascontiguousarray(how(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(changed, name))

    return edit


def every(*edits: Edit) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for one in edits:
            one(model)

    return edit


def set_nan(array: np.ndarray) -> np.ndarray:
    array.flat[0] = np.nan
    return array


def put_before(*nodes: onnx.NodeProto, image: onnx.ValueInfoProto | None = None, **constants: np.ndarray) -> Edit:
    """An edit that puts nodes between the input and the network; they read `source` and write `result`."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        name = graph.input[0].name
        for node in graph.node:
            node.input[:] = ["result" if used == name else used for used in node.input]
        for position, node in enumerate(nodes):
            graph.node.insert(position, node)
        graph.initializer.extend(numpy_helper.from_array(np.float32(array), key) for key, array in constants.items())
        if image is not None:
            graph.input[0].CopyFrom(image)
        graph.node[0].input[0] = graph.input[0].name

    return edit


def normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> Edit:
    nodes = [
        helper.make_node("Sub", ["source", "shift"], ["centered"]),
        helper.make_node("Div", ["centered", "scale"], ["result"]),
    ]
    shaped = {"shift": np.reshape(mean, (3, 1, 1)), "scale": np.reshape(std, (3, 1, 1))}
    return put_before(*nodes, **shaped)


def accept_uint8(mean: tuple[float, ...], std: tuple[float, ...]) -> Edit:
    """The network with a uint8 input [batch, H, W, 3] and normalization inside, as for a phone."""
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
    nodes = [
        helper.make_node("Cast", ["source"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["turned", "shift"], ["centered"]),
        helper.make_node("Div", ["centered", "scale"], ["result"]),
    ]
    shaped = {"shift": 255 * np.reshape(mean, (3, 1, 1)), "scale": 255 * np.reshape(std, (3, 1, 1))}
    return put_before(*nodes, image=image, **shaped)


def end_with_softmax(model: onnx.ModelProto) -> None:
    [output] = model.graph.output
    model.graph.node.append(helper.make_node("Softmax", [output.name], ["shares"], axis=1))
    output.name = "shares"


def fix_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


CORRECT: dict[str, tuple[Edit | None, str]] = {
    "against TorchScript": (None, "model.ts"),
    "against a program of torch.export": (None, "model.pt2"),
    "with its softmax, against logits": (end_with_softmax, "model.onnx"),
    "uint8 in another layout, against floats": (accept_uint8(IMAGENET.mean, IMAGENET.std), "model.ts"),
}


@pytest.mark.parametrize(("edit", "against"), CORRECT.values(), ids=CORRECT)
def test_a_correct_file_passes_at_every_batch_size(verify: Callable[..., FileReport], edit: Edit | None, against: str) -> None:
    report = verify(edit, against)
    assert report.problems == ()
    assert report.batches == (1, 7, 8)
    assert len(report.comparisons) == 3
    assert report.similarity.sqnr_db > 100


def test_unreadable_files_are_counted_and_named(verify: Callable[..., FileReport]) -> None:
    report = verify(config=VerifyConfig(images=20))
    assert report.passed
    assert report.images.photos == 6
    assert {entry.image for entry in report.images.unreadable} == {"broken.jpg", "notes.txt"}


def test_a_fixed_batch_size_is_the_only_one_run_and_noted(verify: Callable[..., FileReport]) -> None:
    report = verify(fix_batch)
    assert report.passed
    assert report.batches == (1,)
    assert "run at batch 1 only" in " ".join(report.notes)


def test_without_a_reference_the_report_notes_that_nothing_was_compared(verify: Callable[..., FileReport]) -> None:
    report = verify(against=None)
    assert report.passed
    assert report.against is report.similarity is None
    assert "not compared with a reference" in " ".join(report.notes)


WRONG: dict[str, tuple[Edit, str, list[str]]] = {
    "reversed channels": (
        change("conv1.weight", lambda w: w[:, ::-1]),
        "model.onnx",
        ["fed BGR instead of RGB", "first of 3 layers to diverge is conv1 "],
    ),
    "normalized a second time inside": (
        normalize(IMAGENET.mean, IMAGENET.std),
        "model.pt2",
        ["values of 0 to 1", "first of 3 layers to diverge is conv1 "],
    ),
    "uint8 normalized for other weights": (
        accept_uint8((0.5,) * 3, (0.5,) * 3),
        "model.ts",
        ["model.ts is fed mean 0.5 and std 0.5", "TorchScript does not expose layer outputs"],
    ),
    "classes in another order": (
        every(change("fc.weight", lambda w: w[[0, 2, 1, 3, 4]]), change("fc.bias", lambda b: b[[0, 2, 1, 3, 4]])),
        "model.ts",
        ["class 1 of model.ts is its class 2, class 2 of model.ts is its class 1"],
    ),
    "logits of another temperature": (
        every(change("fc.weight", lambda w: w / 2), change("fc.bias", lambda b: b / 2)),
        "model.ts",
        ["0.5 times"],
    ),
    "a layer in the middle": (
        change("conv2.weight", lambda w: w * 1.001),
        "model.pt2",
        ["the first of 3 layers to diverge is conv2 "],
    ),
    "a weight that is NaN": (change("conv2.weight", set_nan), "model.onnx", ["NaN: conv2.weight", "NaN or infinity for"]),
    "only a bias": (
        change("fc.weight", lambda w: w * 0),
        "model.onnx",
        ["the same output for every image", "to diverge is fc "],
    ),
}


@pytest.mark.parametrize(("edit", "against", "expected"), WRONG.values(), ids=WRONG)
def test_the_report_on_a_wrong_file_names_the_cause(
    verify: Callable[..., FileReport], edit: Edit, against: str, expected: list[str]
) -> None:
    report = verify(edit, against)
    assert not report.passed
    assert [words for words in expected if words not in "; ".join(report.problems)] == []


def test_an_int8_file_is_compared_at_the_int8_thresholds(files: Path, photos: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    name = onnx.load(files / "model.onnx").graph.input[0].name
    port = InputSpec(layout="NCHW", dtype="float32", height=SIDE, width=SIDE, batch=None)
    spec = PreprocessSpec(height=SIDE, width=SIDE)
    pixels = [*preprocessing_fingerprint(spec).values(), *read_photos(photos, spec, 9).pixels]

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return {name: IMAGENET(pixels.pop()[None], port)} if pixels else None

    path = tmp_path / "int8.onnx"
    with suppress_output():
        quantize_static(files / "model.onnx", path, Images(), quant_format=QuantFormat.QDQ, per_channel=True)
    report = verify_external(VerificationRequest(file=path, data=photos, against=files / "model.onnx", config=FEW))
    assert report.problems == ()
    assert report.file.precision == report.precision == "int8"
    assert 15 < report.similarity.sqnr_db < 60
    assert report.thresholds["min_sqnr_db"] == 15


def test_dynamic_quantization_that_depends_on_the_batch_is_detected(files: Path, photos: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(files / "model.onnx")
    del model.graph.value_info[:]  # the tool fails on shapes that it has changed itself
    (tmp_path / "float.onnx").write_bytes(model.SerializeToString())
    with suppress_output():
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx", op_types_to_quantize=["Conv", "MatMul", "Gemm"])
    report = verify_external(VerificationRequest(file=tmp_path / "dynamic.onnx", data=photos, config=FEW))
    assert "at batch 7" in report.problems[0]
    assert "the output for an image depends on the others" in report.problems[-1]


def halve(model: onnx.ModelProto) -> None:
    """All in half precision, from the input to the output."""
    for tensor in [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]


def test_a_half_precision_file_is_compared_at_the_fp16_thresholds(verify: Callable[..., FileReport]) -> None:
    report = verify(halve, "model.pt2")
    assert report.problems == ()
    assert report.file.takes == f"float16 [batch, 3, {SIDE}, {SIDE}]"
    assert report.thresholds["min_sqnr_db"] == 40
    assert 40 < report.similarity.sqnr_db < 90
    wrong = verify(every(change("conv2.weight", lambda w: 1.5 * w), halve), "model.pt2")
    assert "the first of 3 layers to diverge is conv2 " in wrong.problems[-1]


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["mask"], ["masked"]))


def no_classes(model: onnx.ModelProto) -> None:
    [output] = model.graph.output
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", [output.name, "flat"], ["all"]))
    output.CopyFrom(helper.make_tensor_value_info("all", TensorProto.FLOAT, None))


def reshape_input(*dims: Any, kind: int = TensorProto.FLOAT) -> Edit:
    """An input of another shape, reshaped to the network's."""
    image = helper.make_tensor_value_info("image", kind, dims)
    nodes = [
        helper.make_node("Cast", ["source"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "network"], ["result"]),
    ]

    def edit(model: onnx.ModelProto) -> None:
        put_before(*nodes, image=image)(model)
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, SIDE, SIDE]), "network"))

    return edit


def use_unknown_operator(model: onnx.ModelProto) -> None:
    put_before(helper.make_node("Magic", ["source"], ["result"], domain="org.acme"))(model)
    model.opset_import.append(helper.make_opsetid("org.acme", 1))


def store_weights_externally(model: onnx.ModelProto) -> None:
    tensor = weight(model, "conv1.weight")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def six_classes(model: onnx.ModelProto) -> None:
    change("fc.weight", lambda w: np.concatenate([w, w[:1]]))(model)
    change("fc.bias", lambda b: np.concatenate([b, b[:1]]))(model)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES + 1


UNVERIFIABLE: dict[str, tuple[Edit, str]] = {
    "several inputs": (two_inputs, "it has 2 inputs"),
    "no output for each image": (no_classes, "is not a classifier that can be verified: for 1 images it returns all [5]"),
    "flattened images": (reshape_input("batch", 3 * SIDE * SIDE), "does not determine the layout of an image"),
    "an ambiguous layout": (reshape_input("batch", 3, SIDE, 3), "does not determine the layout of an image"),
    "64-bit integers": (reshape_input("batch", 3, SIDE, SIDE, kind=TensorProto.INT64), "int64"),
    "any size": (reshape_input("batch", 3, "h", "w"), "set the size with --size"),
    "unknown operators": (use_unknown_operator, "does not have (org.acme:Magic)"),
    "weights in another file": (store_weights_externally, "are in another file (conv1.weight)"),
    "another number of classes": (six_classes, "has 6 classes, the reference has 5"),
}


@pytest.mark.parametrize(("edit", "expected"), UNVERIFIABLE.values(), ids=UNVERIFIABLE)
def test_a_file_that_cannot_be_verified_is_rejected_in_one_line(
    verify: Callable[..., FileReport], edit: Edit, expected: str
) -> None:
    with pytest.raises(EdgelineError) as caught:
        verify(edit)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_request_sets_the_size_that_a_file_leaves_free(verify: Callable[..., FileReport]) -> None:
    report = verify(reshape_input("batch", 3, "h", "w"), "model.ts", size=(SIDE, SIDE))
    assert report.passed
    with pytest.raises(VerificationError, match="check --size"):
        verify(size=(SIDE, 64))


def test_a_reference_of_another_size_is_rejected(verify: Callable[..., FileReport]) -> None:
    with pytest.raises(VerificationError, match="the sizes differ"):
        verify(reshape_input("batch", 3, SIDE // 2, 2 * SIDE), "model.pt2")


NOT_A_MODEL = {
    "text": b"hello",
    "an empty file": b"",
    "an archive": b"PK\x03\x04" + bytes(60),
    "a JPEG": b"\xff\xd8\xff\xe0" * 20,
}


@pytest.mark.parametrize("content", NOT_A_MODEL.values(), ids=NOT_A_MODEL)
def test_a_file_that_is_not_onnx_is_rejected(tmp_path: Path, photos: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(VerificationError) as caught:
        verify_external(VerificationRequest(file=tmp_path / "model.onnx", data=photos))
    assert caught.value.code == "not_onnx"


def test_a_missing_file_is_named(files: Path, photos: Path) -> None:
    with pytest.raises(VerificationError, match=r"gone\.onnx: no such file"):
        verify_external(VerificationRequest(file=files / "gone.onnx", data=photos))
    with pytest.raises(VerificationError, match=r"gone\.pt2: no such file"):
        verify_external(VerificationRequest(file=files / "model.onnx", data=photos, against=files / "gone.pt2"))


def test_a_folder_without_photos_is_rejected(files: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        verify_external(VerificationRequest(file=files / "model.onnx", data=tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(DataError, match=r"contains no readable photo \(of 1, notes.txt"):
        verify_external(VerificationRequest(file=files / "model.onnx", data=tmp_path))


@pytest.mark.long
def test_a_checkpoint_is_rejected_without_loading_it(files: Path, photos: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    torch.save({"weight": torch.zeros(2)}, old, _use_new_zipfile_serialization=False)
    for path in (files / "model.pth", old):
        with pytest.raises(VerificationError, match="is a PyTorch checkpoint") as caught:
            verify_external(VerificationRequest(file=files / "model.onnx", data=photos, against=path, trusted=True))
        assert caught.value.code == "eager_checkpoint"


@pytest.mark.parametrize("name", ["model.ts", "model.pt2"])
def test_a_program_is_not_loaded_unless_it_is_trusted(files: Path, photos: Path, name: str) -> None:
    with pytest.raises(VerificationError, match="--trust-program"):
        verify_external(VerificationRequest(file=files / "model.onnx", data=photos, against=files / name))


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_pickles_and_machine_code_of_a_trusted_program_are_not_run(files: Path, photos: Path, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    pickle = io.BytesIO()
    torch.save((Trap(executed),), pickle)
    traps = {
        "inputs.pt2": ("data/sample_inputs/model.pt", "pickled objects"),
        "objects.pt2": ("data/constants/opaque_obj_0", "pickled objects"),
        "code.pt2": ("data/aotinductor/model/run.so", "compiled machine code"),
    }
    for name, (member, expected) in traps.items():
        with zipfile.ZipFile(files / "model.pt2") as whole, zipfile.ZipFile(tmp_path / name, "w") as trap:
            for entry in whole.namelist():
                if not entry.endswith(member):
                    trap.writestr(entry, whole.read(entry))
            trap.writestr(f"model/{member}", pickle.getvalue())
        with pytest.raises(VerificationError, match=expected):
            verify_external(VerificationRequest(file=files / "model.onnx", data=photos, against=tmp_path / name, trusted=True))
        assert not executed.exists()


@pytest.mark.parametrize("name", ["model.ts", "model.pt2"])
def test_a_truncated_program_is_rejected_in_one_line(files: Path, photos: Path, tmp_path: Path, name: str) -> None:
    data = (files / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError, match="is a damaged archive") as caught:
        verify_external(VerificationRequest(file=files / "model.onnx", data=photos, against=tmp_path / name, trusted=True))
    assert "\n" not in str(caught.value)


def test_probabilities_are_distinguished_from_logits() -> None:
    shares_NK = np.float32([[0.25, 0.75], [1, 0]])
    assert is_distribution(shares_NK)
    assert not is_distribution(np.float32([[-1, 2], [0.5, 0.5]]))
    outputs = as_outputs(shares_NK, probabilities=True, floor=1e-30)
    assert np.array_equal(outputs.probabilities_NK, shares_NK)
    assert np.isfinite(outputs.logits_NK).all()
