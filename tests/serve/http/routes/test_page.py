"""The web page: its files, their headers, and what `/model` returns for an untrusted artifact."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.classifier import Classifier
from edgeline.serve.http.routes import page

ROOT = Path(__file__).resolve().parents[4]
NAMES = sorted(path.name for path in page.FOLDER.iterdir())
ADDRESSES = ["/", *(f"/{name}" for name in NAMES if name != "index.html")]
LABELS = ["red", "green", "blue", "dark"]
CONFUSION = [[9, 1, 0, 0], [0, 8, 0, 2], [0, 0, 7, 0], [0, 0, 0, 5]]


def model_of(serving: Any, folder: Path) -> Any:
    with serving(folder) as site:
        reply = site.client.get("/model")
        assert reply.status_code == 200
        return reply.json()


# Files


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_file_of_the_page_has_its_type_and_digest(site: Any, address: str) -> None:
    reply = site.client.get(address)
    held = (page.FOLDER / (address[1:] or "index.html")).read_bytes()
    assert (reply.status_code, reply.content) == (200, held)
    kinds = {"": "text/html", "css": "text/css", "js": "text/javascript"}
    assert reply.headers["content-type"] == f"{kinds[address.rpartition('.')[2].strip('/')]}; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["content-length"] == str(len(held))
    head = site.client.head(address)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", reply.headers["etag"])


@pytest.mark.parametrize("address", [*ADDRESSES, "/model"])
def test_a_cached_file_is_not_sent_again(site: Any, address: str) -> None:
    tag = site.client.get(address).headers["etag"]
    assert tag.startswith('"')
    again = site.client.get(address, headers={"If-None-Match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert again.headers["cache-control"] == "no-cache"
    assert site.client.get(address, headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("address", [*ADDRESSES, "/model"])
def test_the_content_security_policy_forbids_other_scripts_and_framing(site: Any, address: str) -> None:
    headers = site.client.get(address).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert (policy["require-trusted-types-for"], policy["trusted-types"]) == ("'script'", "'none'")
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["permissions-policy"].startswith("camera=(self)")


@pytest.mark.parametrize("address", ["/index.html", "/page", "/page/", "/page/page.js", "/page.py", "/page.js/", "/.js"])
def test_no_other_file_of_the_package_is_served(site: Any, address: str) -> None:
    assert site.client.get(address).status_code == 404


@pytest.mark.parametrize("name", NAMES)
def test_the_pages_files_use_no_other_host_and_create_no_markup(name: str) -> None:
    text = (page.FOLDER / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    for never in (
        "http:",
        "https:",
        'src="//',
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "style=",
    ):
        assert never not in text, f"{name}: {never}"


# The model


def test_the_model_route_has_evaluation_card_and_self_test(
    serving: Any, relabeled: Callable[..., Path], evaluated: Callable[..., Any]
) -> None:
    facts = model_of(serving, relabeled(LABELS, evaluated(CONFUSION, LABELS), "# Colors\n\nFour of them.\n"))
    assert (facts["model"], facts["version"], facts["variant"], facts["labels"]) == (
        "colors",
        1,
        "onnx-fp32",
        LABELS,
    )
    assert (facts["preprocess"]["height"], facts["preprocess"]["width"]) == (12, 16)
    assert facts["card"] == "# Colors\n\nFour of them.\n"
    assert facts["self_test"]["samples"] == 4
    assert facts["remarks"] == []
    assert facts["evaluation"]["top1"].keys() == {"value", "low", "high", "correct", "total"}
    assert (facts["evaluation"]["top1"]["correct"], facts["evaluation"]["top1"]["total"]) == (29, 32)
    assert [one["support"] for one in facts["evaluation"]["classes"]] == [10, 10, 7, 5]
    cells = [(0, 0, 9), (0, 1, 1), (1, 1, 8), (1, 3, 2), (2, 2, 7), (3, 3, 5)]
    assert [tuple(cell) for cell in facts["evaluation"]["confusion"]] == cells


def test_the_page_reads_what_the_pipeline_writes(serving: Any, relabeled: Callable[..., Path]) -> None:
    import numpy as np

    from edgeline.pipeline.data.samples import Sample
    from edgeline.pipeline.evaluation.evaluate import evaluate

    samples = [
        Sample(path="", label=LABELS[i % 4], index=i % 4, split="test", group="", sha256="", pixels="", width=9, height=9)
        for i in range(8)
    ]
    logits_NK = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1, 1, 2, 3]] * 5
    held = evaluate(logits_NK, samples, LABELS, temperature=1.0, bins=5).model_dump(mode="json", by_alias=True)
    facts = model_of(serving, relabeled(LABELS, held))
    assert facts["remarks"] == []
    assert facts["evaluation"]["confusion"] == [[0, 0, 1], [0, 1, 1], [1, 1, 2], [2, 2, 2], [3, 3, 2]]


def test_an_artifact_without_evaluation_and_card_still_has_a_page(make_artifact: Any, seal: Any, serving: Any) -> None:
    folder = make_artifact()
    (folder / "card.md").unlink()
    seal(folder)
    facts = model_of(serving, folder)
    assert (facts["evaluation"], facts["card"], facts["remarks"]) == (None, None, [])
    assert facts["labels"] == LABELS


def without(*path: Any) -> Callable[[dict[str, Any]], None]:
    def take(held: Any) -> None:
        for name in path[:-1]:
            held = held[name]
        del held[path[-1]]

    return take


def with_(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def put(held: Any) -> None:
        for name in path[:-1]:
            held = held[name]
        held[path[-1]] = value

    return put


STRANGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "another schema": with_("edgeline.evaluation/2", "schema"),
    "other labels": with_(["red", "green", "dark", "blue"], "labels"),
    "no matrix": without("confusion"),
    "a row too few": without("confusion", 0),
    "a cell too few": without("confusion", 0, 0),
    "a negative cell": with_(-1, "confusion", 0, 0),
    "a cell of markup": with_("<script>", "confusion", 0, 0),
    "a true cell": with_(True, "confusion", 0, 0),
    "rows of numbers": with_([1, 2, 3, 4], "confusion"),
    "an accuracy over one": with_(1.5, "top1", "value"),
    "an accuracy that is no number": with_(float("nan"), "top1", "value"),
    "an accuracy that is infinite": with_(float("inf"), "top1", "high"),
    "an accuracy of text": with_("1", "top1", "value"),
    "a class too few": without("classes", 0),
    "classes that are none": with_(None, "classes"),
}


SHAPE = "evaluation.json does not match edgeline.evaluation/1, or has other labels"


def facts_of(folder: Path) -> Any:
    return json.loads(page.facts(Classifier.open(folder, verify=False)))


@pytest.fixture(name="with_file")
def artifact_with_a_file(make_artifact: Any, seal: Any) -> Callable[..., Path]:
    def make(name: str, data: bytes, **fields: Any) -> Path:
        folder = make_artifact()
        (folder / name).write_bytes(data)
        return seal(folder, **fields)

    return make


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_a_malformed_evaluation_is_left_out_with_a_remark(
    with_file: Callable[..., Path], evaluated: Callable[..., Any], change: Callable[[dict[str, Any]], None]
) -> None:
    held = evaluated(CONFUSION, LABELS)
    page._checked(held, tuple(LABELS))
    change(held)
    facts = facts_of(with_file("evaluation.json", json.dumps(held).encode()))
    assert (facts["evaluation"], facts["remarks"]) == (None, [SHAPE])


NO_JSON = {
    "nothing": b"",
    "half": b"{",
    "a list": b"[]",
    "null": b"null",
    "no text": b"\xff",
    "deep": b"[" * 10**5,
    "long": b"9" * 10**4,
}


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
def test_an_evaluation_that_is_not_a_json_object_is_left_out(with_file: Callable[..., Path], data: bytes) -> None:
    facts = facts_of(with_file("evaluation.json", data))
    assert (facts["evaluation"], facts["remarks"]) == (None, [SHAPE])


LIMITS = {"card.md": "MAX_CARD_BYTES", "evaluation.json": "MAX_EVALUATION_BYTES"}


@pytest.mark.parametrize(("name", "limit"), LIMITS.items())
def test_a_file_over_the_pages_limit_is_not_read(
    with_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, name: str, limit: str
) -> None:
    folder = with_file(name, b" " * 1001)
    monkeypatch.setattr(page, limit, 1000)
    facts = facts_of(folder)
    assert facts[name.partition(".")[0]] is None
    assert facts["remarks"] == [f"{name} has 1,001 bytes, the page shows at most 1,000"]


def test_a_card_that_is_not_utf_8_is_shown_with_replacement_characters(with_file: Callable[..., Path]) -> None:
    assert facts_of(with_file("card.md", b"a\xffb"))["card"] == "a\ufffdb"


def test_metrics_that_are_infinite_are_left_out(with_file: Callable[..., Path]) -> None:
    folder = with_file("card.md", b"")
    manifest = (folder / "manifest.json").read_text().replace('"accuracy": 1.0', '"accuracy": 1e999')
    (folder / "manifest.json").write_text(manifest)
    facts = facts_of(folder)
    assert (facts["metrics"], len(facts["remarks"])) == ({}, 1)


def test_labels_and_cards_in_any_script_are_unchanged(serving: Any, relabeled: Callable[..., Path]) -> None:
    labels = ["</script><script>alert(1)</script>", "\u05ea\u05e4\u05d5\u05d7", "\U0001f34e & co", "x" * 3000]
    card = "<img src=x onerror=alert(1)> \u202e"
    facts = model_of(serving, relabeled(labels, card=card))
    assert (facts["labels"], facts["card"]) == (labels, card)


def test_a_file_that_changed_since_it_was_opened_is_not_shown(make_artifact: Any, serving: Any) -> None:
    folder = make_artifact()
    with serving(folder) as site:
        (folder / "card.md").write_text("# Another\n")
        reply = site.client.get("/model")
        assert (reply.status_code, reply.json()["code"]) == (503, "digest_mismatch")
        assert str(folder) not in reply.text
        (folder / "card.md").write_text("# Colors\n")
        assert site.client.get("/model").status_code == 200


def test_the_model_route_describes_a_newly_loaded_version(make_artifact: Any, serving: Any) -> None:
    with serving(make_artifact()) as site:
        first = site.client.get("/model")
        site.service.models.slots[0].accept(Classifier.open(make_artifact(version=2)))
        second = site.client.get("/model", headers={"If-None-Match": first.headers["etag"]})
        assert (first.json()["version"], second.json()["version"]) == (1, 2)


# Readiness


def test_before_the_model_is_loaded_the_page_is_served_and_the_model_is_a_503(artifact_template: Path, serving: Any) -> None:
    go_on = threading.Event()

    def open_late(path: Path) -> Classifier:
        assert go_on.wait(20)
        return Classifier.open(path)

    with serving(artifact_template, open_classifier=open_late, wait=False) as site:
        try:
            assert site.client.get("/").status_code == 200
            reply = site.client.get("/model")
            assert (reply.status_code, reply.json()["code"]) == (503, "loading")
            assert reply.json().keys() == {"error", "code", "request_id"}
            assert int(reply.headers["retry-after"]) > 0
            assert reply.headers["cache-control"] == "no-store"
        finally:
            go_on.set()
        site.wait_until_loaded()
        assert site.client.get("/model").status_code == 200


def test_an_artifact_that_failed_to_load_is_reported_by_the_model_route(tmp_path: Path, serving: Any) -> None:
    with serving(tmp_path / "nothing") as site:
        reply = site.client.get("/model")
        assert (reply.status_code, reply.json()["code"]) == (503, "artifact_invalid")
