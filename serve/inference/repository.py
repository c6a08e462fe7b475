"""The served artifacts: loaded and self-tested in the background, replaced by other versions while requests go on.

    models = ModelRepository([Path("artifacts/store/digits")], loader)
    models.start()                       # returns at once
    models.current()                     # None until the golden samples have passed

A path that is a name's folder in a store is followed. A version that its channel moves to is validated in a child process,
opened in addition to the one that is served, and then takes its place between two requests. The version before stays loaded, so
`roll_back` is instant. A rejected version is not tried again until its files change. `serve.inference.slot` has the states.

Invariants: what `current` returns has passed its golden samples in this process; a request that started with a classifier ends
with it; and a failure of any candidate, at any point, leaves what is served unchanged.
"""

import ctypes
import gc
import logging
import os
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

from edgeline.serve.artifact.channels import STABLE, Followed, read_channels
from edgeline.serve.artifact.newer_version import find_current, find_next
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, EdgelineError
from edgeline.serve.inference.slot import Failure, Loading, Slot, Unavailable
from edgeline.serve.system_errors import out_of_memory

LOG = logging.getLogger(__name__)

POLL_S = 2.0
"""Between two listings of a folder that is followed."""


class Loader(Protocol):
    """How artifacts are loaded. A repository calls all of these in its loading thread."""

    def open(self, path: Path) -> Classifier:
        """Open an artifact and run its self-test."""

    def validate(self, path: Path) -> None:
        """Raise ArtifactError for an artifact that would harm this process; not called before the first one is loaded."""

    def on_first(self, classifier: Classifier) -> Classifier:
        """Return the first classifier, before it answers anything; perhaps opened again with other threads."""

    def on_ready(self) -> None:
        """Called after a load, while an artifact is served under every name."""


class ModelRepository:
    """Loads artifacts in one thread, and holds the one that is served under each name."""

    def __init__(
        self,
        paths: Sequence[Path],
        loader: Loader,
        *,
        channel: str = STABLE,
        challenger: Followed | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self.slots = [Slot(path.absolute(), channel=channel) for path in paths]
        self.challenger = None if challenger is None else Slot(challenger.path.absolute(), channel=challenger.channel)
        """Answers a share of the requests for the first name, and never replaces the champion automatically."""
        self._loader = loader
        self._poll_s = poll_s
        self._wake = threading.Event()
        self._closing = False
        self._first_loaded = False
        self._thread = threading.Thread(target=self._run, name="edgeline-load", daemon=True)

    def start(self) -> None:
        """Start loading, in a thread of its own."""
        self._thread.start()

    def close(self, timeout_s: float) -> bool:
        """Stop following; return whether the load in progress ended in time."""
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def reload(self) -> None:
        """Poll now, and try again what was rejected or rolled back from."""
        for slot in self._all():
            slot.resume()
        self._wake.set()

    def roll_back(self) -> None:
        """Serve the previous version again, of every name that has one which was not yanked."""
        for slot in self.slots:
            if slot.previous is not None and slot.previous.manifest.version in _yanked(slot.path):
                LOG.warning("not rolled back: %s was yanked", _title(slot.previous))
                continue
            if (state := slot.roll_back()) is not None:
                LOG.warning("rolled back from version %d: %s is served", state.rolled_back_from, _title(state.current))

    @property
    def ready(self) -> bool:
        """Whether an artifact is served under every name."""
        return all(slot.current is not None for slot in self.slots)

    def slot(self, name: str | None = None) -> Slot | None:
        """The slot of a name, by default the first one; None if no served artifact has that name."""
        if name is None:
            return self.slots[0]
        return next((slot for slot in self.slots if slot.current is not None and slot.current.manifest.name == name), None)

    def current(self, name: str | None = None) -> Classifier | None:
        """The classifier that is served under a name, by default under the first."""
        slot = self.slot(name)
        return None if slot is None else slot.current

    def names(self) -> list[str]:
        """The names that are served."""
        return [classifier.manifest.name for slot in self.slots if (classifier := slot.current) is not None]

    def versions(self, name: str) -> list[int]:
        """The loaded versions of a name, ascending."""
        slot = self.slot(name)
        return [] if slot is None else [each.manifest.version for each in slot.classifiers()]

    def get(self, name: str, version: int | None = None) -> Classifier | None:
        """A loaded version of a name, by default the one that is served."""
        slot = self.slot(name)
        if slot is None or version is None:
            return None if slot is None else slot.current
        return next((each for each in slot.classifiers() if each.manifest.version == version), None)

    def index(self) -> list[dict[str, str]]:
        """Every version that is loaded, and every one that is not, with the reason."""
        rows = []
        for slot in self.slots:
            name = slot.name
            rows += [
                {"name": name, "version": str(each.manifest.version), "state": "READY", "reason": ""}
                for each in slot.classifiers()
            ]
            match slot.state:
                case Loading():
                    rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": "loading"})
                case Unavailable(failure):
                    rows.append(_unavailable(name, failure))
                case state if state.rejected_version is not None:
                    rows.append(_unavailable(name, state.rejected_version))
        return rows

    # --- the loading thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for slot in self._all():
                try:
                    self._poll(slot)
                except Exception as error:  # the edge of this thread: without it a bug would look like endless loading
                    LOG.exception("polling %s failed unexpectedly", slot.path)
                    if slot.current is None:
                        slot.reject(_bug(error))
            if not self._wake.wait(self._poll_s) or self._closing:
                continue
            self._wake.clear()

    def _all(self) -> list[Slot]:
        return self.slots if self.challenger is None else [*self.slots, self.challenger]

    def _poll(self, slot: Slot) -> None:
        """Load the channel's version, unless it is the one that is served or was rejected as it is."""
        served = None if slot.current is None else slot.current.manifest.version
        try:
            candidate = (
                find_current(slot.path, slot.channel)
                if served is None
                else find_next(slot.path, served=served, channel=slot.channel, declined=slot.rolled_back_from or 0)
            )
        except EdgelineError as error:
            failure = _failure(error, slot.path)
            if failure not in (slot.failure, slot.rejected_version):
                self._reject(slot, failure)
            return
        if candidate is None:
            slot.forget_rejected()
            return
        if candidate == slot.last_tried:
            return
        slot.last_tried = candidate
        try:
            found = self._load(slot, candidate.folder)
        except Exception as error:
            self._reject(slot, _explain(error, candidate.folder, candidate.version))
        else:
            self._accept(slot, found)

    def _load(self, slot: Slot, folder: Path) -> Classifier:
        if self._first_loaded:  # so requests are being answered, perhaps under another name
            self._loader.validate(folder)
        found = self._loader.open(folder)
        name = found.manifest.name
        if slot.current is not None and slot.name != name:
            raise ArtifactError(f"the artifact is named {name}, expected {slot.name}; publish it under its own name")
        others = [each for each in self.slots if each is not slot and slot is not self.challenger]
        if any(each.current is not None and each.current.manifest.name == name for each in others):
            raise ArtifactError(f"another artifact named {name} is already served; remove one of them from the command line")
        return found

    def _reject(self, slot: Slot, failure: Failure) -> None:
        slot.reject(failure)
        if slot.current is None:
            LOG.error("not ready: %s [%s]", failure.reason, failure.code)
        else:
            rejected, kept = failure.version, _title(slot.current)
            LOG.error("version %s rejected, %s stays in service: %s [%s]", rejected, kept, failure.reason, failure.code)

    def _accept(self, slot: Slot, found: Classifier) -> None:
        if not self._first_loaded:
            found = self._loader.on_first(found)
            self._first_loaded = True
        slot.accept(found)
        if self.ready:
            self._loader.on_ready()
        LOG.info("ready: %s", _title(found))
        del found
        _return_memory_to_system()


def _yanked(folder: Path) -> Collection[int]:
    try:
        return read_channels(folder).yanked.keys()
    except EdgelineError:
        return ()


def _title(classifier: Classifier) -> str:
    return f"{classifier.manifest.name} {classifier.manifest.version}"


def _unavailable(name: str, failure: Failure) -> dict[str, str]:
    version = "" if failure.version is None else str(failure.version)
    return {"name": name, "version": version, "state": "UNAVAILABLE", "reason": failure.reason}


def _failure(error: EdgelineError, folder: Path, version: int | None = None) -> Failure:
    reason = str(error)
    for path in (folder, folder.parent):
        reason = reason.replace(f"{path}{os.sep}", "").replace(str(path), path.name)
    return Failure(error.code, reason, version)


def _explain(error: Exception, folder: Path, version: int | None) -> Failure:
    """What clients see of an error while loading; they do not see this machine's paths."""
    if (memory := out_of_memory(error)) is not None:
        LOG.error("loading %s failed: %s", folder, memory)
        return Failure(memory.code, "there is not enough memory to load it; see the server's log", version)
    if isinstance(error, EdgelineError):
        return _failure(error, folder, version)
    LOG.exception("loading %s failed unexpectedly", folder)
    return _bug(error, version)


def _bug(error: Exception, version: int | None = None) -> Failure:
    return Failure("internal_error", f"loading failed with {type(error).__name__}; see the server's log", version)


def _return_memory_to_system() -> None:
    """Free the memory of a model that was dropped: glibc keeps freed pages until it is asked to return them."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc
