"""Cache of results by content, shared between runs: one SQLite file, safe with kills and concurrent processes.

Rows are addressed by content (an image's SHA-256 and the digest of the code that processed it), so none can be outdated. The
file may be deleted at any time; its content is then computed again.
"""

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgeline.serve.errors import EdgelineError

FEATURES = "features.sqlite"
"""File in the cache folder with the features of images."""


class ContentCache:
    """A table of bytes by key. A row with a wrong checksum is treated as missing."""

    def __init__(self, path: Path) -> None:
        """Open the cache, and create its folder if needed.

        Raises:
            EdgelineError: the file is not a cache, or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgelineError(f"{path.parent} cannot be created: {error.strerror}", code="cache_unusable") from error
        with self._connect() as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, crc INTEGER, value BLOB) WITHOUT ROWID")

    def get(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the existing rows, in the order of the keys."""
        with self._connect() as database:
            for key in keys:
                row = database.execute("SELECT crc, value FROM rows WHERE key = ?", (key,)).fetchone()
                if row is not None and zlib.crc32(row[1]) == row[0]:
                    yield key, row[1]

    def put(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Store rows atomically: all or none."""
        with self._connect() as database:
            database.executemany(
                "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", ((key, zlib.crc32(value), value) for key, value in rows)
            )

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
                yield database
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise EdgelineError(
                    f"the disk with the cache {self.path} is full; free some space, and what is finished is reused",
                    code="disk_full",
                ) from error
            raise EdgelineError(
                f"the cache {self.path} cannot be used ({error}); delete it, and it is created again", code="cache_unusable"
            ) from error


def sealed(value: bytes) -> bytes:
    """A value with its SHA-256, for rows that replace a computation that something is proven by."""
    return hashlib.sha256(value).digest() + value


def unsealed(row: bytes) -> bytes | None:
    """The value of a row that `sealed` wrote; None if it is damaged."""
    digest, value = row[:32], row[32:]
    return value if hashlib.sha256(value).digest() == digest else None
