"""Files that appear whole or not at all, and the digests that identify content."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4


def digest_of(value: Any) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON; NaN and infinities are refused, because no other reader knows them."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Have `write` write a file, then put it in place of the old one: whoever reads sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # its own: two processes may write at once
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below to the disk."""

    def refuse(error: OSError) -> None:  # left alone, os.walk passes over what it cannot list
        raise error

    for parent, _, files in os.walk(folder, onerror=refuse):
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
