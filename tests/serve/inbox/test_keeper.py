"""Photos of requests are kept beside the answering: what is kept, and that no request waits or fails."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.classifier import Classifier
from edgeline.serve.errors import ConfigError
from edgeline.serve.inbox import keeper as module
from edgeline.serve.inbox.folder import classes_of, photos_in, read_note, waiting
from edgeline.serve.inbox.keeper import InboxSettings, Keeper
from tests.support.image_files import GIF, encode
from tests.support.processes import DEADLINE_S, HTTP, started, wait_until_ready

SURE_K, UNSURE_K = np.array([1, 0, 0, 0], np.float32), np.array([0.5, 0.48, 0.02, 0], np.float32)
CONSENT = "sign at the door"


@pytest.fixture(scope="module")
def classifier(artifact_template: Path) -> Classifier:
    return Classifier.open(artifact_template, threads=1)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Keeper]:
    keeper = Keeper.open(InboxSettings(folder=tmp_path / "inbox", consent=CONSENT), None)
    yield keeper
    keeper.close(DEADLINE_S)


def color(*levels: int) -> bytes:
    return encode(Image.new("RGB", (40, 30), levels), "JPEG")


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def test_photos_that_the_model_is_unsure_of_are_kept(opened: Keeper, classifier: Classifier) -> None:
    photo = color(120, 120, 0)
    opened.offer(classifier, color(250, 0, 0), SURE_K)
    opened.offer(classifier, photo, UNSURE_K)
    opened.offer(classifier, photo, UNSURE_K)
    opened.offer(classifier, GIF, UNSURE_K)
    assert opened.close(DEADLINE_S)
    assert dict(opened.outcomes) == {"kept": 1, "duplicate": 1, "format": 1}
    [kept] = photos_in(opened.inbox.folder)
    found = read_note(kept)
    assert found is not None
    assert [label for label, _ in found.predictions] == ["red", "green", "blue", "dark"]
    assert classes_of(opened.inbox.folder) == ["red", "green", "blue", "dark"]


def test_photos_are_dropped_when_the_disk_is_slow(
    opened: Keeper, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume, add = threading.Event(), opened.inbox.add
    monkeypatch.setattr(opened.inbox, "add", lambda *photo: resume.wait(DEADLINE_S) and add(*photo))
    count = module.MAX_QUEUED + 10
    for number in range(count):
        opened.offer(classifier, color(5 * number, 120, 0), UNSURE_K)
    assert opened.outcomes["dropped"] >= 9  # one or none is being written, the others are queued
    resume.set()
    assert opened.close(DEADLINE_S)
    assert opened.outcomes["kept"] == count - opened.outcomes["dropped"] == opened.inbox.waiting


def test_large_photos_do_not_fill_the_memory(opened: Keeper, classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    resume = threading.Event()
    monkeypatch.setattr(opened.inbox, "add", lambda *photo: resume.wait(DEADLINE_S) and "kept")
    for number in range(4):
        opened.offer(classifier, color(number, 0, 0) + bytes(15 * 2**20), UNSURE_K)
    assert opened.outcomes["dropped"] >= 1
    resume.set()


def test_a_full_disk_is_reported_once_and_again_when_it_is_over(
    opened: Keeper, classifier: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(opened.inbox, "add", full)
        for number in range(5):
            opened.offer(classifier, color(number, 120, 0), UNSURE_K)
        until(lambda: opened.outcomes["failed"] == 5)
    assert opened.problem == "No space left on device"
    opened.offer(classifier, color(9, 120, 0), UNSURE_K)
    until(lambda: opened.outcomes["kept"])
    assert opened.problem is None
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "No space left on device; requests are answered" in messages[0]
    assert "again" in messages[1]


def test_an_inbox_that_is_not_safe_is_an_error(tmp_path: Path, opened: Keeper) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (tmp_path / "link").symlink_to(store)
    for folder in (store / "inbox", store, tmp_path / "link" / "inbox", tmp_path):
        with pytest.raises(ConfigError, match="in one another"):
            Keeper.open(InboxSettings(folder=folder, consent=CONSENT), store)
    with pytest.raises(ConfigError, match="used by another server"):
        Keeper.open(InboxSettings(folder=tmp_path / "inbox", consent=CONSENT), store)
    with pytest.raises(ConfigError, match="state why that is permitted"):
        Keeper.open(InboxSettings(folder=tmp_path / "other"), store)


def test_a_server_keeps_photos_shows_so_and_answers_when_the_folder_is_gone(artifact_template: Path, tmp_path: Path) -> None:
    inbox, photo = tmp_path / "inbox", color(120, 120, 40)
    options = ("--inbox", str(inbox), "--inbox-consent", CONSENT)
    with started(artifact_template, *options) as (process, url):
        wait_until_ready(url)
        answer = HTTP.post(f"{url}/predict", content=photo).json()["predictions"]
        assert answer[0]["probability"] - answer[1]["probability"] < 0.1
        until(lambda: 'offered_total{outcome="kept"} 1' in HTTP.get(f"{url}/metrics").text)
        assert waiting(inbox).photos == 1
        assert "kept on this server" in HTTP.get(f"{url}/model").json()["remarks"][0]
        os.rename(inbox, tmp_path / "moved")
        again = HTTP.post(f"{url}/predict", content=color(130, 130, 30))
        assert again.status_code == 200
        until(lambda: "edgeline_inbox_failing 1" in HTTP.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_S) == 0
    [kept] = photos_in(tmp_path / "moved")
    assert json.loads(kept.with_suffix(".json").read_text())["predictions"][0]["label"] == answer[0]["label"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--inbox", "{tmp}/inbox"), 1, "state why that is permitted"),
        (("--inbox", "{store}/inbox", "--inbox-consent", "yes"), 1, "[inbox_in_store]"),
        (("--inbox-consent", "yes"), 2, "without --inbox nothing is kept"),
    ],
)
def test_options_without_sense_are_one_line(
    run: Any, artifact_template: Path, tmp_path: Path, options: tuple[str, ...], code: int, message: str
) -> None:
    store = artifact_template.parents[1]
    given = [option.format(tmp=tmp_path, store=store) for option in options]
    ended, out, err = run("serve", artifact_template, "--port", 0, "--cache", tmp_path / "cache", *given)
    assert (ended, out) == (code, "")
    assert message in " ".join(err.split())
    assert not (tmp_path / "inbox").exists()
    assert not (store / "inbox").exists()
