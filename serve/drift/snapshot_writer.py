"""Write the drift statistics of a running `edgeline predict` to a file, every minute and at the end.

    with drift_file(Path("drift.json"), report) as drift_for:
        answer(classifier, picture, 5, drift_for(classifier))

The file is replaced atomically, so a reader always sees a complete snapshot. After a switch to another version of the artifact
the statistics start again at zero; those of the previous version are kept next to it as `drift.json.<version>`.
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
def drift_file(path: Path, report: Callable[[str], None]) -> Iterator[Callable[[Classifier], Drift]]:
    """Yield a function that returns the statistics of the current classifier, and write these to a file.

    Args:
        path: of the file; its folder exists.
        report: called with one line when it cannot be written; it is tried again later.

    Raises:
        OSError: it cannot be written at the end.
    """
    writer = _Writer(path, report)
    writer.thread.start()
    try:
        yield writer.drift_for
    finally:
        writer.ended.set()
        writer.thread.join()
        writer.write()


class _Writer:
    """A file and the statistics that are written to it."""

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="edgeline-drift", daemon=True)
        self._path = path
        self._report = report
        self._classifier: Classifier | None = None
        self._drift: Drift | None = None
        self._written = 0
        self._lock = threading.Lock()
        """Held while the file is written or the statistics are replaced."""

    def drift_for(self, classifier: Classifier) -> Drift:
        """Return the statistics of a classifier; those of a previous one are written a last time."""
        if self._drift is None or classifier is not self._classifier:
            with self._lock:
                if self._drift is not None and self._classifier is not None:
                    version = self._classifier.manifest.version
                    self._try(_write, self._path.with_name(f"{self._path.name}.{version}"), self._drift)
                self._classifier, self._drift, self._written = classifier, drift_of(classifier), 0
        return self._drift

    def write(self) -> None:
        """Replace the file if the statistics have changed."""
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
            self._report(f"{self._path} cannot be written: {error.strerror}; trying again later")


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
