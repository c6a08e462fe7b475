"""Hot reload of a channel's version in a store: load the one that the channel moves to, and switch to it.

    watcher = VersionWatcher(Followed(Path("artifacts/store/birds")), Classifier.open, report)
    watcher.start()
    watcher.classifier          # read it again for each image

Invariant: `classifier` always passed its golden samples on this machine. A version that fails is reported once and tried again
only if its files change, as they do while it is being copied; until then the current version stays in use.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edgeline.serve.artifact.channels import Followed, read_channels
from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.newer_version import Candidate, find_current, find_next
from edgeline.serve.artifact.reader import versions
from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ArtifactError, ConfigError, EdgelineError

INTERVAL_S = 2.0
"""Between two polls of the folder; a poll lists it and reads no files."""

CLOSE_S = 10.0
"""Longest wait for a version that is being loaded when the watcher is closed."""


class VersionWatcher:
    """Keeps the version of a channel loaded, or the last one before it that works."""

    def __init__(
        self, followed: Followed, open_classifier: Callable[[Path], Classifier], report: Callable[[str], None]
    ) -> None:
        """Open the channel's version, or the last one before it that passes its golden samples.

        Args:
            followed: a name's folder in a store, and a channel.
            open_classifier: opens one version.
            report: called with one line for each change and each failure.

        Raises:
            ArtifactError: there is none; the message is that of the channel's version.
            ConfigError: the folder is an artifact, not a name's folder.
        """
        folder = followed.path
        if (folder / FILE_NAME).is_file():
            raise ConfigError(f"--follow needs a name's folder in a store, {folder} is a single version; use its parent folder")
        self._folder, self._channel = followed
        self._open = open_classifier
        self._report = report
        self._tried: Candidate | None = None
        """The last version that was opened or rejected."""
        self._reported: tuple[int, str] | None = None
        """Version and error code of the last reported failure."""
        self.classifier, self._version = self._open_first()
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
        """Switch to another version if the channel has moved to one that works."""
        try:
            candidate = find_next(self._folder, served=self._version, channel=self._channel)
            if candidate is None or candidate == self._tried:
                return
            self._tried = candidate
            classifier = self._open(candidate.folder)
            version = int(candidate.folder.name)
            _check_identity(classifier, self.classifier.manifest.name, version)
            self.classifier, self._version = classifier, version
            self._report(f"switched to {classifier.manifest.name} {version}")
        except (EdgelineError, OSError) as error:
            self._report_failure(error)

    def _open_first(self) -> tuple[Classifier, int]:
        candidate = find_current(self._folder, self._channel)
        current = int(candidate.folder.name)
        try:
            return self._open(candidate.folder), current
        except EdgelineError as error:
            for version in read_channels(self._folder).usable(self._channel, versions(self._folder))[1:]:
                with suppress(EdgelineError):
                    earlier = self._open(self._folder / str(version))
                    self._tried, self._reported = candidate, (current, error.code)
                    self._report(f"using {earlier.manifest.name} {version}, version {current} cannot be used: {_reason(error)}")
                    return earlier, version
            raise

    def _report_failure(self, error: EdgelineError | OSError) -> None:
        failure = int(self._tried.folder.name) if self._tried else 0, getattr(error, "code", "")
        if failure != self._reported:
            self._reported = failure
            current = f"{self.classifier.manifest.name} {self._version}"
            self._report(f"still using {current}, the channel's version cannot be used: {_reason(error)}")

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
