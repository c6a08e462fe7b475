"""Simulate an int8 ONNX file in PyTorch: every tensor is rounded where the file rounds it, in the same way.

The rounding is read from the file: the scales of the input, the weights and the output of each convolution and linear layer.
The layers are matched by their weights' names (see `export.parity.layerwise`); batch norms are folded on both sides. Operators
between the layers (a sigmoid, a product) stay float here and are rounded at the next layer's input.

Weights are learned as shares of the largest weight of their channel: folded batch norms leave channels of very different sizes,
and one learning rate for all would change the small ones too much and the large ones hardly at all.

Shapes: N images, O a layer's output channels, H x W the model's input.
"""

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.similarity import sqnr_db
from edgeline.export.quantization.static_int8 import Quantizable
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.fold_batch_norm import fold_batch_norm
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.session import create_session

SAME_DB = 60.0
"""PyTorch's network and the file count as the same from this SQNR of their logits."""
SMALLEST = torch.finfo(torch.float32).tiny


class Rounding(NamedTuple):
    """How a tensor is quantized: real = (integer - zero_point) * scale."""

    scale: np.ndarray
    """float32, one value or one per channel. Weights get a new one after every step."""
    zero_point: int
    lowest: int
    highest: int
    axis: int


class Layer(NamedTuple):
    """A convolution or a linear layer of the file, and how its int8 form rounds; None if it does not round."""

    node: NodeProto
    weight: Rounding | None
    bias: np.ndarray | None
    """The int8 form's, float32 (O,)."""
    input: Rounding | None
    output: Rounding | None
    source: str
    """The tensors that it reads and writes, including the activation where the two are fused."""
    result: str


def read_layers(model: ModelProto, quantized: bytes) -> dict[str, Layer]:
    """The layers of a float file by their path in the PyTorch network, and how its int8 form rounds each."""
    int8 = onnx.load_model_from_string(quantized).graph
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in int8.initializer}
    producers = {output: node for node in int8.node for output in node.output}
    roundings = {node.input[0]: node for node in int8.node if node.op_type == "QuantizeLinear"}
    counterparts = {node.name: node for node in int8.node}
    layers = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm") or not node.input[1].startswith("network.") or node.name not in counterparts:
            continue
        into, weight, *bias = (producers.get(name) for name in counterparts[node.name].input)
        result = counterparts[node.name].output[0]
        path = node.input[1].removeprefix("network.").removesuffix(".weight")
        layers[path] = Layer(
            node,
            _rounding(weight, numbers, symmetric=True),
            _dequantized(bias[0], numbers) if bias else None,
            _rounding(into, numbers),
            _rounding(roundings.get(result), numbers),
            producers[into.input[0]].input[0] if into is not None and into.input[0] in producers else "",
            result,
        )
    return layers


def _rounding(node: NodeProto | None, numbers: dict[str, np.ndarray], *, symmetric: bool = False) -> Rounding | None:
    if node is None or node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale, zero_point = (numbers[name].reshape(-1) for name in node.input[1:3])
    limits = np.iinfo(zero_point.dtype)
    lowest, highest = int(limits.min), int(limits.max)
    if symmetric:  # symmetric, and 7 bits where the range is reduced: the largest quantized weight
        highest = max(1, int(np.abs(numbers[node.input[0]].astype(int)).max()))
        lowest = -highest
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return Rounding(scale, int(zero_point[0]), lowest, highest, axis)


def _dequantized(node: NodeProto | None, numbers: dict[str, np.ndarray]) -> np.ndarray | None:
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return (numbers[node.input[0]] * numbers[node.input[1]].astype(np.float64)).astype(np.float32)


def as_in_file(
    deployed: CalibratedModel, spec: PreprocessSpec, ready: Quantizable, layers: dict[str, Layer], pixels_NHW3: np.ndarray
) -> Network:
    """A copy of the network with the float file's own weights and normalization.

    Args:
        deployed: the network; not changed.
        spec: its preprocessing.
        ready: the float file.
        layers: the result of `read_layers`.
        pixels_NHW3: uint8, to compare both on.

    Raises:
        ExportError: it does not compute what the file computes.
    """
    network = fold_batch_norm(deployed.network, spec).requires_grad_(False)
    network.mean.fill_(ready.zero_point)
    network.std.fill_(1 / ready.scale)
    numbers = {tensor.name: numpy_helper.to_array(tensor) for tensor in ready.model.graph.initializer}
    modules = dict(network.named_modules())
    for path, layer in layers.items():
        for name, own in zip(layer.node.input[1:], ("weight", "bias"), strict=False):
            there = getattr(modules.get(path), own, None)
            if there is None or tuple(there.shape) != numbers[name].shape:
                raise ExportError(f"{name} of the ONNX file is not in the network, so it cannot be tuned for int8")
            there.copy_(torch.from_numpy(numbers[name].copy()))
    expected_NK = create_session(ready.model.SerializeToString()).run(["logits"], {"image": pixels_NHW3})[0]
    with torch.inference_mode():
        logits_NK = network(torch.from_numpy(pixels_NHW3)).numpy() / deployed.temperature
    if not (same := sqnr_db(expected_NK, logits_NK)) >= SAME_DB:
        raise ExportError(
            f"the network with folded batch norms does not compute what the ONNX file does (SQNR {same:.0f} dB, at least "
            f"{SAME_DB:g} expected), so it cannot be tuned for int8"
        )
    return network


def simulate(network: Network, layers: dict[str, Layer], pixels_NHW3: np.ndarray) -> list[nn.Parameter]:
    """Make a network compute as the int8 file does, with the file's biases and with trainable weights and biases.

    Args:
        network: the result of `as_in_file`.
        layers: the result of `read_layers`.
        pixels_NHW3: uint8, to find out which module produces each layer's input.

    Returns:
        The trainable parameters.
    """
    modules = dict(network.named_modules())
    sources = _sources(network, layers, torch.from_numpy(pixels_NHW3))
    learned: list[nn.Parameter] = []
    for path, layer in layers.items():
        module: Any = modules[path]
        if layer.bias is not None:
            module.bias.copy_(torch.from_numpy(layer.bias))
        unit_O = module.weight.abs().flatten(1).amax(1).clamp(min=SMALLEST)
        # A step of a bias changes the output as much as a step of the largest weight at the largest input.
        reach = 1.0 if layer.input is None else float(layer.input.scale[0]) * (layer.input.highest - layer.input.lowest)
        units = {"weight": unit_O.reshape(-1, *[1] * (module.weight.ndim - 1)), "bias": unit_O * reach}
        for name, rounding in (("weight", layer.weight), ("bias", None)):
            if getattr(module, name) is not None:
                parametrize.register_parametrization(module, name, _Share(units[name], rounding))
                learned.append(module.parametrizations[name].original.requires_grad_())
        if layer.output is not None:
            module.register_forward_hook(lambda _, inputs, output, how=layer.output: _rounded(output, how))
    rounded = {layer.result for layer in layers.values() if layer.output is not None}
    for path, layer in layers.items():
        if layer.input is None or layer.source in rounded:
            continue
        # At its source, where a module produces it: other readers of the tensor, such as a shortcut, read it rounded too.
        if (source := sources.get(path)) is not None:
            source.register_forward_hook(lambda _, inputs, output, how=layer.input: _rounded(output, how))
        else:
            modules[path].register_forward_pre_hook(lambda _, inputs, how=layer.input: (_rounded(inputs[0], how),))
    return learned


def _sources(network: Network, layers: dict[str, Layer], pixels_NHW3: Tensor) -> dict[str, nn.Module]:
    """The first module that produced the tensor which a layer reads, by the layer's path; observed in one forward pass."""
    producers: dict[int, nn.Module] = {}
    found: dict[str, nn.Module] = {}
    tensors: list[Tensor] = []  # keeps them alive, so that their ids stay unique

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            producers.setdefault(id(output), module)
            tensors.append(output)

    def before(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if (producer := producers.get(id(inputs[0]))) is not None:
                found[path] = producer

        return hook

    hooks = [module.register_forward_hook(after) for module in network.modules()]
    hooks += [module.register_forward_pre_hook(before(path)) for path, module in network.named_modules() if path in layers]
    with torch.inference_mode():
        network(pixels_NHW3)
    for hook in hooks:
        hook.remove()
    return found


class _Share(nn.Module):
    """A weight or a bias, learned as a share of `unit`, rounded or not."""

    def __init__(self, unit: Tensor, rounding: Rounding | None) -> None:
        super().__init__()
        self.register_buffer("unit", unit)
        self.unit: Tensor
        self.rounding = rounding

    def forward(self, share: Tensor) -> Tensor:
        value = share * self.unit
        if self.rounding is None:
            return value
        low, high, axis = self.rounding.lowest, self.rounding.highest, self.rounding.axis
        if len(self.rounding.scale) == 1:
            scale = max(float(value.detach().abs().max()), SMALLEST) / high
            return torch.fake_quantize_per_tensor_affine(value, scale, 0, low, high)
        scale_O = value.detach().abs().transpose(0, axis).flatten(1).amax(1).clamp(min=SMALLEST) / high
        return torch.fake_quantize_per_channel_affine(
            value, scale_O, torch.zeros_like(scale_O, dtype=torch.int32), axis, low, high
        )

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self.unit


def _rounded(values: Tensor, how: Rounding) -> Tensor:
    """An activation as rounded in the int8 file; gradients pass unless it is clipped."""
    return torch.fake_quantize_per_tensor_affine(values, float(how.scale[0]), how.zero_point, how.lowest, how.highest)


def with_weights(ready: Quantizable, network: Network, layers: dict[str, Layer]) -> Quantizable:
    """A copy of the float file with the learned weights of a simulated network, before rounding."""
    model = copy.deepcopy(ready.model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    modules: dict[str, Any] = dict(network.named_modules())
    for path, layer in layers.items():
        for name, own in zip(layer.node.input[1:], ("weight", "bias"), strict=False):
            learned = modules[path].parametrizations[own]
            value = (learned.original * learned[0].unit).detach().cpu().numpy()
            tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return replace(ready, model=model)
