"""The exported file keeps the graph contract, contains nothing about the machine, and is the same each time."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from edgeline.export.graph.contract import check_graph
from edgeline.export.graph.to_onnx import CalibratedModel, GraphOptions, export, metadata_of
from edgeline.pipeline.data.stress_images import stress_images
from edgeline.pipeline.evaluation.report import read_evaluation
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.checkpoint import load_checkpoint
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.pipeline.runs.atomic_files import file_digest
from edgeline.serve.errors import ExportError
from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.session import create_session
from tests.support.cases import cases

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(name="graph", scope="module")
def parsed(finished: Any) -> onnx.ModelProto:
    return onnx.load_model_from_string(finished.model)


def shape(value: onnx.ValueInfoProto) -> tuple[str, int, list[int | str]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


def test_it_maps_bytes_to_probabilities_and_logits_with_a_free_batch(graph: onnx.ModelProto) -> None:
    assert [shape(value) for value in graph.graph.input] == [("image", TensorProto.UINT8, ["batch", 96, 96, 3])]
    assert [shape(value) for value in graph.graph.output] == [
        ("probabilities", TensorProto.FLOAT, ["batch", 3]),
        ("logits", TensorProto.FLOAT, ["batch", 3]),
    ]


def test_it_needs_no_newer_runtime_than_the_settings_name(graph: onnx.ModelProto, finished: Any) -> None:
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", finished.config.export.opset)] == [("", 18)]
    assert graph.ir_version == 8
    assert not graph.functions


def test_it_has_standard_operators_only_and_its_pooling_is_one_of_them(graph: onnx.ModelProto) -> None:
    operators = Counter(node.op_type for node in graph.graph.node)
    assert operators.keys() == {
        *("Transpose", "Cast", "Sub", "Div", "Conv", "Clip", "Add"),
        *("GlobalAveragePool", "Reshape", "Gemm", "Softmax"),
    }
    assert operators["GlobalAveragePool"] == operators["Softmax"] == operators["Gemm"] == 1
    assert operators["Div"] == 2, "by std and by the temperature"


def test_it_is_one_file(finished: Any) -> None:
    assert sorted(path.name for path in finished.run.step("export").iterdir()) == ["model.onnx", "receipt.json"]
    create_session(finished.model)  # from bytes, so no other file is read


def test_it_passes_its_own_check(finished: Any, spec: PreprocessSpec) -> None:
    assert check_graph(finished.model, spec, classes=3, opset=18).graph.name


def test_it_contains_nothing_about_the_machine_that_made_it(finished: Any, photos: Path) -> None:
    places = [finished.config.artifacts, str(photos), str(ROOT), str(Path.home()), str(Path.cwd())]
    for trace in [*places, "site-packages", ".py", "stack_trace", "torch.nn", "pkg."]:
        assert trace.encode() not in finished.model, trace


def noted(message: Any) -> Iterator[str]:
    """Every doc string and metadata entry anywhere in a message, except the model's own metadata."""
    for field, value in message.ListFields():
        if field.name == "metadata_props" and not isinstance(message, onnx.ModelProto):
            yield str(value)
        if field.name == "doc_string":
            yield value
        if field.type == field.TYPE_MESSAGE:
            for part in value if field.is_repeated else [value]:
                yield from noted(part)


def test_no_node_and_no_value_has_exporter_metadata(graph: onnx.ModelProto) -> None:
    assert list(noted(graph)) == []


def test_its_metadata_states_its_origin(
    graph: onnx.ModelProto, finished: Any, spec: PreprocessSpec, deployed: CalibratedModel
) -> None:
    assert {entry.key: entry.value for entry in graph.metadata_props} == {
        "edgeline.labels": "bark\nleaf\nsky",
        "edgeline.model": "efficientnet_lite0",
        "edgeline.preprocess_sha256": spec.digest(),
        "edgeline.checkpoint_sha256": file_digest(finished.run.step("train") / "checkpoint.safetensors"),
        "edgeline.temperature": repr(deployed.temperature),
    }


def test_logits_are_the_networks_own_over_the_temperature_and_probabilities_their_softmax(
    finished: Any, spec: PreprocessSpec, deployed: CalibratedModel
) -> None:
    pixels_NHW3 = np.stack([preprocess(stress_images()[name], spec) for name in ("scene", "noise", "gray")])
    probabilities_NK, logits_NK = create_session(finished.model).run(None, {"image": pixels_NHW3})
    with torch.inference_mode():
        own_NK = deployed.network(torch.from_numpy(pixels_NHW3)).numpy()
    assert abs(deployed.temperature - 1) > 0.1, "a temperature of 1 would show nothing"
    scale = np.abs(own_NK / deployed.temperature).max()
    np.testing.assert_allclose(logits_NK, own_NK / deployed.temperature, rtol=0, atol=1e-5 * scale)
    exponents_NK = np.exp((logits_NK - logits_NK.max(1, keepdims=True)).astype(np.float64))
    np.testing.assert_allclose(probabilities_NK, exponents_NK / exponents_NK.sum(1, keepdims=True), rtol=0, atol=1e-6)


@pytest.mark.long
def test_exporting_again_writes_the_same_bytes_whatever_mode_the_network_was_in(
    finished: Any, spec: PreprocessSpec, deployed: CalibratedModel, tmp_path: Path
) -> None:
    """In training mode batch norm and dropout would be exported as such."""
    network, checkpoint = load_checkpoint(finished.run.step("train"))
    temperature = read_evaluation(finished.run.step("evaluate")).calibration.temperature
    left_training = CalibratedModel(network, temperature).train()
    path = tmp_path / "model.onnx"
    metadata = metadata_of(finished.run, checkpoint, temperature)
    export(left_training, spec, path, GraphOptions(classes=3, opset=18, metadata=metadata))
    assert path.read_bytes() == finished.model


class Pooled(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, self.size).flatten(1)


SMALL = PreprocessSpec(height=16, width=16)


def with_backbone(backbone: nn.Module, features: int) -> CalibratedModel:
    network = Network(backbone, features, 3, 0.0, Normalization((127.0,) * 3, (128.0,) * 3))
    return CalibratedModel(network.eval(), 1.0)


POOLINGS = {"1": (1, "GlobalAveragePool"), "2": (2, "AveragePool"), "16": (16, "Identity")}


# PyTorch reads its whole library of translations for each export, for two seconds.
@pytest.mark.parametrize(("size", "operator"), cases(POOLINGS, quick=["2"]))
def test_pooling_is_one_operator_and_equals_pytorchs(size: int, operator: str, tmp_path: Path) -> None:
    deployed = with_backbone(Pooled(size), 3 * size * size)
    export(deployed, SMALL, tmp_path / "model.onnx", GraphOptions(classes=3, opset=18))
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert (operator in kinds) or (operator == "Identity" and not any("Pool" in kind for kind in kinds))
    assert "ReduceMean" not in kinds
    pixels_NHW3 = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    [logits_NK] = create_session((tmp_path / "model.onnx").read_bytes()).run(["logits"], {"image": pixels_NHW3})
    with torch.inference_mode():
        np.testing.assert_allclose(logits_NK, deployed(torch.from_numpy(pixels_NHW3))[1].numpy(), rtol=0, atol=1e-6)


class ByContent(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) if images.sum() > 0 else images.amax((2, 3))


class SixDeep(nn.Module):
    """Uses an operator that ONNX does not have."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images).mean((2, 3))


CANNOT: dict[str, tuple[nn.Module, int, str]] = {
    "pooling by unequal windows": (Pooled(3), 27, r"the network pools \[16, 16\] to \[3, 3\], with windows of different sizes"),
    "control flow that depends on the pixels": (ByContent(), 3, "PyTorch cannot export this network to ONNX: .*choose another"),
    "an operator without a translation": (SixDeep(), 3, "PyTorch cannot export this network to ONNX: .*bessel_j0"),
}


@pytest.mark.long
@pytest.mark.parametrize(("backbone", "features", "reason"), cases(CANNOT, quick=["an operator without a translation"]))
def test_a_network_that_cannot_be_exported_is_rejected(tmp_path: Path, backbone: nn.Module, features: int, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        export(with_backbone(backbone, features), SMALL, tmp_path / "model.onnx", GraphOptions(classes=3, opset=18))


@pytest.mark.long
def test_a_network_with_another_number_of_classes_is_rejected(tiny: Callable[[], CalibratedModel], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"probabilities is FLOAT \[batch, 3\], expected FLOAT \[batch, 4\]"):
        export(tiny(), SMALL, tmp_path / "model.onnx", GraphOptions(classes=4, opset=18))
