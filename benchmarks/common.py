"""Shared by the benchmarks: data, separate environments, and the final line of JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def photos(name: str) -> str:
    """Return the path of a folder of real photos, or `digits` if it does not exist."""
    return str(SHARED / name) if (SHARED / name).is_dir() else "digits"


def report(benchmark: str, **figures: Any) -> None:
    """Print the final JSON line."""
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    how = provenance(f"python {script.as_posix()}", runtime_options(), packages=(*DEVICE, "torch"))
    print(json.dumps({"benchmark": benchmark, **figures, **how}))


def install(folder: Path, *packages: str, overrides: tuple[str, ...] = ()) -> Path:
    """Create a separate environment for packages that are not dependencies of this project; returns its Python.

    Args:
        folder: of the environment; an existing one is used unchanged.
        packages: as for pip.
        overrides: requirements that take precedence over those of the packages.
    """
    python, uv = folder / "bin" / "python", Path(sys.executable).with_name("uv")
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        (folder / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        command = [uv, "pip", "install", "--quiet", "--python", python, "--overrides", folder / "overrides.txt", *packages]
        subprocess.run(command, check=True)
    return python


def without_spinning() -> None:
    """Start this process again with OpenMP's idle threads asleep, as the command line does; PyTorch reads this when loaded."""
    if os.environ.get("OMP_WAIT_POLICY") != "PASSIVE":
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, sys.orig_argv)


class Clock:
    """Seconds of a `with` block."""

    def __enter__(self) -> "Clock":
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
