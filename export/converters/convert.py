"""Write a variant in another runtime's format, with that runtime's converter in a separate environment.

A converter is a script, `to_<format>.py`, that imports nothing of edgeline. Its arguments are a folder with its sources, the
precision and the path to write. Its output is not trusted: the release gate runs it.
"""

import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeline.export.converters.environments import environment
from edgeline.export.variant_registry import CONVERTERS
from edgeline.pipeline.progress import waiting
from edgeline.serve.errors import ExportError

CALIBRATION = "calibration.npy"
"""The source that only int8 is made from."""
CONVERT_S = 1800
"""Timeout of a conversion, in seconds."""

Write = Callable[[Path], None]
"""Writes a source to a path."""


def convert(format: str, precision: str, sources: Mapping[str, Write], path: Path, environments: Path) -> None:
    """Write one variant.

    Args:
        format: one of `CONVERTERS`.
        precision: `float32`, `float16` or `int8`.
        sources: by their file name.
        path: the file to write; files that belong to it are written next to it.
        environments: folder of environments.

    Raises:
        ExportError: the environment cannot be made, or the converter does not support the network.
    """
    python = environment(format, environments)
    converter = CONVERTERS[format]
    script = script_path(converter.script)
    with tempfile.TemporaryDirectory() as folder, waiting(f"writing {path.name}"):
        for name in converter.sources:
            if name != CALIBRATION or precision == "int8":
                sources[name](Path(folder, name))
        command = [str(python), "-I", str(script), folder, precision, str(path)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=CONVERT_S)
        except subprocess.CalledProcessError as error:
            last = (error.stderr.strip() or "no output").splitlines()[-1]
            raise ExportError(
                f"{converter.packages[0]} cannot convert this network: {last[:300]}; leave the format out of export.variants",
                code="format_unfit",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ExportError(
                f"{converter.packages[0]} took more than {CONVERT_S} seconds to convert this network", code="format_unfit"
            ) from error


def script_path(module: str) -> Path:
    """The file of a module that runs as a script in another environment."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin)
