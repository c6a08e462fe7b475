"""The table of a model and its variants: every figure in its column, and what does not ship told with its reason."""

from typing import Any

import pytest

from edgeline.export.publishing.variant_table import figures, int8_line, origins, remarks, rows
from edgeline.serve.runtime.provenance import machine_line

MACHINE = {"cpu": "A CPU", "processor": "x86-vnni", "flags": ["avx2", "avx512_vnni"], "cores": 2, "system": "Linux x86_64"}
TAKEN = {
    "date": "2026-01-02T03:04:05+00:00",
    "command": "edgeline verify RUN",
    "machine": MACHINE,
    "versions": {"python": "3.11.9"},
    "options": {"batches": [1, 7], "session": {"a": "1"}},
}


def form(name: str, **changes: Any) -> dict[str, Any]:
    accuracy = {"top1": 0.9477, "top1_interval": [0.9, 0.97], "drop_points": 0.65, "drop_interval_points": [-1.5, 2.8]}
    similarity = {"images": 213, "max_difference": 0.0312, "top1_agreement": 0.9953, "sqnr_db": 21.4, "kl": 0.00123}
    times = {"p50_ms": 12.52, "p95_ms": 14.01, "preprocess_p50_ms": 3.0, "runs": 50}
    start = {"import_ms": 100.0, "load_ms": 50.0, "first_answer_ms": 20.4, "peak_mb": 70.6}
    latency = {"threads_1": times, "threads_2": times | {"p50_ms": 7.0}}
    costs = {"latency": latency, "start": start, "measured_on": TAKEN}
    return {
        "name": name,
        "passed": True,
        "bytes": 3_812_345,
        "accuracy": accuracy,
        "similarity": similarity,
        **costs,
        **changes,
    }


@pytest.fixture
def verification() -> dict[str, Any]:
    int8 = {
        "target": "x86-avx2",
        "chosen": "U8S8 channel minmax 7 bits",
        "judged_on": {"split": "val", "images": 49},
        "calibration": {"images": 128, "sha256": "ab" * 32},
        "exact_precision_setting": False,
        "measured_on": TAKEN,
    }
    bad = {"name": "onnx-fp16", "passed": False, "problems": ["SQNR 3.0 dB, at least 40 are asked"]}
    variants = [form("onnx-int8", saturates=False), bad]
    return {"reference": form("onnx-fp32"), "variants": variants, "int8": int8, "measured_on": TAKEN}


def test_every_form_that_ships_has_every_figure_the_reference_first(verification: dict[str, Any]) -> None:
    reference, int8 = rows(verification)
    assert reference.keys() == int8.keys()
    assert int8 == {
        "Variant": "onnx-int8",
        "MB": "3.8",
        "Accuracy, %": "94.77 (90.00 to 97.00)",
        "Lost, points": "0.65 (-1.50 to 2.80)",
        "Same class, %": "99.53",
        "SQNR, dB": "21",
        "KL": "0.001",
        "Largest difference": "0.03",
        "ms, 1 thread": "12.5 / 14.0",
        "ms, 2 threads": "7.0 / 14.0",
        "Start, ms": "170",
        "Peak, MB": "71",
    }


def test_without_test_images_there_is_no_accuracy_to_tell(verification: dict[str, Any]) -> None:
    verification["reference"]["accuracy"] = None
    assert rows(verification)[0]["Accuracy, %"] == rows(verification)[0]["Lost, points"] == ""


def test_what_does_not_ship_is_told_with_its_reason(verification: dict[str, Any]) -> None:
    assert remarks(verification) == ["onnx-fp16 is not shipped: SQNR 3.0 dB, at least 40 are asked"]


SETTINGS = {
    "cannot saturate": ({"saturates": False}, "no two products can saturate, so x86 without VNNI answers the same"),
    "may saturate": ({"saturates": True}, "x86 without VNNI needs the exact-precision setting"),
}


@pytest.mark.parametrize(("change", "said"), SETTINGS.values(), ids=SETTINGS)
def test_int8_says_on_which_processor_it_was_judged_and_for_which(
    verification: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    verification["variants"][0] |= change
    line = int8_line(verification)
    assert line is not None
    assert line.startswith("U8S8 channel minmax 7 bits, for x86-avx2; judged on 49 validation images on x86-vnni (A CPU)")
    assert "exact-precision setting off; calibrated on 128 training images (sha256 abababababab)" in line
    assert said in line


def test_a_run_without_int8_says_nothing_of_it(verification: dict[str, Any]) -> None:
    assert int8_line(verification | {"int8": None}) is None


def test_every_group_of_figures_has_the_command_that_gives_it_again(verification: dict[str, Any]) -> None:
    [row, times] = origins(verification, {"measured_on": {"verification": TAKEN}})
    assert (row["Figures"], row["Command"], row["Options"]) == (
        "verification",
        "edgeline verify RUN",
        "batches 1/7, session a=1",
    )
    assert row["Machine"] == machine_line(MACHINE) == "A CPU (x86-vnni, avx2 avx512_vnni), 2 cores, Linux x86_64"
    assert times["Figures"] == "times and memory"


def test_the_manifest_keeps_the_numbers_themselves(verification: dict[str, Any]) -> None:
    found = figures(verification["variants"][0])
    assert (found["sqnr_db"], found["saturates"], found["measured_on"]) == (21.4, False, TAKEN)
    assert "saturates" not in figures(verification["reference"])
