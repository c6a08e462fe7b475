"""Convert a network to a Core ML package with float16 weights.

Started by `export.converters.convert` in the environment that has coremltools.

The input is an RGB image of the model's size, so that an app passes a pixel buffer. Core ML reads it as values of 0 to 255;
normalization is part of the network.
"""

import hashlib
import json
import sys
import uuid
from pathlib import Path
from typing import Any

import coremltools
import numpy as np
import torch
from torch import Tensor, nn


class ImageInput(nn.Module):
    """A network of uint8 (1, H, W, 3) with an input of float (1, 3, H, W), as Core ML passes images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_13HW: Tensor) -> tuple[Tensor, Tensor]:
        """Classify one image."""
        outputs: tuple[Tensor, Tensor] = self.network(image_13HW.permute(0, 2, 3, 1))
        return outputs


def accept_floats(program: torch.export.ExportedProgram) -> nn.Module:
    """A uint8 program as a module that accepts the same values as floats, by removing its checks of the type."""
    network = program.module(check_guards=False)
    for node in list(network.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            network.graph.erase_node(node)
    network.recompile()
    return network


def write_package(model: Any, package: Path) -> None:
    """Write a model as a package with reproducible bytes: without the date, and with identifiers derived from its content."""
    spec = model.get_spec()
    spec.description.metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)
    data = package / "Data" / "com.apple.CoreML"
    (data / "weights").mkdir(parents=True, exist_ok=True)
    (data / "model.mlmodel").write_bytes(spec.SerializeToString(deterministic=True))
    weights = Path(model.weights_dir, "weight.bin").read_bytes()
    (data / "weights" / "weight.bin").write_bytes(weights)
    entries = {}
    for name, content in (("model.mlmodel", spec.SerializeToString(deterministic=True)), ("weights", weights)):
        identifier = str(uuid.UUID(bytes=hashlib.sha256(content).digest()[:16]))
        kind = "Specification" if name == "model.mlmodel" else "Weights"
        entries[identifier] = {
            "author": "com.apple.CoreML",
            "description": f"CoreML Model {kind}",
            "name": name,
            "path": f"com.apple.CoreML/{name}",
        }
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": next(iter(entries))}
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=4) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder, _, path = sys.argv[1:]
    program = torch.export.load(Path(folder, "program.pt2"))
    _, height, width, _ = program.example_inputs[0][0].shape
    network = ImageInput(accept_floats(program))
    example_13HW = torch.zeros(1, 3, height, width)
    model = coremltools.convert(
        torch.export.export(network, (example_13HW,)).run_decompositions({}),
        inputs=[coremltools.ImageType("image", example_13HW.shape, color_layout=coremltools.colorlayout.RGB)],
        outputs=[coremltools.TensorType(name, dtype=np.float32) for name in ("probabilities", "logits")],
        minimum_deployment_target=coremltools.target.iOS16,
        compute_precision=coremltools.precision.FLOAT16,
        skip_model_load=True,
    )
    write_package(model, Path(path).parent)
