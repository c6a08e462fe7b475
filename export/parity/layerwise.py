"""Where does a file stop giving what the network gives? One extra run of each, layer beside layer.

A convolution or a linear layer keeps its weights' name through the export, so `network.backbone.blocks.4.0.conv_dw.weight`
leads from an ONNX node to a PyTorch module, in an int8 file too. The batch norms are folded on both sides. The first layer
whose output leaves its tolerance is the culprit, or takes its input from it.

Shapes: N images, H x W the model's input.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.similarity import sqnr_db
from edgeline.pipeline.evaluation.plots import write_divergence_png
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session

FLOAT_DB = 80.0
"""A float32 layer under this is wrong: 112 dB was the least of a right one."""
FALL_DB = 10.0
"""An int8 layer that is this much worse than the layer before it is where the loss happens."""
IMAGES = 8
PLOT = "divergence.png"
ROOT = "network."
"""What the exporter puts before the paths of a network's modules."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's output in the file, held against PyTorch's."""

    module: str
    """Path in the PyTorch network."""
    node: str
    """Name in the ONNX graph."""
    sqnr_db: float


def locate(deployed: CalibratedModel, model: bytes, spec: PreprocessSpec, pixels_NHW3: np.ndarray) -> list[Layer]:
    """Compare every convolution and linear layer, in the graph's order.

    Args:
        deployed: the network.
        model: the ONNX file's bytes, float or int8.
        spec: its preprocessing.
        pixels_NHW3: uint8.
    """
    named = layers_of(onnx.load_model_from_string(model))
    outputs = [(path.removeprefix(ROOT), node, tensor) for path, node, tensor in named if path.startswith(ROOT)]
    wanted = {path for path, _, _ in outputs}
    expected = _run_pytorch(deployed, spec, pixels_NHW3, wanted)
    observed = run_tensors(model, [tensor for _, _, tensor in outputs], {"image": pixels_NHW3})
    layers = []
    for path, node, tensor in outputs:
        if path in expected and expected[path].shape == observed[tensor].shape:
            layers.append(Layer(path, node, sqnr_db(expected[path].astype(np.float64), observed[tensor].astype(np.float64))))
    return layers


def first_diverging(layers: list[Layer], *, quantized: bool) -> Layer | None:
    """The first layer out of tolerance, None where there is none."""
    if not quantized:
        return next((layer for layer in layers if layer.sqnr_db < FLOAT_DB), None)
    falls = [(before.sqnr_db - layer.sqnr_db, layer) for before, layer in zip(layers, layers[1:], strict=False)]
    return next((layer for fall, layer in falls if fall > FALL_DB), None)


def find_divergence(
    deployed: CalibratedModel,
    model: bytes,
    spec: PreprocessSpec,
    pixels_NHW3: np.ndarray,
    plot: Path | None,
    *,
    quantized: bool,
) -> tuple[str, dict[str, Any]]:
    """Say in a sentence where a file diverges, with the figures of every layer, and plot them.

    Returns:
        The sentence, empty where no layer is out of tolerance, and what goes into the report.
    """
    layers = locate(deployed, model, spec, pixels_NHW3[:IMAGES])
    first = first_diverging(layers, quantized=quantized)
    if plot is not None and layers:
        write_divergence_png(plot, [layer.sqnr_db for layer in layers], [layer.module for layer in layers])
    report = {"first": None if first is None else asdict(first), "layers": [asdict(layer) for layer in layers]}
    if first is None:
        return "", report
    return (
        f"the first of {len(layers)} layers to diverge is {first.module} (ONNX node {first.node}, SQNR "
        f"{first.sqnr_db:.0f} dB): look at it and at what comes before it"
    ), report


def layers_of(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Path (its weight's name without the last part), node and output tensor of every convolution and linear layer."""
    producers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = node.input[1]
        while name in producers and producers[name].input:  # an int8 file dequantizes its weights first
            name = producers[name].input[0]
        path = name.removesuffix("_half").removesuffix("_quantized").removesuffix(".weight")
        found.append((path, node.name, node.output[0]))
    return found


def run_tensors(model: bytes, tensors: list[str], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run an ONNX file for some of its inner tensors."""
    parsed = onnx.load_model_from_string(model)
    own = {value.name for value in parsed.graph.output}
    for name in dict.fromkeys(tensors):
        if name not in own:
            parsed.graph.output.append(onnx.ValueInfoProto(name=name))
    # Unoptimized, or the layers would be fused with what follows them, and an int8 file's would hold no floats.
    session = create_session(parsed.SerializeToString(), level="disable_all")
    return dict(zip(tensors, session.run(tensors, feed), strict=True))


def _run_pytorch(
    deployed: CalibratedModel, spec: PreprocessSpec, pixels_NHW3: np.ndarray, wanted: set[str]
) -> dict[str, np.ndarray]:
    network = fold_batch_norm(deployed.network, spec)
    found: dict[str, np.ndarray] = {}

    def keep(path: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            found[path] = output.numpy().copy()  # an activation may work in place

        return hook

    hooks = [module.register_forward_hook(keep(path)) for path, module in network.named_modules() if path in wanted]
    with torch.inference_mode():
        network(torch.from_numpy(pixels_NHW3))
    for hook in hooks:
        hook.remove()
    return found
