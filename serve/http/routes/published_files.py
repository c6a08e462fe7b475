"""The files of a store that may be downloaded: those that a manifest lists, while they match it.

This is an allow-list, so there is no path to sanitize: a path that no manifest lists does not exist. Folders are opened one by
one without following links, and the file that was hashed is the same open file that is sent.

Hashing a file is slow, so it happens once for each combination of size, times and inode; any change of the file changes one.
"""

import asyncio
import errno
import hashlib
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from starlette.concurrency import run_in_threadpool

from edgeline.serve.artifact import manifest as manifests
from edgeline.serve.artifact.channels import STABLE, Channels, read_channels
from edgeline.serve.artifact.manifest import FileEntry, Manifest
from edgeline.serve.artifact.reader import is_version, names, resolve, versions
from edgeline.serve.errors import ArtifactError, DigestError, StoreError

Signature = tuple[int, int, int, int, int]
Address = tuple[str, str, str]
"""Name, version, path in the artifact."""

NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
"""Errors from opening something that is absent, below a file, a link, or not a plain file."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A plain file, open for reading; the caller closes it."""

    file: io.FileIO
    size: int
    signature: Signature

    @classmethod
    def beneath(cls, folder: Path, parts: Sequence[str]) -> Self | None:
        """Open `folder/part/part/...` without following a link below `folder`; None if it is not a plain file.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            descriptor = _descend(folder, parts)
        except OSError as error:
            if error.errno in NOT_THERE:
                return None
            raise StoreError(f"{folder.joinpath(*parts)} cannot be read: {error.strerror}") from error
        file = io.FileIO(descriptor)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            file.close()
            return None
        return cls(file, found.st_size, _signature(found))

    def digest(self) -> str:
        """SHA-256 of the content, in hex."""
        self.file.seek(0)
        return hashlib.file_digest(self.file, "sha256").hexdigest()

    def changed(self) -> bool:
        """Whether the file was changed since it was opened."""
        return _signature(os.fstat(self.file.fileno())) != self.signature


@dataclass(frozen=True, slots=True)
class _Version:
    """The files of a version, by its manifest."""

    sha256: str
    files: dict[str, FileEntry]


class Published:
    """Looks up files of a store, for any number of requests at once."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self._versions: dict[tuple[str, str], tuple[Signature, _Version]] = {}
        self._digests: dict[Address, tuple[Signature, str]] = {}
        self._hashing = asyncio.Lock()

    def listing(self) -> list[dict[str, object]]:
        """Every artifact with its versions, and the version of each channel; versions that were yanked are not listed."""
        found = []
        for name in names(self.store):
            try:
                channels, published = read_channels(self.store / name), versions(self.store / name)
            except ArtifactError:  # requests for this name report it
                continue
            if usable := [version for version in published if version not in channels.yanked]:
                at = {each: _version(channels, each, published) for each in sorted({STABLE, *channels.pointers})}
                held = {each: version for each, version in at.items() if version is not None}
                found.append({"name": name, "versions": usable, "latest": usable[-1], "channels": held})
        return found

    def version(self, name: str, channel: str) -> str | None:
        """The version of a channel; None if there is no such artifact or channel.

        Raises:
            ArtifactError: the list of channels cannot be read.
        """
        if not manifests.NAME.fullmatch(name):
            return None
        channels = read_channels(self.store / name)
        published = versions(self.store / name)
        found = _version(channels, channel, published) if published else None
        return None if found is None else str(found)

    async def open(self, address: Address) -> tuple[OpenFile, str] | None:
        """Open a file and return it with its SHA-256; None if nothing is published under that address.

        Raises:
            ArtifactError: the manifest is invalid.
            DigestError: the file does not match the manifest.
            StoreError: the file cannot be read.
        """
        name, version, path = address
        if not (manifests.NAME.fullmatch(name) and is_version(version)):
            return None
        found = await self._open_version(name, version)
        if found is None:
            return None
        manifest_file, allowed = found
        if path == manifests.FILE_NAME:
            return manifest_file, allowed.sha256
        manifest_file.file.close()
        if (entry := allowed.files.get(path)) is None:
            return None
        opened = await _open_beneath(self.store, (name, version, *path.split("/")))
        if opened is None:
            return None
        try:
            digest = await self._digest(address, opened) if opened.size == entry.size else ""
            if digest != entry.sha256:
                raise DigestError(
                    f"{'/'.join(address)}: {opened.size:,} bytes, sha256 {digest[:12] or 'not computed'}; the manifest has "
                    f"{entry.size:,} bytes, sha256 {entry.sha256[:12]}; copy the artifact again"
                )
        except BaseException:
            opened.file.close()
            raise
        return opened, digest

    async def _open_version(self, name: str, version: str) -> tuple[OpenFile, _Version] | None:
        opened = await _open_beneath(self.store, (name, version, manifests.FILE_NAME))
        if opened is None:
            return None
        signature, known = self._versions.get((name, version), (None, None))
        if known is None or signature != opened.signature:
            try:
                known = await run_in_threadpool(_read_version, opened, name, version)
            except BaseException:
                opened.file.close()
                raise
            self._versions[name, version] = opened.signature, known
        return opened, known

    async def _digest(self, address: Address, opened: OpenFile) -> str:
        if (known := self._known_digest(address, opened)) is None:
            # One at a time: a thousand devices that ask for a new version wait for one hashing of it, not for a thousand.
            async with self._hashing:
                if (known := self._known_digest(address, opened)) is None:
                    known = await run_in_threadpool(opened.digest)
                    self._digests[address] = opened.signature, known
        return known

    def _known_digest(self, address: Address, opened: OpenFile) -> str | None:
        signature, digest = self._digests.get(address, (None, None))
        return digest if signature == opened.signature else None


def store_of(artifact: Path) -> Path | None:
    """The store of an artifact in `<store>/<name>/<version>`; None if it is elsewhere or cannot be read."""
    try:
        folder = resolve(artifact.resolve())
        opened = OpenFile.beneath(folder, [manifests.FILE_NAME])
        if opened is None:
            return None
        with opened.file:
            _read_version(opened, folder.parent.name, folder.name)
    except (ArtifactError, StoreError, OSError):
        return None
    return folder.parent.parent


async def _open_beneath(store: Path, parts: Sequence[str]) -> OpenFile | None:
    opening = asyncio.ensure_future(run_in_threadpool(OpenFile.beneath, store, parts))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:  # the client has disconnected, and the thread goes on to open the file
        opening.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(opening: "asyncio.Future[OpenFile | None]") -> None:
    if not opening.cancelled() and opening.exception() is None and (opened := opening.result()) is not None:
        opened.file.close()


def _signature(found: os.stat_result) -> Signature:
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev


def _descend(folder: Path, parts: Sequence[str]) -> int:
    current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for index, part in enumerate(parts):
        # O_NONBLOCK: opening a FIFO would wait for its writer.
        kind = os.O_NONBLOCK if index == len(parts) - 1 else os.O_DIRECTORY
        try:
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


def _read_version(opened: OpenFile, name: str, version: str) -> _Version:
    if opened.size > manifests.MAX_BYTES:
        raise ArtifactError(f"{name}/{version}: the manifest has {opened.size:,} bytes, the limit is {manifests.MAX_BYTES:,}")
    data = opened.file.read()
    manifest = Manifest.from_json(data)
    if (manifest.name, str(manifest.version)) != (name, version):
        raise ArtifactError(f"{name}/{version} contains the manifest of {manifest.name}/{manifest.version}; publish it again")
    return _Version(hashlib.sha256(data).hexdigest(), {entry.path: entry for entry in manifest.files})


def _version(channels: Channels, channel: str, published: Sequence[int]) -> int | None:
    try:
        return channels.version(channel, published)
    except ArtifactError:
        return None
