"""The check on another processor: its entry for each variant, its errors, and how a crash is reported."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.export.emulation.machine import Machine, check
from edgeline.serve.errors import DigestError, VerificationError


@pytest.fixture
def fake_machine(tmp_path: Path) -> Callable[[str], Machine]:
    """`fake_machine(shell_line)`: a machine whose emulator is a shell script."""

    def make(line: str) -> Machine:
        qemu = tmp_path / "emulator"
        qemu.write_text(f"#!/bin/sh\n{line}\n")
        qemu.chmod(0o755)
        return Machine(processor="aarch64", qemu=str(qemu), cpu="max", root=tmp_path, python=(sys.executable, "-P"))

    return make


@pytest.fixture
def native_machine(fake_machine: Callable[[str], Machine]) -> Machine:
    """A machine that runs the program without an emulator."""
    return fake_machine('shift 4; exec "$@"')  # -cpu NAME -L ROOT


def test_the_entry_of_a_variant_has_the_figures_of_its_golden_samples(native_machine: Machine, make_artifact: Any) -> None:
    [entry] = check(make_artifact(), native_machine)
    assert (entry.variant, entry.passed, entry.samples) == ("onnx-fp32", True, 4)
    assert entry.max_difference == entry.max_logit_difference == entry.max_pixel_difference == 0
    assert entry.tolerance > 0
    assert entry.load_s > 0
    assert entry.sample_s > 0


def test_a_difference_from_the_golden_samples_is_reported_in_one_line(
    native_machine: Machine, make_artifact: Any, seal: Any
) -> None:
    folder = make_artifact()
    golden = (folder / "golden" / "golden.json").read_text()
    (folder / "golden" / "golden.json").write_text(golden.replace('"logits": [', '"logits": [9e9, ', 1))
    seal(folder)
    [entry] = check(folder, native_machine)
    assert not entry.passed
    assert "\n" not in entry.error


def test_a_variant_that_does_not_load_stops_the_check(native_machine: Machine, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(VerificationError, match="onnx-fp32 on aarch64: ONNX Runtime .* cannot load the model"):
        check(seal(folder), native_machine)


def test_a_damaged_artifact_is_rejected_before_it_is_run(fake_machine: Callable[[str], Machine], make_artifact: Any) -> None:
    folder = make_artifact()
    (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size)
    with pytest.raises(DigestError):
        check(folder, fake_machine("exit 1"))


ENDS = {
    "a crash": ("kill -SEGV $$", "onnx-fp32: the check on aarch64 ended with SIGSEGV"),
    "an error": ("echo first >&2; echo last >&2; exit 3", r"ended with status 3 \(last\)"),
    "a hang": ("exec sleep 60", "onnx-fp32: the check on aarch64 was stopped after 0.2 s"),
}


@pytest.mark.parametrize(("line", "message"), ENDS.values(), ids=ENDS)
def test_an_abnormal_end_names_the_variant_and_the_cause(
    line: str, message: str, fake_machine: Callable[[str], Machine], make_artifact: Any
) -> None:
    with pytest.raises(VerificationError, match=message):
        check(make_artifact(), fake_machine(line), timeout_s=0.2 if "sleep" in line else 60)
