"""The gate for files from elsewhere: a right file passes, a wrong one is told what is wrong."""

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

from edgeline.export.external.model import Port
from edgeline.export.external.verify import IMAGENET, Request, as_outputs, is_distribution, verify_foreign
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
    """A classifier of a few layers, as anyone's: two convolutions, a batch norm, a linear layer."""

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
    """One network in every form: model.onnx, model.ts, model.pt2, and the checkpoint model.pth."""
    folder = tmp_path_factory.mktemp("foreign")
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
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few colorful photos in folders, and two files that are none."""
    folder = tmp_path_factory.mktemp("shots")
    (folder / "deep" / "er").mkdir(parents=True)
    for index in range(6):
        chance = np.random.default_rng(index)
        picture = Image.fromarray(chance.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((90, 70))
        picture.save(folder / ("deep/er" if index % 2 else "") / f"{index}.jpg")
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:200])
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def judge(files: Path, shots: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`judge(edit, against="model.onnx")`: the report on the small network's file after an edit."""

    def run(edit: Edit | None = None, against: str | Path | None = "model.onnx", **options: Any) -> dict[str, Any]:
        model = onnx.load(files / "model.onnx")
        if edit is not None:
            edit(model)
        (tmp_path / "edited.onnx").write_bytes(model.SerializeToString())
        request = Request(
            file=tmp_path / "edited.onnx",
            data=shots,
            against=None if against is None else files / against,
            trusted=True,
            config=FEW,
        )
        return verify_foreign(replace(request, **options))

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


def poison(array: np.ndarray) -> np.ndarray:
    array.flat[0] = np.nan
    return array


def put_before(*nodes: onnx.NodeProto, port: onnx.ValueInfoProto | None = None, **constants: np.ndarray) -> Edit:
    """An edit that puts nodes between the input and the network; they read `taken` and write `made`."""

    def edit(model: onnx.ModelProto) -> None:
        graph = model.graph
        name = graph.input[0].name
        for node in graph.node:
            node.input[:] = ["made" if used == name else used for used in node.input]
        for position, node in enumerate(nodes):
            graph.node.insert(position, node)
        graph.initializer.extend(numpy_helper.from_array(np.float32(array), key) for key, array in constants.items())
        if port is not None:
            graph.input[0].CopyFrom(port)
        graph.node[0].input[0] = graph.input[0].name

    return edit


def normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> Edit:
    nodes = [
        helper.make_node("Sub", ["taken", "shift"], ["centered"]),
        helper.make_node("Div", ["centered", "scale"], ["made"]),
    ]
    shaped = {"shift": np.reshape(mean, (3, 1, 1)), "scale": np.reshape(std, (3, 1, 1))}
    return put_before(*nodes, **shaped)


def take_bytes(mean: tuple[float, ...], std: tuple[float, ...]) -> Edit:
    """The network behind bytes of shape [batch, H, W, 3], normalized inside, as for a phone."""
    port = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIDE, SIDE, 3])
    nodes = [
        helper.make_node("Cast", ["taken"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["turned"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["turned", "shift"], ["centered"]),
        helper.make_node("Div", ["centered", "scale"], ["made"]),
    ]
    shaped = {"shift": 255 * np.reshape(mean, (3, 1, 1)), "scale": 255 * np.reshape(std, (3, 1, 1))}
    return put_before(*nodes, port=port, **shaped)


def end_with_softmax(model: onnx.ModelProto) -> None:
    [output] = model.graph.output
    model.graph.node.append(helper.make_node("Softmax", [output.name], ["shares"], axis=1))
    output.name = "shares"


def fix_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


RIGHT: dict[str, tuple[Edit | None, str]] = {
    "against TorchScript": (None, "model.ts"),
    "against a program of torch.export": (None, "model.pt2"),
    "with its softmax, against logits": (end_with_softmax, "model.onnx"),
    "of bytes in another layout, against floats": (take_bytes(IMAGENET.mean, IMAGENET.std), "model.ts"),
}


@pytest.mark.parametrize(("edit", "against"), RIGHT.values(), ids=RIGHT)
def test_a_right_file_passes_at_every_batch(judge: Callable[..., dict[str, Any]], edit: Edit | None, against: str) -> None:
    report = judge(edit, against)
    assert report["problems"] == []
    assert report["batches"] == [1, 7, 8]
    assert len(report["comparisons"]) == 3
    assert report["similarity"]["sqnr_db"] > 100


def test_what_cannot_be_read_is_counted_and_named(judge: Callable[..., dict[str, Any]]) -> None:
    report = judge(config=VerifyConfig(images=20))
    assert report["passed"]
    assert report["images"]["photos"] == 6
    assert {entry["image"] for entry in report["images"]["unreadable"]} == {"broken.jpg", "notes.txt"}


def test_a_fixed_batch_is_run_alone_and_said(judge: Callable[..., dict[str, Any]]) -> None:
    report = judge(fix_batch)
    assert report["passed"]
    assert report["batches"] == [1]
    assert "run at batch 1 only" in " ".join(report["notes"])


def test_without_a_reference_it_is_said_that_nothing_was_compared(judge: Callable[..., dict[str, Any]]) -> None:
    report = judge(against=None)
    assert report["passed"]
    assert report["against"] is report["similarity"] is None
    assert "nothing was compared" in " ".join(report["notes"])


WRONG: dict[str, tuple[Edit, str, list[str]]] = {
    "channels the other way round": (
        change("conv1.weight", lambda w: w[:, ::-1]),
        "model.onnx",
        ["fed BGR instead of RGB", "first of 3 layers to diverge is conv1 "],
    ),
    "normalized once more inside": (
        normalize(IMAGENET.mean, IMAGENET.std),
        "model.pt2",
        ["values of 0 to 1", "first of 3 layers to diverge is conv1 "],
    ),
    "bytes normalized for other weights": (
        take_bytes((0.5,) * 3, (0.5,) * 3),
        "model.ts",
        ["model.ts is fed mean 0.5 and std 0.5", "TorchScript does not tell"],
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
    "a weight that is NaN": (change("conv2.weight", poison), "model.onnx", ["NaN: conv2.weight", "NaN or infinity for"]),
    "nothing but a bias": (
        change("fc.weight", lambda w: w * 0),
        "model.onnx",
        ["the same answer for every image", "to diverge is fc "],
    ),
}


@pytest.mark.parametrize(("edit", "against", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_fails_and_is_told_what_is_wrong(
    judge: Callable[..., dict[str, Any]], edit: Edit, against: str, says: list[str]
) -> None:
    report = judge(edit, against)
    assert not report["passed"]
    assert [words for words in says if words not in "; ".join(report["problems"])] == []


def test_an_int8_file_is_held_to_the_bars_of_int8(files: Path, shots: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    name = onnx.load(files / "model.onnx").graph.input[0].name
    port = Port(layout="NCHW", dtype="float32", height=SIDE, width=SIDE, batch=None)
    spec = PreprocessSpec(height=SIDE, width=SIDE)
    pixels = [*preprocessing_fingerprint(spec).values(), *read_photos(shots, spec, 9).pixels]

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            return {name: IMAGENET(pixels.pop()[None], port)} if pixels else None

    path = tmp_path / "int8.onnx"
    with suppress_output():
        quantize_static(files / "model.onnx", path, Images(), quant_format=QuantFormat.QDQ, per_channel=True)
    report = verify_foreign(Request(file=path, data=shots, against=files / "model.onnx", config=FEW))
    assert report["problems"] == []
    assert report["file"]["precision"] == report["precision"] == "int8"
    assert 15 < report["similarity"]["sqnr_db"] < 60
    assert report["thresholds"]["min_sqnr_db"] == 15


def test_a_batch_that_shares_its_scale_is_found_out(files: Path, shots: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(files / "model.onnx")
    del model.graph.value_info[:]  # the tool trips over shapes that it outdates itself
    (tmp_path / "float.onnx").write_bytes(model.SerializeToString())
    with suppress_output():
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "dynamic.onnx", op_types_to_quantize=["Conv", "MatMul", "Gemm"])
    report = verify_foreign(Request(file=tmp_path / "dynamic.onnx", data=shots, config=FEW))
    assert "at batch 7" in report["problems"][0]
    assert "an image's answer depends on the others" in report["problems"][-1]


def halve(model: onnx.ModelProto) -> None:
    """All in half precision, from the input to the output."""
    for tensor in [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]


def test_a_file_of_half_precision_is_held_to_the_bars_of_half_precision(judge: Callable[..., dict[str, Any]]) -> None:
    report = judge(halve, "model.pt2")
    assert report["problems"] == []
    assert report["file"]["takes"] == f"float16 [batch, 3, {SIDE}, {SIDE}]"
    assert report["thresholds"]["min_sqnr_db"] == 40
    assert 40 < report["similarity"]["sqnr_db"] < 90
    wrong = judge(every(change("conv2.weight", lambda w: 1.5 * w), halve), "model.pt2")
    assert "the first of 3 layers to diverge is conv2 " in wrong["problems"][-1]


def two_inputs(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    model.graph.node.append(helper.make_node("Identity", ["mask"], ["masked"]))


def no_classes(model: onnx.ModelProto) -> None:
    [output] = model.graph.output
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.node.append(helper.make_node("Reshape", [output.name, "flat"], ["all"]))
    output.CopyFrom(helper.make_tensor_value_info("all", TensorProto.FLOAT, None))


def take(*dims: Any, kind: int = TensorProto.FLOAT) -> Edit:
    """An input of another shape, cut to what the network takes."""
    port = helper.make_tensor_value_info("image", kind, dims)
    nodes = [
        helper.make_node("Cast", ["taken"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["floats", "network"], ["made"]),
    ]

    def edit(model: onnx.ModelProto) -> None:
        put_before(*nodes, port=port)(model)
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, SIDE, SIDE]), "network"))

    return edit


def strange(model: onnx.ModelProto) -> None:
    put_before(helper.make_node("Magic", ["taken"], ["made"], domain="org.acme"))(model)
    model.opset_import.append(helper.make_opsetid("org.acme", 1))


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = weight(model, "conv1.weight")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def six_classes(model: onnx.ModelProto) -> None:
    change("fc.weight", lambda w: np.concatenate([w, w[:1]]))(model)
    change("fc.bias", lambda b: np.concatenate([b, b[:1]]))(model)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = CLASSES + 1


UNFIT: dict[str, tuple[Edit, str]] = {
    "several inputs": (two_inputs, "it takes 2 inputs"),
    "no output for each image": (no_classes, "is no classifier that can be judged: for 1 images it gives all [5]"),
    "images in a row": (take("batch", 3 * SIDE * SIDE), "nobody can tell how it wants its images"),
    "either layout": (take("batch", 3, SIDE, 3), "nobody can tell how it wants its images"),
    "integers of 64 bits": (take("batch", 3, SIDE, SIDE, kind=TensorProto.INT64), "int64"),
    "any size": (take("batch", 3, "h", "w"), "say which with --size"),
    "operators of its own": (strange, "does not have (org.acme:Magic)"),
    "weights in another file": (elsewhere, "lie in another file (conv1.weight)"),
    "another number of classes": (six_classes, "has 6 classes, what it is held against has 5"),
}


@pytest.mark.parametrize(("edit", "says"), UNFIT.values(), ids=UNFIT)
def test_what_cannot_be_judged_is_refused_in_one_line(judge: Callable[..., dict[str, Any]], edit: Edit, says: str) -> None:
    with pytest.raises(EdgelineError) as refusal:
        judge(edit)
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_size_that_the_file_leaves_free_is_taken_from_the_request(judge: Callable[..., dict[str, Any]]) -> None:
    report = judge(take("batch", 3, "h", "w"), "model.ts", size=(SIDE, SIDE))
    assert report["passed"]
    with pytest.raises(VerificationError, match="look at --size"):
        judge(size=(SIDE, 64))


def test_a_reference_of_another_size_is_refused(judge: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(VerificationError, match="another size"):
        judge(take("batch", 3, SIDE // 2, 2 * SIDE), "model.pt2")


NOT_A_MODEL = {"text": b"hello", "nothing": b"", "an archive": b"PK\x03\x04" + bytes(60), "a JPEG": b"\xff\xd8\xff\xe0" * 20}


@pytest.mark.parametrize("content", NOT_A_MODEL.values(), ids=NOT_A_MODEL)
def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path, shots: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(VerificationError) as refusal:
        verify_foreign(Request(file=tmp_path / "model.onnx", data=shots))
    assert refusal.value.code == "not_onnx"


def test_a_missing_file_is_named(files: Path, shots: Path) -> None:
    with pytest.raises(VerificationError, match=r"gone\.onnx: there is no such file"):
        verify_foreign(Request(file=files / "gone.onnx", data=shots))
    with pytest.raises(VerificationError, match=r"gone\.pt2: there is no such file"):
        verify_foreign(Request(file=files / "model.onnx", data=shots, against=files / "gone.pt2"))


def test_a_folder_without_photos_is_refused(files: Path, shots: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        verify_foreign(Request(file=files / "model.onnx", data=tmp_path / "nowhere"))
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(DataError, match=r"no photo that can be read \(of 1, notes.txt"):
        verify_foreign(Request(file=files / "model.onnx", data=tmp_path))


def test_a_checkpoint_is_refused_unread(files: Path, shots: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pth"
    torch.save({"weight": torch.zeros(2)}, old, _use_new_zipfile_serialization=False)
    for path in (files / "model.pth", old):
        with pytest.raises(VerificationError, match="is a PyTorch checkpoint") as refusal:
            verify_foreign(Request(file=files / "model.onnx", data=shots, against=path, trusted=True))
        assert refusal.value.code == "eager_checkpoint"


@pytest.mark.parametrize("name", ["model.ts", "model.pt2"])
def test_a_program_is_not_loaded_before_it_is_trusted(files: Path, shots: Path, name: str) -> None:
    with pytest.raises(VerificationError, match="--trust-program"):
        verify_foreign(Request(file=files / "model.onnx", data=shots, against=files / name))


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_a_trusted_programs_pickles_and_machine_code_are_not_run_either(files: Path, shots: Path, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle = io.BytesIO()
    torch.save((Trap(sprung),), pickle)
    traps = {
        "inputs.pt2": ("data/sample_inputs/model.pt", "pickled objects"),
        "objects.pt2": ("data/constants/opaque_obj_0", "pickled objects"),
        "code.pt2": ("data/aotinductor/model/run.so", "compiled machine code"),
    }
    for name, (member, says) in traps.items():
        with zipfile.ZipFile(files / "model.pt2") as whole, zipfile.ZipFile(tmp_path / name, "w") as trap:
            for entry in whole.namelist():
                if not entry.endswith(member):
                    trap.writestr(entry, whole.read(entry))
            trap.writestr(f"model/{member}", pickle.getvalue())
        with pytest.raises(VerificationError, match=says):
            verify_foreign(Request(file=files / "model.onnx", data=shots, against=tmp_path / name, trusted=True))
        assert not sprung.exists()


@pytest.mark.parametrize("half", ["model.ts", "model.pt2"])
def test_half_a_program_is_refused_in_one_line(files: Path, shots: Path, tmp_path: Path, half: str) -> None:
    data = (files / half).read_bytes()
    (tmp_path / half).write_bytes(data[: len(data) // 2])
    with pytest.raises(VerificationError, match="is a damaged archive") as refusal:
        verify_foreign(Request(file=files / "model.onnx", data=shots, against=tmp_path / half, trusted=True))
    assert "\n" not in str(refusal.value)


def test_probabilities_are_told_from_logits() -> None:
    shares_NK = np.float32([[0.25, 0.75], [1, 0]])
    assert is_distribution(shares_NK)
    assert not is_distribution(np.float32([[-1, 2], [0.5, 0.5]]))
    outputs = as_outputs(shares_NK, probabilities=True, floor=1e-30)
    assert np.array_equal(outputs.probabilities_NK, shares_NK)
    assert np.isfinite(outputs.logits_NK).all()
