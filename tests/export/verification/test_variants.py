"""Verification of variants: those within their thresholds pass with figures, the others are left out with a reason."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity.compare import Outputs
from edgeline.export.variant_registry import VARIANTS
from edgeline.export.variants_report import VariantsReport
from edgeline.export.verification.context import VerificationContext
from edgeline.export.verification.report import FailedVariant
from edgeline.export.verification.variant_checks import Candidate, check_similarity
from edgeline.export.verification.variants import Result, verify_variants
from edgeline.export.verification.verify import build_verification, context_of
from edgeline.flows.steps import step_named
from edgeline.pipeline.config import load_config
from edgeline.pipeline.data.samples import Sample
from edgeline.pipeline.runs.run import Run
from edgeline.pipeline.thresholds import Int8Thresholds
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import VerificationError
from edgeline.serve.preprocess import PreprocessSpec

pytestmark = pytest.mark.usefixtures("measured_costs")

Verify = Callable[..., Result]


@pytest.fixture(scope="module")
def report(finished: Any) -> dict[str, dict[str, Any]]:
    verification = json.loads((finished.run.step("verify") / "verification.json").read_text())
    return {entry["name"]: entry for entry in verification["variants"]}


def test_every_variant_of_a_correct_run_passes_with_its_figures(report: dict[str, dict[str, Any]]) -> None:
    assert list(report) == ["onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8"]
    for entry in report.values():
        assert (entry["passed"], entry["problems"]) == (True, [])
        assert entry["similarity"]["clear_agreement"] == 1
        assert entry["accuracy"]["drop_points"] == 0
        low, high = entry["accuracy"]["top1_interval"]
        assert low < entry["accuracy"]["top1"] <= high
        assert entry["measured_on"]["command"] == f"edgeline check ARTIFACT --variant {entry['name']} --time"
        assert {latency["runs"] for latency in entry["latency"].values()} == {50}
        assert "threads_1" in entry["latency"]
        assert entry["start"].keys() == {"import_ms", "load_ms", "first_answer_ms", "peak_mb"}


def test_the_figures_are_in_the_range_of_each_precision(report: dict[str, dict[str, Any]]) -> None:
    sqnr = {name: entry["similarity"]["sqnr_db"] for name, entry in report.items()}
    assert 15 < sqnr["onnx-int8"] < 60
    assert 40 < sqnr["onnx-fp16"] < 80
    assert sqnr["ort-fp32"] > 100
    assert sqnr["ort-int8"] == sqnr["onnx-int8"]


def test_int8_is_the_same_at_every_optimization_that_keeps_integers(report: dict[str, dict[str, Any]]) -> None:
    levels = report["onnx-int8"]["levels_sqnr_db"]
    assert levels["extended"] == 200  # bit for bit
    assert 15 < levels["disable_all"] < 200  # the simulation in float


@pytest.fixture(scope="module")
def context(finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, held_out: list[Sample]) -> VerificationContext:
    metadata = {e.key: e.value for e in onnx.load_model_from_string(finished.model).metadata_props}
    return VerificationContext(
        deployed=deployed,
        model=finished.model,
        spec=spec,
        samples=held_out,
        metadata=metadata,
        config=finished.config.verify,
        opset=18,
    )


@pytest.fixture(name="verify")
def verify_file(finished: Any, context: VerificationContext, tmp_path: Path) -> Verify:
    """`verify(data, name="onnx-int8")`: the result for a variant whose file has these bytes."""

    def run(data: bytes, name: str = "onnx-int8", saturates: bool = True, **changes: str) -> Result:
        made = VariantsReport.read(finished.run.step("variants") / "variants.json").variants
        [entry] = [entry for entry in made if entry.name == name]
        (tmp_path / entry.file).write_bytes(data)
        expected = replace(context, metadata={**context.metadata, **changes}) if changes else context
        [found] = verify_variants([entry.model_copy(update={"saturates": saturates})], tmp_path, expected)
        return found

    return run


@pytest.fixture(scope="module")
def int8(finished: Any) -> bytes:
    data: bytes = (finished.run.step("variants") / "model.int8.onnx").read_bytes()
    return data


def change_tensor(model: bytes, ending: str, change: Any) -> bytes:
    graph = onnx.load_model_from_string(model)
    tensor = next(t for t in graph.graph.initializer if t.name.endswith(ending))
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(value.copy())).astype(value.dtype), tensor.name))
    return bytes(graph.SerializeToString())


def test_the_file_without_a_fault_passes(verify: Verify, int8: bytes) -> None:
    found = verify(int8)
    assert (found.passed, found.problems) == (True, ())
    assert found.sha256 == hashlib.sha256(int8).hexdigest()


@pytest.mark.long
def test_a_file_of_another_run_is_rejected(verify: Verify, int8: bytes) -> None:
    found = verify(int8, **{"edgeline.checkpoint_sha256": "0" * 64})
    assert "make the variants again" in found.problems[0]


def test_a_truncated_ort_file_is_rejected_with_one_line(verify: Verify, finished: Any) -> None:
    data = (finished.run.step("variants") / "model.ort").read_bytes()
    found = verify(data[: len(data) // 2], "ort-fp32")
    assert not found.passed
    assert "cannot load the model" in found.problems[0]


def test_a_layer_that_loses_too_much_is_named(verify: Verify, int8: bytes) -> None:
    found = verify(change_tensor(int8, "blocks.4.0.conv_dw.weight_bias_quantized", lambda v: np.roll(v, 7)))
    assert isinstance(found, FailedVariant)
    assert found.divergence is not None
    assert found.divergence.first is not None
    assert found.divergence.first.module == "backbone.blocks.4.0.conv_dw"


@pytest.mark.long
def test_int8_that_is_reported_not_to_saturate_is_checked(verify: Verify, int8: bytes) -> None:
    found = verify(int8, saturates=False)
    assert not found.passed
    assert found.problems[0].startswith("two products may exceed 16 bits, but variants.json rules that out")


def test_the_reference_is_measured_like_its_variants(finished: Any, report: dict[str, dict[str, Any]]) -> None:
    verification = json.loads((finished.run.step("verify") / "verification.json").read_text())
    reference, int8 = verification["reference"], report["onnx-int8"]
    assert reference["name"] == "onnx-fp32"
    assert reference["similarity"]["sqnr_db"] > 100
    assert reference["latency"].keys() == int8["latency"].keys()
    assert reference["start"].keys() == int8["start"].keys()
    assert reference["accuracy"]["images"] == int8["accuracy"]["images"] > 0
    assert reference.keys() <= int8.keys()


def spoiled(run: Run, int8: bytes, redo: Any) -> None:
    """Reduce a run to two variants, one of them with a fault."""
    folder = run.step("variants")
    report = json.loads((folder / "variants.json").read_text())
    (folder / "variants.json").write_text(json.dumps(report | {"variants": report["variants"][:2]}))
    data = change_tensor(int8, "blocks.4.0.conv_dw.weight_scale", lambda v: np.roll(v, 7))
    (folder / "model.int8.onnx").write_bytes(data)
    redo(folder)


@pytest.mark.long
def test_a_variant_that_fails_is_left_out_and_the_run_continues(run: Run, int8: bytes, redo: Any, tmp_path: Path) -> None:
    spoiled(run, int8, redo)
    build_verification(run, tmp_path)
    report = json.loads((tmp_path / "verification.json").read_text())
    assert report["passed"]
    assert [entry["passed"] for entry in report["variants"]] == [False, True]


@pytest.mark.long
def test_a_variant_that_is_required_stops_the_run(run: Run, int8: bytes, redo: Any, tmp_path: Path) -> None:
    spoiled(run, int8, redo)
    export = run.config.export.model_copy(update={"require_variants": True, "variants": ("onnx-int8",)})
    with pytest.raises(VerificationError, match="onnx-int8: the int8 file.s .*conv_dw.weight is not the reference"):
        build_verification(Run(run.folder, run.config.model_copy(update={"export": export})), tmp_path)


@pytest.mark.parametrize("name", ["onnx-int8", "onnx-fp16", "ort-fp32", "ort-int8"])
def test_a_published_variant_passes_its_self_test_and_classifies(finished: Any, name: str) -> None:
    classifier = Classifier.open(finished.artifact, variant=name)
    assert classifier.self_test is not None
    assert classifier.self_test.samples == 5
    sample = json.loads((finished.artifact / "golden" / "golden.json").read_text())["samples"][0]
    [[best]] = classifier.predict([(finished.artifact / sample["file"]).read_bytes()], top_k=1)
    assert best.label == sample["label"]


NO_MODELS = {"cut short": lambda model: model[: len(model) // 2], "a zip file": lambda model: b"PK\x03\x04" + model[:100]}


@pytest.mark.parametrize("spoil", NO_MODELS.values(), ids=NO_MODELS)
def test_bytes_that_are_not_a_model_are_rejected_with_one_line(verify: Verify, int8: bytes, spoil: Any) -> None:
    found = verify(spoil(int8))
    assert not found.passed
    assert any(words in found.problems[0] for words in ("not an ONNX model", "breaks the graph contract"))


@pytest.mark.parametrize(("export_drop", "verify_drop"), [(0.3, 1.0), (5.0, 0.3)])
def test_the_gate_applies_the_smaller_of_both_settings_of_the_largest_drop(
    finished: Any, export_drop: float, verify_drop: float
) -> None:
    config = load_config(None, [f"export.max_drop={export_drop}", f"verify.int8.max_drop={verify_drop}"])
    gate = context_of(Run(finished.run.folder, config)).config
    assert gate.int8.max_drop == 0.3
    assert gate.fp16 == config.verify.fp16


def test_another_largest_drop_is_verified_again(run: Run) -> None:
    export = run.config.export.model_copy(update={"max_drop": 0.5})
    stricter = Run(run.folder, run.config.model_copy(update={"export": export}))
    assert step_named("verify").key(stricter) != step_named("verify").key(run)


def test_the_gate_rejects_int8_that_loses_accuracy_on_the_test_images(context: VerificationContext, tmp_path: Path) -> None:
    lenient = Int8Thresholds(min_sqnr_db=-99, min_agreement=0, min_clear_agreement=0, max_kl=99, max_difference=1)
    gate = replace(context, config=context.config.model_copy(update={"int8": lenient}))
    position, target = next((p, t) for p, t in gate.labeled if gate.expected.probabilities_NK[p].argmax() == t)
    logits_NK, probabilities_NK = gate.expected.logits_NK.copy(), gate.expected.probabilities_NK.copy()
    for array_NK in (logits_NK, probabilities_NK):
        array_NK[position] = np.roll(array_NK[position], 1)
    candidate = Candidate(spec=VARIANTS["ort-int8"], path=tmp_path, saturates=None, context=gate)
    vars(candidate)["by_batch"] = {1: Outputs(probabilities_NK, logits_NK)}
    [problem] = check_similarity(candidate).problems
    assert problem.startswith("accuracy drops by ")
    assert "at most 1 allowed" in problem
