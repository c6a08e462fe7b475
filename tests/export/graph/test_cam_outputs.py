"""Class activation maps as outputs: they are PyTorch's, planted faults are found, and nothing else in the file changes."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from edgeline.export.graph.cam_outputs import add_outputs, plain, remove_outputs, shapes_of
from edgeline.export.graph.contract import check_graph
from edgeline.export.graph.to_onnx import CalibratedModel, GraphOptions, export
from edgeline.export.quantization.static_int8 import INTEGER_OPERATORS, optimized_graph
from edgeline.export.tolerances import PRECISIONS
from edgeline.export.verification.context import VerificationContext
from edgeline.export.verification.explanations import compare_maps, expected_maps, pytorch_maps
from edgeline.export.verification.verify import verify
from edgeline.flows.steps import execute, step_named
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.samples import ADMITTED, Sample, read_image, read_prepared
from edgeline.pipeline.models.backbones import Network
from edgeline.pipeline.models.pretrained import Normalization
from edgeline.pipeline.runs.run import Run
from edgeline.serve.artifact.training_features import read_features
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError, ExportError
from edgeline.serve.preprocess import PreprocessSpec, preprocess
from edgeline.serve.runtime.session import create_session
from tests.support.faults.surgery import mutate

pytestmark = pytest.mark.usefixtures("measured_costs")

Change = Callable[[onnx.ModelProto], None]
EXACT = {"min_sqnr_db": 100, "max_sum_error": PRECISIONS["float32"].max_map_error, "max_difference": 1e-4}


@pytest.fixture(name="explained", scope="module")
def with_outputs(finished: Any, spec: PreprocessSpec) -> bytes:
    model = add_outputs(onnx.load_model_from_string(finished.model), spec.height, spec.width)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.fixture(name="pixels", scope="module")
def noise(spec: PreprocessSpec) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (6, spec.height, spec.width, 3), np.uint8))


def test_the_file_keeps_its_contract_and_every_node(finished: Any, explained: bytes, spec: PreprocessSpec) -> None:
    model = check_graph(explained, spec, classes=3)
    assert shapes_of(model) == {"evidence": (3, 3, 3), "embedding": (1280,)}
    own = onnx.load_model_from_string(finished.model)
    assert remove_outputs(model) == own
    assert plain(explained) == own.SerializeToString(deterministic=True)
    assert plain(finished.model) == finished.model


def test_the_files_maps_and_embeddings_are_pytorchs(
    deployed: CalibratedModel, explained: bytes, pixels: list[np.ndarray]
) -> None:
    expected = expected_maps(deployed.network, deployed.temperature, pixels)
    found, problems = compare_maps(create_session(explained), expected, **EXACT)
    assert problems == []
    assert found.images == len(pixels)
    assert 0 < found.max_difference < 1e-4
    assert found.adds_up < 1e-5


def test_pytorchs_maps_add_up_to_its_logits(deployed: CalibratedModel, pixels: list[np.ndarray]) -> None:
    pixels_NHW3 = np.stack(pixels)
    evidence_NKhw, _ = pytorch_maps(deployed.network, deployed.temperature, pixels_NHW3)
    with torch.inference_mode():
        _, logits_NK = deployed(torch.from_numpy(pixels_NHW3))
    np.testing.assert_allclose(evidence_NKhw.mean((2, 3)), logits_NK.numpy(), atol=1e-4)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    [found] = [each for each in model.graph.node if each.name == f"explain.{name}"]
    return found


def exchange(model: onnx.ModelProto, user: str, place: int, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the numbers of a constant that an added node reads."""
    used = node(model, user)
    [tensor] = [each for each in model.graph.initializer if each.name == used.input[place]]
    value = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    model.graph.initializer.append(numpy_helper.from_array(value, "planted"))
    used.input[place] = "planted"


def before(model: onnx.ModelProto, name: str, kind: str, *more: str, **attributes: Any) -> None:
    """Insert another node before an output."""
    last = node(model, name)
    added = helper.make_node(kind, [last.output[0] + "_before", *more], [last.output[0]], **attributes)
    last.output[0] += "_before"
    model.graph.node.append(added)


def double(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(2, np.float32), "two"))
    before(model, "embedding", "Mul", "two")


def earlier_map(model: onnx.ModelProto) -> None:
    """The map that enters the last convolution's activation, in place of the one that leaves it."""
    producers = {output: each for each in model.graph.node for output in each.output}
    conv = node(model, "conv")
    conv.input[0] = producers[conv.input[0]].input[0]


FAULTS: dict[str, tuple[Change, str]] = {
    "rows and columns swapped": (lambda m: before(m, "evidence", "Transpose", perm=[0, 1, 3, 2]), "not PyTorch's"),
    "classes in another order": (lambda m: exchange(m, "reshape", 0, lambda w: w[::-1]), "does not add up"),
    "no bias": (lambda m: exchange(m, "conv", 2, np.zeros_like), "does not add up"),
    "no temperature": (lambda m: exchange(m, "evidence", 1, np.ones_like), "does not add up"),
    "the map before the activation": (earlier_map, "not PyTorch's"),
    "features of another scale": (double, "its embedding is not PyTorch's"),
    "no numbers": (lambda m: exchange(m, "conv", 2, lambda b: np.full_like(b, np.nan)), "does not add up"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, deployed: CalibratedModel, explained: bytes, pixels: list[np.ndarray]) -> None:
    plant, cause = FAULTS[fault]
    expected = expected_maps(deployed.network, deployed.temperature, pixels)
    session = create_session(mutate(explained, plant))
    figures, problems = compare_maps(session, expected, **EXACT)
    assert any(cause in problem for problem in problems)
    json.dumps(figures.to_dict(), allow_nan=False)


@pytest.mark.long
def test_maps_are_verified_where_the_run_has_them(
    deployed: CalibratedModel,
    finished: Any,
    explained: bytes,
    spec: PreprocessSpec,
    held_out: list[Sample],
    thresholds: VerifyConfig,
) -> None:
    few = held_out[:3]
    context = VerificationContext(deployed=deployed, model=explained, spec=spec, samples=few, config=thresholds, explain=True)
    good = verify(context)
    assert good.passed
    assert good.explanation is not None
    assert good.explanation.sqnr_db > 100
    bad = verify(replace(context, model=mutate(explained, FAULTS["rows and columns swapped"][0])))
    assert not bad.passed
    assert "its evidence is not PyTorch's" in " ".join(bad.problems)


def test_a_file_with_one_of_the_two_outputs_breaks_the_contract(explained: bytes, spec: PreprocessSpec) -> None:
    def drop(model: onnx.ModelProto) -> None:
        [found] = [value for value in model.graph.output if value.name == "embedding"]
        model.graph.output.remove(found)

    with pytest.raises(ExportError, match="embedding") as error:
        check_graph(mutate(explained, drop), spec, classes=3)
    assert error.value.code == "graph_contract"


def test_evidence_of_another_number_of_classes_breaks_the_contract(explained: bytes, spec: PreprocessSpec) -> None:
    def widen(model: onnx.ModelProto) -> None:
        [found] = [value for value in model.graph.output if value.name == "evidence"]
        found.type.tensor_type.shape.dim[1].dim_value = 4

    with pytest.raises(ExportError, match=r"expected \(3, h, w\)"):
        check_graph(mutate(explained, widen), spec, classes=3)


@pytest.mark.long
def test_a_network_with_more_than_a_linear_layer_is_rejected(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Hardswish()]
    network = Network(nn.Sequential(*layers), 8, 3, 0.0, Normalization((127.0,) * 3, (128.0,) * 3)).eval()
    spec = PreprocessSpec(height=16, width=16)
    with pytest.raises(ConfigError, match=r"set export\.explain = false") as error:
        export(CalibratedModel(network, 0.7), spec, tmp_path / "model.onnx", GraphOptions(classes=3, opset=18, explain=True))
    assert error.value.code == "not_explainable"
    with pytest.raises(ConfigError, match="no layer's output"):
        pytorch_maps(network, 0.7, np.zeros((1, 16, 16, 3), np.uint8))


@pytest.mark.long
def test_the_maps_of_a_classifier_without_a_bias_add_up(tiny: Callable[[], CalibratedModel], tmp_path: Path) -> None:
    deployed = tiny()
    nn.init.zeros_(deployed.network.classifier.bias)
    spec = PreprocessSpec(height=16, width=16)
    export(deployed, spec, tmp_path / "model.onnx", GraphOptions(classes=3, opset=18, explain=True))
    expected = expected_maps(deployed.network, 0.7, list(np.zeros((2, 16, 16, 3), np.uint8)))
    session = create_session((tmp_path / "model.onnx").read_bytes())
    _, problems = compare_maps(session, expected, **(EXACT | {"min_sqnr_db": 80}))
    assert problems == []


@pytest.mark.long
def test_a_last_map_of_one_place_is_rejected(tiny: Callable[[], CalibratedModel], tmp_path: Path) -> None:
    spec = PreprocessSpec(height=4, width=4)  # the convolution reduces it to one position
    with pytest.raises(ConfigError, match="one position"):
        export(tiny(), spec, tmp_path / "model.onnx", GraphOptions(classes=3, opset=18, explain=True))


# The pipeline


@pytest.fixture(name="published", scope="module")
def a_run_that_explains(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run, repeated from the export step on, for an artifact with class activation maps."""
    run = finished.copy(tmp_path_factory.mktemp("explaining"))
    config = run.config.model_copy(update={"export": run.config.export.model_copy(update={"explain": True})})
    run = Run(run.folder, config)
    (run.folder / "config.json").write_text(config.model_dump_json())
    for name in ("export", "variants", "verify", "publish"):
        execute(name, run)
    return run


@pytest.fixture(name="store_folder", scope="module")
def its_artifact(published: Run) -> Path:
    return published.config.store / published.config.artifact_name / "1"


@pytest.mark.long
def test_every_onnx_and_ort_variant_has_activation_maps(published: Run, store_folder: Path, pixels: list[np.ndarray]) -> None:
    report = json.loads((published.step("verify") / "verification.json").read_text())
    assert report["explanation"]["adds_up"] < 1e-5
    assert {entry["name"]: entry["passed"] for entry in report["variants"]} == dict.fromkeys(
        ("onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8"), True
    )
    reference = Classifier.open(store_folder).evidence(pixels[0][None])
    for entry in report["variants"]:
        classifier = Classifier.open(store_folder, variant=entry["name"])
        assert classifier.explains
        assert entry["explanation"]["sqnr_db"] > entry["thresholds"]["min_sqnr_db"]
        [ours_Khw] = classifier.evidence(pixels[0][None])
        assert np.corrcoef(ours_Khw.ravel(), reference.ravel())[0, 1] > 0.98, entry["name"]


@pytest.mark.long
def test_the_manifest_lists_the_outputs_of_the_graph(published: Run, store_folder: Path) -> None:
    manifest = Classifier.open(store_folder).manifest
    assert {each["name"]: each["shape"] for each in manifest.outputs[2:]} == {
        "evidence": ["batch", 3, 3, 3],
        "embedding": ["batch", 1280],
    }
    assert manifest.file("embedding.json").role == "statistics"


@pytest.mark.long
def test_the_features_are_those_of_the_training_images(published: Run, store_folder: Path) -> None:
    classifier = Classifier.open(store_folder)
    features = read_features(classifier.artifact)
    assert features is not None
    held = json.loads((store_folder / "statistics.json").read_text())["statistics"]["embedding"]
    assert held["count"] > 0
    assert 0.5 < held["mean"] < 3
    train = read_prepared(published.step("prepare")).of("train")
    pixels_NHW3 = np.stack([preprocess(read_image(sample), classifier.manifest.preprocess, ADMITTED) for sample in train])
    embedding_NC = np.concatenate([classifier.run(batch_NHW3).embedding_NC for batch_NHW3 in np.array_split(pixels_NHW3, 4)])  # type: ignore[misc]
    np.testing.assert_allclose(features.mean_C, embedding_NC.mean(0), atol=1e-4)
    np.testing.assert_allclose(features.variance_C, embedding_NC.var(0), atol=1e-3)


@pytest.mark.long
def test_the_outputs_do_not_change_the_integer_operators(finished: Any, published: Run) -> None:
    def integers(path: Path) -> Counter[str]:
        graph = optimized_graph(path.read_bytes()).graph
        return Counter(node.op_type for node in graph.node if node.op_type in INTEGER_OPERATORS)

    assert integers(published.step("variants") / "model.int8.onnx") == integers(
        finished.run.step("variants") / "model.int8.onnx"
    )


@pytest.mark.long
def test_the_other_outputs_are_the_same_to_the_bit(finished: Any, store_folder: Path, pixels: list[np.ndarray]) -> None:
    for variant in (None, "onnx-int8"):
        one, other = (Classifier.open(folder, variant=variant) for folder in (store_folder, finished.artifact))
        for found, expected in zip(one.answer(np.stack(pixels)), other.answer(np.stack(pixels)), strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.long
def test_the_setting_changes_the_key_of_the_export(finished: Any, published: Run) -> None:
    assert step_named("export").key(published) != step_named("export").key(finished.run)


@pytest.mark.long
def test_a_changed_embedding_file_is_a_digest_mismatch(store_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(store_folder, tmp_path / "photos" / "1", copy_function=shutil.copyfile))
    (copied / "embedding.json").write_text("{}")
    with pytest.raises(Exception, match=r"embedding\.json") as error:
        Classifier.open(copied)
    assert getattr(error.value, "code", None) == "digest_mismatch"


def test_the_added_nodes_share_no_quantized_weights_with_the_others(finished: Any, spec: PreprocessSpec) -> None:
    # On x86 without VNNI, ONNX Runtime rewrites int8 weights, and does not load a file in which two nodes share them.
    int8 = onnx.load(finished.run.step("variants") / "model.int8.onnx")
    model = add_outputs(int8, spec.height, spec.width)
    reads = [name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.input]
    initializers = {tensor.name for tensor in model.graph.initializer}
    shared = {name for name, count in Counter(reads).items() if count > 1 and name in initializers}
    assert {name for name in shared if "weight" in name} == set()
    create_session(model.SerializeToString(), saturates=True)
