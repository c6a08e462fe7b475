"""What is known of an image's content, kept over runs: one SQLite file, safe under kills and several processes.

Rows are addressed by content (an image's SHA-256 and the digest of whatever was done to it), so nothing in it can be out
of date; it may be deleted at any time and costs only the work again.
"""

import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from edgeline.serve.errors import EdgelineError


class ContentCache:
    """A table of bytes by key. Rows that fail their checksum count as absent."""

    def __init__(self, path: Path) -> None:
        """Open the cache, making its folder where needed.

        Raises:
            EdgelineError: the file is no cache, or cannot be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EdgelineError(f"{path.parent} cannot be made: {error.strerror}", code="cache_unusable") from error
        with self._connect() as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, crc INTEGER, value BLOB) WITHOUT ROWID")

    def get(self, keys: Iterable[str]) -> Iterator[tuple[str, bytes]]:
        """The rows that are there, in the order of the keys."""
        with self._connect() as database:
            for key in keys:
                row = database.execute("SELECT crc, value FROM rows WHERE key = ?", (key,)).fetchone()
                if row is not None and zlib.crc32(row[1]) == row[0]:
                    yield key, row[1]

    def put(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Store rows, all or none."""
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
            raise EdgelineError(
                f"the cache {self.path} cannot be used ({error}); delete it, it is made again", code="cache_unusable"
            ) from error
