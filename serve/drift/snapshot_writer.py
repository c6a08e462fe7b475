"""Keep the drift statistics of a running `edgeline predict` in a file, written anew every minute and at the end.

    with kept_snapshot(Path("drift.json"), tell) as note:
        answer(classifier, picture, 5, note(classifier))

The file is replaced, never written to, so a reader finds one whole snapshot. When another version of the artifact takes over,
the statistics start anew; those of the version before stay beside it as `drift.json.<version>`.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Drift, drift_of

INTERVAL_S = 60.0


@contextmanager
def kept_snapshot(path: Path, tell: Callable[[str], None]) -> Iterator[Callable[[Classifier], Drift]]:
    """Give a function from the classifier at hand to the statistics that observe it, and keep these in a file.

    Args:
        path: of the file; its folder exists.
        tell: called with one line when it cannot be written, which ends nothing.

    Raises:
        OSError: it cannot be written at the end.
    """
    kept = _Kept(path, tell)
    kept.thread.start()
    try:
        yield kept.drift_for
    finally:
        kept.ended.set()
        kept.thread.join()
        kept.write()


class _Kept:
    """One file, and the statistics that belong into it."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="edgeline-drift", daemon=True)
        self._path = path
        self._tell = tell
        self._classifier: Classifier | None = None
        self._drift: Drift | None = None
        self._written = 0
        self._lock = threading.Lock()
        """Held while the file is written, and while other statistics become its own."""

    def drift_for(self, classifier: Classifier) -> Drift:
        """The statistics of a classifier; another one's, if there were any, are written for the last time."""
        if self._drift is None or classifier is not self._classifier:
            with self._lock:
                if self._drift is not None and self._classifier is not None:
                    version = self._classifier.manifest.version
                    self._try(_write, self._path.with_name(f"{self._path.name}.{version}"), self._drift)
                self._classifier, self._drift, self._written = classifier, drift_of(classifier), 0
        return self._drift

    def write(self) -> None:
        """Replace the file, if there is news."""
        with self._lock:
            if self._drift is not None and (count := self._drift.count) != self._written:
                _write(self._path, self._drift)
                self._written = count

    def _run(self) -> None:
        while not self.ended.wait(INTERVAL_S):
            self._try(self.write)

    def _try(self, function: Callable[..., None], *args: object) -> None:
        try:
            function(*args)
        except OSError as error:
            self._tell(f"{self._path} cannot be written: {error.strerror}; it is tried again")


def _write(path: Path, drift: Drift) -> None:
    data = json.dumps(drift.snapshot(), allow_nan=False).encode() + b"\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
