"""The check on another processor: what it tells of every variant, what is refused, and how an end that is none is named."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.export.emulation.machine import Machine, check
from edgeline.serve.errors import DigestError, VerificationError


@pytest.fixture
def pretend(tmp_path: Path) -> Callable[[str], Machine]:
    """`pretend(shell_line)`: a machine whose emulator is a shell script; quick, and ends as it is told."""

    def make(line: str) -> Machine:
        qemu = tmp_path / "emulator"
        qemu.write_text(f"#!/bin/sh\n{line}\n")
        qemu.chmod(0o755)
        return Machine(processor="aarch64", qemu=str(qemu), cpu="max", root=tmp_path, python=(sys.executable, "-P"))

    return make


@pytest.fixture
def this_one(pretend: Callable[[str], Machine]) -> Machine:
    """A machine that is this one: no emulator, the same program."""
    return pretend('shift 4; exec "$@"')  # -cpu NAME -L ROOT


def test_every_variant_is_named_with_what_its_golden_samples_showed(this_one: Machine, make_artifact: Any) -> None:
    [entry] = check(make_artifact(), this_one)
    assert (entry["variant"], entry["passed"], entry["samples"]) == ("onnx-fp32", True, 4)
    assert entry["max_difference"] == entry["max_logit_difference"] == entry["max_pixel_difference"] == 0
    assert entry.keys() >= {"exact_setting", "tolerance", "logit_tolerance", "pixel_tolerance", "load_s", "sample_s"}


def test_other_answers_than_the_golden_samples_are_told_in_one_line(this_one: Machine, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    golden = (folder / "golden" / "golden.json").read_text()
    (folder / "golden" / "golden.json").write_text(golden.replace('"logits": [', '"logits": [9e9, ', 1))
    seal(folder)
    [entry] = check(folder, this_one)
    assert not entry["passed"]
    assert "\n" not in entry["error"]


def test_a_variant_that_does_not_load_there_stops_the_check(this_one: Machine, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(VerificationError, match="onnx-fp32 on aarch64: ONNX Runtime .* cannot load the model"):
        check(seal(folder), this_one)


def test_an_artifact_that_is_not_whole_is_not_even_tried(pretend: Callable[[str], Machine], make_artifact: Any) -> None:
    folder = make_artifact()
    (folder / "model.onnx").write_bytes(b"x" * (folder / "model.onnx").stat().st_size)
    with pytest.raises(DigestError):
        check(folder, pretend("exit 1"))


ENDS = {
    "a crash": ("kill -SEGV $$", "onnx-fp32: the check on aarch64 ended with SIGSEGV"),
    "an error": ("echo first >&2; echo last >&2; exit 3", r"ended with status 3 \(last\)"),
    "no end": ("exec sleep 60", "onnx-fp32: the check on aarch64 was stopped after 0.2 s"),
}


@pytest.mark.parametrize(("line", "said"), ENDS.values(), ids=ENDS)
def test_an_end_that_is_none_says_where_it_was_and_how_it_ended(
    line: str, said: str, pretend: Callable[[str], Machine], make_artifact: Any
) -> None:
    with pytest.raises(VerificationError, match=said):
        check(make_artifact(), pretend(line), timeout_s=0.2 if "sleep" in line else 60)
