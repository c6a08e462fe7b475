"""Open an artifact: every size and SHA-256 is checked before any parser sees a byte.

    artifact = open_artifact(Path("artifacts/store/digits"))     # the newest version of that name
    artifact.read("model.onnx")                                  # the very bytes that were checked

The store's layout is `<store>/<name>/<version>/`, a version being a whole number. A folder under its final name is whole
and never changes (`export.publishing.publish` sees to that), so listing the store needs no index file.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from edgeline.serve.artifact import manifest as manifests
from edgeline.serve.artifact.manifest import Manifest
from edgeline.serve.errors import ArtifactError, DigestError, StoreError


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files were all found to be what its manifest names."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    """Of `manifest.json`'s bytes as they were read: names exactly this artifact."""

    def read(self, path: str) -> bytes:
        """The bytes of one of its files, checked again as they are read, so that a swap after opening is noticed.

        Raises:
            DigestError: they are not what the manifest names.
        """
        entry = self.manifest.file(path)
        data = _read(self.folder / path)
        digest = hashlib.sha256(data).hexdigest()
        if (len(data), digest) != (entry.size, entry.sha256):
            raise DigestError(
                f"{path}: {len(data):,} bytes with sha256 {digest[:12]}, the manifest names {entry.size:,} bytes with "
                f"{entry.sha256[:12]}; copy the artifact again"
            )
        return data


def open_artifact(path: Path) -> Artifact:
    """Open an artifact folder, or the newest version under a name's folder, and check every file of it.

    Raises:
        ArtifactError: there is none, it holds links, other files than its manifest names, or files that differ.
    """
    folder = resolve(path)
    held = _read(folder / manifests.FILE_NAME, manifests.MAX_BYTES)
    manifest = Manifest.from_json(held)
    named = {entry.path for entry in manifest.files} | {manifests.FILE_NAME}
    if unknown := sorted(_files_below(folder) - named):
        raise ArtifactError(f"{folder} holds files that its manifest does not name: {', '.join(unknown[:5])}")
    artifact = Artifact(folder, manifest, hashlib.sha256(held).hexdigest())
    for entry in manifest.files:
        size = _stat(folder / entry.path).st_size
        if size != entry.size:
            raise DigestError(f"{entry.path}: {size:,} bytes, the manifest names {entry.size:,}; copy the artifact again")
        data = artifact.read(entry.path)
        if entry.role == "labels" and data.decode(errors="replace").split("\n")[:-1] != list(manifest.labels):
            raise ArtifactError(f"{entry.path} does not list the labels that the manifest names, in their order")
    return artifact


def resolve(path: Path) -> Path:
    """Return the artifact folder that a path means: itself, or the newest version below it.

    Raises:
        ArtifactError: the path is neither.
    """
    try:
        if (path / manifests.FILE_NAME).is_file():
            return path
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if path.is_dir() and (numbers := versions(path)):
        return path / str(numbers[-1])
    raise ArtifactError(f"no artifact at {path}: expected a folder with {manifests.FILE_NAME}, or with version folders in it")


def names(store: Path) -> list[str]:
    """The names published in a store, sorted; none where the store does not exist yet."""
    try:
        with os.scandir(store) as entries:
            found = [e.name for e in entries if manifests.NAME.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"the store {store} cannot be read: {error.strerror}") from error
    return sorted(name for name in found if versions(store / name))


def versions(folder: Path) -> list[int]:
    """The version numbers published under a name's folder, ascending; none where it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted(int(e.name) for e in entries if is_version(e.name) and e.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"the store folder {folder} cannot be read: {error.strerror}") from error


def is_version(name: str) -> bool:
    """Whether a folder's name is a version number, written the one way there is."""
    return name.isascii() and name.isdigit() and not name.startswith("0") and len(name) < 10


def _files_below(folder: Path) -> set[str]:
    found = set()

    def refuse(error: OSError) -> None:  # left alone, os.walk passes over what it cannot list
        raise ArtifactError(f"{error.filename}: {error.strerror}; copy the artifact again") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        for name in [*folders, *files]:
            path = Path(parent, name)
            if path.is_symlink():
                raise ArtifactError(f"{path} is a link; an artifact holds plain files only")
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in files}
    return found


def _stat(path: Path) -> os.stat_result:
    try:
        found = os.lstat(path)
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; copy the artifact again") from error
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(f"{path} is no plain file; an artifact holds plain files only")
    return found


def _read(path: Path, max_bytes: int | None = None) -> bytes:
    size = _stat(path).st_size
    if max_bytes is not None and size > max_bytes:
        raise ArtifactError(f"{path} has {size:,} bytes, the limit is {max_bytes:,}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: {error.strerror}; copy the artifact again") from error
