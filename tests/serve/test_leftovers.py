"""The table of what systems and tools leave in folders."""

import pytest

from edgeline.serve.leftovers import LEFTOVERS, leftover

FOUND = {
    "Thumbs.db": "Windows",
    "DESKTOP.INI": "Windows",
    "System Volume Information": "Windows",
    ".DS_Store": "macOS",
    "._photo.jpg": "macOS",
    "lost+found": "Linux",
    ".Trash-1000": "Linux",
    "@eaDir": "Synology",
    "@Recycle": "QNAP",
    ".stversions": "Syncthing",
    ".dropbox.cache": "Dropbox",
    "photo.jpg.crdownload": "a download",
    "photo.jpg~": "an editor",
}
PHOTOS = ["photo.jpg", "ants", "Thumbs", "lost and found", "@home", "x.part.jpg", "~photo.jpg", ".hidden.jpg", "thumbs.db.png"]


@pytest.mark.parametrize(("name", "origin"), FOUND.items())
def test_a_leftover_is_known_by_what_leaves_it(name: str, origin: str) -> None:
    assert leftover(name) == origin


@pytest.mark.parametrize("name", PHOTOS)
def test_any_other_name_is_a_users_file(name: str) -> None:
    assert leftover(name) is None


def test_the_patterns_are_lower_case_because_names_are_compared_so() -> None:
    assert all(pattern == pattern.lower() for patterns in LEFTOVERS.values() for pattern in patterns)
