"""Find the version of an artifact to load next. Both followers of a store use it: `edgeline predict --follow` and the server.

    candidate = find_newer(Path("artifacts/store/birds"), than=3)
    if candidate is not None and candidate != last_tried:
        ...

A candidate equals another while no file below its folder has changed. A follower that remembers the last one it tried therefore
loads no rejected version twice, and notices when one is repaired.
"""

from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.artifact.manifest import FILE_NAME
from edgeline.serve.artifact.reader import resolve, versions
from edgeline.serve.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Candidate:
    """An artifact that can be loaded."""

    folder: Path
    version: int | None
    """None for a path that is an artifact itself: nothing newer is ever published there."""
    signature: tuple[tuple[str, int, int, int], ...]
    """Path, modification time, size and inode of everything below the folder."""


def find_newest(path: Path) -> Candidate:
    """Return the newest version below a name's folder in a store, or the artifact that the path itself is.

    Raises:
        ArtifactError: there is no artifact, or it cannot be read.
        StoreError: the folder cannot be listed.
    """
    folder = resolve(path)
    return Candidate(folder, None if folder == path else int(folder.name), _signature(folder))


def find_newer(path: Path, *, than: int) -> Candidate | None:
    """Return the newest version below a name's folder, or None if it is not newer than a given one.

    While nothing is newer only the folder's listing is read, so this is cheap enough to be polled.

    Raises:
        ArtifactError: the newest version cannot be read.
        StoreError: the folder cannot be listed.
    """
    if max(versions(path), default=0) <= than:
        return None
    newest = find_newest(path)
    return None if newest.version is None or newest.version <= than else newest


def _signature(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    try:
        paths = sorted(folder.rglob("*"))
        return tuple((str(path), (stat := path.lstat()).st_mtime_ns, stat.st_size, stat.st_ino) for path in paths)
    except OSError as error:
        raise ArtifactError(f"{folder / FILE_NAME} cannot be read: {error.strerror}") from error
