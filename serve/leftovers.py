"""Files and folders that systems and tools leave among a user's files: one table, used wherever a folder is read.

leftover("Thumbs.db")   # "Windows"
leftover("photo.jpg")   # None
"""

from fnmatch import fnmatchcase

LEFTOVERS: dict[str, tuple[str, ...]] = {
    "Windows": (
        "thumbs.db",
        "thumbs.db:*",
        "ehthumbs*.db",
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "system volume information",
    ),
    "macOS": (
        *(".ds_store", "._*", "__macosx", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd", ".temporaryitems"),
        *(".documentrevisions-v100", ".volumeicon.icns", ".apdisk", "icon\r"),
    ),
    "Linux": ("lost+found", ".trash-*", ".directory", ".nfs*", ".fuse_hidden*", ".thumbnails", ".xvpics"),
    "Synology": ("@eadir", "#recycle", "#snapshot", "@tmp", ".synologyworkingdirectory", "synophoto_*"),
    "QNAP": ("@recycle", "@recently-snapshot", ".@__thumb", ".streams", "@transcode"),
    "a network drive": ("~snapshot", ".snapshot", ".zfs"),
    "Syncthing": (".stfolder", ".stfolder.removed-*", ".stversions", ".stignore", ".syncthing.*", "~syncthing~*"),
    "Dropbox": (".dropbox", ".dropbox.cache", ".dropbox.attr"),
    "Google Drive": (".tmp.drivedownload", ".tmp.driveupload"),
    "Nextcloud": (".sync_*.db*", "._sync_*.db*", ".owncloudsync.log*", ".nextcloudsync.log*"),
    "Resilio Sync": (".sync", "*.!sync"),
    "a photo manager": ("picasa.ini", ".picasa.ini", ".picasaoriginals", ".dtrash", "zbthumbnail.info", "*.lrdata"),
    "a download": ("*.part", "*.crdownload", "*.partial"),
    "an editor": ("~$*", ".~lock.*", "*~"),
    "a development tool": (".git", ".hg", ".svn", ".venv", ".idea", ".vscode", ".ipynb_checkpoints", "__pycache__"),
}
"""Patterns of lower-case names, by what leaves them."""

_EXACT = {name: origin for origin, names in LEFTOVERS.items() for name in names if not set(name) & set("*?[")}
_PATTERNS = [(name, origin) for origin, names in LEFTOVERS.items() for name in names if name not in _EXACT]


def leftover(name: str) -> str | None:
    """Return what leaves a file or folder of this name, or None if it is not a leftover.

    Args:
        name: of the file or folder, without its path; upper and lower case do not matter.
    """
    lower = name.lower()
    if lower in _EXACT:
        return _EXACT[lower]
    return next((origin for pattern, origin in _PATTERNS if fnmatchcase(lower, pattern)), None)
