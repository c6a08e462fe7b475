"""Validate an artifact in a child process, so that a graph that crashes, hangs or uses up memory ends the child only.

    python -m edgeline.serve.inference.sandbox PATH VARIANT MAX_PIXELS

drops its own privileges, opens the artifact, which runs the self-test against its golden samples, and prints one line of JSON:
`{"name": ..., "version": ...}`, or `{"code": ..., "error": ...}` with exit code 1.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import edgeline
from edgeline.serve.errors import ArtifactError, EdgelineError

TIMEOUT_S = 120
"""After which a candidate whose self-test has not finished is rejected."""
MAX_CPU_S = 60
MAX_MEMORY_BYTES = 4 * 2**30
"""Of address space, which is more than the memory in use."""
MAX_OPEN_FILES = 256
FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""On a machine with many cores, thread stacks and arenas alone would exceed the child's address space."""
LOG = logging.getLogger(__name__)
ROOT = Path(str(edgeline.__file__)).parents[1]
"""The folder that holds the package, for the child's path."""


def validate_in_subprocess(path: Path, variant: str | None = None, *, max_pixels: int, time_s: float = TIMEOUT_S) -> None:
    """Open an artifact and run its self-test in a child process.

    Args:
        path: the artifact's folder.
        variant: as in `Classifier.open`.
        max_pixels: as in `Limits`.
        time_s: seconds after which the child is killed.

    Raises:
        ArtifactError: the artifact does not load, fails its self-test, crashes, or exceeds a limit.
    """
    command = [sys.executable, "-m", "edgeline.serve.inference.sandbox", str(path), variant or "", str(max_pixels)]
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        child = subprocess.run(
            command,
            env={**os.environ, **FEW_THREADS, "PYTHONPATH": python_path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=time_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"its self-test did not finish within {time_s:g} s", code="candidate_too_slow") from error
    if child.returncode == 0:
        return
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise ArtifactError(f"the validation process was killed by {name}", code="candidate_crashed")
    try:
        report = json.loads(child.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        # Not in the message, which clients see: it may contain this machine's paths.
        last = (child.stderr.decode(errors="replace").strip() or "no output").splitlines()[-1]
        LOG.error("validating %s ended with exit code %d: %s", path, child.returncode, last[:300])
        raise ArtifactError(
            f"the validation process ended with exit code {child.returncode} and reported nothing; see the server's log",
            code="candidate_crashed",
        ) from None
    raise ArtifactError(report["error"], code=report["code"])


def drop_privileges() -> None:
    """Limit this process to what opening an artifact needs."""
    for what, limit in (
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_CPU, MAX_CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
    ):
        hard = resource.getrlimit(what)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(what, (limit, limit))
    os.nice(10)  # the server's requests come first
    signal.alarm(TIMEOUT_S)  # in case the server that would kill this process has died
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # be killed before the server if memory runs out


def main(path: str, variant: str, max_pixels: str) -> int:
    """Open an artifact, which runs its self-test; return the exit code."""
    drop_privileges()
    from edgeline.serve.classifier import Classifier
    from edgeline.serve.preprocess import Limits

    try:
        classifier = Classifier.open(path, variant=variant or None, threads=1, limits=Limits(max_pixels=int(max_pixels)))
    except EdgelineError as error:
        print(json.dumps({"code": error.code, "error": str(error)}))
        return 1
    except MemoryError:
        message = f"loading needs more than {MAX_MEMORY_BYTES:,} bytes of memory"
        print(json.dumps({"code": "candidate_too_large", "error": message}))
        return 1
    print(json.dumps({"name": classifier.manifest.name, "version": classifier.manifest.version}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
