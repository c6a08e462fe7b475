"""Walk a user's folders and open files, without trusting, blocking on or changing anything.

    tree = read_tree("/photos", WalkRules(ignore=("masks/",)))
    tree.files, tree.problems, tree.skipped

Invariants:
- only regular files are opened, so a FIFO, a socket or a device cannot block;
- every folder is read at most once, so a walk terminates and finds each file once, whatever the links;
- a link that leads outside the root is followed only with `WalkRules.follow_links`;
- everything else is reported: what cannot be used with its problem, what is skipped with its reason.
"""

import os
import stat
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader

from pathspec import GitIgnoreSpec

from edgeline.pipeline.names import OUTPUT_MARKER
from edgeline.pipeline.sources.image_extensions import is_named_like_an_image
from edgeline.serve.errors import DataError, ImageError
from edgeline.serve.leftovers import leftover

HIDDEN, IGNORED, OUTPUT = "hidden", "prepare.ignore", "edgeline"
"""Reasons why a file or folder is skipped; the others are what leaves it, as `serve.leftovers` names them."""
OUTPUT_FOLDERS = frozenset({"cache", "data", "prefect", "runs", "store"})
"""Folders in the folder of artifacts."""
ENCODING = sys.getfilesystemencoding()
NOT_UTF8 = (
    "the name is not UTF-8; rename the file"
    if ENCODING == "utf-8"
    else f"the name cannot be read in this system's encoding, {ENCODING}; set LC_ALL=C.UTF-8"
)
MANIFEST, MANIFEST_MARK, MANIFEST_BYTES = "manifest.json", b'"edgeline.artifact/', 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class WalkRules:
    """What a walk skips, and which links it follows."""

    ignore: tuple[str, ...] = ()
    """Patterns of files and folders to skip, as in a .gitignore file."""
    include_hidden: bool = False
    """Whether to read files and folders whose name starts with a dot."""
    follow_links: bool = False
    """Whether to follow links that lead outside the root."""
    output: str = ""
    """Real path of a folder to skip, because edgeline writes to it."""

    @cached_property
    def spec(self) -> GitIgnoreSpec:
        """The compiled patterns."""
        return GitIgnoreSpec.from_lines(self.ignore)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file or folder that was not read."""

    name: str
    """Relative to the root; that of a folder ends in a slash."""
    reason: str
    """`hidden`, `prepare.ignore`, `edgeline` for what it writes itself, or the system or tool that leaves such files."""
    images: int = 0
    """Number of files with the extension of an image, for what is hidden."""


@dataclass(kw_only=True)
class Tree:
    """The files below a root."""

    root: str
    """Real path."""
    files: list[str] = field(default_factory=list)
    """Files that can be opened, relative to the root, with forward slashes."""
    problems: list[tuple[str, ImageError]] = field(default_factory=list)
    """Files and folders that cannot be used, and why."""
    folders: list[str] = field(default_factory=list)
    """Folders that were read, relative to the root."""
    skipped: list[Skipped] = field(default_factory=list)
    """Files and folders that were not read."""
    unread: list[str] = field(default_factory=list)
    """Names of folders in the root that were not among those to read."""
    used_patterns: set[str] = field(default_factory=set)
    """The patterns of `WalkRules.ignore` that matched something."""


def list_folder(folder: str) -> list[os.DirEntry[str]]:
    """List the entries of a folder, sorted by name.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror}; grant this user read access", code="unreadable") from error


def read_tree(root: str, rules: WalkRules = WalkRules(), only: Sequence[str] | None = None) -> Tree:
    """Find every file below a folder, at any depth.

    Args:
        root: real path of the folder.
        rules: what to skip, and which links to follow.
        only: names of the folders in the root to read, all by default. The root's own files are always listed.

    Raises:
        DataError: the root cannot be read.
    """
    walk = _Walk(Tree(root=root), rules)
    entries = list_folder(root)
    walk.read(root, entries, None if only is None else set(only))
    walk.follow()
    walk.tree.files.sort()
    walk.tree.folders = sorted(_without_emptied(walk.tree))
    walk.tree.problems.sort(key=lambda problem: problem[0])
    walk.tree.skipped.sort(key=lambda skipped: skipped.name)
    return walk.tree


class _Walk:
    """A walk below a root. Not recursive, because folders may be nested deeper than Python's stack."""

    def __init__(self, tree: Tree, rules: WalkRules) -> None:
        self.tree, self.rules = tree, rules
        self.read_as: dict[tuple[int, int], str] = {_identity(tree.root): tree.root}
        """Path of each folder that was read, by device and inode."""
        self.folders: deque[str] = deque()
        self.links: list[str] = []
        """Links to folders. They are followed last: a folder that is read anyway is read at its own place."""

    def follow(self) -> None:
        """Read all folders below, then those that links lead to."""
        while self.folders or self.links:
            while self.folders:
                self._read_folder(self.folders.popleft())
            if self.links:
                self.links.sort(reverse=True)
                self._follow_link(self.links.pop())

    def read(self, folder: str, entries: list[os.DirEntry[str]], only: set[str] | None = None) -> None:
        """Sort the entries of a folder into files, folders, links, problems and what is skipped."""
        written_to = OUTPUT_FOLDERS if any(entry.name == OUTPUT_MARKER for entry in entries) else frozenset()
        for entry in entries:
            name = self._name(entry.path)
            if printable_name(entry.name) != entry.name:
                self._reject(name, ImageError(NOT_UTF8, code="name_not_utf8"))
            elif reason := self._skip(entry, name, written_to):
                self._add_skipped(entry, name, reason)
            elif _leads_to_folder(entry):
                if only is not None and entry.name not in only:
                    self.tree.unread.append(name)
                else:
                    (self.links if entry.is_symlink() else self.folders).append(entry.path)
            elif problem := _problem(entry, None if self.rules.follow_links else self.tree.root):
                self._reject(name, problem)
            else:
                self.tree.files.append(name)

    def _read_folder(self, path: str) -> None:
        name = self._name(path)
        try:
            if (identity := _identity(path)) in self.read_as:
                return self._reject(name, self._repeated(path, self.read_as[identity]))
            self.read_as[identity] = path
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            return self._reject(name, _unreadable(error))
        if _is_output(path, {entry.name for entry in entries}):
            self.tree.skipped.append(Skipped(f"{name}/", OUTPUT))
            return None
        self.tree.folders.append(name)
        return self.read(path, entries)

    def _follow_link(self, path: str) -> None:
        if not self.rules.follow_links and os.path.commonpath([self.tree.root, os.path.realpath(path)]) != self.tree.root:
            message = "the link leads to a folder outside the data; copy it here, or set prepare.follow_links to true"
            return self._reject(self._name(path), ImageError(message, code="path_escapes_root"))
        return self._read_folder(path)

    def _repeated(self, path: str, read_as: str) -> ImageError:
        target = os.path.realpath(read_as)
        if os.path.commonpath([target, os.path.realpath(os.path.dirname(path))]) == target:
            return ImageError("the link leads to a folder that contains it; remove the link", code="link_loop")
        return ImageError(f"the link leads to {self._name(read_as)}, which is already read", code="link_repeated")

    def _skip(self, entry: os.DirEntry[str], name: str, written_to: frozenset[str]) -> str | None:
        """Return why an entry is skipped, or None."""
        folder = _is_folder(entry)
        if entry.name == OUTPUT_MARKER or (folder and entry.name in written_to):
            return OUTPUT
        if self.rules.output and folder and os.path.realpath(entry.path) == self.rules.output:
            return OUTPUT
        if origin := leftover(entry.name):
            return origin
        check = self.rules.spec.check_file(f"{name}/" if folder else name)
        if check.include:
            self.tree.used_patterns.add(self.rules.ignore[check.index or 0])
            return IGNORED
        return HIDDEN if entry.name.startswith(".") and not self.rules.include_hidden else None

    def _add_skipped(self, entry: os.DirEntry[str], name: str, reason: str) -> None:
        if entry.name == OUTPUT_MARKER:
            return
        folder = _is_folder(entry)
        images = (count_images(entry.path) if folder else int(is_named_like_an_image(name))) if reason == HIDDEN else 0
        self.tree.skipped.append(Skipped(f"{name}/" if folder else name, reason, images))

    def _reject(self, name: str, problem: ImageError) -> None:
        self.tree.problems.append((name, problem))

    def _name(self, path: str) -> str:
        return path[len(self.tree.root) :].lstrip("/")


def _without_emptied(tree: Tree) -> list[str]:
    """The folders but for those that would contain files if edgeline's own and those of `prepare.ignore` were not skipped."""
    skipped = _parents(skip.name for skip in tree.skipped if skip.reason in (OUTPUT, IGNORED))
    left = _parents([*tree.files, *(name for name, _ in tree.problems)])
    return [folder for folder in tree.folders if folder in left or folder not in skipped]


def _parents(names: Iterable[str]) -> set[str]:
    """Every folder that contains one of the files or folders, at any depth."""
    parents: set[str] = set()
    for name in names:
        folder = os.path.dirname(name.rstrip("/"))
        while folder and folder not in parents:
            parents.add(folder)
            folder = os.path.dirname(folder)
    return parents


def count_images(folder: str) -> int:
    """Number of files with the extension of an image below a folder, hidden ones too. Links are not followed."""
    return sum(is_named_like_an_image(name) for _, _, names in os.walk(folder) for name in names)


def open_regular(path: str) -> BufferedReader:
    """Open a regular file for reading, without ever blocking.

    Raises:
        ImageError: it is not a regular file, or cannot be opened.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise _not_regular()
        # It may have been replaced in the meantime: with O_NONBLOCK, opening a FIFO without a writer does not block.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise _unreadable(error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular()
    return file


def printable_name(name: str) -> str:
    r"""Return a file name as text, with bytes that are not UTF-8 written as `\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_output(path: str, names: set[str]) -> bool:
    """Whether edgeline wrote a folder: the folder of artifacts, or an artifact."""
    if OUTPUT_MARKER in names:
        return True
    if {"runs", "cache"} <= names and os.path.exists(os.path.join(path, "cache", "images.sqlite")):
        return True  # by a version that left no marker
    if MANIFEST not in names:
        return False
    try:
        with open_regular(os.path.join(path, MANIFEST)) as file:
            return MANIFEST_MARK in file.read(MANIFEST_BYTES)
    except (ImageError, OSError):
        return False


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _problem(entry: os.DirEntry[str], root: str | None) -> ImageError | None:
    """Return why a file cannot be used. A link must stay inside the root, if one is given."""
    try:
        if not entry.is_symlink():
            return None if entry.is_file(follow_symlinks=False) else _not_regular()
        mode = os.stat(entry.path).st_mode  # raises for a broken link and for a cycle of links
    except OSError as error:
        return _unreadable(error)
    if root is not None and os.path.commonpath([root, os.path.realpath(entry.path)]) != root:
        message = "the link leads outside the data; copy the file here, or set prepare.follow_links to true"
        return ImageError(message, code="path_escapes_root")
    return None if stat.S_ISREG(mode) else _not_regular()


def _unreadable(error: OSError) -> ImageError:
    return ImageError(f"cannot be read: {error.strerror}", code="unreadable")


def _not_regular() -> ImageError:
    return ImageError("is a FIFO, a socket, a device or a folder; expected a regular file", code="not_a_regular_file")
