"""Results of steps on disk: built in a temporary folder, renamed into place, verified before they are reused.

A step's folder `<run>/<step>/` appears complete or not at all. Its `receipt.json` contains the key of everything that the
result depends on, and the digest of every file. A result is reused if its receipt has the requested key and every file
matches its digest; otherwise the step is built again. The receipt also records when, on which machine and in how many seconds
the result was made, for information only; of a step that was resumed, the seconds are those since then.

While a step is being built its folder is `<step>.partial/`. It survives a kill: if the key is still the same, a step that
can resume (training) finds its files there.
"""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeline.pipeline.runs.atomic_files import digest_of, file_digest, sync_folder, sync_tree, write_json
from edgeline.serve.errors import EdgelineError
from edgeline.serve.runtime.provenance import DEVICE, provenance

RECEIPT = "receipt.json"


def is_current(folder: Path, key: str) -> bool:
    """Whether a step's folder contains the complete result for this key, with every file unchanged."""
    receipt = read_receipt(folder)
    if receipt is None or receipt["key"] != key:
        return False
    return all(_matches(folder / path, entry) for path, entry in receipt["files"].items())


def run_step(folder: Path, key: str, build: Callable[[Path], None]) -> bool:
    """Build a step's result, unless it exists.

    Args:
        folder: the step's folder.
        key: as `pipeline.runs.step.step_key` returns it.
        build: writes the result's files into the folder that it is called with. Called only if needed.

    Returns:
        True if the result was built, False if it existed.

    Raises:
        EdgelineError: another process is building it. An exception of `build` is passed on, and there is no new result.
    """
    if is_current(folder, key):
        return False
    partial = folder.with_name(folder.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        if is_current(folder, key):
            return False
        if partial.exists() and _read_key(partial) != key:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        for leftover in partial.rglob(".*.tmp"):
            leftover.unlink()  # of a killed `replace_file`
        (partial / ".key").write_text(key)
        start = time.monotonic()
        build(partial)
        seconds = round(time.monotonic() - start, 3)
        (partial / ".key").unlink()
        command = "edgeline prepare --data DATA" if folder.name == "prepare" else f"edgeline {folder.name} RUN"
        made = provenance(command, {}, packages=(*DEVICE, "torch"))
        files = {path: _entry(partial / path) for path in _files(partial)}
        write_json(partial / RECEIPT, {"key": key, "made": made, "seconds": seconds, "files": files})
        sync_tree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    return True


def result_digest(folder: Path) -> str:
    """Return the digest of a finished step's files, for the keys of the steps that read them.

    Raises:
        EdgelineError: the step has not been run.
    """
    receipt = read_receipt(folder)
    if receipt is None:
        raise EdgelineError(f"{folder} contains no finished step; run `edgeline {folder.name}` first", code="step_missing")
    return digest_of({path: entry["sha256"] for path, entry in receipt["files"].items()})


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """Read a step's receipt; None if it is missing or damaged."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text())
        return receipt if isinstance(receipt["key"], str) and isinstance(receipt["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a step. The lock ends with its process, so it cannot become stale."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise EdgelineError(
                f"{path.parent} is in use by {holder}; wait for it to finish, or stop it", code="run_locked"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def in_use(run: Path) -> bool:
    """Whether a process is building a step of a run's folder."""
    for path in run.glob(".*.lock"):
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _matches(path: Path, entry: Any) -> bool:
    try:
        return bool(path.stat().st_size == entry["size"] and file_digest(path) == entry["sha256"])
    except (OSError, KeyError, TypeError):  # the file is missing, or the receipt is damaged
        return False


def _read_key(partial: Path) -> str | None:
    try:
        return (partial / ".key").read_text()
    except OSError:
        return None
