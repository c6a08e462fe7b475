"""Follow a name's folder in a store: when a newer version is published there, load it beside and change over.

    follower = VersionWatcher(Path("artifacts/store/birds"), Classifier.open, tell)
    follower.start()
    follower.classifier          # asked for anew for every image

Invariant: `classifier` is always one that was found whole and answered its golden samples here. A version that does not is told
of once and tried again only when its files change, as they do while somebody copies them; the one before goes on answering.
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
"""Between two looks at the folder; a look lists it, and reads nothing."""

CLOSE_S = 10.0
"""How long a candidate that is being loaded is waited for at the end."""


class VersionWatcher:
    """The newest version that proved itself."""

    def __init__(self, folder: Path, open_classifier: Callable[[Path], Classifier], tell: Callable[[str], None]) -> None:
        """Open the newest version that proves itself.

        Raises:
            ArtifactError: there is none; the reason is the newest one's.
            ConfigError: the folder is an artifact, and not a name's folder.
        """
        if (folder / FILE_NAME).is_file():
            raise ConfigError(f"--follow wants a name's folder in a store, {folder} is one version; name the folder above it")
        self._folder = folder
        self._open = open_classifier
        self._tell = tell
        self._refused: Candidate | None = None
        self._told: tuple[int, str] | None = None
        self.classifier, self._version = self._open_newest()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgeline-follow", daemon=True)

    def start(self) -> None:
        """Begin to look, in a thread of its own."""
        self._thread.start()

    def close(self) -> None:
        """Look no more, and wait for a candidate that is being loaded: a runtime does not like the process to end meanwhile."""
        self._closing.set()
        self._thread.join(CLOSE_S)

    def look(self) -> None:
        """Change over to a newer version if there is one that proves itself."""
        try:
            candidate = find_newer(self._folder, than=self._version)
            if candidate is None or candidate == self._refused:
                return
            self._refused = candidate
            classifier = self._open(candidate.folder)
            newest = int(candidate.folder.name)
            _check_identity(classifier, self.classifier.manifest.name, newest)
            self.classifier, self._version = classifier, newest
            self._tell(f"now answers with {classifier.manifest.name} {newest}")
        except (EdgelineError, OSError) as error:
            self._refuse(error)

    def _open_newest(self) -> tuple[Classifier, int]:
        candidate = find_newest(self._folder)
        newest = int(candidate.folder.name)
        try:
            return self._open(candidate.folder), newest
        except EdgelineError as error:
            for version in reversed([number for number in versions(self._folder) if number < newest]):
                with suppress(EdgelineError):
                    older = self._open(self._folder / str(version))
                    self._refused, self._told = candidate, (newest, error.code)
                    self._tell(f"begins with {older.manifest.name} {version}, {newest} cannot be used: {_reason(error)}")
                    return older, version
            raise

    def _refuse(self, error: EdgelineError | OSError) -> None:
        told = int(self._refused.folder.name) if self._refused else 0, getattr(error, "code", "")
        if told != self._told:
            self._told = told
            kept = f"{self.classifier.manifest.name} {self._version}"
            self._tell(f"keeps {kept}, the newer version cannot be used: {_reason(error)}")

    def _run(self) -> None:
        while not self._closing.wait(INTERVAL_S):
            try:
                self.look()
            except Exception as error:  # the edge of this thread: without it a bug here would end the following unseen
                self._tell(f"looking for a newer version failed unexpectedly: {type(error).__name__}: {error}")


def _reason(error: EdgelineError | OSError) -> str:
    said = " ".join(str(error).split())
    return f"{said} [{error.code}]" if isinstance(error, EdgelineError) else said


def _check_identity(classifier: Classifier, name: str, version: int) -> None:
    found = classifier.manifest
    if (found.name, found.version) != (name, version):
        raise ArtifactError(f"version {version} holds the manifest of {found.name} {found.version}; publish it again")
