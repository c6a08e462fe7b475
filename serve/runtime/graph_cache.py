"""Optimized graphs kept on disk: ONNX Runtime takes half of its loading time to optimize the same graph the same way each time.

    kept = Optimized.of(cache, sha256, variant)      # None where nothing is kept
    session = kept.load(threads)                     # None where there is nothing yet, or nothing that can be trusted
    with kept.making(data, threads) as session:      # optimized anew; the next start finds it if this ends well
        ...

A file is for one model file, runtime, processor and set of session settings: what ONNX Runtime makes of a graph at the level
that ships holds layouts that only suit the processor at hand. Threads change nothing in it.

A folder that belongs to somebody else, or that others may write to, is not used: who can write there gives a wrong model.
Beside each file lies its size and SHA-256, which are compared before any parser sees a byte, so a disk's errors and half a
file are noticed; whatever does not fit is deleted and made anew. Nothing here raises for the disk's sake: without room the next
start takes as long as this one. Golden samples are answered by what was loaded, wherever it came from.
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
from typing import Any, Self

from edgeline.serve.artifact.manifest import Variant
from edgeline.serve.errors import ArtifactError
from edgeline.serve.runtime.session import CPUINFO, create_session, load_onnxruntime, session_settings

LOG = logging.getLogger(__name__)

LAYOUT = 1
"""Of these files; a change makes them all anew."""
PRECISIONS = ("float32", "int8")
"""What was measured to load faster from here; see docs/adr/0017-optimized-graph-cache.md."""
MOST_FILES = 16
MOST_BYTES = 512 * 2**20
"""The files that were not used for longest go first."""
ABANDONED_S = 3600.0
"""After which a file that was not finished is nobody's."""
PROCESSOR = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip
"""Lines of /proc/cpuinfo that say what a processor can do, on x86 and on ARM; the others change with time."""


@dataclass(frozen=True, slots=True)
class Optimized:
    """The optimized graph of one model file, as it is or would be kept."""

    folder: Path
    key: str
    saturates: bool

    @classmethod
    def of(cls, cache: Path | None, sha256: str, variant: Variant) -> Self | None:
        """The place for a variant's graph; None where there is none, or where it is not kept.

        Args:
            cache: the folder that `edgeline serve --cache` names; made if it is not there.
            sha256: of the variant's file.
            variant: of an artifact.
        """
        # A file in ORT's own format is optimized already; other runtimes have caches of their own.
        if cache is None or variant.format != "onnx" or variant.precision not in PRECISIONS:
            return None
        processor = processor_line()
        if not processor:
            return None  # a graph for a processor that is not known might be another's
        folder = cache / "optimized"
        try:
            for each in (cache, folder):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not is_ours(each):
                    LOG.warning("%s is not used: it is no folder of this user's alone; chmod go-w it, or name another", each)
                    return None
        except OSError as error:
            LOG.info("optimized graphs are not kept: %s", error.strerror)
            return None
        return cls(folder, key_of(sha256, processor, variant.saturates), variant.saturates)

    @property
    def file(self) -> Path:
        """The graph."""
        return self.folder / f"{self.key}.onnx"

    @property
    def note(self) -> Path:
        """Its size and SHA-256, as JSON; its time of change is when it was last used."""
        return self.folder / f"{self.key}.json"

    def load(self, threads: int | None = None) -> Any | None:
        """A session of what is kept; None where there is none, or what is there is not what was kept."""
        try:
            told = json.loads(self.note.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self.discard(f"its note cannot be read: {error}")
            return None
        try:
            data = self.file.read_bytes() if self.file.lstat().st_size == told["size"] else b""
            if hashlib.sha256(data).hexdigest() != told["sha256"]:
                raise ArtifactError("it is not what was kept")
            # It was optimized when it was made. Once more changes nothing here; on another day it might.
            session = create_session(data, threads=threads, level="disable_all", saturates=self.saturates)
        except (OSError, ArtifactError, KeyError, TypeError) as error:
            self.discard(error)
            return None
        with contextlib.suppress(OSError):
            os.utime(self.note)
        return session

    @contextlib.contextmanager
    def making(self, data: bytes, threads: int | None = None) -> Iterator[Any]:
        """A session of the model itself; what it was optimized to is kept when the block ends without an error.

        Raises:
            ArtifactError: the runtime cannot load the model.
        """
        session, partial = self._make(data, threads)
        try:
            yield session
        except BaseException:
            if partial is not None:
                _remove(partial)
            raise
        if partial is not None:
            self._keep(partial)

    def _make(self, data: bytes, threads: int | None) -> tuple[Any, Path | None]:
        """A session, and the file that its graph was written to where there is room for one."""
        partial = None
        try:
            number, name = tempfile.mkstemp(prefix=f"{self.key}.", suffix=".partial", dir=self.folder)
            os.close(number)
            partial = Path(name)
            return create_session(data, threads=threads, saturates=self.saturates, optimized=partial), partial
        except (ArtifactError, OSError) as error:  # the disk, most likely; where it is the model, the same comes again
            LOG.info("the optimized graph is not kept: %s", error)
            if partial is not None:
                _remove(partial)
        return create_session(data, threads=threads, saturates=self.saturates), None

    def _keep(self, partial: Path) -> None:
        note = partial.with_suffix(".note")
        try:
            data = partial.read_bytes()
            note.write_text(json.dumps({"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}))
            # Other processes may do this at once, with the same bytes. Should they differ, a note fits no file, and it is made
            # anew. Nothing is flushed to the disk: what a power cut leaves is compared like all else.
            partial.replace(self.file)
            note.replace(self.note)
        except OSError as error:
            LOG.info("the optimized graph is not kept: %s", error)
            _remove(partial, note)
        self._make_room()

    def discard(self, reason: object) -> None:
        """Delete what is kept."""
        LOG.warning("the optimized graph %s is made anew: %s", self.file.name, reason)
        _remove(self.note, self.file)

    def _make_room(self) -> None:
        """Delete what was not used for longest, above `MOST_FILES` and `MOST_BYTES`, and what was left half done."""
        with contextlib.suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix in (".partial", ".note") and time.time() - path.lstat().st_mtime > ABANDONED_S:
                    _remove(path)
            files = sorted(self.folder.glob("*.onnx"), key=_last_use, reverse=True)
            total = 0
            for index, path in enumerate(files):
                total += path.lstat().st_size
                if index >= MOST_FILES or (index > 0 and total > MOST_BYTES):
                    _remove(path.with_suffix(".json"), path)


def key_of(sha256: str, processor: str, saturates: bool) -> str:
    """The name of a model file's optimized graph: of all that it depends on."""
    ort = load_onnxruntime()
    runtime = [ort.__version__, ort.get_build_info()]
    told = [LAYOUT, sha256, runtime, platform.system(), processor, "all", session_settings(saturates)]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def processor_line(cpuinfo: Path = CPUINFO) -> str:
    """What the first processor is and can do; empty where the system does not tell."""
    try:
        lines = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if not fields.keys() & {"flags", "Features"}:
        return ""
    return json.dumps([platform.machine(), *(fields.get(name) for name in PROCESSOR)])


def is_ours(folder: Path) -> bool:
    """Whether a path is a folder, and no link to one, that belongs to this user and that nobody else may write to."""
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
