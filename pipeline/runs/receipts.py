"""How every step keeps its result: built aside, renamed into place, recognized by content, checked before reuse.

A step's folder `<run>/<step>/` appears whole or not at all. Its `receipt.json` holds the key of everything the result
depends on and the digest of every file in it. A step whose receipt has the key that is asked for, and whose files are
still what the receipt says, is not run again; one that lacks a file, or holds a changed one, is. It also says when and on
what machine the result was made, on which nothing depends.

While a step is being built its folder is `<step>.partial/`, and it survives a kill: a step that can go on from there
(training) finds its own files in it again as long as the key is the same.
"""

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeline.pipeline.runs.atomic_files import digest_of, file_digest, sync_folder, sync_tree, write_json
from edgeline.serve.errors import EdgelineError
from edgeline.serve.runtime.provenance import DEVICE, provenance

RECEIPT = "receipt.json"


def is_current(folder: Path, key: str) -> bool:
    """Whether a step's folder holds the whole result for this key, every file of it unchanged."""
    receipt = read_receipt(folder)
    if receipt is None or receipt["key"] != key:
        return False
    return all(_matches(folder / path, entry) for path, entry in receipt["files"].items())


def run_step(folder: Path, key: str, build: Callable[[Path], None]) -> bool:
    """Make a step's result, unless it is there already.

    Args:
        folder: where the result will lie.
        key: as `pipeline.runs.step.step_key` returns it.
        build: writes the result's files into the folder it is given. Called only where needed.

    Returns:
        True if it was built, False if it was there.

    Raises:
        EdgelineError: another process is building it; or whatever `build` raises, the result then not being there.
    """
    if is_current(folder, key):
        return False
    partial = folder.with_name(folder.name + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_name(f".{folder.name}.lock")):
        if is_current(folder, key):
            return False
        if partial.exists() and _read_key(partial) != key:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        for leftover in partial.rglob(".*.tmp"):
            leftover.unlink()  # of a `replace_file` that was killed
        (partial / ".key").write_text(key)
        build(partial)
        (partial / ".key").unlink()
        command = "edgeline prepare --data DATA" if folder.name == "prepare" else f"edgeline {folder.name} RUN"
        made = provenance(command, {}, packages=(*DEVICE, "torch"))
        write_json(partial / RECEIPT, {"key": key, "made": made, "files": {p: _entry(partial / p) for p in _files(partial)}})
        sync_tree(partial)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(partial, folder)
        sync_folder(folder.parent)
    return True


def result_digest(folder: Path) -> str:
    """Digest of a finished step's files, for the key of the steps that read them.

    Raises:
        EdgelineError: the step has not been run.
    """
    receipt = read_receipt(folder)
    if receipt is None:
        raise EdgelineError(f"{folder} holds no finished step; run `edgeline {folder.name}` first", code="step_missing")
    return digest_of({path: entry["sha256"] for path, entry in receipt["files"].items()})


def read_receipt(folder: Path) -> dict[str, Any] | None:
    """A step's receipt, or None where there is no whole one."""
    try:
        receipt = json.loads((folder / RECEIPT).read_text())
        return receipt if isinstance(receipt["key"], str) and isinstance(receipt["files"], dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a step; the lock dies with its process, so nothing stale can be left."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise EdgelineError(
                f"{path.parent} is being worked on by {holder}; wait for it or end it", code="run_locked"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _entry(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def _matches(path: Path, entry: Any) -> bool:
    try:
        return bool(path.stat().st_size == entry["size"] and file_digest(path) == entry["sha256"])
    except (OSError, KeyError, TypeError):  # the file is gone, or the receipt is damaged
        return False


def _read_key(partial: Path) -> str | None:
    try:
        return (partial / ".key").read_text()
    except OSError:
        return None
