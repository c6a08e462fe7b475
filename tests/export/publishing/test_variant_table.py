"""The table of a model and its variants: every figure in its column, and the reason why a variant does not ship."""

from typing import Any

import pytest

from edgeline.export.parity.report import AccuracyDrop, OutputSimilarity
from edgeline.export.publishing.variant_table import figures, int8_line, origins, rows
from edgeline.export.quantization.report import CalibrationImages, Int8Report, ValidationImages
from edgeline.export.records import MeasuredOn
from edgeline.export.verification.findings import find_in_verification
from edgeline.export.verification.report import (
    ColdStart,
    FailedVariant,
    ImageCounts,
    Latency,
    PassedVariant,
    ReferenceThresholds,
    VerificationReport,
)
from edgeline.serve.runtime.provenance import machine_line

MACHINE = {"cpu": "A CPU", "processor": "x86-vnni", "flags": ["avx2", "avx512_vnni"], "cores": 2, "system": "Linux x86_64"}
MEASURED_ON = MeasuredOn(
    date="2026-01-02T03:04:05+00:00",
    command="edgeline verify RUN",
    machine=MACHINE,
    versions={"python": "3.11.9"},
    options={"batches": [1, 7], "session": {"a": "1"}},
)
ACCURACY = AccuracyDrop(
    reference_top1=0.95,
    top1=0.9477,
    top1_interval=(0.9, 0.97),
    images=153,
    lost=3,
    gained=2,
    drop_points=0.65,
    drop_interval_points=(-1.5, 2.8),
)
SIMILARITY = OutputSimilarity(
    images=213,
    sqnr_db=21.4,
    cosine=0.99,
    kl=0.00123,
    max_difference=0.0312,
    top1_agreement=0.9953,
    clear_agreement=1,
    top5_agreement=1,
    flips=1,
    largest_flipped_margin=0.01,
)
LATENCY = {
    "threads_1": Latency(p50_ms=12.52, p95_ms=14.01, preprocess_p50_ms=3.0, runs=50),
    "threads_2": Latency(p50_ms=7.0, p95_ms=14.01, preprocess_p50_ms=3.0, runs=50),
}
INT8 = Int8Report(
    target="x86-avx2",
    chosen="U8S8 channel minmax 7 bits",
    evaluated_on=ValidationImages(images=49),
    calibration=CalibrationImages(images=128, sha256="ab" * 32),
    exact_precision_setting=False,
    tried=(),
    measured_on=MEASURED_ON,
)
FAILED = FailedVariant(
    name="onnx-fp16",
    file="model.fp16.onnx",
    format="onnx",
    precision="float16 weights",
    problems=("SQNR 3.0 dB, at least 40 required",),
)


def passed(name: str, **changes: Any) -> PassedVariant:
    fields: dict[str, Any] = {
        "name": name,
        "file": "model.onnx",
        "format": "onnx",
        "precision": "float32",
        "sha256": "0" * 64,
        "bytes": 3_812_345,
        "accuracy": ACCURACY,
        "similarity": SIMILARITY,
        "latency": LATENCY,
        "start": ColdStart(import_ms=100.0, load_ms=50.0, first_answer_ms=20.4, peak_mb=70.6),
        "measured_on": MEASURED_ON,
    }
    return PassedVariant(**fields | changes)


def report(reference: PassedVariant | None = None, int8: PassedVariant | None = None, **changes: Any) -> VerificationReport:
    fields: dict[str, Any] = {
        "model_sha256": "0" * 64,
        "passed": True,
        "problems": (),
        "thresholds": ReferenceThresholds(max_difference=1e-4, margin=1e-3),
        "images": ImageCounts(held_out=200, stress_images=13),
        "test_accuracy": None,
        "max_difference": 1e-6,
        "max_logit_difference": 1e-6,
        "top1_agreement": 1.0,
        "comparisons": (),
        "reference": reference or passed("onnx-fp32"),
        "variants": (int8 or passed("onnx-int8", saturates=False), FAILED),
        "int8": INT8,
        "measured_on": MEASURED_ON,
    }
    return VerificationReport(**fields | changes)


@pytest.fixture
def verification() -> VerificationReport:
    return report()


def test_every_variant_that_ships_has_every_figure_the_reference_first(verification: VerificationReport) -> None:
    reference, int8 = rows(verification)
    assert reference.keys() == int8.keys()
    assert int8 == {
        "Variant": "onnx-int8",
        "MB": "3.8",
        "Accuracy, %": "94.77 (90.00 to 97.00)",
        "Drop, points": "0.65 (-1.50 to 2.80)",
        "Same class, %": "99.53",
        "SQNR, dB": "21",
        "KL": "0.001",
        "Largest difference": "0.03",
        "ms, 1 thread": "12.5 / 14.0",
        "ms, 2 threads": "7.0 / 14.0",
        "Start, ms": "170",
        "Peak, MB": "71",
    }


def test_without_test_images_the_accuracy_is_empty() -> None:
    [row, _] = rows(report(reference=passed("onnx-fp32", accuracy=None)))
    assert row["Accuracy, %"] == row["Drop, points"] == ""


def test_a_variant_that_does_not_ship_is_listed_with_its_reason(verification: VerificationReport) -> None:
    [finding] = find_in_verification(verification)
    assert finding.message == "onnx-fp16 is not shipped: SQNR 3.0 dB, at least 40 required."


SETTINGS = {
    "cannot saturate": ({"saturates": False}, "no two products can saturate, so x86 without VNNI computes the same"),
    "may saturate": ({"saturates": True}, "x86 without VNNI needs the exact-precision setting"),
}


@pytest.mark.parametrize(("change", "words"), SETTINGS.values(), ids=SETTINGS)
def test_the_int8_line_names_the_processor_it_was_measured_on_and_the_target(change: dict[str, Any], words: str) -> None:
    line = int8_line(report(int8=passed("onnx-int8", **change)))
    assert line is not None
    assert line.startswith("U8S8 channel minmax 7 bits, for x86-avx2; measured on 49 validation images on x86-vnni (A CPU)")
    assert "exact-precision setting off; calibrated on 128 training images (sha256 abababababab)" in line
    assert words in line


def test_a_run_without_int8_has_no_int8_line() -> None:
    assert int8_line(report(int8=None).model_copy(update={"int8": None})) is None


def test_every_group_of_figures_has_the_command_that_measures_it_again(verification: VerificationReport) -> None:
    [row, times] = origins(verification, {"measured_on": {"verification": MEASURED_ON.to_dict()}})
    assert (row["Figures"], row["Command"], row["Options"]) == (
        "verification",
        "edgeline verify RUN",
        "batches 1/7, session a=1",
    )
    assert row["Machine"] == machine_line(MACHINE) == "A CPU (x86-vnni, avx2 avx512_vnni), 2 cores, Linux x86_64"
    assert times["Figures"] == "times and memory"


def test_the_manifest_has_the_unrounded_numbers() -> None:
    found = figures(passed("onnx-int8", saturates=False))
    assert (found["sqnr_db"], found["saturates"], found["measured_on"]) == (21.4, False, MEASURED_ON.to_dict())
    assert "saturates" not in figures(passed("onnx-fp32"))
