"""The folder of kept photos: what is in it, what is replaced, and what is not touched."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from edgeline.serve.errors import ConfigError
from edgeline.serve.inbox.folder import Inbox, InboxLimits, Note, classes_of, note_path, photos_in, read_note, waiting

CONSENT = "sign at the door"


def note(share: float, uncertainty: float = 0.5) -> Note:
    features = np.array([0.5, -2, 7], np.float16)
    predictions = (("wren", 0.6), ("robin", 0.4))
    return Note(
        model="birds",
        version=3,
        predictions=predictions,
        share=share,
        uncertainty=uncertainty,
        distance=1.25,
        embedding_C=features,
        at="2026-11-30T12:00:00+00:00",
    )


def inbox_in(folder: Path, photos: int = 3, size_bytes: int = 2**20) -> Inbox:
    return Inbox.create(folder, consent=CONSENT, limits=InboxLimits(photos=photos, size_bytes=size_bytes))


def test_a_photo_is_kept_once_with_its_note_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox")
    assert inbox.add(b"photo", ".jpg", note(0.95)) == "kept"
    assert inbox.add(b"photo", ".jpg", note(0.99)) == "duplicate"
    assert inbox_in(tmp_path / "inbox").add(b"photo", ".jpg", note(0.99)) == "duplicate"
    [photo] = photos_in(tmp_path / "inbox")
    assert photo.read_bytes() == b"photo"
    found = read_note(photo)
    assert found is not None
    assert found.embedding_C is not None
    assert found.embedding_C.tolist() == [0.5, -2, 7]
    assert (found.model, found.version, found.predictions[0], found.share) == ("birds", 3, ("wren", 0.6), 0.95)
    assert [oct(path.stat().st_mode & 0o777) for path in (photo, note_path(photo), photo.parent)] == ["0o600", "0o600", "0o700"]


def test_the_least_interesting_photo_is_replaced_when_the_inbox_is_full(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox")
    for share in (0.93, 0.91, 0.95):
        assert inbox.add(f"photo {share}".encode(), ".jpg", note(share)) == "kept"
    assert inbox.add(b"dull", ".jpg", note(0.905)) == "less_interesting"
    assert inbox.add(b"new", ".jpg", note(0.92)) == "kept"
    assert inbox.add(b"as dull as the least", ".jpg", note(0.92)) == "less_interesting"
    assert inbox.add(b"more uncertain", ".jpg", note(0.92, uncertainty=0.6)) == "kept"
    left = sorted(path.read_bytes() for path in photos_in(tmp_path / "inbox"))
    assert left == [b"more uncertain", b"photo 0.93", b"photo 0.95"]
    assert len(list((tmp_path / "inbox").glob("*.json"))) == 4  # three notes, and the marker


def test_the_inbox_is_bounded_in_bytes(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox", photos=100, size_bytes=5_000)
    for number in range(12):
        inbox.add(bytes([number]) * 1_000, ".jpg", note(0.9 + number / 200))
    assert inbox.add(bytes(6_000), ".jpg", note(1.0)) == "less_interesting"
    counted = waiting(tmp_path / "inbox")
    assert counted.photos == inbox.waiting == 3
    assert counted.size_bytes == inbox.size_bytes <= 5_000


def test_photos_that_were_decided_make_room_and_are_never_removed(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox")
    for number in range(3):
        inbox.add(f"first {number}".encode(), ".jpg", note(0.91))
    first = sorted(path.name for path in photos_in(tmp_path / "inbox"))
    inbox.decisions.label(first[0], "wren")
    inbox.decisions.none_of_these(first[1])
    assert waiting(tmp_path / "inbox").photos == 1
    for number in range(4):
        inbox.add(f"second {number}".encode(), ".jpg", note(0.95 + number / 100))
    left = {path.name for path in photos_in(tmp_path / "inbox")}
    assert left >= set(first[:2])
    assert first[2] not in left
    assert waiting(tmp_path / "inbox").photos == 3


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox")
    inbox.add(b"photo", ".jpg", note(0.95))
    for left in (".inbox.json.77.tmp", "0" * 64 + ".json"):
        (tmp_path / "inbox" / left).write_text("half")
    assert inbox_in(tmp_path / "inbox").waiting == 1
    assert not list((tmp_path / "inbox").glob("*0000.json"))
    assert not list((tmp_path / "inbox").glob(".*.tmp"))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inbox = inbox_in(tmp_path / "inbox")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    replace, calls = os.replace, []
    monkeypatch.setattr(os, "replace", lambda *names: replace(*names) if not calls and not calls.append(names) else full())
    with pytest.raises(OSError, match="No space"):
        inbox.add(b"photo", ".jpg", note(0.95))
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "inbox").iterdir() if path.name not in ("inbox.json", ".labels.lock")] == []
    assert inbox.add(b"photo", ".jpg", note(0.95)) == "kept"


def test_the_marker_has_the_consent_and_the_classes(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox")
    assert classes_of(tmp_path / "inbox") == []
    inbox.record_classes(["wren", "robin"])
    inbox_in(tmp_path / "inbox")
    assert classes_of(tmp_path / "inbox") == ["wren", "robin"]
    assert json.loads((tmp_path / "inbox" / "inbox.json").read_text())["consent"] == CONSENT


def test_a_folder_that_cannot_be_an_inbox_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    (tmp_path / "a file").write_bytes(b"")
    for folder, message in (
        ("photos", "other files, such as holiday.jpg"),
        ("a file", "cannot be used"),
        ("a/b", "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=message):
            inbox_in(tmp_path / folder)
    with pytest.raises(ConfigError, match="state why that is permitted"):
        Inbox.create(tmp_path / "inbox", consent=" ", limits=InboxLimits())
    assert not (tmp_path / "inbox").exists()
    for folder in ("photos", "missing"):
        with pytest.raises(ConfigError, match="not an inbox"):
            waiting(tmp_path / folder)


def test_a_note_that_is_damaged_is_as_if_it_were_missing(tmp_path: Path) -> None:
    inbox = inbox_in(tmp_path / "inbox")
    inbox.add(b"photo", ".jpg", note(0.95))
    [photo] = photos_in(tmp_path / "inbox")
    whole = json.loads(note_path(photo).read_text())
    for damage in ({"schema": "other"}, {"predictions": 3}, {"embedding": "%"}, {"share": float("nan")}, {"more": 1}):
        note_path(photo).write_text(json.dumps(whole | damage))
        assert read_note(photo) is None
    assert inbox_in(tmp_path / "inbox").waiting == 1
