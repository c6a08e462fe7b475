"""Find the first layer at which a file diverges from the network, by running both layer by layer.

A convolution or a linear layer keeps its weights' name through the export, so `network.backbone.blocks.4.0.conv_dw.weight`
leads from an ONNX node to a PyTorch module, in an int8 file too. Batch norms are folded on both sides. The first layer whose
output is out of tolerance is at fault, or what comes right before it.

Shapes: N images, H x W the model's input.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.report import Divergence, Layer
from edgeline.export.parity.similarity import sqnr_db
from edgeline.export.tolerances import FLOAT_LAYER_DB, INT8_LAYER_FALL_DB
from edgeline.pipeline.evaluation.plots import write_divergence_png
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session

IMAGES = 8
PLOT = "divergence.png"
ROOT = "network."
"""What the exporter puts before the paths of a network's modules."""


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
            ratio = sqnr_db(expected[path].astype(np.float64), observed[tensor].astype(np.float64))
            layers.append(Layer(module=path, node=node, sqnr_db=ratio))
    return layers


def first_diverging(layers: list[Layer], *, quantized: bool) -> Layer | None:
    """The first layer out of tolerance; None if there is none."""
    if not quantized:
        return next((layer for layer in layers if layer.sqnr_db < FLOAT_LAYER_DB), None)
    falls = [(before.sqnr_db - layer.sqnr_db, layer) for before, layer in zip(layers, layers[1:], strict=False)]
    return next((layer for fall, layer in falls if fall > INT8_LAYER_FALL_DB), None)


def find_divergence(
    deployed: CalibratedModel, model: bytes, spec: PreprocessSpec, pixels_NHW3: np.ndarray, *, quantized: bool
) -> Divergence:
    """Find where a file diverges from the network.

    Args:
        deployed: the network.
        model: the ONNX file's bytes, float or int8.
        spec: its preprocessing.
        pixels_NHW3: uint8; the first `IMAGES` are used.
        quantized: whether the file is int8.
    """
    layers = locate(deployed, model, spec, pixels_NHW3[:IMAGES])
    return Divergence(first=first_diverging(layers, quantized=quantized), layers=tuple(layers))


def plot_divergence(divergence: Divergence, path: Path) -> None:
    """Plot every layer's SQNR, if there are layers to plot."""
    if divergence.layers:
        write_divergence_png(
            path, [layer.sqnr_db for layer in divergence.layers], [layer.module for layer in divergence.layers]
        )


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
