"""What every benchmark needs: some data, and one closing line of JSON."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from edgeline.serve.runtime.provenance import DEVICE, provenance, runtime_options

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def photos(name: str) -> str:
    """The path of a folder of real photos, or the embedded digits where there is none."""
    return str(SHARED / name) if (SHARED / name).is_dir() else "digits"


def report(benchmark: str, **figures: Any) -> None:
    """Print the closing line."""
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    how = provenance(f"python {script.as_posix()}", runtime_options(), packages=(*DEVICE, "torch"))
    print(json.dumps({"benchmark": benchmark, **figures, **how}))


def install(folder: Path, *packages: str, overrides: tuple[str, ...] = ()) -> Path:
    """Make an environment of its own for packages that are not this project's; returns its Python.

    Args:
        folder: where it goes; what is there already is used as it is.
        packages: as pip takes them.
        overrides: requirements that win over what the packages ask for.
    """
    python, uv = folder / "bin" / "python", Path(sys.executable).with_name("uv")
    if not python.exists():
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
        (folder / "overrides.txt").write_text("".join(f"{line}\n" for line in overrides))
        command = [uv, "pip", "install", "--quiet", "--python", python, "--overrides", folder / "overrides.txt", *packages]
        subprocess.run(command, check=True)
    return python


class Clock:
    """Seconds of a `with` block."""

    def __enter__(self) -> "Clock":
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start
