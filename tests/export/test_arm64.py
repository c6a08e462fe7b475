"""The check on an emulated ARM processor: what is proven there, what is refused, and what it says where it cannot run."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export.arm64 import RECEIPT, Machine, check, prepare_machine
from serve.errors import DigestError, EdgelineError, VerificationError

SKIPPED_ARGUMENTS = 6  # -cpu NAME -L ROOT PYTHON -S


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    try:
        return prepare_machine(tmp_path_factory.mktemp("cache") / "arm64")
    except EdgelineError as error:
        if error.code != "arm64_unavailable":
            raise
        pytest.skip(str(error))


@pytest.fixture
def pretend(tmp_path: Path) -> Callable[[str], Machine]:
    """`pretend(shell_line)`: a machine whose emulator is a shell script; quick, and ends as it is told."""

    def make(line: str) -> Machine:
        qemu = tmp_path / "emulator"
        qemu.write_text(f"#!/bin/sh\n{line}\n")
        qemu.chmod(0o755)
        return Machine(tmp_path / "arm64", str(qemu), "python3.11")

    return make


@pytest.fixture
def this_one(pretend: Callable[[str], Machine]) -> Machine:
    """A machine that is this one: no emulator, the same program."""
    return pretend(f'shift {SKIPPED_ARGUMENTS}; exec {sys.executable} "$@"')


def test_every_variant_is_named_with_what_its_golden_samples_showed(this_one: Machine, make_artifact: Any) -> None:
    [entry] = check(make_artifact(), this_one)
    assert (entry["variant"], entry["proven"], entry["samples"]) == ("onnx-fp32", True, 4)
    assert entry["max_difference"] == entry["max_logit_difference"] == entry["max_pixel_difference"] == 0
    assert entry.keys() >= {"tolerance", "logit_tolerance", "pixel_tolerance", "load_s", "sample_s"}


def test_other_answers_than_the_golden_samples_are_told_in_one_line(this_one: Machine, make_artifact: Any, seal: Any) -> None:
    folder = make_artifact()
    golden = (folder / "golden" / "golden.json").read_text()
    (folder / "golden" / "golden.json").write_text(golden.replace('"logits": [', '"logits": [9e9, ', 1))
    seal(folder)
    [entry] = check(folder, this_one)
    assert not entry["proven"]
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


MISSING = {
    "qemu": ((), r"qemu-aarch64-static is not on this machine.*: apt-get install qemu-user-static$"),
    "apt-get": (("qemu-aarch64-static",), r"apt-get is not on this machine.*: apt-get install apt$"),
    "dpkg": (("qemu-aarch64-static", "apt-get"), r"dpkg-deb is not on this machine.*: apt-get install dpkg$"),
}


@pytest.mark.parametrize(("present", "said"), MISSING.values(), ids=MISSING)
def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    present: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in present:
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EdgelineError, match=said) as refusal:
        prepare_machine(tmp_path / "arm64")
    assert refusal.value.code == "arm64_unavailable"
    assert not (tmp_path / "arm64").exists()


def test_sources_without_aarch64_packages_are_told_and_leave_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = tmp_path / "apt.conf"
    nothing.write_text('Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "/dev/null";')
    monkeypatch.setenv("APT_CONFIG", str(nothing))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qemu-aarch64-static").symlink_to("/bin/true")  # it does not come to that
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EdgelineError, match=r"the system's package sources give no aarch64 Python|is not on this machine"):
        prepare_machine(tmp_path / "arm64")
    assert not (tmp_path / "arm64").exists()


@pytest.mark.slow
def test_a_machine_is_made_once(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = (machine.folder / RECEIPT).stat().st_mtime_ns
    monkeypatch.setenv("PIP_INDEX_URL", str(tmp_path))  # nothing can be fetched any more
    assert prepare_machine(machine.folder) == machine
    assert (machine.folder / RECEIPT).stat().st_mtime_ns == made


@pytest.mark.slow
def test_int8_proves_itself_on_arm(machine: Machine, finished: Any) -> None:
    """float32 does too (see the module's table), and takes ten seconds a sample under emulation."""
    names = ("onnx-int8",)
    entries = {entry["variant"]: entry for entry in check(finished.artifact, machine, variants=names)}
    assert tuple(entries) == names
    assert all(entry["proven"] and entry["samples"] == 5 for entry in entries.values())
    for name in names:  # 0 where no value was rounded to another of its 256 levels
        assert entries[name]["max_logit_difference"] < entries[name]["logit_tolerance"]


@pytest.mark.slow
def test_the_machine_is_an_arm(machine: Machine) -> None:
    done = machine.run("import platform; print(platform.machine())", timeout_s=60)
    assert done.stdout == "aarch64\n", done.stderr


@pytest.mark.slow
def test_int8_weights_at_another_scale_are_refused_on_arm_too(machine: Machine, artifact: Path, seal: Any) -> None:
    model = onnx.load(artifact / "model.int8.onnx")
    scale = next(t for t in model.graph.initializer if t.name.endswith("blocks.4.0.conv_dw.weight_scale"))
    scale.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(scale), 7), scale.name))
    onnx.save(model, artifact / "model.int8.onnx")
    [entry] = check(seal(artifact), machine, variants=["onnx-int8"])
    assert not entry["proven"]
    assert "differs by" in entry["error"]
