"""Small ONNX files under the graph contract, for tests of quantization that need no trained network."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIZE = 24
CHANNELS = 8
CLASSES = 3
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
ONE_FOR_ALL = ([127.0], [128.0])


def convolutional(
    mean: list[float], std: list[float], *, bias: bool = True, first: str = "Conv", layers: int = 1, seed: int = 0
) -> bytes:
    """uint8 NHWC, a normalization, convolutions of 3 x 3 with padding, pooling and a linear layer.

    Args:
        mean: of one or three channels, of 255.
        std: likewise.
        bias: whether the first convolution has one.
        first: what follows the normalization; anything but `Conv` leaves the convolutions out.
        layers: the number of convolutions; a ReLU6 follows each but the last.
        seed: of the weights.
    """
    chance = np.random.default_rng(seed)
    tensors = {
        "mean": np.array(mean, np.float32).reshape(1, -1, 1, 1),
        "std": np.array(std, np.float32).reshape(1, -1, 1, 1),
        "kernel": chance.normal(0, 0.2, (CHANNELS, 3, 3, 3)).astype(np.float32),
        "bias": chance.normal(0, 0.2, CHANNELS).astype(np.float32),
        "matrix": chance.normal(0, 1, (CLASSES, CHANNELS)).astype(np.float32),
        "offset": np.zeros(CLASSES, np.float32),
        "shape": np.array([-1, CHANNELS]),
    }
    nodes = [
        helper.make_node("Transpose", ["image"], ["permute"], "t", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["permute"], ["cast"], "c", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["cast", "mean"], ["sub"], "s"),
        helper.make_node("Div", ["sub", "std"], ["div"], "d"),
        helper.make_node(first, ["div", "kernel", *(["bias"] if bias else [])], ["conv"], "conv", pads=[1] * 4)
        if first == "Conv"
        else helper.make_node("Identity", ["div"], ["conv"], "i"),
    ]
    last = "conv"
    for number in range(1, layers):
        tensors |= {
            "zero": np.array(0, np.float32),
            "six": np.array(6, np.float32),
            f"kernel{number}": chance.normal(0, 0.2, (CHANNELS, CHANNELS, 3, 3)).astype(np.float32),
            f"bias{number}": chance.normal(0, 0.2, CHANNELS).astype(np.float32),
        }
        nodes += [
            helper.make_node("Clip", [last, "zero", "six"], [f"clip{number}"], f"clip{number}"),
            helper.make_node(
                "Conv",
                [f"clip{number}", f"kernel{number}", f"bias{number}"],
                [f"conv{number}"],
                f"conv{number}",
                pads=[1] * 4,
            ),
        ]
        last = f"conv{number}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pool"], "g"),
        helper.make_node("Reshape", ["pool", "shape"], ["flat"], "r"),
        helper.make_node("Gemm", ["flat", "matrix", "offset"], ["logits"], "m", transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "x", axis=1),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", CLASSES]) for n in ("probabilities", "logits")]
    graph = helper.make_graph(nodes, "net", [image], outputs, [numpy_helper.from_array(v, k) for k, v in tensors.items()])
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return bytes(model.SerializeToString())
