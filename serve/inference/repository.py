"""The artifacts on offer: loaded and proven in the background, exchanged for newer ones while requests go on.

    models = ModelRepository([Path("artifacts/store/digits")], opening, engine)
    models.start()                       # returns at once
    models.current()                     # None until the golden samples have passed

A path that is a name's folder in a store is followed: a version that is published there is first tried in a child process
(`serve.inference.sandbox`), then opened beside the old one, then takes its place between two requests. The one before is kept
loaded, so `roll_back` is instant. One that fails is not tried again until its files change, and the old one serves on.

Invariants: what `current` gives has answered its golden samples in this process; a request that began with a classifier ends
with it; and a failure of any candidate, at any point, leaves what was serving.
"""

import ctypes
import gc
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.reader import is_version, resolve
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, EdgelineError
from edgeline.serve.inference.sandbox import validate_in_subprocess

LOG = logging.getLogger(__name__)

POLL_S = 2.0
"""Between two looks at a folder that is followed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an artifact does not answer, fit for clients: its place on this machine is not in it."""

    code: str
    reason: str
    version: int | None = None


@dataclass(eq=False)
class Slot:
    """One name on offer."""

    path: Path
    current: Classifier | None = None
    previous: Classifier | None = None
    failure: Failure | None = None
    """Why nothing answers."""
    refused: Failure | None = None
    """Why the newest version does not."""
    held: int | None = None
    """The version that was rolled back from; only a newer one ends that."""
    swaps: int = 0
    refusals: int = 0
    _seen: tuple[object, ...] = field(default=())

    @property
    def name(self) -> str:
        """Its artifact's name; before there is one, its folder's."""
        if self.current is not None:
            return self.current.manifest.name
        return self.path.parent.name if is_version(self.path.name) else self.path.name

    def classifiers(self) -> list[Classifier]:
        """Those that are loaded, by version."""
        found = {each.manifest.version: each for each in (self.current, self.previous) if each is not None}
        return [found[version] for version in sorted(found)]


class ModelRepository:
    """Loads artifacts and says which one answers; one thread does all loading."""

    def __init__(
        self,
        paths: Sequence[Path],
        open_classifier: Callable[[Path], Classifier],
        *,
        challenger: Path | None = None,
        variant: str | None = None,
        max_pixels: int,
        poll_s: float = POLL_S,
        on_first: Callable[[Classifier], Classifier] = lambda classifier: classifier,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Build a repository; `start` begins to load.

        Args:
            paths: of the artifacts, or names' folders in a store.
            open_classifier: opens an artifact and runs its self-test.
            challenger: an artifact that answers a share of the first model's requests.
            variant: of every artifact.
            max_pixels: of an image, in the child process that validates a new version.
            poll_s: seconds between two looks at the folders.
            on_first: called before the first classifier serves; may open it again and return that one.
            on_ready: called whenever all names have a classifier that serves and one was just loaded.
        """
        self.slots = [Slot(path.absolute()) for path in paths]
        self.challenger = None if challenger is None else Slot(challenger.absolute())
        """Answers a share of what is asked of the first name, and never takes its place by itself."""
        self._on_first = on_first
        self._on_ready = on_ready
        self._open = open_classifier
        self._variant = variant
        self._max_pixels = max_pixels
        self._poll_s = poll_s
        self._poked = threading.Event()
        self._closing = False
        self._begun = False
        self._swapping = threading.Lock()
        self._loader = threading.Thread(target=self._run, name="edgeline-load", daemon=True)

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        self._loader.start()

    def close(self, timeout_s: float) -> bool:
        """Stop following; whether what was being loaded ended in time."""
        self._closing = True
        self._poked.set()
        if self._loader.ident is not None:
            self._loader.join(timeout_s)
        return not self._loader.is_alive()

    def reload(self) -> None:
        """Look at once, and try again what was refused or rolled back from."""
        for slot in self._all():
            slot.held = None
            slot._seen = ()
        self._poked.set()

    def roll_back(self) -> None:
        """Let the version before answer again, of every name that has one."""
        with self._swapping:
            for slot in self.slots:
                back = slot.held is None  # once; a second signal does not go forward to the bad one again
                if back and slot.previous is not None and slot.current is not None:
                    slot.held = slot.current.manifest.version
                    slot.current, slot.previous = slot.previous, slot.current
                    slot.swaps += 1
                    LOG.warning("rolled back: %s answers, not %d", _title(slot.current), slot.held)

    @property
    def ready(self) -> bool:
        """Whether every name has an artifact that answers."""
        return all(slot.current is not None for slot in self.slots)

    def slot(self, name: str | None = None) -> Slot | None:
        """The slot of a name, without one the first; None if no loaded artifact has that name."""
        if name is None:
            return self.slots[0]
        return next((slot for slot in self.slots if slot.current is not None and slot.current.manifest.name == name), None)

    def current(self, name: str | None = None) -> Classifier | None:
        """What answers for a name, without one for the first."""
        slot = self.slot(name)
        return None if slot is None else slot.current

    def names(self) -> list[str]:
        """The names that answer."""
        return [slot.current.manifest.name for slot in self.slots if slot.current is not None]

    def versions(self, name: str) -> list[int]:
        """The versions of a name that are loaded, ascending."""
        slot = self.slot(name)
        return [] if slot is None else [each.manifest.version for each in slot.classifiers()]

    def get(self, name: str, version: int | None = None) -> Classifier | None:
        """A loaded version of a name, without one the version that answers now."""
        slot = self.slot(name)
        if slot is None or version is None:
            return None if slot is None else slot.current
        return next((each for each in slot.classifiers() if each.manifest.version == version), None)

    def index(self) -> list[dict[str, str]]:
        """Every version that is loaded, or was refused and why."""
        rows = []
        for slot in self.slots:
            name = slot.name
            rows += [
                {"name": name, "version": str(each.manifest.version), "state": "READY", "reason": ""}
                for each in slot.classifiers()
            ]
            for failure in filter(None, (slot.failure, slot.refused)):
                version = "" if failure.version is None else str(failure.version)
                rows.append({"name": name, "version": version, "state": "UNAVAILABLE", "reason": failure.reason})
            if slot.current is None and slot.failure is None:
                rows.append({"name": name, "version": "", "state": "UNAVAILABLE", "reason": "loading"})
        return rows

    # --- the loading thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for slot in self._all():
                try:
                    self._look(slot)
                except Exception as error:  # the edge of this thread: without it a bug here would look like loading for ever
                    LOG.exception("looking at %s failed unexpectedly", slot.path)
                    if slot.current is None:
                        slot.failure = _bug(error)
            if not self._poked.wait(self._poll_s) or self._closing:
                continue
            self._poked.clear()

    def _all(self) -> list[Slot]:
        return self.slots if self.challenger is None else [*self.slots, self.challenger]

    def _look(self, slot: Slot) -> None:
        """Load the newest version if it is not the one that serves, and was not refused as it is."""
        try:
            folder = resolve(slot.path)
            seen = _signature(folder)
        except EdgelineError as error:
            failure = _failure(error, slot.path)
            if slot.current is None and failure != slot.failure:
                self._refuse(slot, failure)
            return
        if seen == slot._seen:
            return
        version = int(folder.name) if folder != slot.path and folder.name.isdigit() else None
        serving = None if slot.current is None else slot.current.manifest.version
        if serving is not None and (version is None or version <= max(serving, slot.held or 0)):
            if slot.refused is not None and slot.refused.version != version:
                slot.refused, slot._seen = None, ()  # it was taken away; if it comes back, it is tried again
            return
        slot._seen = seen
        try:
            if self._begun:  # others are served already, if not under this name
                validate_in_subprocess(folder, self._variant, max_pixels=self._max_pixels)
            found = self._open(folder)
            self._check_name(slot, found)
        except EdgelineError as error:
            self._refuse(slot, _failure(error, folder, version))
        except Exception as error:
            LOG.exception("opening %s failed unexpectedly", folder)
            self._refuse(slot, _bug(error, version))
        else:
            self._exchange(slot, found)

    def _check_name(self, slot: Slot, found: Classifier) -> None:
        name = found.manifest.name
        if slot.current is not None and slot.current.manifest.name != name:
            raise ArtifactError(f"it is named {name}, not {slot.current.manifest.name}; publish it where it belongs")
        twins = [each for each in self.slots if each is not slot and slot is not self.challenger and each.current is not None]
        if any(each.current is not None and each.current.manifest.name == name for each in twins):
            raise ArtifactError(f"another artifact named {name} is served already; name one of them")

    def _refuse(self, slot: Slot, failure: Failure) -> None:
        slot.refusals += 1
        if slot.current is None:
            LOG.error("not ready: %s [%s]", failure.reason, failure.code)
            slot.failure = failure
        else:
            LOG.error(
                "%s serves on, %s is refused: %s [%s]", _title(slot.current), failure.version, failure.reason, failure.code
            )
            slot.refused = failure

    def _exchange(self, slot: Slot, found: Classifier) -> None:
        if not self._begun:
            found = self._on_first(found)
            self._begun = True
        with self._swapping:
            if slot.current is not None:
                slot.previous = slot.current
                slot.swaps += 1
            slot.current, slot.failure, slot.refused, slot.held = found, None, None, None
        if self.ready:
            self._on_ready()
        LOG.info("ready: %s", _title(found))
        del found
        _give_memory_back()


def _title(classifier: Classifier) -> str:
    return f"{classifier.manifest.name} {classifier.manifest.version}"


def _failure(error: EdgelineError, folder: Path, version: int | None = None) -> Failure:
    reason = str(error)
    for path in (folder, folder.parent):
        reason = reason.replace(f"{path}{os.sep}", "").replace(str(path), path.name)
    return Failure(error.code, reason, version)


def _bug(error: Exception, version: int | None = None) -> Failure:
    return Failure("internal_error", f"it could not be loaded ({type(error).__name__}); the server's log says more", version)


def _signature(folder: Path) -> tuple[object, ...]:
    """What changes when a file of an artifact does."""
    try:
        found = sorted(folder.rglob("*"))
        return (folder, *((str(path), (stat := path.lstat()).st_mtime_ns, stat.st_size, stat.st_ino) for path in found))
    except OSError as error:
        raise ArtifactError(f"{folder / FILE_NAME} cannot be read: {error.strerror}") from error


def _give_memory_back() -> None:
    """After a model was let go: the C library keeps what it has unless it is told."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return  # not glibc
