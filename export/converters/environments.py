"""Separate environments for converters and runtimes that cannot be installed together, and models that run in them.

A converter may need another release of torch, and a runtime may be needed only to verify a variant. The tools of each format
are installed in an environment under the cache the first time a run uses the format, from pinned releases. Of edgeline, only
`edgeline.serve` is exposed to it, so the model runs there as on a device.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgeline.export.device_package import link_device_package
from edgeline.export.variant_registry import CONVERTERS
from edgeline.serve.errors import ArtifactError, ExportError
from edgeline.serve.preprocess import PreprocessSpec
from edgeline.serve.runtime.backends import load_file, receive, send
from edgeline.serve.runtime.benchmark import RUNS, start_arguments
from edgeline.serve.runtime.cpu import usable_cores

FOLDER = Path("artifacts", "cache", "environments")
"""Default folder of environments."""
PACKAGES = {format: converter.packages for format, converter in CONVERTERS.items()}
"""What a format's environment holds, to convert and to run."""
TIMED_S = 600
"""Timeout of a process that times a model, in seconds."""
INSTALL_S = 1800
"""Timeout of an installation, in seconds."""


def environment(format: str, cache: Path) -> Path:
    """Find a format's environment, or make it.

    Args:
        format: one of `PACKAGES`.
        cache: folder of environments. A new one is made in a temporary folder and renamed, so it is complete or absent.

    Returns:
        The path of its Python.

    Raises:
        ExportError: `format_unavailable`: it cannot be made here.
    """
    packages = PACKAGES[format]
    contents = "\n".join([*packages, sys.version])
    folder = (cache / f"{format}-{hashlib.sha256(contents.encode()).hexdigest()[:12]}").resolve()
    python = folder / "bin" / "python"
    if python.exists():
        return python
    cache.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{format}-", dir=cache))
    try:
        venv.create(partial, with_pip=importlib.util.find_spec("uv") is None)
        install(partial / "bin" / "python", packages)
        if not python.exists():  # another run may have been faster
            partial.rename(folder)
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise ExportError(
            f"the tools for {format} cannot be installed here ({_last_line(output)}); they are {', '.join(packages)}",
            code="format_unavailable",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return python


def install(python: Path, packages: Sequence[str]) -> None:
    """Install packages into an environment, with uv if it is installed: it links large files instead of copying them.

    Raises:
        subprocess.SubprocessError: it failed, or took too long.
    """
    if importlib.util.find_spec("uv") is not None:
        installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", str(python)]
    else:
        installer = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*installer, *packages], check=True, capture_output=True, text=True, timeout=INSTALL_S)


@contextmanager
def expose_device_package() -> Iterator[dict[str, str]]:
    """Make `edgeline.serve`, and none of the packages installed next to it, importable by another Python.

    Yields:
        The environment variables to start it with.
    """
    with tempfile.TemporaryDirectory() as folder:
        link_device_package(Path(folder))
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        yield inherited | {"PYTHONPATH": folder, "OMP_WAIT_POLICY": "PASSIVE"}


@contextmanager
def opened(format: str, path: Path, environments: Path, threads: int | None = None, *, saturates: bool = True) -> Iterator[Any]:
    """Load a variant: in this process for ONNX Runtime's formats, in its own environment for another runtime's.

    Args:
        format: as named in the manifest.
        path: its file; files that belong to it are next to it.
        environments: folder of environments.
        threads: for one image; by default as many as this process may use.
        saturates: as for `serve.runtime.session.create_session`.

    Yields:
        An object with the `run` method of an ONNX Runtime session.

    Raises:
        ExportError: the environment cannot be made.
        ArtifactError: the model does not load.
    """
    if format not in PACKAGES:
        yield load_file(format, path, threads=threads, saturates=saturates)
        return
    python = environment(format, environments)
    command = [str(python), "-P", "-m", "edgeline.serve.runtime.backends", format, str(path), str(threads or usable_cores())]
    with expose_device_package() as variables, tempfile.TemporaryFile() as log:
        child = subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        with child:
            try:
                yield RemoteModel(child, log)
            finally:
                child.kill()


class RemoteModel:
    """A model that runs in another process."""

    def __init__(self, child: "subprocess.Popen[bytes]", log: Any) -> None:
        self._child, self._log = child, log

    def run(self, names: Sequence[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Like `serve.runtime.backends.Model.run`.

        Raises:
            ArtifactError: the process ended.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        with suppress(BrokenPipeError):  # it ended; its output is read below
            send(self._child.stdin, feeds["image"])  # type: ignore[arg-type]
        outputs = [receive(self._child.stdout) for _ in range(2)]  # type: ignore[arg-type]
        found = {name: array for name, array in zip(("probabilities", "logits"), outputs, strict=True) if array is not None}
        if len(found) < 2:
            if (code := self._child.wait(timeout=60)) < 0:
                raise ArtifactError(f"the runtime crashed (signal {-code})", code="model_unloadable")
            self._log.seek(0)
            raise ArtifactError(_last_line(self._log.read().decode(errors="replace")), code="model_unloadable")
        return [found[name] for name in names]


def time_in_environment(format: str, path: Path, spec: PreprocessSpec, environments: Path, threads: int) -> dict[str, float]:
    """Time a variant in a new process of its own environment, like `serve.runtime.benchmark.start`.

    Args:
        format: as named in the manifest.
        path: its file.
        spec: its preprocessing.
        environments: folder of environments.
        threads: for one image.

    Raises:
        ArtifactError: the process crashed, or did not finish.
    """
    arguments = start_arguments(path, format, spec, runs=RUNS, threads=threads)
    command = [str(environment(format, environments)), "-P", "-m", "edgeline.serve.runtime.benchmark", *arguments]
    with expose_device_package() as variables:
        try:
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=TIMED_S)
        except subprocess.TimeoutExpired as error:
            raise ArtifactError(f"{format} was not timed within {TIMED_S} s", code="model_unloadable") from error
    if done.returncode < 0:
        raise ArtifactError(f"the runtime crashed (signal {-done.returncode})", code="model_unloadable")
    if done.returncode:
        raise ArtifactError(_last_line(done.stderr), code="model_unloadable")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _last_line(output: str) -> str:
    return (output.strip() or "no output").splitlines()[-1][:300]
