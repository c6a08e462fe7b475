"""Open an artifact: the size and SHA-256 of every file are checked before it is parsed.

    artifact = open_artifact(Path("artifacts/store/digits"))     # the stable version of that name
    artifact.read("model.onnx")                                  # exactly the bytes that were checked

The store's layout is `<store>/<name>/<version>/`; versions are whole numbers. A folder with its final name is complete and
never changes (`export.publishing.store` ensures this), so listing the store needs no index file. Which version is in use is in
`serve.artifact.channels`.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.artifact import manifest as manifests
from edgeline.serve.artifact.channels import STABLE, read_channels
from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.errors import ArtifactError, DigestError, StoreError
from edgeline.serve.leftovers import leftover
from edgeline.serve.system_errors import remedy


@dataclass(frozen=True)
class Artifact:
    """An artifact of which all files match the manifest."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    """Of the bytes of `manifest.json`; identifies this artifact."""

    def read(self, path: str) -> bytes:
        """Read one of its files and check it again, so that a replacement after opening is noticed.

        Raises:
            DigestError: the file does not match the manifest.
        """
        entry = self.manifest.file(path)
        data = _read(self.folder / path)
        digest = hashlib.sha256(data).hexdigest()
        if (len(data), digest) != (entry.size, entry.sha256):
            raise DigestError(
                f"{path}: {len(data):,} bytes with sha256 {digest[:12]}, the manifest has {entry.size:,} bytes with "
                f"{entry.sha256[:12]}; copy the artifact again"
            )
        return data


def open_artifact(path: Path) -> Artifact:
    """Open an artifact folder, or the stable version in a name's folder, and check all files.

    Raises:
        ArtifactError: there is none, or it has links, files that are not in the manifest, or files that differ from it.
    """
    folder = resolve(path)
    manifest_data = _read(folder / manifests.FILE_NAME, manifests.MAX_BYTES)
    manifest = Manifest.from_json(manifest_data)
    named = {entry.path for entry in manifest.files} | {manifests.FILE_NAME}
    if unknown := sorted(_files_below(folder) - named):
        listed = ", ".join(unknown[:5])
        raise ArtifactError(f"{folder} has files that are not in its manifest: {listed}; remove them, or copy it again")
    artifact = Artifact(folder, manifest, hashlib.sha256(manifest_data).hexdigest())
    for entry in manifest.files:
        size = _stat(folder / entry.path).st_size
        if size != entry.size:
            raise DigestError(f"{entry.path}: {size:,} bytes, the manifest has {entry.size:,}; copy the artifact again")
        data = artifact.read(entry.path)
        if entry.role == "labels" and data.decode(errors="replace").split("\n")[:-1] != list(manifest.labels):
            raise ArtifactError(f"{entry.path} does not list the labels of the manifest in the same order")
    return artifact


def resolve(path: Path, channel: str = STABLE) -> Path:
    """Return the artifact folder for a path: itself, or the version of a channel in it.

    Raises:
        ArtifactError: the path is neither, or has no such channel.
    """
    try:
        if (path / manifests.FILE_NAME).is_file():
            return path
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}; {remedy(error, 'check the disk and its permissions')}"
        ) from error
    if path.is_dir():
        channels = read_channels(path)  # before the versions: a channel never moves to one that is not published yet
        if numbers := versions(path):
            return path / str(channels.version(channel, numbers))
    message = f"no artifact at {path}: expected a folder with {manifests.FILE_NAME}, or with version folders"
    if path.is_dir() and (found := names(path)):
        message += f"; it is a store, so name one of its artifacts: {', '.join(str(path / name) for name in found[:5])}"
    raise ArtifactError(message)


def names(store: Path) -> list[str]:
    """The names published in a store, sorted; empty if the store does not exist yet."""
    try:
        with os.scandir(store) as entries:
            found = [e.name for e in entries if manifests.NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the store {store} cannot be read: {error.strerror}") from error
    return sorted(name for name in found if versions(store / name))


def versions(folder: Path) -> list[int]:
    """The version numbers published in a name's folder, ascending; empty if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(int(e.name) for e in entries if is_version(e.name) and e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"the store folder {folder} cannot be read: {error.strerror}") from error


def is_version(name: str) -> bool:
    """Whether a folder's name is a version number in canonical form."""
    return name.isascii() and name.isdigit() and not name.startswith("0") and len(name) < 10


def _files_below(folder: Path) -> set[str]:
    """The files of a folder. Leftovers of file managers and the like are left out: they are harmless, as nothing reads them."""
    found = set()

    def fail(error: OSError) -> None:  # by default os.walk skips folders that it cannot list
        raise ArtifactError(f"{error.filename}: {error.strerror}; {remedy(error, 'copy the artifact again')}") from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not leftover(name)]
        files = [name for name in files if not leftover(name)]
        for name in [*folders, *files]:
            path = Path(parent, name)
            if path.is_symlink():
                raise ArtifactError(f"{path} is a link; an artifact has only plain files")
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in files}
    return found


def _stat(path: Path) -> os.stat_result:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; {remedy(error, 'copy the artifact again')}") from error
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(f"{path} is not a plain file; an artifact has only plain files")
    return found


def _read(path: Path, max_bytes: int | None = None) -> bytes:
    size = _stat(path).st_size
    if max_bytes is not None and size > max_bytes:
        raise ArtifactError(f"{path} has {size:,} bytes, the limit is {max_bytes:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; {remedy(error, 'copy the artifact again')}") from error
