"""Try an artifact in a process of its own: a graph that crashes, hangs or eats memory harms nobody but this child.

    python -m edgeline.serve.inference.sandbox PATH VARIANT MAX_PIXELS

takes its own rights to memory, time and files away, opens the artifact, has it answer its golden samples, and prints one line
of JSON: `{"name": ..., "version": ...}`, or `{"code": ..., "error": ...}` with exit code 1.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import edgeline
from edgeline.serve.errors import ArtifactError, EdgelineError

TIME_S = 120
"""Until a candidate that has not answered is given up."""
CPU_S = 60
MEMORY_BYTES = 4 * 2**30
"""Of addresses, which are more than what is used."""
FILES = 256
FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""On a machine of many cores threads alone would take all addresses that the child may have."""
ROOT = Path(str(edgeline.__file__)).parents[1]
"""The folder that holds the package, for the child's path."""


def validate_in_subprocess(path: Path, variant: str | None = None, *, max_pixels: int, time_s: float = TIME_S) -> None:
    """Have a child open an artifact and prove it.

    Args:
        path: the artifact's folder.
        variant: as `Classifier.open`.
        max_pixels: as `Limits`.
        time_s: after which the child is killed.

    Raises:
        ArtifactError: it does not load, does not prove itself, crashes, or takes more than it may.
    """
    command = [sys.executable, "-m", "edgeline.serve.inference.sandbox", str(path), variant or "", str(max_pixels)]
    places = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        child = subprocess.run(
            command,
            env={**os.environ, **FEW_THREADS, "PYTHONPATH": places},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"it was not proven within {time_s:g} s", code="candidate_too_slow") from error
    if child.returncode == 0:
        return
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise ArtifactError(f"loading or proving it ended a process by {name}", code="candidate_crashed")
    try:
        told = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise ArtifactError(
            f"a process that tried it ended with exit code {child.returncode} and told nothing", code="candidate_crashed"
        ) from None
    raise ArtifactError(told["error"], code=told["code"])


def drop_privileges() -> None:
    """Take away what opening an artifact does not need."""
    for what, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, FILES),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    os.nice(10)  # the server beside it has clients
    signal.alarm(TIME_S)  # where nobody is left to end it
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # before the server, if memory runs out


def main(path: str, variant: str, max_pixels: str) -> int:
    """Open and prove an artifact; the exit code."""
    drop_privileges()
    from edgeline.serve.classifier import Classifier
    from edgeline.serve.preprocess import Limits

    try:
        classifier = Classifier.open(path, variant=variant or None, threads=1, limits=Limits(max_pixels=int(max_pixels)))
    except EdgelineError as error:
        print(json.dumps({"code": error.code, "error": str(error)}))
        return 1
    except MemoryError:
        print(json.dumps({"code": "candidate_too_large", "error": f"it takes more than {MEMORY_BYTES:,} bytes of memory"}))
        return 1
    print(json.dumps({"name": classifier.manifest.name, "version": classifier.manifest.version}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
