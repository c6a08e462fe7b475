"""Plant one fault at a time and assert that verification rejects it and names its cause; files without a fault pass.

`faults.table` lists them all. A fault of the reference changes outputs, is rejected before anything is published, and would be
rejected by the artifact's golden samples if it were published with all hashes right. Faults of preprocessing are planted in its
code: the preprocessing fingerprint of the checkpoint reveals them in verification, golden samples on a device.
"""

import hashlib
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from torch import nn

from edgeline.export.graph.to_onnx import CalibratedModel
from edgeline.export.parity import layerwise
from edgeline.export.parity.compare import Outputs, raise_problems
from edgeline.export.quantization.qdq_check import check_quantized, requantized
from edgeline.export.variants_report import VariantFile
from edgeline.export.verification import context as contexts
from edgeline.export.verification.context import VerificationContext, run_pytorch
from edgeline.export.verification.report import FailedVariant, VerificationReport
from edgeline.export.verification.variants import Result, verify_variants
from edgeline.export.verification.verify import verify
from edgeline.flows.cli import main as cli
from edgeline.pipeline.config import VerifyConfig
from edgeline.pipeline.data.samples import Sample, read_image
from edgeline.pipeline.data.stress_images import check_preprocessing, stress_images
from edgeline.serve import preprocess
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import EdgelineError, ExportError, GoldenError, VerificationError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime import session as runtime
from edgeline.serve.runtime.session import create_session
from tests.support.cases import cases
from tests.support.faults import graph as graphs
from tests.support.faults import quantization, weights
from tests.support.faults.surgery import divisor, mutate, rewrite
from tests.support.faults.table import AREAS, FAULTS, QUICK, Fault, markdown

pytestmark = pytest.mark.usefixtures("measured_costs")

Seal = Callable[..., Path]
Gate = Callable[[bytes], VerificationReport]
Int8Gate = Callable[[bytes], Result]
ROOT = Path(__file__).resolve().parents[3]


def of(gate: str, *, on_device: bool = False) -> Any:
    """The faults that a check must catch, or those of them that golden samples must reveal too."""
    chosen = {fault.name: fault for fault in FAULTS if fault.gate == gate and (fault.on_device or not on_device)}
    return pytest.mark.parametrize("fault", cases(chosen, quick=chosen.keys() & QUICK))


@pytest.fixture(scope="module")
def pytorch_run(deployed: CalibratedModel, spec: PreprocessSpec, held_out: list[Sample]) -> tuple[Outputs, list[np.ndarray]]:
    """Pixels and PyTorch's outputs, computed once: no fault of the reference affects them."""
    return run_pytorch(deployed, spec, held_out)


@pytest.fixture(scope="module")
def pytorch_layers() -> dict[bytes, dict[str, np.ndarray]]:
    """Outputs of PyTorch's layers by the images they were computed for. No fault of these touches them."""
    return {}


@pytest.fixture
def remembered_layers(pytorch_layers: dict[bytes, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
    compute = layerwise._run_pytorch

    def remember(deployed: Any, spec: Any, pixels_NHW3: np.ndarray, wanted: set[str]) -> dict[str, np.ndarray]:
        key = hashlib.sha256(pixels_NHW3.tobytes() + repr(sorted(wanted)).encode()).digest()
        if key not in pytorch_layers:
            pytorch_layers[key] = compute(deployed, spec, pixels_NHW3, wanted)
        return pytorch_layers[key]

    monkeypatch.setattr(layerwise, "_run_pytorch", remember)


@pytest.fixture
def gate(
    remembered_layers: None,
    pytorch_run: tuple[Outputs, list[np.ndarray]],
    context: VerificationContext,
    held_out: list[Sample],
    monkeypatch: pytest.MonkeyPatch,
) -> Gate:
    """`gate(model)`: verify an ONNX file as a run would, and raise its problems."""
    monkeypatch.setattr(contexts, "run_pytorch", lambda *_: pytorch_run)

    def run(model: bytes) -> VerificationReport:
        report = verify(replace(context, model=model, samples=held_out))
        raise_problems(report.problems, report.comparisons)
        return report

    return run


@pytest.fixture(scope="module")
def int8(finished: Any) -> bytes:
    data: bytes = (finished.run.step("variants") / "model.int8.onnx").read_bytes()
    return data


@pytest.fixture(scope="module")
def context(finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, held_out: list[Sample]) -> VerificationContext:
    samples = [replace(sample, split="val") for sample in held_out]  # no accuracy is measured
    return VerificationContext(
        deployed=deployed, model=finished.model, spec=spec, samples=samples, config=finished.config.verify, opset=18
    )


@pytest.fixture
def int8_gate(context: VerificationContext, tmp_path: Path) -> Int8Gate:
    """`int8_gate(model)`: verify an int8 file that was made from the reference."""
    entry = VariantFile(name="onnx-int8", file="model.int8.onnx", format="onnx", precision="int8")

    def run(model: bytes) -> Result:
        (tmp_path / "model.int8.onnx").write_bytes(model)
        [result] = verify_variants([entry], tmp_path, context)
        return result

    return run


Check = Callable[[Path], tuple[int, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """`check(folder)`: exit code and output of `edgeline check`."""

    def run(folder: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["edgeline", "check", str(folder)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    return run


def largest_change(before: bytes, after: bytes, pixels: np.ndarray) -> float:
    outputs = [create_session(model).run(["probabilities", "logits"], {"image": pixels}) for model in (before, after)]
    return max(float(np.abs(a - b).max()) for a, b in zip(*outputs, strict=True))


@pytest.fixture
def pixels(held_out: list[Sample], spec: PreprocessSpec) -> np.ndarray:
    files = [*map(read_image, held_out[:2]), stress_images()["scene"]]
    return np.stack([preprocess.preprocess(data, spec) for data in files])


# The table of faults.


def test_the_table_has_at_least_25_distinct_faults_and_three_in_each_area() -> None:
    assert len({(fault.gate, fault.plant) for fault in FAULTS}) == len(FAULTS) >= 25
    counts = Counter(fault.area for fault in FAULTS)
    assert counts.keys() == set(AREAS)
    assert min(counts.values()) >= 3


def test_the_page_of_faults_is_generated_from_the_table() -> None:
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == markdown()


# Controls.


def test_an_export_without_a_fault_passes(finished: Any, gate: Gate, artifact: Path) -> None:
    report = gate(finished.model)
    assert report.passed
    assert report.max_difference < 1e-5
    assert report.max_logit_difference < 1e-5
    assert check_preprocessing(finished.preprocessing_fingerprint, Classifier.open(artifact).manifest.preprocess) == 0


def test_an_int8_file_without_a_fault_passes(int8: bytes, int8_gate: Int8Gate) -> None:
    result = int8_gate(int8)
    assert (result.passed, result.problems) == (True, ())


def test_an_artifact_without_a_fault_passes(artifact: Path, check: Check) -> None:
    code, output = check(artifact)
    assert code == 0
    assert "is verified on this machine" in output


# Faults, each with its check.


@of("reference")
def test_a_file_with_a_fault_is_rejected(finished: Any, gate: Gate, pixels: np.ndarray, fault: Fault) -> None:
    faulty = mutate(finished.model, fault.plant)
    with pytest.raises(EdgelineError, match=fault.pattern) as error:
        gate(faulty)
    if isinstance(error.value, VerificationError) and "worst images: " in str(error.value):
        assert largest_change(finished.model, faulty, pixels) > 1e-4
    else:  # it is not even run, or does not run at every batch
        assert isinstance(error.value, ExportError) or "cannot run the file at batch" in str(error.value)


@of("int8")
def test_an_int8_file_with_a_fault_is_rejected(int8: bytes, int8_gate: Int8Gate, fault: Fault) -> None:
    result = int8_gate(mutate(int8, fault.plant))
    assert isinstance(result, FailedVariant)
    assert re.search(fault.pattern, "; ".join(result.problems)), result.problems


@of("preprocessing_fingerprint")
def test_preprocessing_with_a_fault_is_rejected(
    finished: Any,
    deployed: CalibratedModel,
    spec: PreprocessSpec,
    thresholds: VerifyConfig,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
) -> None:
    fault.plant(monkeypatch)
    with pytest.raises(VerificationError, match=fault.pattern) as error:
        verify(
            VerificationContext(
                deployed=deployed,
                model=finished.model,
                spec=spec,
                samples=[],
                config=thresholds,
                preprocessing_fingerprint=finished.preprocessing_fingerprint,
            )
        )
    assert error.value.code == "preprocess_changed"


@of("check")
def test_an_artifact_with_a_fault_fails_its_self_test(artifact: Path, seal: Seal, check: Check, fault: Fault) -> None:
    fault.plant(artifact, seal)
    code, output = check(artifact)
    assert code == 1
    assert re.search(fault.pattern, " ".join(output.split())), output


# On a device, if the artifact had been published.


@of("reference", on_device=True)
def test_an_artifact_that_was_published_with_the_fault_fails_its_self_test(
    finished: Any, artifact: Path, seal: Seal, fault: Fault
) -> None:
    (artifact / "model.onnx").write_bytes(mutate(finished.model, fault.plant))
    seal(artifact)
    with pytest.raises(
        EdgelineError, match="computes something else on this machine|not finite|dynamic batch dimension|cannot load the model"
    ):
        Classifier.open(artifact)


@of("preprocessing_fingerprint", on_device=True)
def test_a_device_with_the_fault_fails_the_self_test(finished: Any, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    fault.plant(monkeypatch)
    with pytest.raises(GoldenError, match="preprocessing on this machine produces different pixels"):
        Classifier.open(finished.artifact)


def test_another_int8_file_in_a_published_artifact_fails_its_golden_samples(artifact: Path, int8: bytes, seal: Seal) -> None:
    (artifact / "model.int8.onnx").write_bytes(mutate(int8, quantization.per_channel_scales_permuted))
    seal(artifact)
    assert Classifier.open(artifact).self_test is not None  # the reference is as it was
    with pytest.raises(GoldenError, match="differs by"):
        Classifier.open(artifact, variant="onnx-int8")


# Faults that need another set-up than the run's own files.


def test_a_layer_that_the_file_leaves_float_and_the_runtime_quantizes_is_named(
    finished: Any, int8: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    partly = mutate(int8, lambda graph: quantization.leave_float(graph, finished.model))
    check_quantized(partly, finished.model)
    assert requantized(partly) == []
    monkeypatch.delitem(runtime.SETTINGS, "optimization.disable_specified_optimizers")
    with pytest.raises(
        ExportError, match=rf"the runtime quantizes {quantization.BLOCK}\.conv_dw\.weight, which the file leaves"
    ):
        check_quantized(partly, finished.model)


@pytest.mark.long
def test_probabilities_rounded_to_half_precision_are_rejected(
    finished: Any, deployed: CalibratedModel, spec: PreprocessSpec, thresholds: VerifyConfig
) -> None:
    """Zeros and ones survive any rounding, so the model is made less confident first."""
    temperature = 100 * deployed.temperature
    unsure = mutate(finished.model, lambda graph: rewrite(graph, divisor(graph), lambda _: temperature))
    less_sure = CalibratedModel(deployed.network, temperature)
    context = VerificationContext(deployed=less_sure, model=unsure, spec=spec, samples=[], config=thresholds)
    assert verify(context).passed
    rounded = mutate(unsure, graphs.probabilities_rounded_to_half_precision)
    [problem, *_] = verify(replace(context, model=rounded)).problems
    assert re.search("the probabilities of .* images differ by more than 0.0001", problem)


def test_another_batch_norm_epsilon_is_rejected(
    finished: Any, gate: Gate, pixels: np.ndarray, deployed: CalibratedModel, artifact: Path, seal: Seal
) -> None:
    """The exporter folds batch norm into the convolution before it, so the fault is planted in the folded weights."""
    graph = onnx.load_model_from_string(finished.model)
    epsilons = set()
    layers = [(f"network.{name}", layer) for name, layer in deployed.network.named_modules()]
    for (name, convolution), (_, norm) in itertools.pairwise(
        p for p in layers if isinstance(p[1], (nn.Conv2d, nn.BatchNorm2d))
    ):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            epsilons.add(norm.eps)
            assert norm.running_var is not None
            ratio = ((norm.running_var + norm.eps) / (norm.running_var + 1e-5)).sqrt().numpy()
            shift = norm.bias.detach().numpy()
            rewrite(graph, f"{name}.weight", lambda w, ratio=ratio: w * ratio[:, None, None, None])
            rewrite(graph, f"{name}.weight_bias", lambda b, ratio=ratio, shift=shift: shift + (b - shift) * ratio)
    assert epsilons == {1e-3}
    faulty = graph.SerializeToString()
    assert largest_change(finished.model, faulty, pixels) > 1e-4
    with pytest.raises(VerificationError, match="the first of 50 layers to diverge is backbone.conv_stem"):
        gate(faulty)
    (artifact / "model.onnx").write_bytes(faulty)
    seal(artifact)
    with pytest.raises(GoldenError, match="the model or the runtime computes something else on this machine"):
        Classifier.open(artifact)


def test_the_model_of_an_older_run_is_recognized_by_its_logits_alone(finished: Any, artifact: Path, seal: Seal) -> None:
    (artifact / "model.onnx").write_bytes(mutate(finished.model, weights.head_of_an_older_run))
    seal(artifact)
    classifier = Classifier.open(artifact, verify=False)
    for sample in json.loads((artifact / "golden" / "golden.json").read_text())["samples"]:
        data = (artifact / sample["file"]).read_bytes()
        [[best]] = classifier.predict([data], top_k=1)
        assert (best.label, best.probability) == (sample["label"], pytest.approx(1, abs=0.02))
    with pytest.raises(GoldenError, match="on the stored pixels a logit differs by .* of the largest"):
        Classifier.open(artifact)
