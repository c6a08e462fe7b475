"""Hot reload of the newest version in a store: load a version that is published later, and switch to it.

    watcher = VersionWatcher(Path("artifacts/store/birds"), Classifier.open, report)
    watcher.start()
    watcher.classifier          # read it again for each image

Invariant: `classifier` always passed its golden samples on this machine. A version that fails is reported once and tried again
only if its files change, as they do while it is being copied; until then the current version stays in use.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.newer_version import Candidate, find_newer, find_newest
from edgeline.serve.artifact.reader import versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, ConfigError, EdgelineError

INTERVAL_S = 2.0
"""Between two polls of the folder; a poll lists it and reads no files."""

CLOSE_S = 10.0
"""Longest wait for a version that is being loaded when the watcher is closed."""


class VersionWatcher:
    """Keeps the newest valid version of an artifact loaded."""

    def __init__(self, folder: Path, open_classifier: Callable[[Path], Classifier], report: Callable[[str], None]) -> None:
        """Open the newest version that passes its golden samples.

        Args:
            folder: a name's folder in a store.
            open_classifier: opens one version.
            report: called with one line for each change and each failure.

        Raises:
            ArtifactError: there is none; the message is that of the newest version.
            ConfigError: the folder is an artifact, not a name's folder.
        """
        if (folder / FILE_NAME).is_file():
            raise ConfigError(f"--follow needs a name's folder in a store, {folder} is a single version; use its parent folder")
        self._folder = folder
        self._open = open_classifier
        self._report = report
        self._tried: Candidate | None = None
        """The last version that was opened or rejected."""
        self._reported: tuple[int, str] | None = None
        """Version and error code of the last reported failure."""
        self.classifier, self._version = self._open_newest()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeline-follow", daemon=True)

    def start(self) -> None:
        """Start polling in a background thread."""
        self._thread.start()

    def close(self) -> None:
        """Stop polling, and wait for a version that is being loaded: runtimes may crash if the process ends meanwhile."""
        self._closing.set()
        self._thread.join(CLOSE_S)

    def poll(self) -> None:
        """Switch to a newer version if there is a valid one."""
        try:
            candidate = find_newer(self._folder, than=self._version)
            if candidate is None or candidate == self._tried:
                return
            self._tried = candidate
            classifier = self._open(candidate.folder)
            newest = int(candidate.folder.name)
            _check_identity(classifier, self.classifier.manifest.name, newest)
            self.classifier, self._version = classifier, newest
            self._report(f"switched to {classifier.manifest.name} {newest}")
        except (EdgelineError, OSError) as error:
            self._report_failure(error)

    def _open_newest(self) -> tuple[Classifier, int]:
        candidate = find_newest(self._folder)
        newest = int(candidate.folder.name)
        try:
            return self._open(candidate.folder), newest
        except EdgelineError as error:
            for version in reversed([number for number in versions(self._folder) if number < newest]):
                with suppress(EdgelineError):
                    older = self._open(self._folder / str(version))
                    self._tried, self._reported = candidate, (newest, error.code)
                    self._report(f"using {older.manifest.name} {version}, version {newest} cannot be used: {_reason(error)}")
                    return older, version
            raise

    def _report_failure(self, error: EdgelineError | OSError) -> None:
        failure = int(self._tried.folder.name) if self._tried else 0, getattr(error, "code", "")
        if failure != self._reported:
            self._reported = failure
            current = f"{self.classifier.manifest.name} {self._version}"
            self._report(f"still using {current}, the newer version cannot be used: {_reason(error)}")

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            try:
                self.poll()
            except Exception as error:  # top level of this thread: otherwise a bug would stop the polling silently
                self._report(f"polling for a newer version failed unexpectedly: {type(error).__name__}: {error}")


def _reason(error: EdgelineError | OSError) -> str:
    message = " ".join(str(error).split())
    return f"{message} [{error.code}]" if isinstance(error, EdgelineError) else message


def _check_identity(classifier: Classifier, name: str, version: int) -> None:
    found = classifier.manifest
    if (found.name, found.version) != (name, version):
        raise ArtifactError(f"version {version} has the manifest of {found.name} {found.version}; publish it again")
