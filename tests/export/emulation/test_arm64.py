"""The emulated ARM processor: what passes on it, what fails, and the errors if it cannot be made."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeline.export.emulation.arm64 import RECEIPT, prepare_machine
from edgeline.export.emulation.machine import Machine, check
from edgeline.serve.errors import EdgelineError


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    try:
        return prepare_machine(tmp_path_factory.mktemp("cache") / "arm64")
    except EdgelineError as error:
        if error.code != "arm64_unavailable":
            raise
        pytest.skip(str(error))


MISSING = {
    "qemu": ((), r"qemu-aarch64-static is not installed.*: apt-get install qemu-user-static$"),
    "apt-get": (("qemu-aarch64-static",), r"apt-get is not installed.*: apt-get install apt$"),
    "dpkg": (("qemu-aarch64-static", "apt-get"), r"dpkg-deb is not installed.*: apt-get install dpkg$"),
}


@pytest.mark.parametrize(("present", "message"), MISSING.values(), ids=MISSING)
def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    present: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in present:
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EdgelineError, match=message) as caught:
        prepare_machine(tmp_path / "arm64")
    assert caught.value.code == "arm64_unavailable"
    assert not (tmp_path / "arm64").exists()


def test_package_sources_without_aarch64_are_reported_and_leave_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = tmp_path / "apt.conf"
    nothing.write_text('Dir::Etc::sourcelist "/dev/null"; Dir::Etc::sourceparts "/dev/null";')
    monkeypatch.setenv("APT_CONFIG", str(nothing))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "qemu-aarch64-static").symlink_to("/bin/true")  # never executed
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EdgelineError, match=r"the system's package sources provide no aarch64 Python|is not installed"):
        prepare_machine(tmp_path / "arm64")
    assert not (tmp_path / "arm64").exists()


@pytest.mark.long
def test_a_machine_is_made_only_once(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = machine.root.parent
    made = (folder / RECEIPT).stat().st_mtime_ns
    monkeypatch.setenv("PIP_INDEX_URL", str(tmp_path))  # downloads would fail
    assert prepare_machine(folder) == machine
    assert (folder / RECEIPT).stat().st_mtime_ns == made


@pytest.mark.long
def test_the_int8_variant_passes_its_self_test_on_arm(machine: Machine, finished: Any) -> None:
    """float32 passes too (see the table in the module), but takes ten seconds per sample under emulation."""
    names = ("onnx-int8",)
    entries = {entry.variant: entry for entry in check(finished.artifact, machine, variants=names)}
    assert tuple(entries) == names
    assert all(entry.passed and entry.samples == 5 for entry in entries.values())
    for name in names:  # 0 if no value was rounded to another of its 256 levels
        assert entries[name].max_logit_difference < entries[name].logit_tolerance


@pytest.mark.long
def test_the_machine_is_aarch64(machine: Machine) -> None:
    done = machine.run("import platform; print(platform.machine())", timeout_s=60)
    assert done.stdout == "aarch64\n", done.stderr


@pytest.mark.long
def test_int8_weights_with_a_wrong_scale_fail_on_arm(machine: Machine, artifact: Path, seal: Any) -> None:
    model = onnx.load(artifact / "model.int8.onnx")
    scale = next(t for t in model.graph.initializer if t.name.endswith("blocks.4.0.conv_dw.weight_scale"))
    scale.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(scale), 7), scale.name))
    onnx.save(model, artifact / "model.int8.onnx")
    [entry] = check(seal(artifact), machine, variants=["onnx-int8"])
    assert not entry.passed
    assert "differs by" in entry.error
