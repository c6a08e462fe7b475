"""Atomic file writes, and digests of content."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON.

    Raises:
        ValueError: the value contains NaN or an infinity, which are not part of JSON.
    """
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Replace a file atomically: a reader sees the old content or the new, never a part.

    Args:
        path: the file to replace or create.
        write: writes the new content to the path that it is called with.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # unique, because two processes may write at the same time
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Flush a folder and everything below it to the disk."""

    def fail(error: OSError) -> None:  # by default, os.walk skips folders that it cannot list
        raise error

    for parent, _, files in os.walk(folder, onerror=fail):
        for name in files:
            with Path(parent, name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(parent))


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, which makes renames in it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
