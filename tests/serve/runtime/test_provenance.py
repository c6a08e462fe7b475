"""The run environment of figures: enough to repeat the measurement, and nothing that identifies the owner."""

import json
import os
import platform
import socket
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.runtime import provenance as provenance_module
from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.provenance import DEVICE, machine, machine_line, processor, provenance, runtime_options
from edgeline.serve.runtime.session import DEFAULTS, EXACT, SETTINGS


def test_provenance_has_date_machine_versions_and_options() -> None:
    found = json.loads(json.dumps(provenance("edgeline check ARTIFACT", {"batch": 1})))
    assert (found["command"], found["options"]) == ("edgeline check ARTIFACT", {"batch": 1})
    assert abs(datetime.fromisoformat(found["date"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert found["versions"] == {"python": platform.python_version(), **{name: version(name) for name in DEVICE}}
    assert found["machine"]["cores"] == usable_cores()
    assert found["machine"]["cpu"]


def test_versions_of_other_packages_can_be_added() -> None:
    assert "torch" in provenance("x", {}, packages=("torch",))["versions"]


def test_provenance_does_not_identify_the_owner() -> None:
    text = json.dumps(provenance("edgeline check ARTIFACT", runtime_options()))
    for private in (socket.gethostname(), str(Path.home()), os.getcwd()):
        assert private not in text


MACHINES = {
    "x86 with VNNI": ("x86_64", "flags : avx2 avx512_vnni smx\n", "x86-vnni", ["avx2", "avx512_vnni"]),
    "x86 without": ("x86_64", "flags : avx2 fma\n", "x86-avx2", ["avx2"]),
    "ARM": ("aarch64", "Features : fp asimddp i8mm\n", "arm64", ["asimddp", "i8mm"]),
}


@pytest.mark.parametrize(("architecture", "cpuinfo", "profile", "flags"), MACHINES.values(), ids=MACHINES)
def test_a_machine_has_a_profile_for_int8(
    architecture: str, cpuinfo: str, profile: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : Some CPU\n{cpuinfo}\nprocessor : 1\n")
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(provenance_module, "CPUINFO", tmp_path / "cpuinfo")
    found = machine()
    assert (found["cpu"], found["processor"], found["flags"]) == ("Some CPU", profile, flags)
    assert machine_line(found).startswith(f"Some CPU ({profile}, {' '.join(flags)}), ")


def test_the_setting_for_saturating_processors_is_among_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeline.serve.runtime.session.multiplies_exactly", lambda: False)
    assert runtime_options()["session"] == SETTINGS | EXACT
    assert runtime_options(saturates=False)["session"] == SETTINGS
    assert processor() in ("x86-avx2", "x86-vnni", "arm64")


RECORDED: dict[str, Any] = {"level": "basic", "saturates": False}


def test_every_session_option_but_the_number_of_threads_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeline.serve.runtime.session.multiplies_exactly", lambda: False)
    assert RECORDED.keys() == DEFAULTS.keys() - {"threads"}
    for option, value in RECORDED.items():
        assert runtime_options(**{option: value}) != runtime_options(), option
