"""The static checks: each violation of the graph contract is rejected with its cause."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeline.export.graph.contract import check_graph
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec

SPEC = PreprocessSpec(height=6, width=8)
Graph = onnx.ModelProto


def good() -> Graph:
    """The smallest model under the contract: the mean color, a matrix, a softmax."""
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
            helper.make_node("Constant", [], ["axes"], name="constant", value=numpy_helper.from_array(np.array([1, 2]))),
            helper.make_node("ReduceMean", ["levels", "axes"], ["mean"], keepdims=0),
            helper.make_node("Gemm", ["mean", "weights"], ["logits"], name="gemm", alpha=0.01),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "mean color",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 6, 8, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("probabilities", "logits")],
        [numpy_helper.from_array(np.eye(3, 2, dtype=np.float32), "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def check(graph: Graph) -> Graph:
    return check_graph(graph.SerializeToString(), SPEC, classes=2, opset=18)


def value(graph: Graph, name: str) -> onnx.TypeProto.Tensor:
    return next(v for v in [*graph.graph.input, *graph.graph.output] if v.name == name).type.tensor_type


def node(graph: Graph, kind: str) -> onnx.NodeProto:
    return next(n for n in graph.graph.node if n.op_type == kind)


def test_a_model_under_the_contract_passes() -> None:
    assert check(good()).graph.name == "mean color"


def test_any_operator_set_passes_where_none_is_named() -> None:
    graph = good()
    graph.opset_import[0].version = 19
    assert check_graph(graph.SerializeToString(), SPEC, classes=2).opset_import[0].version == 19


def defines_a_function(graph: Graph) -> None:
    body = [helper.make_node("Relu", ["x"], ["y"])]
    graph.functions.append(helper.make_function("own", "Twice", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))


def loops(graph: Graph) -> None:
    body = helper.make_graph([], "body", [], [])
    graph.graph.node.append(helper.make_node("Loop", ["", ""], [], body=body))


def branches_by_an_operator_to_come(graph: Graph) -> None:
    graph.graph.node.append(helper.make_node("Choose", ["logits"], ["x"], ways=[helper.make_graph([], "way", [], [])]))


def imports_domains_that_nothing_uses(graph: Graph) -> None:
    graph.opset_import.append(helper.make_opsetid("ai.onnx.ml", 5))


def uses_an_operator_of_somebody(graph: Graph) -> None:
    node(graph, "Softmax").domain = "com.example"


def keeps_weights_elsewhere(graph: Graph) -> None:
    tensor = graph.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "../../etc/passwd")
    tensor.ClearField("raw_data")


def names_another_file_and_keeps_the_weights(graph: Graph) -> None:
    graph.graph.initializer[0].external_data.add(key="location", value="weights.bin")


def keeps_a_constant_elsewhere(graph: Graph) -> None:
    tensor = node(graph, "Constant").attribute[0].t
    onnx.external_data_helper.set_external_data(tensor, "axes.bin")
    tensor.ClearField("raw_data")


def keeps_sparse_weights_elsewhere(graph: Graph) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    onnx.external_data_helper.set_external_data(values, "sparse.bin")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    graph.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def carries_training(graph: Graph) -> None:
    graph.training_info.add()


def needs_a_newer_operator_set(graph: Graph) -> None:
    graph.opset_import[0].version = 19


def names_no_operator_set(graph: Graph) -> None:
    del graph.opset_import[:]


def has_a_newer_format(graph: Graph) -> None:
    graph.ir_version = 9


def fixes_the_batch(graph: Graph) -> None:
    value(graph, "image").shape.dim[0].dim_value = 4


def fixes_the_batch_of_an_output(graph: Graph) -> None:
    value(graph, "logits").shape.dim[0].dim_value = 1


def names_no_batch(graph: Graph) -> None:
    value(graph, "image").shape.dim[0].Clear()


def frees_the_height(graph: Graph) -> None:
    value(graph, "image").shape.dim[1].dim_param = "height"


def gives_no_logits(graph: Graph) -> None:
    del graph.graph.output[1]


def gives_something_else_too(graph: Graph) -> None:
    graph.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["batch", 3]))


def takes_a_second_input(graph: Graph) -> None:
    graph.graph.input.append(helper.make_tensor_value_info("threshold", TensorProto.FLOAT, []))


def calls_the_input_otherwise(graph: Graph) -> None:
    graph.graph.input[0].name = node(graph, "Cast").input[0] = "pixels"


def takes_floats(graph: Graph) -> None:
    value(graph, "image").elem_type = TensorProto.FLOAT


def gives_half_precision(graph: Graph) -> None:
    value(graph, "probabilities").elem_type = TensorProto.FLOAT16


def takes_channels_first(graph: Graph) -> None:
    for dimension, size in zip(value(graph, "image").shape.dim[1:], (3, 6, 8), strict=True):
        dimension.dim_value = size


def gives_another_number_of_classes(graph: Graph) -> None:
    value(graph, "logits").shape.dim[1].dim_value = 3


def gives_a_single_number(graph: Graph) -> None:
    del value(graph, "probabilities").shape.dim[:]


def put_into(graph: Graph, number: float) -> None:
    weights = numpy_helper.to_array(graph.graph.initializer[0]).copy()
    weights[1, 1] = number
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))


def holds_nan(graph: Graph) -> None:
    put_into(graph, np.nan)


def holds_infinity(graph: Graph) -> None:
    put_into(graph, -np.inf)


def holds_nan_in_a_constant(graph: Graph) -> None:
    node(graph, "Constant").attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([np.nan], np.float16)))


def holds_nan_in_a_setting(graph: Graph) -> None:
    node(graph, "Gemm").attribute[0].f = np.nan


def lacks_some_weights(graph: Graph) -> None:
    graph.graph.initializer[0].raw_data = graph.graph.initializer[0].raw_data[:-4]


def uses_a_value_that_nothing_makes(graph: Graph) -> None:
    node(graph, "Softmax").input[0] = "nowhere"


def gives_other_shapes_than_it_says(graph: Graph) -> None:
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(3, 5, dtype=np.float32), "weights"))


BROKEN: dict[Callable[[Graph], None], str] = {
    defines_a_function: "it defines functions",
    loops: r"it has control flow \(Loop\)",
    branches_by_an_operator_to_come: r"it has control flow \(Choose\)",
    imports_domains_that_nothing_uses: r"it imports operator domains that older runtimes may not support \(ai.onnx.ml\)",
    uses_an_operator_of_somebody: r"it uses operators outside the standard \(com.example\)",
    keeps_weights_elsewhere: "weights are in another file: weights",
    names_another_file_and_keeps_the_weights: "weights are in another file: weights",
    keeps_a_constant_elsewhere: "weights are in another file: constant",
    keeps_sparse_weights_elsewhere: "weights are in another file: sparse",
    carries_training: "it contains training graphs",
    needs_a_newer_operator_set: r"it uses operator set \[19\], at most 18 is allowed",
    names_no_operator_set: r"it uses operator set \[\], at most 18 is allowed",
    has_a_newer_format: "its IR version is 9, at most 8 is allowed",
    fixes_the_batch: "image has the fixed batch 4, it must be free",
    fixes_the_batch_of_an_output: "logits has the fixed batch 1, it must be free",
    names_no_batch: "image does not name its batch, it must be free",
    frees_the_height: r"image is UINT8 \[batch, height, 8, 3\], expected UINT8 \[batch, 6, 8, 3\]",
    gives_no_logits: r"its inputs and outputs are \['image', 'probabilities'\], expected \['image', 'logits',",
    gives_something_else_too: r"its inputs and outputs are \['image', 'logits', 'mean', 'probabilities'\]",
    takes_a_second_input: r"its inputs and outputs are \['image', 'logits', 'probabilities', 'threshold'\]",
    calls_the_input_otherwise: r"its inputs and outputs are \['logits', 'pixels', 'probabilities'\]",
    takes_floats: r"image is FLOAT \[batch, 6, 8, 3\], expected UINT8",
    gives_half_precision: r"probabilities is FLOAT16 \[batch, 2\], expected FLOAT \[batch, 2\]",
    takes_channels_first: r"image is UINT8 \[batch, 3, 6, 8\], expected UINT8 \[batch, 6, 8, 3\]",
    gives_another_number_of_classes: r"logits is FLOAT \[batch, 3\], expected FLOAT \[batch, 2\]",
    gives_a_single_number: r"probabilities is FLOAT \[\], expected FLOAT \[batch, 2\]",
    holds_nan: "weights that are not finite: weights",
    holds_infinity: "weights that are not finite: weights",
    holds_nan_in_a_constant: "weights that are not finite: constant",
    holds_nan_in_a_setting: "weights that are not finite: gemm",
    lacks_some_weights: "weights of another size than their shape: weights",
    uses_a_value_that_nothing_makes: "onnx.checker rejects it: .*nowhere",
    gives_other_shapes_than_it_says: "onnx.checker rejects it: .*[Ii]nferred",
}


@pytest.mark.parametrize(("fault", "cause"), BROKEN.items(), ids=lambda v: v.__name__.replace("_", " ") if callable(v) else "")
def test_a_model_that_breaks_the_contract_is_rejected_by_its_cause(fault: Callable[[Graph], None], cause: str) -> None:
    graph = good()
    fault(graph)
    with pytest.raises(ExportError, match=cause) as error:
        check(graph)
    assert error.value.code == "graph_contract"


def test_all_problems_are_reported_at_once() -> None:
    graph = good()
    for fault in (fixes_the_batch, holds_nan, has_a_newer_format):
        fault(graph)
    with pytest.raises(ExportError, match="IR version is 9.*; image has the fixed batch 4.*; weights that are not finite"):
        check(graph)


NOT_ONNX = {
    "text": b"this is no model",
    "a JPEG": b"\xff\xd8\xff\xe0" + bytes(40),
    "half a model": good().SerializeToString()[:60],
}


@pytest.mark.parametrize("data", NOT_ONNX.values(), ids=NOT_ONNX)
def test_bytes_that_are_not_a_model_are_rejected(data: bytes) -> None:
    with pytest.raises(ExportError, match="the file is not an ONNX model") as error:
        check_graph(data, SPEC, classes=2)
    assert error.value.code == "not_onnx"


def test_an_empty_file_is_rejected() -> None:
    with pytest.raises(ExportError, match=r"its inputs and outputs are \[\], expected"):
        check_graph(b"", SPEC, classes=2)
