"""What is said of where a figure was taken: enough to take it again, and nothing of whose machine it was."""

import json
import os
import platform
import socket
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from edgeline.serve.runtime.cpu import usable_cores
from edgeline.serve.runtime.provenance import DEVICE, machine, machine_line, processor, provenance, runtime_options
from edgeline.serve.runtime.session import EXACT, SETTINGS


def test_a_figure_says_when_on_what_and_how_it_was_taken() -> None:
    found = json.loads(json.dumps(provenance("edgeline check ARTIFACT", {"batch": 1})))
    assert (found["command"], found["options"]) == ("edgeline check ARTIFACT", {"batch": 1})
    assert abs(datetime.fromisoformat(found["date"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert found["versions"] == {"python": platform.python_version(), **{name: version(name) for name in DEVICE}}
    assert found["machine"]["cores"] == usable_cores()
    assert found["machine"]["cpu"]


def test_other_packages_are_named_where_they_matter() -> None:
    assert "torch" in provenance("x", {}, packages=("torch",))["versions"]


def test_nothing_tells_whose_machine_it_is() -> None:
    said = json.dumps(provenance("edgeline check ARTIFACT", runtime_options()))
    for private in (socket.gethostname(), str(Path.home()), os.getcwd()):
        assert private not in said


MACHINES = {
    "x86 with VNNI": ("x86_64", "flags : avx2 avx512_vnni smx\n", "x86-vnni", ["avx2", "avx512_vnni"]),
    "x86 without": ("x86_64", "flags : avx2 fma\n", "x86-avx2", ["avx2"]),
    "ARM": ("aarch64", "Features : fp asimddp i8mm\n", "arm64", ["asimddp", "i8mm"]),
}


@pytest.mark.parametrize(("architecture", "cpuinfo", "profile", "flags"), MACHINES.values(), ids=MACHINES)
def test_a_machine_is_known_by_what_int8_depends_on(
    architecture: str, cpuinfo: str, profile: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : Some CPU\n{cpuinfo}\nprocessor : 1\n")
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(provenance, "CPUINFO", tmp_path / "cpuinfo")
    found = machine()
    assert (found["cpu"], found["processor"], found["flags"]) == ("Some CPU", profile, flags)
    assert machine_line(found).startswith(f"Some CPU ({profile}, {' '.join(flags)}), ")


def test_the_setting_for_saturating_processors_is_among_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeline.serve.runtime.session.multiplies_exactly", lambda: False)
    assert runtime_options()["session"] == SETTINGS | EXACT
    assert runtime_options(saturates=False)["session"] == SETTINGS
    assert processor() in ("x86-avx2", "x86-vnni", "arm64")
