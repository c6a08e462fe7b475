"""The channels of a name in a store: which of its versions are in use, and how that came about.

    channels = read_channels(Path("artifacts/store/birds"))
    channels.version("stable", published=[1, 2, 3])

`<store>/<name>/channels.json` is replaced as a whole, so a reader sees the pointers, the yanked versions and the history of one
moment. Only `export.promotion.channels` writes it. `latest` is not stored: it is the highest number that was not yanked.
Without a pointer `stable` is `latest`, so a name that has no channels is used as its newest version.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from edgeline.serve.errors import ArtifactError, ConfigError

FILE_NAME = "channels.json"
SCHEMA = "edgeline.channels/1"
MAX_BYTES = 16 * 2**20
LATEST, STABLE = "latest", "stable"
CHANNEL = re.compile(r"[a-z][a-z0-9_-]{0,62}")
"""Names of channels; unlike version numbers, they start with a letter."""
ACTIONS = ("promote", "rollback", "yank", "unyank", "keep")


class Followed(NamedTuple):
    """An artifact, or a name's folder in a store and the channel whose version is used."""

    path: Path
    channel: str = STABLE


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One change, or one decision to change nothing."""

    at: str
    """UTC, ISO 8601."""
    by: str
    """Account and machine."""
    action: str
    """One of `ACTIONS`; `keep` is a comparison after which the channel's version stayed."""
    version: int
    why: str
    channel: str | None = None
    """None for `yank` and `unyank`, which concern every channel."""
    before: int | None = None
    """The version that the channel had before."""
    decision: str | None = None
    """File with the comparison that decided, relative to the name's folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Channels:
    """The channels of one name."""

    pointers: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    """The version of each channel, as it was set."""
    yanked: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    """Versions that must no longer be used, each with the reason."""
    history: tuple[Event, ...] = ()
    """The oldest first."""

    def version(self, channel: str, published: Sequence[int]) -> int:
        """The version to use: that of the channel, or the one before it if that was yanked.

        Args:
            channel: `latest`, `stable`, or another one that was set.
            published: the version numbers in the store, at least one.

        Raises:
            ArtifactError: there is no such channel, its version is not published, or all of its versions were yanked.
        """
        if usable := self.usable(channel, published):
            return usable[0]
        reasons = "; ".join(f"{version} because {reason}" for version, reason in sorted(self.yanked.items())[-3:])
        raise ArtifactError(
            f"every version of channel {channel} was yanked ({reasons}); promote another one", code="version_yanked"
        )

    def usable(self, channel: str, published: Sequence[int]) -> list[int]:
        """The versions of a channel that were not yanked, the one to use first, then those that it had before.

        Raises:
            ArtifactError: there is no such channel, or its version is not published.
        """
        if self.is_latest(channel):
            chosen = sorted(published, reverse=True)
        elif channel not in self.pointers:
            known = ", ".join(sorted({LATEST, STABLE, *self.pointers}))
            raise ArtifactError(f"there is no channel {channel!r}; the channels are {known}", code="channel_unknown")
        else:
            chosen = list(dict.fromkeys([self.pointers[channel], *self.earlier(channel)]))
            if chosen[0] not in published and chosen[0] not in self.yanked:
                raise ArtifactError(
                    f"channel {channel} is at version {chosen[0]}, which is not in the store; copy that version, or promote "
                    "another one",
                    code="channel_version_missing",
                )
        return [version for version in chosen if version in published and version not in self.yanked]

    def is_latest(self, channel: str) -> bool:
        """Whether a channel means the newest version."""
        return channel == LATEST or (channel == STABLE and STABLE not in self.pointers)

    def earlier(self, channel: str) -> list[int]:
        """The versions that a channel had before, the last one first; a rollback removes the ones that it skipped."""
        stack: list[int] = []
        for event in self.history:
            if event.channel != channel or event.action == "keep":
                continue
            if event.action == "rollback" and event.version in stack:
                while stack[-1] != event.version:
                    stack.pop()
            else:
                stack.append(event.version)
        return stack[-2::-1]

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse the file.

        Raises:
            ValueError, KeyError, TypeError: it is invalid.
        """
        held = json.loads(data)
        if held["schema"] != SCHEMA:
            raise ValueError(f"its schema is {str(held['schema'])[:50]!r}, this version of edgeline reads {SCHEMA!r}")
        pointers = {check_channel(name): _version(version) for name, version in held["channels"].items()}
        yanked = {_version(int(version)): str(reason) for version, reason in held["yanked"].items()}
        return cls(pointers=pointers, yanked=yanked, history=tuple(Event(**event) for event in held["history"]))

    def to_json(self) -> dict[str, Any]:
        """As `from_json` reads it."""
        return {
            "schema": SCHEMA,
            "channels": dict(sorted(self.pointers.items())),
            "yanked": {str(version): reason for version, reason in sorted(self.yanked.items())},
            "history": [asdict(event) for event in self.history],
        }


def read_channels(folder: Path) -> Channels:
    """The channels of a name's folder; none if it has no file.

    Raises:
        ArtifactError: the file cannot be read, or is invalid.
    """
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return Channels()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", code="channels_invalid") from error
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        return Channels.from_json(data)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is not a valid list of channels ({type(error).__name__}: {error}); restore it from a copy of the store",
            code="channels_invalid",
        ) from error


def check_channel(name: str) -> str:
    """Return the name of a channel.

    Raises:
        ConfigError: it is not one.
    """
    if not CHANNEL.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} is no name of a channel; use up to 63 of a-z, 0-9, - and _, the first a letter, such as {STABLE}"
        )
    return name


def _version(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a version number")
    return value
