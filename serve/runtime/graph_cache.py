"""Cache of optimized graphs on disk: ONNX Runtime spends half of its loading time on optimizing the same graph again.

    cached = CachedGraph.locate(cache, sha256, variant)   # None if this variant is not cached
    session = cached.load(threads)                        # None if there is no valid file
    with cached.create(data, threads) as session:         # optimize; the file is kept if the block succeeds
        ...

A file belongs to one model file, runtime, processor and set of session options: at the optimization level in use, ONNX Runtime
writes memory layouts that suit only the current processor. The number of threads does not matter.

A folder that belongs to another user, or that others may write to, is not used: they could replace the model.
The size and SHA-256 of each file are stored next to it and compared before it is parsed, so disk errors and partial files are
noticed; a file that does not match is deleted and created again. Disk problems never raise: without a cache the next start is
only slower. Golden samples are checked on every loaded session, cached or not.
"""

import contextlib
import hashlib
import json
import logging
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, Unpack

from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.errors import ArtifactError
from edgeline.serve.runtime.cpu import CPUINFO, read_cpuinfo
from edgeline.serve.runtime.provenance import runtime_options
from edgeline.serve.runtime.session import SessionOptions, create_session, load_onnxruntime, options_for

LOG = logging.getLogger(__name__)

LAYOUT = 1
"""Version of the cached files; a change invalidates all of them."""
PRECISIONS = ("float32", "int8")
"""Those that load faster from the cache; measured in docs/adr/0017-optimized-graph-cache.md."""
MAX_FILES = 16
MAX_BYTES = 512 * 2**20
"""Above these limits, the least recently used files are deleted."""
ABANDONED_S = 3600.0
"""Age after which an unfinished file is deleted."""
PROCESSOR = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip
"""Fields of /proc/cpuinfo that identify a processor and its features, on x86 and on ARM; the others change over time."""


@dataclass(frozen=True, slots=True)
class CachedGraph:
    """The optimized graph of one model file, whether or not it exists yet."""

    folder: Path
    key: str
    options: SessionOptions

    @classmethod
    def locate(cls, cache: Path | None, sha256: str, variant: Variant) -> Self | None:
        """Return where a variant's graph is cached; None if it is not.

        Args:
            cache: the folder of `edgeline serve --cache`; created if it does not exist.
            sha256: of the variant's file.
            variant: of an artifact.
        """
        # A file in ORT's own format is already optimized; other runtimes have their own caches.
        if cache is None or variant.format != "onnx" or variant.precision not in PRECISIONS:
            return None
        processor = processor_identity()
        if not processor:
            return None  # a graph for an unknown processor might be used on another one
        folder = cache / "optimized"
        try:
            for each in (cache, folder):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not is_private(each):
                    LOG.warning(
                        "%s is not used: others may write to it; run chmod go-w, or choose another folder",
                        each,
                    )
                    return None
        except OSError as error:
            LOG.info("optimized graphs are not cached: %s", error.strerror)
            return None
        options = options_for(variant)
        return cls(folder, cache_key(sha256, processor, **options), options)

    @property
    def file(self) -> Path:
        """The graph."""
        return self.folder / f"{self.key}.onnx"

    @property
    def note(self) -> Path:
        """JSON file with its size and SHA-256; the modification time is that of its last use."""
        return self.folder / f"{self.key}.json"

    def load(self, threads: int | None = None) -> Any | None:
        """Create a session from the cached graph; None if there is none, or if it is damaged."""
        try:
            note = json.loads(self.note.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.discard(f"{self.note.name} cannot be read: {error}")
            return None
        try:
            data = self.file.read_bytes() if self.file.lstat().st_size == note["size"] else b""
            if hashlib.sha256(data).hexdigest() != note["sha256"]:
                raise ArtifactError("size or SHA-256 do not match")
            session = create_session(data, **self.options | {"threads": threads, "level": "disable_all"})
        except (OSError, ArtifactError, KeyError, TypeError) as error:
            self.discard(error)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.note)
        return session

    @contextlib.contextmanager
    def create(self, data: bytes, threads: int | None = None) -> Iterator[Any]:
        """Create a session from the model file; its optimized graph is cached when the block ends without an error.

        Raises:
            ArtifactError: the runtime cannot load the model.
        """
        session, partial = self._optimize(data, threads)
        try:
            yield session
        except BaseException:
            if partial is not None:
                _remove(partial)
            raise
        if partial is not None:
            self._store(partial)

    def discard(self, reason: object) -> None:
        """Delete the cached files."""
        LOG.warning("the optimized graph %s is created again: %s", self.file.name, reason)
        _remove(self.note, self.file)

    def _optimize(self, data: bytes, threads: int | None) -> tuple[Any, Path | None]:
        """A session, and the temporary file with its graph, or None if it could not be written."""
        partial = None
        try:
            number, name = tempfile.mkstemp(prefix=f"{self.key}.", suffix=".partial", dir=self.folder)
            os.close(number)
            partial = Path(name)
            return create_session(data, optimized=partial, **self.options | {"threads": threads}), partial
        except (ArtifactError, OSError) as error:  # probably the disk; if it is the model, the error is raised again below
            LOG.info("the optimized graph is not cached: %s", error)
            if partial is not None:
                _remove(partial)
        return create_session(data, **self.options | {"threads": threads}), None

    def _store(self, partial: Path) -> None:
        note = partial.with_suffix(".note")
        try:
            data = partial.read_bytes()
            note.write_text(json.dumps({"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}))
            # Other processes may do this at the same time, with the same bytes. If the bytes differ, file and note do not match
            # and are created again. There is no fsync: what a power cut leaves behind is compared like everything else.
            partial.replace(self.file)
            note.replace(self.note)
        except OSError as error:
            LOG.info("the optimized graph is not cached: %s", error)
            _remove(partial, note)
        self._make_room()

    def _make_room(self) -> None:
        """Delete the least recently used graphs above `MAX_FILES` and `MAX_BYTES`, and abandoned temporary files."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix in (".partial", ".note") and time.time() - path.lstat().st_mtime > ABANDONED_S:
                    _remove(path)
            files = sorted(self.folder.glob("*.onnx"), key=_last_use, reverse=True)
            total = 0
            for index, path in enumerate(files):
                total += path.lstat().st_size
                if index >= MAX_FILES or (index > 0 and total > MAX_BYTES):
                    _remove(path.with_suffix(".json"), path)


def cache_key(sha256: str, processor: str, **options: Unpack[SessionOptions]) -> str:
    """The file name of a model file's optimized graph: a digest of everything that the graph depends on."""
    ort = load_onnxruntime()
    runtime = [ort.__version__, ort.get_build_info()]
    parts = [LAYOUT, sha256, runtime, platform.system(), processor, runtime_options(**options)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def processor_identity(cpuinfo: Path = CPUINFO) -> str:
    """Identify the first processor and its features; empty if the system does not report them."""
    fields = read_cpuinfo(cpuinfo)
    if not fields.keys() & {"flags", "Features"}:
        return ""
    return json.dumps([platform.machine(), *(fields.get(name) for name in PROCESSOR)])


def is_private(folder: Path) -> bool:
    """Whether a path is a folder of this user, not a link to one, and no other user may write to it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _last_use(path: Path) -> float:
    for each in (path.with_suffix(".json"), path):
        with contextlib.suppress(OSError):
            return each.lstat().st_mtime
    return 0.0


def _remove(*paths: Path) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
