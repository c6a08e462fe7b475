"""Describe a Core ML package and compute its outputs with PyTorch; see `export.verification.coreml`.

Runs in an environment with coremltools, on any system: it parses the package, which Core ML itself does only on macOS, prints
its inputs and outputs as JSON, and writes the weights of its layers. The graph is computed operator by operator in float32,
which shows what the graph means, not how a phone rounds it.

Shapes: N images, H x W the model's input, K classes.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import coremltools
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto.load import load
from coremltools.proto import FeatureTypes_pb2
from torch import Tensor
from torch.nn import functional

LAYERS = ("conv", "linear")


def facts_of(spec: Any, operations: list[Any]) -> dict[str, Any]:
    """The inputs, outputs and operators of a package."""
    [image] = [value.type.imageType for value in spec.description.input]
    arrays = {value.name: value.type.multiArrayType for value in spec.description.output}
    colors = FeatureTypes_pb2.ImageFeatureType.ColorSpace
    types = FeatureTypes_pb2.ArrayFeatureType.ArrayDataType
    names = [operation.op_type for operation in operations]
    return {
        "kind": spec.WhichOneof("Type"),
        "input": [spec.description.input[0].name, image.height, image.width, colors.Name(image.colorSpace)],
        "outputs": {name: [list(array.shape), types.Name(array.dataType)] for name, array in arrays.items()},
        "specification": spec.specificationVersion,
        "operators": {name: names.count(name) for name in sorted(set(names) - {"const"})},
    }


def padded(x: Tensor, given: Mapping[str, Any], value: float = 0.0) -> Tensor:
    """Pad height and width for a convolution or a pooling."""
    if given["pad_type"] == "valid":
        return x
    if given["pad_type"] != "custom":
        raise NotImplementedError(f"padding of the type {given['pad_type']}")
    top, bottom, left, right = map(int, given["pad"])
    return functional.pad(x, (left, right, top, bottom), value=value)


def convolve(given: Mapping[str, Any]) -> Tensor:
    """`conv`, in two dimensions."""
    x = padded(given["x"], given)
    strides, dilations = given["strides"].tolist(), given["dilations"].tolist()
    return functional.conv2d(x, given["weight"], given.get("bias"), strides, 0, dilations, int(given["groups"]))


def pad(given: Mapping[str, Any]) -> Tensor:
    """`pad` with a constant."""
    if given["mode"] != "constant":
        raise NotImplementedError(f"padding of the mode {given['mode']}")
    pairs = given["pad"].reshape(-1, 2).flip(0).flatten().tolist()
    return functional.pad(given["x"], [int(size) for size in pairs], value=float(given["constant_val"]))


def pool(given: Mapping[str, Any], kind: str) -> Tensor:
    """`max_pool` and `avg_pool`, in two dimensions."""
    if given.get("ceil_mode", False):
        raise NotImplementedError("a pooling with ceil_mode")
    sizes, strides = given["kernel_sizes"].tolist(), given["strides"].tolist()
    if kind == "max":
        return functional.max_pool2d(padded(given["x"], given, -torch.inf), sizes, strides)
    if given["pad_type"] != "valid" and given["exclude_padding_from_average"]:
        ones = functional.avg_pool2d(padded(torch.ones_like(given["x"]), given), sizes, strides)
        return functional.avg_pool2d(padded(given["x"], given), sizes, strides) / ones
    return functional.avg_pool2d(padded(given["x"], given), sizes, strides)


OPERATORS: dict[str, Callable[[Mapping[str, Any]], Tensor]] = {
    "add": lambda given: given["x"] + given["y"],
    "avg_pool": lambda given: pool(given, "average"),
    "cast": lambda given: given["x"],
    "clip": lambda given: given["x"].clamp(float(given["alpha"]), float(given["beta"])),
    "concat": lambda given: torch.cat(given["values"], int(given["axis"])),
    "conv": convolve,
    "linear": lambda given: functional.linear(given["x"], given["weight"], given.get("bias")),
    "max_pool": lambda given: pool(given, "max"),
    "mul": lambda given: given["x"] * given["y"],
    "pad": pad,
    "real_div": lambda given: given["x"] / given["y"],
    "reduce_mean": lambda given: given["x"].mean(given["axes"].tolist(), keepdim=bool(given["keep_dims"])),
    "relu": lambda given: given["x"].relu(),
    "relu6": lambda given: given["x"].clamp(0, 6),
    "reshape": lambda given: given["x"].reshape(given["shape"].tolist()),
    "sigmoid": lambda given: given["x"].sigmoid(),
    "sigmoid_hard": lambda given: (given["x"] * given["alpha"] + given["beta"]).clamp(0, 1),
    "silu": lambda given: functional.silu(given["x"]),
    "softmax": lambda given: given["x"].softmax(int(given["axis"])),
    "sub": lambda given: given["x"] - given["y"],
    "transpose": lambda given: given["x"].permute(given["perm"].tolist()),
}
"""The supported operators of Core ML; arguments have the names of its documentation."""


def constant(value: Any) -> Any:
    """A constant for PyTorch: floats as float32, integers and booleans unchanged, anything else as a string."""
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(np.array(array)) if array.dtype.kind in "iub" else str(value)


def compute(operations: Sequence[Any], image_13HW: Tensor, outputs: Sequence[str]) -> tuple[list[Tensor], float]:
    """Compute a package's outputs for one image, and the largest absolute intermediate value."""
    values: dict[str, Any] = {"image": image_13HW}
    largest = 0.0

    def value_of(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [value_of(each) for each in argument]
        if argument.name not in values:
            values[argument.name] = constant(argument.val)
        return values[argument.name]

    for operation in operations:
        if operation.op_type == "const":
            continue
        given = {name: value_of(argument) for name, argument in operation.inputs.items() if argument is not None}
        found = OPERATORS[operation.op_type](given)
        values[operation.outputs[0].name] = found
        largest = max(largest, float(found.abs().max()))
    return [values[name] for name in outputs], largest


if __name__ == "__main__":
    package, pixels, found = sys.argv[1:]
    model = coremltools.models.MLModel(package, skip_model_load=True)
    spec = model.get_spec()
    [function] = load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir).functions.values()
    operations = list(function.operations)
    facts = facts_of(spec, operations)
    constants = [np.asarray(operation.outputs[0].val) for operation in operations if operation.op_type == "const"]
    facts["finite"] = all(np.isfinite(array).all() for array in constants if array.dtype.kind == "f")
    layers = [operation for operation in operations if operation.op_type in LAYERS]
    arrays = [layer.inputs[name].val for layer in layers for name in ("weight", "bias") if name in layer.inputs]
    answers: dict[str, np.ndarray] = {}
    facts["unknown"] = sorted(facts["operators"].keys() - OPERATORS.keys())
    if not facts["unknown"]:
        images_N3HW = torch.from_numpy(np.load(pixels)).permute(0, 3, 1, 2).float()
        try:
            with torch.inference_mode():
                rows = [compute(operations, image_3HW[None], ("probabilities", "logits")) for image_3HW in images_N3HW]
        except NotImplementedError as error:  # a supported operator with an unsupported option
            facts["unknown"] = [str(error)]
        else:
            answers = {
                name: torch.cat([row[0][i] for row in rows]).numpy() for i, name in enumerate(("probabilities", "logits"))
            }
            facts["largest"] = max(row[1] for row in rows)
    np.savez(found, *[np.asarray(array) for array in arrays], **answers)  # type: ignore[arg-type]
    print(json.dumps(facts))
