"""The web page in a real browser: photos are added in every possible way, and predictions are read from the screen.

Each test also fails if the page logs an error or sends a request to another host than the server under test. A few of them run
in `make test`, the others in `make long`.
"""

import base64
import contextlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.auth import Tokens

sync_api = pytest.importorskip("playwright.sync_api", reason="the browser tests need the package playwright")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need a program called chromium")

ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP insecure.test 127.0.0.1",
]
PATIENCE_MS = 10_000
FLOWERS = Path(__file__).resolve().parents[5] / "shared" / "data" / "flowers17"
LABELS = ["red", "green", "blue", "dark"]
CONFUSION = [[9, 1, 0, 0], [0, 8, 0, 2], [0, 0, 7, 0], [0, 0, 0, 5]]
HOSTILE = ["<script>hit()</script>", "<img src=x onerror=hit()>", "\u05ea\u05e4\u05d5\u05d7 (golden)", "long" * 100]
CARD = """# Card <img src=x onerror=hit()>

Some **bold** words, `code`, <b>no</b> markup and a [link](javascript:hit()).

| figure | value |
|---|---|
| accuracy | 95 % |

- one
- two
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Tab:
    """An open page, and its errors."""

    page: Any
    hosts: set[str]
    errors: list[str]

    def results(self, state: str = "done") -> Any:
        return self.page.locator(f'.result[data-state="{state}"]')

    def wait_for(self, results: int, state: str = "done") -> Any:
        sync_api.expect(self.results(state)).to_have_count(results)
        return self.results(state)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Tab]]:
    """`visit(url, **options_of_the_context)`: open the page in a new profile."""
    sync_api.expect.set_options(timeout=PATIENCE_MS)
    with contextlib.ExitStack() as contexts:
        tabs = []

        def open_tab(url: str, **options: Any) -> Tab:
            context = browser.new_context(**options)
            contexts.callback(context.close)
            context.set_default_timeout(PATIENCE_MS)
            tab = Tab(context.new_page(), set(), [])
            tabs.append((tab, url))
            context.on("request", lambda request: tab.hosts.add(re.sub(r"(?<=\w)/.*", "", request.url)))
            tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
            tab.page.on("console", lambda message: tab.errors.append(message.text) if message.type == "error" else None)
            tab.page.goto(url)
            return tab

        yield open_tab
        for tab, url in tabs:
            assert {host for host in tab.hosts if not host.startswith(("blob:", "data:"))} == {url}
            assert [error for error in tab.errors if "Failed to load resource" not in error] == []


def file_of(data: bytes, name: str = "photo.jpg", kind: str = "image/jpeg") -> Any:
    return {"name": name, "mimeType": kind, "buffer": data}


def golden(folder: Path, index: int) -> bytes:
    return (folder / "golden" / f"{index}.jpg").read_bytes()


def lines_of(rows: Any) -> list[str]:
    """The texts of a table's rows, with whitespace normalized."""
    return [" ".join(text.split()) for text in rows.all_inner_texts()]


def best(result: Any) -> tuple[str, str]:
    first = result.locator(".bars li").first
    return first.locator(".label").inner_text(), first.locator(".share").inner_text().replace("\u00a0", " ")


SENDING = """
([data, name, event]) => {
  const transfer = new DataTransfer();
  if (data === null) transfer.setData("text/plain", "just words");
  else transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type: "image/jpeg" }));
  const options = { bubbles: true, cancelable: true };
  if (event === "paste") document.body.dispatchEvent(new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
  else for (const kind of ["dragenter", "dragover", "drop"])
    document.getElementById("drop").dispatchEvent(new DragEvent(kind, { ...options, dataTransfer: transfer }));
}
"""


def send(tab: Tab, event: str, data: bytes | None, name: str = "photo.jpg") -> None:
    """Drop or paste a file, or text if there is no data."""
    tab.page.evaluate(SENDING, [None if data is None else base64.b64encode(data).decode(), name, event])


# Photos and predictions


def test_a_chosen_photo_is_classified(site: Any, visit: Any, artifact_template: Path) -> None:
    tab = visit(site.url)
    with tab.page.expect_file_chooser() as chooser:
        tab.page.get_by_text("Choose photos").click()
    chooser.value.set_files([file_of(golden(artifact_template, 0))])
    [result] = tab.wait_for(1).all()
    predictions = site.client.post("/predict", content=golden(artifact_template, 0)).json()["predictions"]
    shown = [text.split("\n") for text in result.locator(".bars li").all_inner_texts()]
    assert [lines[0] for lines in shown] == [one["label"] for one in predictions] == ["red", "green", "blue", "dark"]
    assert best(result) == ("red", f"{100 * predictions[0]['probability']:.1f} %")
    bar = result.locator(".bars .bar div").first
    share = bar.evaluate("e => e.offsetWidth / e.parentElement.offsetWidth")
    assert share == pytest.approx(predictions[0]["probability"], abs=0.01)
    assert re.match(r"Answered in [\d.,]+\sms", result.locator(".timing").inner_text())
    sync_api.expect(tab.page.locator("#announcement")).to_have_text(re.compile(r"^photo\.jpg: red, 99\.7\s%$"))


@pytest.mark.long
@pytest.mark.skipif(not FLOWERS.is_dir(), reason="no real photos here (../shared/data)")
def test_a_real_photo_is_shown_and_classified(site: Any, visit: Any) -> None:
    photo = sorted(FLOWERS.rglob("*.jpg"))[7]
    tab = visit(site.url)
    tab.page.set_input_files("#files", photo)
    [result] = tab.wait_for(1).all()
    expected = site.client.post("/predict", content=photo.read_bytes()).json()["predictions"][0]
    assert best(result)[0] == expected["label"]
    result.locator("img.thumb").evaluate("image => image.decode()")
    with Image.open(photo) as image:
        assert result.locator("img.thumb").evaluate("image => image.naturalWidth") == image.width


@pytest.fixture(name="halves")
def a_photo_in_two_colors() -> bytes:
    """Red at the left, blue at the right, stored on its side."""
    picture = Image.new("RGB", (300, 400), (220, 20, 20))
    picture.paste((20, 20, 220), (0, 200, 300, 400))
    exif = Image.Exif()
    exif[0x0112] = 8  # its first stored column is the bottom: turned a quarter to the left it is upright
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


COLOR_AT = """
(canvas, [x, y]) => [...canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data]
"""


def test_the_page_shows_the_explanation(explaining_template: Path, serving: Any, visit: Any, halves: bytes) -> None:
    with serving(explaining_template) as site:
        response = site.client.post("/predict", params={"explain": "cam"}, content=halves).json()
        tab = visit(site.url)
        sync_api.expect(tab.page.locator("#status")).to_have_text("Ready")
        tab.page.set_input_files("#files", [file_of(halves)])
        [result] = tab.wait_for(1).all()
        result.get_by_role("button", name="Why?").click()
        overlay = result.locator(".seen canvas")
        sync_api.expect(overlay).to_have_attribute("aria-label", re.compile("Regions for (red|blue)"))
        result.locator(".seen img").evaluate("image => image.decode()")
        inside = overlay.evaluate(
            "c => { const a = c.getBoundingClientRect(), b = c.previousElementSibling.getBoundingClientRect();"
            "return [a.left - b.left, a.top - b.top, a.right - b.left, a.bottom - b.top]"
            ".map((v, i) => v / (i % 2 ? b.height : b.width)) }"
        )
        assert inside == pytest.approx(response["explanation"]["region"], abs=0.02)
        for label in ("red", "blue"):
            result.get_by_label("Explained class").select_option(label=label)
            [evidence] = [each["evidence"] for each in response["predictions"] if each["label"] == label]
            for row, column in ((1, 0), (1, len(evidence[0]) - 1)):
                place = [(column + 0.5) / len(evidence[0]), (row + 0.5) / len(evidence)]
                red, _, blue, alpha = overlay.evaluate(COLOR_AT, place)
                assert alpha > 0
                assert (red > blue) == (evidence[row][column] > 0), (label, row, column)
        result.get_by_role("button", name="Why?").click()
        sync_api.expect(overlay).to_have_count(0)


@pytest.mark.long
def test_no_explanation_is_shown_for_another_versions_prediction(
    explaining_template: Path, tmp_path: Path, seal: Any, serving: Any, visit: Any, halves: bytes
) -> None:
    store = tmp_path / "colors"
    shutil.copytree(explaining_template, store / "1")
    with serving(store) as site:
        tab = visit(site.url)
        sync_api.expect(tab.page.locator("#status")).to_have_text("Ready")
        tab.page.set_input_files("#files", [file_of(halves)])
        [result] = tab.wait_for(1).all()
        shutil.copytree(explaining_template, tmp_path / "next")
        seal(tmp_path / "next", version=2).rename(store / "2")
        end = time.monotonic() + 20
        while site.client.get("/readyz").json()["version"] != 2:
            assert time.monotonic() < end
        result.get_by_role("button", name="Why?").click()
        sync_api.expect(result.locator(".why .problem")).to_contain_text("colors 2 has replaced version 1")


@pytest.mark.long
def test_a_model_without_maps_has_no_why_button(site: Any, visit: Any, artifact_template: Path) -> None:
    tab = visit(site.url)
    sync_api.expect(tab.page.locator("#status")).to_have_text("Ready")
    tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0))])
    tab.wait_for(1)
    assert tab.page.get_by_role("button", name="Why?").count() == 0


@pytest.mark.long
def test_the_page_asks_for_a_token_if_the_server_requires_one(
    artifact_template: Path, tmp_path: Path, serving: Any, visit: Any
) -> None:
    (tmp_path / "tokens").write_text("a-token-of-the-server-1\n")
    with serving(artifact_template, tokens=Tokens(tmp_path / "tokens")) as site:
        tab = visit(site.url)
        tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0))])
        asked, hint = tab.page.get_by_label("This server requires a token"), tab.page.locator("#token-hint")
        sync_api.expect(tab.results("waiting")).to_have_count(1)
        for wrong, message in (("not one", "no spaces"), ("another-token-of-others", "did not accept this token")):
            asked.fill(wrong)
            asked.press("Enter")
            sync_api.expect(hint).to_contain_text(message)
        sync_api.expect(asked).to_be_visible()
        asked.fill("a-token-of-the-server-1")
        tab.page.get_by_role("button", name="Use token").click()
        [result] = tab.wait_for(1).all()
        assert best(result)[0] == "red"
        sync_api.expect(asked).to_be_hidden()
        sync_api.expect(tab.page.locator("#name")).to_have_text("colors")
        assert "a-token" not in tab.page.url


@pytest.mark.long
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_dropped_or_pasted_photo_is_classified(site: Any, visit: Any, artifact_template: Path, event: str) -> None:
    tab = visit(site.url)
    send(tab, event, golden(artifact_template, 2))
    [result] = tab.wait_for(1).all()
    assert best(result)[0] == "blue"
    assert tab.page.locator("body.dragging").count() == 0
    send(tab, event, None)
    sync_api.expect(tab.page.get_by_role("alert")).to_contain_text({"drop": "not a file", "paste": "no image"}[event])
    assert tab.results().count() == 1


@pytest.mark.long
def test_several_photos_are_listed_newest_first_up_to_a_limit(site: Any, visit: Any, artifact_template: Path) -> None:
    tab = visit(site.url)
    photos = [file_of(golden(artifact_template, index % 4), f"{index}.jpg") for index in range(4)]
    tab.page.set_input_files("#files", photos)
    tab.wait_for(4)
    assert tab.page.locator(".result .file bdi").all_inner_texts() == ["3.jpg", "2.jpg", "1.jpg", "0.jpg"]
    assert [best(result)[0] for result in tab.results().all()] == ["dark", "blue", "green", "red"]
    tab.page.set_input_files("#files", photos[:1] * 19)
    tab.wait_for(20)
    assert tab.page.locator(".result .file bdi").all_inner_texts() == ["0.jpg"] * 19 + ["3.jpg"]
    tab.page.get_by_role("button", name="Remove all").click()
    assert tab.page.locator(".result").count() == 0


def test_a_bad_file_shows_the_servers_message_and_the_next_photo_is_classified(
    site: Any, visit: Any, artifact_template: Path
) -> None:
    tab = visit(site.url)
    tab.page.set_input_files("#files", [file_of(b"hello", "notes.txt", "text/plain"), file_of(golden(artifact_template, 1))])
    good, bad = tab.wait_for(2).all()
    assert best(good)[0] == "green"
    sentence = site.client.post("/predict", content=b"hello").json()["error"]
    assert bad.locator(".problem").inner_text() == sentence
    assert bad.get_by_text("Try again").count() == 0
    sync_api.expect(bad.locator(".thumb")).to_have_text("no preview")


@pytest.mark.long
def test_a_file_over_the_limit_is_rejected_before_it_is_sent(site: Any, visit: Any, tmp_path: Path) -> None:
    tab = visit(site.url)
    sync_api.expect(tab.page.locator("h1")).to_have_text("colors")
    sent: list[str] = []
    tab.page.on("request", lambda request: sent.append(request.url))
    with (tmp_path / "large.jpg").open("wb") as large:
        large.truncate(16 * 2**20 + 1)
    tab.page.set_input_files("#files", tmp_path / "large.jpg")
    [result] = tab.wait_for(1).all()
    assert "limit is 16.8 MB" in result.locator(".problem").inner_text().replace("\u00a0", " ")
    assert [url for url in sent if "predict" in url] == []


@pytest.mark.long
def test_the_camera_takes_a_photo_and_is_released(site: Any, visit: Any) -> None:
    tab = visit(site.url)
    tab.page.get_by_role("button", name="Use camera").click()
    sync_api.expect(tab.page.get_by_role("button", name="Take photo")).to_be_focused()  # the camera's picture is there
    tab.page.get_by_role("button", name="Take photo").click()
    [result] = tab.wait_for(1).all()
    assert result.locator(".file bdi").inner_text() == "camera 1.jpg"
    assert best(result)[0] in LABELS
    tab.page.evaluate("window.tracks = document.querySelector('video').srcObject.getTracks()")
    tab.page.get_by_role("button", name="Close camera").click()
    assert tab.page.evaluate("window.tracks.map((track) => track.readyState)") == ["ended"]
    sync_api.expect(tab.page.get_by_role("button", name="Use camera")).to_be_focused()


@pytest.mark.long
def test_a_page_without_a_secure_origin_explains_why_there_is_no_camera(site: Any, visit: Any) -> None:
    tab = visit(site.url.replace("127.0.0.1", "insecure.test"))
    button = tab.page.get_by_role("button", name="Use camera")
    sync_api.expect(button).to_be_disabled()
    sync_api.expect(button).to_have_accessible_description(re.compile("https or from localhost"))
    assert tab.page.get_by_text("https or from localhost").is_visible()


# A server that is not ready, slow, or lost


@pytest.mark.long
def test_a_photo_waits_until_the_model_is_ready(artifact_template: Path, serving: Any, visit: Any) -> None:
    go_on = threading.Event()

    def open_late(path: Path) -> Classifier:
        assert go_on.wait(20)
        return Classifier.open(path)

    with serving(artifact_template, open_classifier=open_late, wait=False) as site:
        try:
            tab = visit(site.url)
            status = tab.page.locator("#status")
            sync_api.expect(status).to_have_text("The model is loading …")
            tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0))])
            tab.wait_for(1, "waiting")
        finally:
            go_on.set()
        sync_api.expect(status).to_have_text("Ready")
        [result] = tab.wait_for(1).all()
        assert best(result)[0] == "red"
        sync_api.expect(tab.page.locator("h1")).to_have_text("colors")


@pytest.mark.long
def test_the_page_shows_why_an_artifact_failed_to_load(tmp_path: Path, serving: Any, visit: Any) -> None:
    with serving(tmp_path / "nothing") as site:
        tab = visit(site.url)
        error = site.client.get("/readyz").json()["error"]
        sync_api.expect(tab.page.locator("#status")).to_have_text(f"Not ready: {error}")


class Slow(Classifier):
    """A classifier that waits for a test's signal."""

    go_on: threading.Event

    def pixels(self, image: bytes) -> np.ndarray:
        assert self.go_on.wait(20)
        return super().pixels(image)


@pytest.mark.long
def test_a_slow_request_shows_its_duration_and_can_be_removed(artifact_template: Path, serving: Any, visit: Any) -> None:
    Slow.go_on = threading.Event()
    with serving(artifact_template, open_classifier=Slow.open) as site:
        try:
            tab = visit(site.url)
            tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0), f"{index}.jpg") for index in range(3)])
            tab.wait_for(2, "running")
            tab.wait_for(1, "waiting")
            sync_api.expect(tab.results("running").first).to_contain_text(re.compile(r"Classifying … [1-9] s"))
            tab.page.get_by_role("button", name="Remove 0.jpg").click()
            tab.wait_for(2, "running")
            assert tab.results("waiting").count() == 0
        finally:
            Slow.go_on.set()
        tab.wait_for(2)


@pytest.mark.long
def test_after_a_lost_server_a_photo_can_be_sent_again(artifact_template: Path, serving: Any, visit: Any) -> None:
    with serving(artifact_template) as site:
        tab = visit(site.url)
        sync_api.expect(tab.page.locator("#status")).to_have_text("Ready")
        tab.page.context.set_offline(True)
        tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0))])
        [result] = tab.wait_for(1).all()
        assert "did not respond" in result.locator(".problem").inner_text()
        sync_api.expect(tab.page.locator("#status")).to_have_text("The server does not respond")
        tab.page.context.set_offline(False)
        result.get_by_role("button", name="Try again").click()
        sync_api.expect(result.locator(".bars .label").first).to_have_text("red")


@pytest.mark.long
def test_the_times_of_the_server_timing_header_are_shown(site: Any, visit: Any, artifact_template: Path) -> None:
    tab = visit(site.url)

    def with_times(route: Any) -> None:
        reply = route.fetch()
        route.fulfill(response=reply, headers={**reply.headers, "Server-Timing": 'decode;dur=12.34, infer;desc="x";dur=5, odd'})

    tab.page.route("**/predict*", with_times)
    tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0))])
    [result] = tab.wait_for(1).all()
    assert "ms · decoding 12 ms · inference 5.0 ms" in result.locator(".timing").inner_text().replace("\u00a0", " ")


# The model


@pytest.mark.long
def test_the_model_is_shown_with_metrics_matrix_and_card(serving: Any, visit: Any, relabeled: Any, evaluated: Any) -> None:
    with serving(relabeled(LABELS, evaluated(CONFUSION, LABELS), CARD)) as site:
        page = visit(site.url).page
        sync_api.expect(page.locator("h1")).to_have_text("colors")
        assert page.title() == "colors 1 · edgeline"
        about = page.locator("#about").inner_text().replace("\u00a0", " ")
        assert "90.6 %" in about
        assert "29 of 32 test images; 95 % interval 86.1 % to 95.3 %" in about
        assert "4 golden samples" in about
        rows = page.locator(".matrix tbody tr").all()
        assert [[cell.inner_text() for cell in row.locator("td").all()] for row in rows] == [
            [str(number or "") for number in row] for row in CONFUSION
        ]
        assert lines_of(page.locator(".mistakes tbody tr")) == ["green dark 2 of 10", "red green 1 of 10"]
        assert lines_of(page.locator(".classes tbody tr"))[-1] == "3 dark 71.4 % 100.0 % 0.833 5"
        card = page.locator("#card")
        assert card.locator("h3").inner_text() == "Card <img src=x onerror=hit()>"
        assert card.locator("p").inner_text() == "Some bold words, code, <b>no</b> markup and a [link](javascript:hit())."
        assert card.locator("tbody td").all_inner_texts() == ["accuracy", "95 %"]
        assert (card.locator("strong").inner_text(), card.locator("li").all_inner_texts()) == ("bold", ["one", "two"])
        assert card.locator("a, img, b, script").count() == 0


@pytest.mark.long
def test_the_accuracy_of_the_served_variant_is_shown_first(
    serving: Any, visit: Any, relabeled: Any, evaluated: Any, seal: Any
) -> None:
    folder = relabeled(LABELS, evaluated(CONFUSION, LABELS))
    [variant] = json.loads((folder / "manifest.json").read_text())["variants"]
    variant |= {"precision": "int8", "verification": {"accuracy": {"top1": 0.5, "top1_interval": [0.25, 0.75], "images": 32}}}
    with serving(seal(folder, variants=[variant])) as site:
        page = visit(site.url).page
        sync_api.expect(page.locator(".figure .name")).to_contain_text(
            ["Accuracy of onnx-fp32", "Accuracy of the float32 model"]
        )
        shown = [line.replace("\u00a0", " ") for line in page.locator(".figure strong, .figure .quiet").all_inner_texts()]
        assert shown[:3] == ["50.0 %", "32 test images; 95 % interval 25.0 % to 75.0 %", "90.6 %"]
        sync_api.expect(page.locator("#matrix")).to_contain_text("with the model in float32")


@pytest.mark.long
def test_a_large_confusion_matrix_is_a_picture_and_classes_can_be_searched(
    serving: Any, visit: Any, relabeled: Any, evaluated: Any
) -> None:
    labels = [*LABELS, *(f"class {number}" for number in range(4, 300))]
    confusion = [[0] * 300 for _ in labels]
    for index in range(300):
        confusion[index][index] = 5
    confusion[7][109] = 4
    with serving(relabeled(labels, evaluated(confusion, labels))) as site:
        page = visit(site.url).page
        sync_api.expect(page.locator("h1")).to_have_text("colors")
        assert lines_of(page.locator(".mistakes tbody tr")) == ["class 7 class 109 4 of 9"]
        assert page.locator(".matrix").count() == 0
        canvas = page.locator("canvas")
        drawn = canvas.evaluate(
            "c => [[7, 109], [7, 7], [109, 7]].map(([row, column]) => "
            "c.getContext('2d').getImageData((column + 0.5) * c.width / 300, (row + 0.5) * c.height / 300, 1, 1).data[3])"
        )
        assert drawn[0] > 0
        assert drawn[1] > 0
        assert drawn[2] == 0
        box = canvas.bounding_box()
        canvas.hover(position={"x": 109.5 * box["width"] / 300, "y": 7.5 * box["height"] / 300})
        assert page.locator(".reading").inner_text() == "class 7 predicted as class 109: 4 of 9"
        assert page.locator("table.classes").last.locator("tbody tr").count() == 200
        page.get_by_label("Find").fill("CLASS 29")
        shown = page.locator("table.classes").last.locator("tbody bdi").all_inner_texts()
        assert shown == ["class 29", *(f"class {number}" for number in range(290, 300))]
        page.get_by_label("Find").fill("")
        page.get_by_label("Order").select_option("worst F1 first")
        assert page.locator("table.classes").last.locator("tbody bdi").first.inner_text() == "class 7"


@pytest.mark.long
def test_hostile_labels_are_shown_as_text_on_narrow_and_wide_screens(
    serving: Any, visit: Any, relabeled: Any, evaluated: Any, artifact_template: Path
) -> None:
    card = CARD + "\n| " + " | ".join(f"column {n} " + "wide" * 20 for n in range(9)) + " |\n|" + "---|" * 9 + "\n"
    with serving(relabeled(HOSTILE, evaluated(CONFUSION, HOSTILE), card)) as site:
        tab = visit(site.url)
        photos = [golden(artifact_template, index) for index in range(4)]
        tab.page.set_input_files("#files", [file_of(photo, f"{'<b>' * 50}{n}.jpg") for n, photo in enumerate(photos)])
        results = tab.wait_for(4).all()
        assert [best(result)[0] for result in results] == HOSTILE[::-1]
        assert tab.page.locator("#results script, #results b, main img[src=x], main a").count() == 0
        for width in (360, 1280):
            tab.page.set_viewport_size({"width": width, "height": 700})
            assert tab.page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.long
def test_the_browser_blocks_turning_text_into_markup(site: Any, visit: Any) -> None:
    tab = visit(site.url)
    error = tab.page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; return 'set'; } catch (error) { return error.name; } }"
    )
    assert error == "TypeError"
    tab.errors.clear()  # the browser reported it


# Accessibility


CONTRASTS = """
() => {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const over = (color, ground) => {
    pixel.fillStyle = ground; pixel.fillRect(0, 0, 1, 1);
    pixel.fillStyle = color; pixel.fillRect(0, 0, 1, 1);
    return `rgb(${[...pixel.getImageData(0, 0, 1, 1).data.slice(0, 3)].join(",")})`;
  };
  const light = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.match(/\\d+/g).map((level) => linear(level / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    const chain = [];
    for (let at = element; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
    return chain.reduce((below, color) => over(color, below), "rgb(255,255,255)");
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const low = [];
  let looked = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, words = walker.currentNode.data.trim();
    if (!words || !element.checkVisibility() || element.closest(".unseen, :disabled, noscript")) continue;
    const below = ground(element), text = over(getComputedStyle(element).color, below);
    const [dark, bright] = [light(below), light(text)].sort((a, b) => a - b);
    looked += 1;
    if ((bright + 0.05) / (dark + 0.05) < 4.5) low.push(`${words.slice(0, 30)}: ${text} on ${below}`);
  }
  return { looked, low };
}
"""


@pytest.mark.long
def test_every_text_has_enough_contrast_in_light_and_dark_mode(
    serving: Any, visit: Any, relabeled: Any, evaluated: Any, artifact_template: Path
) -> None:
    full = [[10, 0, 0, 0], [0, 1, 9, 0], [10, 0, 0, 0], [5, 0, 0, 5]]
    with serving(relabeled(LABELS, evaluated(full, LABELS), CARD)) as site:
        tab = visit(site.url, reduced_motion="reduce")
        tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0)), file_of(b"no image")])
        tab.wait_for(2)
        send(tab, "paste", None)
        for scheme, ground in (("light", "rgb(245, 246, 247)"), ("dark", "rgb(16, 21, 26)")):
            tab.page.emulate_media(color_scheme=scheme)
            assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
            found = tab.page.evaluate(CONTRASTS)
            assert found["looked"] > 60
            assert found["low"] == []


@pytest.mark.long
def test_the_page_works_with_the_keyboard_alone(site: Any, visit: Any, artifact_template: Path) -> None:
    tab = visit(site.url)
    tab.page.on("filechooser", lambda chooser: None)  # from now on the browser gives them to the test
    sync_api.expect(tab.page.locator("h1")).to_have_text("colors")
    tab.page.keyboard.press("Tab")
    sync_api.expect(tab.page.locator("#files")).to_be_focused()
    assert tab.page.locator(".button").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    with tab.page.expect_file_chooser() as chooser:
        tab.page.keyboard.press("Enter")
    chooser.value.set_files([file_of(golden(artifact_template, index), f"{index}.jpg") for index in (0, 1)])
    tab.wait_for(2)
    for name in ("Use camera", "Classes per photo", "Remove all", "Remove 1.jpg"):
        tab.page.keyboard.press("Tab")
        sync_api.expect(tab.page.locator(":focus")).to_have_accessible_name(re.compile(f"^{name}"))
    assert tab.page.locator(":focus").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    tab.page.keyboard.press("Enter")
    sync_api.expect(tab.page.locator(":focus")).to_have_accessible_name("Remove 0.jpg")
    tab.page.keyboard.press("Enter")
    sync_api.expect(tab.page.locator("#files")).to_be_focused()
    assert tab.page.locator(".result").count() == 0


@pytest.mark.long
def test_every_control_and_region_has_a_name(site: Any, visit: Any, artifact_template: Path) -> None:
    tab = visit(site.url)
    tab.page.set_input_files("#files", [file_of(golden(artifact_template, 0))])
    tab.wait_for(1)
    tree = tab.page.locator("body").aria_snapshot()
    assert re.findall(r"(?m)^\s*- (?:button|combobox|searchbox|textbox|region|img|canvas)(?: \[.*)?:?$", tree) == []
    for part in ('heading "colors" [level=1]', 'region "Classify photos"', 'region "The model"', 'button "Remove photo.jpg"'):
        assert part in tree
    roles = tab.page.locator("#announcement, #status").evaluate_all("all => all.map((e) => e.getAttribute('role'))")
    assert roles == ["status"] * 2
