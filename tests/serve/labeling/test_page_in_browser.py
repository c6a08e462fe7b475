"""The page of `edgeline label` in a real browser: keys, undo, two windows, a restart, and what is on the disk afterwards.

Each test also fails if the page logs an error or sends a request to another host.
"""

import contextlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.http.transport import server as transport
from edgeline.serve.http.transport.connections import ConnectionLimits, Connections, Handlers
from edgeline.serve.http.transport.server import Hooks, Server, listen, url_of
from edgeline.serve.inbox.decisions import Decisions
from edgeline.serve.labeling.app import LabelingApp, create_app
from edgeline.serve.labeling.photos import Photo
from tests.support.processes import DEADLINE_S, HTTP

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need a program called chromium")
PATIENCE_MS = 10_000
CLASSES = ["robin", "wren", "owl"]
TOKEN = "secret-of-this-test"


def photo(folder: Path, number: int, classes: list[str] = CLASSES) -> Photo:
    path = folder / f"{number:03}.png"
    if not path.exists():
        level = np.full((30, 40, 3), (number * 7) % 256, np.uint8)
        Image.fromarray(level).save(path)
    first, second = classes[number % len(classes)], classes[(number + 1) % len(classes)]
    return Photo(name=path.name, path=path, media_type="image/png", predictions=((first, 0.7), (second, 0.25)))


@contextlib.contextmanager
def labeling(folder: Path, photos: int = 5, classes: list[str] = CLASSES) -> Iterator[str]:
    """A labeling session over real files, at the yielded address."""
    session = LabelingApp([photo(folder, each, classes) for each in range(photos)], classes, Decisions(folder / "labels.csv"))
    listener, started = listen("127.0.0.1", 0), threading.Event()
    server = Server(
        Handlers(create_app(session, TOKEN)), Connections(ConnectionLimits()), hooks=Hooks(started=started.set), grace_s=1
    )
    thread = threading.Thread(target=server.run, args=(listener,))
    thread.start()
    try:
        assert started.wait(DEADLINE_S)
        yield f"{url_of(listener)}/{TOKEN}/"
    finally:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transport, "LAME_DUCK_S", 0)
            server.stop()
            thread.join(DEADLINE_S)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """`visit(url, **options_of_the_context)`: open the page and wait for its first photo."""
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with contextlib.ExitStack() as contexts:
        hosts: set[str] = set()
        errors: list[str] = []

        def open_page(url: str, **options: Any) -> Any:
            context = browser.new_context(**options)
            contexts.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            context.on("request", lambda request: hosts.add(re.sub(r"^https?://|[:/].*", "", request.url.partition("//")[2])))
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
            page.goto(url)
            return page

        yield open_page
        assert hosts <= {"127.0.0.1", ""}
        assert [error for error in errors if "Failed to load resource" not in error] == []


def shows(page: Any, number: int | str) -> None:
    """Wait until a photo is on the screen."""
    page.wait_for_function("number => document.body.dataset.photo === String(number)", arg=number)


def saved(folder: Path) -> dict[str, str | None]:
    return {name[:3]: label for name, label in Decisions(folder / "labels.csv").read().items()}


def test_a_photo_is_labeled_with_one_key_and_every_decision_is_on_the_disk(visit: Any, tmp_path: Path) -> None:
    with labeling(tmp_path) as url:
        page = visit(url)
        for number, (key, label) in enumerate((("Enter", "robin"), ("3", "owl"), ("0", None), ("ArrowDown", ""))):
            shows(page, number)
            page.keyboard.press(key)
            if label != "":
                shows(page, number + 1)
                assert saved(tmp_path)[f"{number:03}"] == label
        page.keyboard.press("Enter")  # the mark was moved from robin, the prediction for photo 3, to wren
        shows(page, 4)
        assert saved(tmp_path) == {"000": "robin", "001": "owl", "003": "wren", "002": None}
        page.keyboard.press("ArrowLeft")
        shows(page, 3)
        page.keyboard.press("Backspace")
        shows(page, 2)
        assert saved(tmp_path) == {"000": "robin", "001": "owl"}
        sync_api.expect(page.locator("#count")).to_have_text("2 of 5")
        page.keyboard.press("ArrowRight")
        shows(page, 3)
        for _ in range(2):
            number = page.evaluate("Number(document.body.dataset.photo)")
            page.keyboard.press("2")
            page.wait_for_function("number => document.body.dataset.photo !== String(number)", arg=number)
        shows(page, 2)  # the skipped one comes again at the end
        page.keyboard.press("1")
        shows(page, "")
        sync_api.expect(page.locator("#done")).to_contain_text("Every photo is decided")
        sync_api.expect(page.locator("#command")).to_contain_text(f"--labels {tmp_path / 'labels.csv'}")
        page.keyboard.press("ArrowLeft")
        shows(page, 2)
    assert saved(tmp_path) == {"000": "robin", "001": "owl", "003": "wren", "004": "wren"}


def test_new_classes_are_typed_and_a_restart_continues(visit: Any, tmp_path: Path) -> None:
    with labeling(tmp_path) as url:
        page = visit(url)
        shows(page, 0)
        page.keyboard.type("wr")  # letters find a class
        sync_api.expect(page.locator("#classes button")).to_have_count(1)
        page.keyboard.press("Enter")
        shows(page, 1)
        page.keyboard.press("/")
        page.keyboard.type("rob")
        page.keyboard.press("Shift+Enter")  # although it is the start of another name
        shows(page, 2)
        sync_api.expect(page.locator("#classes bdi")).to_have_text([*CLASSES, "rob"])
        page.keyboard.type("Wren ")
        page.keyboard.press("Shift+Enter")
        sync_api.expect(page.locator("#problem")).to_have_text("'Wren' is written 'wren' so far; use that name")
        page.keyboard.press("Escape")
    with labeling(tmp_path) as url:
        page = visit(url)
        shows(page, 2)
        sync_api.expect(page.locator("#classes bdi")).to_have_text([*CLASSES, "rob"])
        sync_api.expect(page.locator("#count")).to_have_text("2 of 5")
    assert saved(tmp_path) == {"000": "wren", "001": "rob"}


def test_of_two_windows_neither_loses_or_overwrites_a_decision(visit: Any, tmp_path: Path) -> None:
    with labeling(tmp_path) as url:
        first, second = visit(url), visit(url)
        shows(first, 0)
        shows(second, 0)
        first.keyboard.press("1")
        shows(first, 1)
        second.keyboard.press("2")
        shows(second, 1)
        sync_api.expect(second.locator("#announcement")).to_contain_text("000.png is already decided: 'robin'")
        second.keyboard.press("2")
        shows(second, 2)
        (tmp_path / "002.png").unlink()  # as a server does with the least interesting photo
        second.keyboard.press("2")
        shows(second, 3)
        sync_api.expect(second.locator("#announcement")).to_contain_text("002.png is gone")
    assert saved(tmp_path) == {"000": "robin", "001": "wren"}


def test_when_the_server_is_gone_the_photo_stays_and_the_page_shows_why(visit: Any, tmp_path: Path) -> None:
    with labeling(tmp_path) as url:
        page = visit(url)
        shows(page, 0)
    page.keyboard.press("1")
    sync_api.expect(page.locator("#problem")).to_contain_text("The last decision was not saved")
    assert page.evaluate("document.body.dataset.photo") == "0"
    assert saved(tmp_path) == {}


@pytest.mark.long
def test_a_hundred_photos_are_labeled_by_key_in_a_fraction_of_five_minutes(visit: Any, tmp_path: Path) -> None:
    with labeling(tmp_path, photos=100) as url:
        page = visit(url)
        for number in range(100):
            shows(page, number)
            page.keyboard.press("Enter")
        shows(page, "")
    labels = saved(tmp_path)
    assert len(labels) == 100
    assert all(label == CLASSES[int(number) % 3] for number, label in labels.items())


@pytest.mark.long
def test_more_than_nine_classes_have_letters_and_more_than_thirty_five_the_predicted_ones_digits(
    visit: Any, tmp_path: Path
) -> None:
    cases = {
        "few": ([f"class {number}" for number in range(12)], ["b", "1"], ["class 10", "class 0"]),
        "digits": ([str(number) for number in range(10)] + ["other"], ["0", "7", "a", "-"], ["0", "7", "other", None]),
        "many": ([f"class {number}" for number in range(60)], ["2"], ["class 1"]),
    }
    for name, (classes, keys, labels) in cases.items():
        (tmp_path / name).mkdir()
        with labeling(tmp_path / name, classes=classes) as url:
            page = visit(url)
            for number, key in enumerate(keys):
                shows(page, number)
                page.keyboard.press(key)
            shows(page, len(keys))
            if name == "many":
                page.keyboard.type("class 59")
                page.keyboard.press("Enter")
                shows(page, len(keys) + 1)
                labels = [*labels, "class 59"]
        assert saved(tmp_path / name) == {f"{number:03}": label for number, label in enumerate(labels)}


@pytest.mark.long
def test_hostile_names_are_text_and_the_page_fits_phones_in_light_and_dark(visit: Any, tmp_path: Path) -> None:
    hostile = ["<script>hit()</script>", "<img src=x onerror=hit()>", "\u05ea\u05e4\u05d5\u05d7", "long" * 40]
    with labeling(tmp_path, classes=hostile) as url:
        page = visit(url, has_touch=True)
        shows(page, 0)
        assert page.locator("#classes script, #classes img").count() == 0
        for width in (320, 390, 1280):
            page.set_viewport_size({"width": width, "height": 700})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        page.set_viewport_size({"width": 390, "height": 700})
        bottom = page.locator("#skip").bounding_box()
        assert bottom["y"] + bottom["height"] <= 700  # every command is on the first screen
        for scheme, ground in (("light", "rgb(245, 246, 247)"), ("dark", "rgb(16, 21, 26)")):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
        page.locator("#classes button").nth(3).tap()
        shows(page, 1)
        page.get_by_role("button", name="None of these").tap()
        shows(page, 2)
    assert saved(tmp_path) == {"000": "long" * 40, "001": None}


@pytest.mark.long
def test_every_control_has_a_name_and_can_be_reached_by_tab(visit: Any, tmp_path: Path) -> None:
    with labeling(tmp_path) as url:
        page = visit(url)
        shows(page, 0)
        tree = page.locator("body").aria_snapshot()
        assert re.findall(r"(?m)^\s*- (?:button|searchbox|region|img|progressbar)(?: \[.*)?:?$", tree) == []
        names = []
        for _ in range(6):
            page.keyboard.press("Tab")
            names.append(page.evaluate("document.activeElement.textContent || document.activeElement.id").strip())
            assert page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        assert names == ["1robin70%", "2wren25%", "3owl", "0 None of these", "→ Skip", "find"]
        for _ in range(2):
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")  # presses the focused button, None of these
        shows(page, 1)
        assert page.evaluate("document.activeElement.id") == "name"
    assert saved(tmp_path) == {"000": None}


# The requests behind the page


def test_only_who_knows_the_address_can_read_photos_or_decide(tmp_path: Path) -> None:
    with labeling(tmp_path) as url:
        base = url.removesuffix(f"{TOKEN}/")
        decision = json.dumps({"photo": 0, "label": "wren"}).encode()
        for path in ("", "state", "photo/0", "wrong/photo/0", f"{TOKEN}/../photo/0", TOKEN, f"{TOKEN}/photo/..%2f..%2fetc"):
            assert HTTP.get(base + path).status_code == 404, path
        assert HTTP.post(f"{base}decide", content=decision).status_code == 404
        page = HTTP.get(url)
        assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert page.headers["cross-origin-resource-policy"] == "same-origin"
        assert HTTP.get(f"{url}photo/0").content == (tmp_path / "000.png").read_bytes()
    assert saved(tmp_path) == {}


def test_a_bad_request_changes_nothing_and_has_a_reason(tmp_path: Path) -> None:
    requests = {
        b"no json": (400, "json_invalid"),
        b"[]": (400, "json_invalid"),
        b'{"photo": 99, "label": "wren"}': (404, "not_found"),
        b'{"photo": true, "label": "wren"}': (404, "not_found"),
        b'{"photo": 0}': (400, "bad_request"),
        b'{"photo": 0, "label": "two\\nlines"}': (400, "label_invalid"),
        b'{"photo": 0, "label": "' + b"x" * 5000 + b'"}': (413, "body_too_large"),
    }
    with labeling(tmp_path) as url:
        for body, (status, code) in requests.items():
            reply = HTTP.post(f"{url}decide", content=body)
            assert (reply.status_code, reply.json()["code"]) == (status, code), body
        (tmp_path / "000.png").unlink()
        assert HTTP.get(f"{url}photo/0").status_code == 404
        (tmp_path / "labels.csv").write_text("path;label\n")
        reply = HTTP.post(f"{url}decide", content=b'{"photo": 1, "label": "wren"}')
        assert (reply.status_code, reply.json()["code"]) == (503, "csv_invalid")
