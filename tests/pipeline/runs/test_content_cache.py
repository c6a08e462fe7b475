import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeline.pipeline.runs.content_cache import ContentCache
from edgeline.serve.errors import EdgelineError


@pytest.fixture(name="cache")
def empty_cache(tmp_path: Path) -> ContentCache:
    return ContentCache(tmp_path / "deep" / "cache.sqlite")


def test_rows_are_returned_in_the_order_of_the_keys(cache: ContentCache) -> None:
    cache.put([("a", b"1"), ("b", b"\x00\xff"), ("c", b"")])
    assert list(cache.get(["c", "absent", "b", "a"])) == [("c", b""), ("b", b"\x00\xff"), ("a", b"1")]


def test_a_new_value_replaces_the_old_one(cache: ContentCache) -> None:
    cache.put([("a", b"1")])
    cache.put([("a", b"2")])
    assert dict(cache.get("a")) == {"a": b"2"}


def test_rows_are_there_after_opening_again(cache: ContentCache) -> None:
    cache.put([("a", b"1")])
    assert dict(ContentCache(cache.path).get("a")) == {"a": b"1"}


def test_rows_are_stored_all_or_none(cache: ContentCache) -> None:
    def rows() -> list[tuple[str, bytes]]:
        yield "a", b"1"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.put(rows())
    assert list(cache.get("a")) == []


def test_a_damaged_row_is_treated_as_missing(cache: ContentCache) -> None:
    cache.put([("a", b"1"), ("b", b"2")])
    with sqlite3.connect(cache.path) as database:
        database.execute("UPDATE rows SET value = ? WHERE key = 'a'", (b"changed",))
    database.close()
    assert dict(cache.get(["a", "b"])) == {"b": b"2"}


def test_a_reader_may_stop_halfway(cache: ContentCache) -> None:
    cache.put([("a", b"1"), ("b", b"2")])
    assert next(iter(cache.get(["a", "b"]))) == ("a", b"1")
    cache.put([("a", b"3")])


WRITER = """
import itertools, sys
from pathlib import Path
from typing import Any
from edgeline.pipeline.runs.content_cache import ContentCache
cache = ContentCache(Path(sys.argv[1]))
for batch in itertools.count() if sys.argv[3] == "endless" else range(int(sys.argv[3])):
    cache.put([(f"{sys.argv[2]}-{batch}-{row}", b"value") for row in range(5)])
    print(batch, flush=True)
"""


def writer(path: Path, name: str, batches: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, batches], stdout=subprocess.PIPE, text=True)


def keys(name: str, batches: int) -> list[str]:
    return [f"{name}-{batch}-{row}" for batch in range(batches) for row in range(5)]


def test_several_processes_may_write_at_once(cache: ContentCache) -> None:
    writers = [writer(cache.path, name, "20") for name in "abc"]
    assert [len(process.communicate()[0].split()) for process in writers] == [20] * 3
    assert all(len(list(cache.get(keys(name, 20)))) == 100 for name in "abc")


def test_rows_stored_before_a_kill_are_complete(cache: ContentCache) -> None:
    process = writer(cache.path, "a", "endless")
    assert process.stdout
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    stored = 5 + len(process.communicate()[0].splitlines())
    assert len(list(cache.get(keys("a", stored)))) == 5 * stored
    assert len(list(cache.get(keys("a", stored + 2)))) % 5 == 0


NOT_CACHES = {
    "some other file": lambda path: path.write_bytes(b"not a database, but long enough to be read as one" * 50),
    "a folder": lambda path: path.mkdir(),
    "another table": lambda path: sqlite3.connect(path).execute("CREATE TABLE rows (x)").connection.close(),
}


@pytest.mark.parametrize("make", NOT_CACHES.values(), ids=NOT_CACHES)
def test_a_file_that_is_not_a_cache_is_an_error_that_names_the_remedy(tmp_path: Path, make: object) -> None:
    make(tmp_path / "cache.sqlite")  # type: ignore[operator]
    with pytest.raises(EdgelineError, match="delete it, and it is created again") as caught:
        ContentCache(tmp_path / "cache.sqlite").put([("a", b"1")])
    assert caught.value.code == "cache_unusable"


def test_a_file_in_place_of_its_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(EdgelineError, match="cache cannot be created"):
        ContentCache(tmp_path / "cache" / "images.sqlite")


def test_a_full_disk_is_named_and_what_was_stored_stays(cache: ContentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """D32: SQLite's own limit stands in for the disk's; it raises the same error."""
    cache.put([("a", b"1")])
    connect = sqlite3.connect

    def connect_to_a_small_disk(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 8")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect_to_a_small_disk)
    with pytest.raises(EdgelineError, match=f"the disk with the cache {cache.path} is full; free some space") as caught:
        cache.put([("b", bytes(100_000))])
    assert caught.value.code == "disk_full"
    assert list(cache.get(["a", "b"])) == [("a", b"1")]
