"""Find the version of an artifact to load next. Both followers of a store use it: `edgeline predict --follow` and the server.

    candidate = find_next(Path("artifacts/store/birds"), served=3)
    if candidate is not None and candidate != last_tried:
        ...

A candidate equals another while no file below its folder has changed. A follower that remembers the last one it tried therefore
loads no rejected version twice, and notices when one is repaired.
"""

from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.artifact.channels import STABLE, read_channels
from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.reader import resolve, versions
from edgeline.serve.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact that can be loaded."""

    folder: Path
    version: int | None
    """None for a path that is an artifact itself: no other version is ever published there."""
    signature: tuple[tuple[str, int, int, int], ...]
    """Path, modification time, size and inode of everything below the folder."""


def find_current(path: Path, channel: str = STABLE) -> Candidate:
    """Return the version of a channel in a name's folder, or the artifact that the path itself is.

    Raises:
        ArtifactError: there is no artifact or no such channel, or it cannot be read.
        StoreError: the folder cannot be listed.
    """
    folder = resolve(path, channel)
    return _candidate(folder, None if folder == path else int(folder.name))


def find_next(path: Path, *, served: int, channel: str = STABLE, declined: int = 0) -> Candidate | None:
    """Return the version to serve instead, or None if the served one is right.

    A channel may move to an older version. The newest version, on the other hand, is never followed downwards, because versions
    may disappear for other reasons, unless the served one was yanked.

    While nothing has changed, only the folder's listing and the channels are read, so this is cheap enough to be polled.

    Args:
        path: a name's folder, or an artifact, which has no other version.
        served: the version that is loaded.
        channel: the channel that is followed.
        declined: a version that was rolled back from, and must not be loaded again.

    Raises:
        ArtifactError: the channel or its version cannot be read.
        StoreError: the folder cannot be listed.
    """
    channels = read_channels(path)  # before the versions: a channel never moves to one that is not published yet
    if not (published := versions(path)):
        return None
    channels.version(channel, published)
    version = next((each for each in channels.usable(channel, published) if each != declined), served)
    if version == served:
        return None
    if channels.is_latest(channel) and version < max(served, declined) and served not in channels.yanked:
        return None
    return _candidate(path / str(version), version)


def _candidate(folder: Path, version: int | None) -> Candidate:
    return Candidate(folder, version, _signature(folder))


def _signature(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    try:
        paths = sorted(folder.rglob("*"))
        return tuple((str(path), (stat := path.lstat()).st_mtime_ns, stat.st_size, stat.st_ino) for path in paths)
    except OSError as error:
        raise ArtifactError(f"{folder / FILE_NAME} cannot be read: {error.strerror}") from error
