"""Change the channels of a name: promote a version, roll back, yank.

    promote(Path("artifacts/store/birds"), 7, Change("stable", why="better on the new camera"))

Each change replaces `channels.json` as a whole, under the lock of the name's publishers: a reader has the channels before it or
after it, and of two changes at once none is lost. The history has who did what, when and why.
"""

import getpass
import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from edgeline.export.publishing.store import store_errors, store_lock
from edgeline.pipeline.runs.atomic_files import digest_of, replace_file, write_json
from edgeline.serve.artifact.channels import FILE_NAME, LATEST, STABLE, Channels, Event, check_channel, read_channels
from edgeline.serve.artifact.reader import open_artifact, versions
from edgeline.serve.errors import ArtifactError, ConfigError, VerificationError

DECISIONS = "decisions"
"""Folder of the comparisons that decided, below the name's folder."""


class Change(NamedTuple):
    """Which channel changes, and why."""

    channel: str
    why: str
    decision: Mapping[str, Any] | None = None
    """The comparison that decided, as JSON values; stored beside the history."""
    expected: int | None = None
    """The version in use that the new one was compared with; the channel must still have it."""


def promote(folder: Path, version: int, change: Change) -> Event:
    """Set a channel to a version, which must have passed the release gate.

    Args:
        folder: `<store>/<name>`.
        version: a published version.
        change: the channel, and why.

    Returns:
        What was added to the history. Nothing is added if the channel is at this version already and nothing was compared.

    Raises:
        ArtifactError: the version is not published, damaged, or was yanked.
        ConfigError: the channel cannot be set, or has moved since the comparison.
        VerificationError: the version has not passed the gate.
        StoreError: the store cannot be written.
    """
    name = check_channel(change.channel)
    if name == LATEST:
        raise ConfigError("channel latest is always at the newest version; promote to stable, or to a channel of another name")
    with store_errors(folder), store_lock(folder):
        channels = read_channels(folder)
        _check_published(folder, version)
        if version in channels.yanked:
            raise ArtifactError(
                f"version {version} was yanked because {channels.yanked[version]}; promote another one, or `edgeline yank "
                "--undo` first",
                code="version_yanked",
            )
        verification = open_artifact(folder / str(version)).manifest.verification
        if verification.get("passed") is not True:
            raise VerificationError(
                f"version {version} has not passed the release gate, so it cannot be promoted; publish it with `edgeline run`",
                code="not_verified",
            )
        if name != STABLE and STABLE not in channels.pointers:
            raise ConfigError(
                f"channel stable is not set, so devices use the newest version whatever {name} is; promote a version to stable "
                "first",
                code="stable_not_set",
            )
        before = channels.pointers.get(name)
        _check_expected(channels, folder, change)
        if before == version and change.decision is None:
            return next(event for event in reversed(channels.history) if event.channel == name and event.version == version)
        event = _event("promote", version, change.why, channel=name, before=before)
        if change.decision is not None:
            event = replace(event, decision=_write_decision(folder, change.decision))
        pointers = {**channels.pointers, name: version}
        _write(folder, replace(channels, pointers=pointers, history=(*channels.history, event)))
    return event


def record_kept(folder: Path, version: int, change: Change) -> Event:
    """Add to the history that a version was compared and not promoted.

    Args:
        folder: `<store>/<name>`.
        version: the one that was not promoted.
        change: the channel that stays, why, and the comparison.

    Raises:
        ConfigError: the channel has moved since the comparison.
        StoreError: the store cannot be written.
    """
    with store_errors(folder), store_lock(folder):
        channels = read_channels(folder)
        _check_expected(channels, folder, change)
        event = _event("keep", version, change.why, channel=change.channel, before=channels.pointers.get(change.channel))
        if change.decision is not None:
            event = replace(event, decision=_write_decision(folder, change.decision))
        _write(folder, replace(channels, history=(*channels.history, event)))
    return event


def roll_back(folder: Path, channel: str, why: str) -> Event:
    """Set a channel to the version that it had before, skipping yanked ones.

    Raises:
        ArtifactError: there is no such channel, or it had no version before.
        StoreError: the store cannot be written.
    """
    with store_errors(folder), store_lock(folder):
        channels = read_channels(folder)
        if channel not in channels.pointers:
            known = ", ".join(sorted(channels.pointers)) or "none is set"
            raise ArtifactError(f"there is no channel {channel!r} to roll back; set channels: {known}", code="channel_unknown")
        current = channels.pointers[channel]
        published = versions(folder)
        usable = [v for v in channels.earlier(channel) if v in published and v not in channels.yanked and v != current]
        if not usable:
            raise ArtifactError(
                f"channel {channel} had no other version before {current} that is still published; promote one",
                code="no_version_before",
            )
        event = _event("rollback", usable[0], why, channel=channel, before=current)
        pointers = {**channels.pointers, channel: usable[0]}
        _write(folder, replace(channels, pointers=pointers, history=(*channels.history, event)))
    return event


def yank(folder: Path, version: int, why: str, *, undo: bool = False) -> Event:
    """Withdraw a version, whatever channel has it, or undo that. Its files stay, so a comparison can still read them.

    Raises:
        ArtifactError: the version is not published.
        ConfigError: nothing would change.
        StoreError: the store cannot be written.
    """
    with store_errors(folder), store_lock(folder):
        channels = read_channels(folder)
        _check_published(folder, version)
        if undo != (version in channels.yanked):
            raise ConfigError(f"version {version} {'is not yanked' if undo else 'was yanked already'}")
        yanked = {number: reason for number, reason in channels.yanked.items() if number != version}
        if not undo:
            yanked[version] = why
        event = _event("unyank" if undo else "yank", version, why)
        _write(folder, replace(channels, yanked=yanked, history=(*channels.history, event)))
    return event


def _check_expected(channels: Channels, folder: Path, change: Change) -> None:
    if change.expected is None:
        return
    current = channels.version(change.channel, versions(folder))
    if current != change.expected:
        raise ConfigError(
            f"{change.channel} moved to version {current} during the comparison with version {change.expected}; nothing was "
            "changed, run `edgeline retrain` again to compare with the version in use now",
            code="channel_moved",
        )


def _check_published(folder: Path, version: int) -> None:
    published = versions(folder)
    if version not in published:
        listed = ", ".join(map(str, published)) or "none"
        raise ArtifactError(f"{folder} has no version {version}; published: {listed}", code="version_unknown")


def _event(action: str, version: int, why: str, *, channel: str | None = None, before: int | None = None) -> Event:
    at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    return Event(at=at, by=_who(), action=action, version=version, why=why, channel=channel, before=before)


def _who() -> str:
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # no name for this user, as in some containers
        account = f"uid {os.getuid()}"
    return f"{account}@{platform.node()}"


def _write_decision(folder: Path, decision: Mapping[str, Any]) -> str:
    """Write a comparison under the digest of its content; returns its path in the name's folder."""
    path = folder / DECISIONS / f"{digest_of(decision)[:16]}.json"
    path.parent.mkdir(exist_ok=True)
    replace_file(path, lambda temporary: write_json(temporary, decision))
    return path.relative_to(folder).as_posix()


def _write(folder: Path, channels: Channels) -> None:
    replace_file(folder / FILE_NAME, lambda temporary: write_json(temporary, channels.to_json()))
