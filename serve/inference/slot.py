"""The states of one served name, and the transitions between them.

    Loading ----accept----> Serving ----accept----> Serving      (the version before stays loaded as `previous`)
       |                    ^    |  ----reject----> Serving      (with `rejected_version`)
     reject                 |  roll_back
       v                    |    v
    Unavailable --accept----+   RolledBack          (until another version than `rolled_back_from` is accepted, or `resume`)

A state is immutable and replaced as a whole, so a reader in any thread sees one that is consistent.
"""

import threading
from dataclasses import dataclass, replace
from pathlib import Path

from edgeline.serve.artifact.channels import STABLE
from edgeline.serve.artifact.newer_version import Candidate
from edgeline.serve.artifact.reader import is_version
from edgeline.serve.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an artifact is not served, fit for clients: the reason does not contain a path of this machine."""

    code: str
    reason: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Loading:
    """Nothing has been loaded yet, and nothing has failed."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Nothing is served, because the artifact cannot be used."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Serving:
    """A version is served."""

    current: Classifier
    previous: Classifier | None = None
    """Served before, and still loaded."""
    rejected_version: Failure | None = None
    """Why the channel's version is not served."""


@dataclass(frozen=True, slots=True)
class RolledBack:
    """The version before is served again, although the channel's works."""

    current: Classifier
    previous: Classifier
    rolled_back_from: int
    """Not accepted again; without channels, only a newer version than this one is."""
    rejected_version: Failure | None = None


State = Loading | Unavailable | Serving | RolledBack


class Slot:
    """One served name. Every method may be called from any thread."""

    def __init__(self, path: Path, state: State = Loading(), *, channel: str = STABLE) -> None:
        self.path = path
        self.channel = channel
        self.state = state
        self.last_tried: Candidate | None = None
        """Not tried again until its files change."""
        self.reloads = 0
        self.rejections = 0
        self._lock = threading.Lock()

    # --- what is served -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The artifact's name; the folder's while no artifact is served."""
        if self.current is not None:
            return self.current.manifest.name
        return self.path.parent.name if is_version(self.path.name) else self.path.name

    @property
    def current(self) -> Classifier | None:
        """The classifier that answers now."""
        state = self.state
        return state.current if isinstance(state, Serving | RolledBack) else None

    @property
    def previous(self) -> Classifier | None:
        """The classifier that answered before, while it is loaded."""
        state = self.state
        return state.previous if isinstance(state, Serving | RolledBack) else None

    @property
    def failure(self) -> Failure | None:
        """Why nothing is served."""
        state = self.state
        return state.failure if isinstance(state, Unavailable) else None

    @property
    def rejected_version(self) -> Failure | None:
        """Why the channel's version is not served, while another one is."""
        state = self.state
        return state.rejected_version if isinstance(state, Serving | RolledBack) else None

    @property
    def rolled_back_from(self) -> int | None:
        """The version that was rolled back from."""
        state = self.state
        return state.rolled_back_from if isinstance(state, RolledBack) else None

    def classifiers(self) -> list[Classifier]:
        """The loaded versions, ascending."""
        state = self.state
        if not isinstance(state, Serving | RolledBack):
            return []
        found = {each.manifest.version: each for each in (state.previous, state.current) if each is not None}
        return [found[version] for version in sorted(found)]

    # --- transitions ----------------------------------------------------------------------------------------------------

    def accept(self, classifier: Classifier) -> None:
        """Serve a classifier; the one that it replaces stays loaded for a rollback."""
        with self._lock:
            previous = self.current
            self.reloads += previous is not None
            self.state = Serving(classifier, previous)

    def reject(self, failure: Failure) -> None:
        """Keep what is served, and remember why a candidate is not."""
        with self._lock:
            self.rejections += 1
            if isinstance(self.state, Serving | RolledBack):
                self.state = replace(self.state, rejected_version=failure)
            else:
                self.state = Unavailable(failure)

    def forget_rejected(self) -> None:
        """Forget a rejected version that is no longer published; should it come back, it is tried again."""
        with self._lock:
            if isinstance(self.state, Serving | RolledBack) and self.state.rejected_version is not None:
                self.state = replace(self.state, rejected_version=None)
                self.last_tried = None

    def roll_back(self) -> RolledBack | None:
        """Serve the previous version again.

        Returns:
            The new state; None if there is no previous version. Rolling back twice does not return to the newer version.
        """
        with self._lock:
            if not isinstance(self.state, Serving) or self.state.previous is None:
                return None
            current, previous = self.state.current, self.state.previous
            rolled_back = RolledBack(previous, current, current.manifest.version, self.state.rejected_version)
            self.state = rolled_back
            self.reloads += 1
            return rolled_back

    def resume(self) -> None:
        """Try the channel's version again, even if it was rejected or rolled back from."""
        with self._lock:
            if isinstance(self.state, RolledBack):
                self.state = Serving(self.state.current, self.state.previous, self.state.rejected_version)
            self.last_tried = None
