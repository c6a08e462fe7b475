"""Keep photos of requests beside the answering of requests: one thread, one bounded queue.

    keeper = Keeper.open(InboxSettings(folder=Path("inbox"), consent="..."), store)
    keeper.offer(job.classifier, photo, answer.probabilities_K, answer.embedding_C)      # in a worker's thread; returns at once
    keeper.close(5.0)

A request never waits for the disk, and never fails because of the inbox: when the thread is behind, photos are dropped and
counted. A full disk is reported once, and again when it is over; the metrics show it all the time.
"""

import fcntl
import logging
import os
import threading
from collections import Counter, deque
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import numpy as np

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError, EdgelineError
from edgeline.serve.inbox.folder import Inbox, InboxLimits, Note
from edgeline.serve.inbox.interest import InterestIn
from edgeline.serve.inbox.metadata import without_metadata

LOG = logging.getLogger(__name__)

LEAST_SHARE = 0.9
"""A photo is offered to the inbox if it is more unusual than this share of the held-out images: others need not be kept."""
MAX_QUEUED = 32
MAX_QUEUED_BYTES = 32 * 2**20
PREDICTIONS = 5
"""Classes in a photo's note."""
OUTCOMES = ("kept", "duplicate", "less_interesting", "dropped", "failed", "format")
"""What becomes of an interesting photo: `dropped` because the thread was behind, `format` because it is a GIF or BMP."""
SERVER_LOCK = ".server.lock"


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxSettings:
    """Which photos a server keeps, and where."""

    folder: Path
    consent: str = ""
    """Why photos of requests may be kept; without it there is no inbox."""
    limits: InboxLimits = InboxLimits()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Offer:
    classifier: Classifier
    photo: bytes
    note: Note


class Keeper:
    """Adds interesting photos to an inbox. `offer` may be called by any thread."""

    def __init__(self, inbox: Inbox, server_lock: int) -> None:
        self.inbox = inbox
        self.problem: str | None = None
        """Why the last photo could not be kept; None if it could."""
        self.outcomes = Counter[str]()
        self._server_lock: int | None = server_lock
        self._interest: WeakKeyDictionary[Classifier, InterestIn] = WeakKeyDictionary()
        self._queue: deque[_Offer] = deque()
        self._queued_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="edgeline-inbox", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, settings: InboxSettings, outside: Path | None) -> Self:
        """Open the inbox of a server.

        Args:
            settings: of the inbox.
            outside: the server's store; its files can be downloaded, so the inbox must not be in it.

        Raises:
            ConfigError: the folder cannot be used, is in the store, or another server uses it.
        """
        folder = Path(os.path.realpath(settings.folder))
        store = None if outside is None else Path(os.path.realpath(outside))
        if store is not None and (folder.is_relative_to(store) or store.is_relative_to(folder)):
            raise ConfigError(
                f"the inbox {settings.folder} and the store {outside} are in one another; give a folder of its own",
                code="inbox_in_store",
            )
        inbox = Inbox.create(folder, consent=settings.consent, limits=settings.limits)
        lock = os.open(folder / SERVER_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ConfigError(
                f"the inbox {settings.folder} is used by another server; give each server its own", code="inbox_in_use"
            ) from error
        return cls(inbox, lock)

    def offer(
        self, classifier: Classifier, photo: bytes, probabilities_K: np.ndarray, embedding_C: np.ndarray | None = None
    ) -> None:
        """Offer a photo that was answered; it is kept later, if it is interesting.

        Args:
            classifier: that answered it.
            photo: the image file.
            probabilities_K: its answer.
            embedding_C: the photo's features, if the classifier has them.
        """
        measure = self._interest.get(classifier)
        if measure is None:  # two threads may both make one
            measure = self._interest.setdefault(classifier, InterestIn(classifier))
        interest = measure.of(probabilities_K, embedding_C)
        if interest.share < LEAST_SHARE:
            return
        note = Note(
            model=classifier.manifest.name,
            version=classifier.manifest.version,
            predictions=tuple((each.label, each.probability) for each in classifier.rank(probabilities_K, PREDICTIONS)),
            share=interest.share,
            uncertainty=interest.uncertainty,
            distance=interest.distance,
            embedding_C=None if embedding_C is None else embedding_C.astype(np.float16),
            at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with self._changed:
            if self._closing or len(self._queue) >= MAX_QUEUED or self._queued_bytes + len(photo) > MAX_QUEUED_BYTES:
                self.outcomes["dropped"] += 1
                return
            self._queue.append(_Offer(classifier=classifier, photo=photo, note=note))
            self._queued_bytes += len(photo)
            self._changed.notify()

    def close(self, timeout_s: float) -> bool:
        """Keep what is queued, and end.

        Returns:
            Whether the thread ended in time; it may hang in a write to a disk that does not respond.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        ended = not self._thread.is_alive()
        if ended and self._server_lock is not None:
            os.close(self._server_lock)
            self._server_lock = None
        return ended

    def _work(self) -> None:
        while (offer := self._next()) is not None:
            outcome = self._keep(offer)
            with self._changed:
                self.outcomes[outcome] += 1

    def _next(self) -> _Offer | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            offer = self._queue.popleft()
            self._queued_bytes -= len(offer.photo)
            return offer

    def _keep(self, offer: _Offer) -> str:
        try:
            plain = without_metadata(offer.photo)
            if plain is None:
                return "format"
            outcome = self.inbox.add(*plain, offer.note)
            self.inbox.record_classes(offer.classifier.manifest.labels)
        except (OSError, EdgelineError) as error:
            problem = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
            if self.problem is None:
                LOG.error("photos cannot be kept in the inbox %s: %s; requests are answered", self.inbox.folder, problem)
            self.problem = problem
            return "failed"
        except Exception:  # the edge of this thread: a bug here must not end it unseen
            LOG.exception("a photo could not be kept in the inbox")
            self.problem = "internal error; the log has the details"
            return "failed"
        if self.problem is not None:
            LOG.warning("photos are kept in the inbox %s again", self.inbox.folder)
            self.problem = None
        return outcome
