"""Downloads: the files that a manifest lists, verified, resumable, and nothing else."""

import asyncio
import base64
import contextlib
import gc
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgeline.serve.artifact.channels import Channels
from edgeline.serve.http.routes import published_files as published
from edgeline.serve.http.routes.published_files import OpenFile, Published, store_of
from tests.support.processes import HTTP

MAKE = Callable[..., Path]
LARGE = 24 * 2**20


@pytest.fixture(name="folder")
def own_artifact(make_artifact: MAKE) -> Path:
    return make_artifact()


@pytest.fixture(name="own")
def own_site(folder: Path, serving: Any) -> Iterator[Any]:
    """A server of the test's own artifact and store, which it may change."""
    with serving(folder, store=folder.parent.parent) as site:
        yield site


@pytest.fixture(name="large")
def large_file(folder: Path, seal: Callable[..., Path]) -> Path:
    path = folder / "model.large.bin"
    path.write_bytes(os.urandom(2**20) * (LARGE // 2**20))
    seal(folder)
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_error(reply: httpx.Response, status: int, code: str) -> None:
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.json().keys() == {"error", "code", "request_id"}
    assert reply.headers["cache-control"] == "no-store"
    assert tempfile.gettempdir() not in reply.text


# Published files


def test_the_store_is_listed(own: Any, make_artifact: MAKE) -> None:
    for number in (3, 10):
        make_artifact(version=number)
    make_artifact(name="shapes")
    assert own.client.get("/artifacts").json() == {
        "artifacts": [
            {"name": "colors", "versions": [1, 3, 10], "latest": 10, "channels": {"stable": 10}},
            {"name": "shapes", "versions": [1], "latest": 1, "channels": {"stable": 1}},
        ]
    }


def test_an_unchanged_listing_is_a_304(own: Any, make_artifact: MAKE) -> None:
    tag = {"If-None-Match": own.client.get("/artifacts").headers["etag"]}
    assert own.client.get("/artifacts", headers=tag).status_code == 304
    make_artifact(version=2)
    assert own.client.get("/artifacts", headers=tag).status_code == 200


def test_the_latest_manifest_is_polled_cheaply(own: Any, folder: Path, make_artifact: MAKE) -> None:
    reply = own.client.get("/artifacts/colors/latest")
    assert reply.content == (folder / "manifest.json").read_bytes()
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["content-location"] == "/artifacts/colors/1/manifest.json"
    assert reply.headers["content-type"] == "application/json"
    again = own.client.get("/artifacts/colors/latest", headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", reply.headers["etag"])
    make_artifact(version=2)
    newer = own.client.get("/artifacts/colors/latest", headers={"If-None-Match": reply.headers["etag"]})
    assert (newer.status_code, newer.json()["version"]) == (200, 2)
    assert newer.headers["content-location"] == "/artifacts/colors/2/manifest.json"


def test_a_channel_is_polled_like_the_latest_version_and_yanked_ones_are_not_offered(
    own: Any, folder: Path, make_artifact: MAKE
) -> None:
    for version in (2, 3):
        make_artifact(store=folder.parent.parent, version=version)
    channels = Channels(pointers={"stable": 2, "canary": 3}, yanked={3: "wrong labels"})
    (folder.parent / "channels.json").write_text(json.dumps(channels.to_json()))
    [listed] = [each for each in own.client.get("/artifacts").json()["artifacts"] if each["name"] == "colors"]
    assert (listed["versions"], listed["latest"], listed["channels"]) == ([1, 2], 2, {"stable": 2})
    reply = own.client.get("/artifacts/colors/stable")
    assert (reply.json()["version"], reply.headers["cache-control"]) == (2, "no-cache")
    assert reply.headers["content-location"] == "/artifacts/colors/2/manifest.json"
    assert own.client.get("/artifacts/colors/stable", headers={"If-None-Match": reply.headers["etag"]}).status_code == 304
    assert own.client.get("/artifacts/colors/latest").json()["version"] == 2
    for absent in ("canary", "beta", "Stable", "channels.json"):
        assert own.client.get(f"/artifacts/colors/{absent}").status_code == 404


def test_the_location_of_the_latest_manifest_has_the_same_bytes(own: Any) -> None:
    latest = own.client.get("/artifacts/colors/latest")
    there = own.client.get(latest.headers["content-location"])
    assert (there.content, there.headers["etag"]) == (latest.content, latest.headers["etag"])
    assert own.client.get("/artifacts/colors/1").content == latest.content


FILES = ["manifest.json", "model.onnx", "labels.txt", "golden/golden.json", "golden/0.jpg"]


@pytest.mark.parametrize("name", FILES)
def test_a_listed_file_is_sent_with_its_digest_and_type(site: Any, artifact_template: Path, name: str) -> None:
    data = (artifact_template / name).read_bytes()
    reply = site.client.get(f"/artifacts/colors/1/{name}")
    assert reply.content == data
    assert reply.headers["etag"] == f'"{sha256(data)}"'
    assert reply.headers["repr-digest"] == f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["accept-ranges"] == "bytes"
    assert reply.headers["content-length"] == str(len(data))
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "content-encoding" not in reply.headers


@pytest.mark.parametrize(
    "path", ["/artifacts/colors/1/model.onnx", "/artifacts/colors/latest", "/artifacts/colors/1", "/artifacts"]
)
def test_head_has_the_headers_of_get_and_no_body(site: Any, path: str) -> None:
    get, head = site.client.get(path), site.client.head(path, headers={"Range": "bytes=0-1"})
    assert (head.status_code, head.content) == (200, b"")
    own = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in own} == {k: v for k, v in get.headers.items() if k not in own}


def test_a_device_can_download_and_verify_a_whole_artifact(site: Any, tmp_path: Path) -> None:
    from edgeline.serve.classifier import Classifier

    manifest = site.client.get("/artifacts/colors/latest")
    place = manifest.headers["content-location"].removesuffix("manifest.json")
    for name in ["manifest.json", *(entry["path"] for entry in manifest.json()["files"])]:
        (tmp_path / "1" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "1" / name).write_bytes(site.client.get(place + name).content)
    assert Classifier.open(tmp_path / "1").self_test is not None


# Conditions and ranges on the wire

TEXT = b"red\ngreen\nblue\ndark\n"
PATH = "/artifacts/colors/1/labels.txt"
TAG = f'"{sha256(TEXT)}"'

RANGES = {
    "a range": ("bytes=4-8", 206, b"green", "bytes 4-8/20"),
    "from a place on": ("bytes=15-", 206, b"dark\n", "bytes 15-19/20"),
    "the last bytes": ("bytes=-5", 206, b"dark\n", "bytes 15-19/20"),
    "beyond the end": ("bytes=15-99", 206, b"dark\n", "bytes 15-19/20"),
    "everything": ("bytes=0-", 206, TEXT, "bytes 0-19/20"),
    "backwards": ("bytes=8-4", 200, TEXT, None),
    "several": ("bytes=0-1,4-5", 200, TEXT, None),
    "another unit": ("lines=1-2", 200, TEXT, None),
    "nonsense": ("bytes=abc", 200, TEXT, None),
}


@pytest.mark.parametrize(("header", "status", "content", "place"), RANGES.values(), ids=RANGES)
def test_a_single_range_is_sent(site: Any, header: str, status: int, content: bytes, place: str | None) -> None:
    reply = site.client.get(PATH, headers={"Range": header})
    assert (reply.status_code, reply.content, reply.headers.get("content-range")) == (status, content, place)
    assert reply.headers["etag"] == TAG


@pytest.mark.parametrize("header", ["bytes=20-", "bytes=20-30", "bytes=-0", "bytes=" + "9" * 5000 + "-"], ids=lambda h: h[:15])
def test_a_range_outside_the_file_is_a_416_with_the_size(site: Any, header: str) -> None:
    reply = site.client.get(PATH, headers={"Range": header})
    is_error(reply, 416, "range_not_satisfiable")
    assert reply.headers["content-range"] == "bytes */20"


IF_RANGE = {
    "the tag": (TAG, 206),
    "a weak tag": (f"W/{TAG}", 200),
    "another tag": ('"other"', 200),
    "a date": ("Sat, 21 Nov 2026 10:00:00 GMT", 200),
    "empty": ("", 200),
}


@pytest.mark.parametrize(("value", "status"), IF_RANGE.values(), ids=IF_RANGE)
def test_a_download_is_resumed_only_from_the_same_file(site: Any, value: str, status: int) -> None:
    reply = site.client.get(PATH, headers={"Range": "bytes=4-8", "If-Range": value})
    assert (reply.status_code, reply.content) == (status, b"green" if status == 206 else TEXT)


CONDITIONS = {
    "If-None-Match of the tag": ({"If-None-Match": TAG}, 304),
    "If-None-Match of a weak tag": ({"If-None-Match": f"W/{TAG}"}, 304),
    "If-None-Match of a list": ({"If-None-Match": f'"a", {TAG}'}, 304),
    "If-None-Match of anything": ({"If-None-Match": "*"}, 304),
    "If-None-Match of another tag": ({"If-None-Match": '"a"'}, 200),
    "If-None-Match goes before Range": ({"If-None-Match": TAG, "Range": "bytes=99-"}, 304),
    "If-Match of the tag": ({"If-Match": TAG}, 200),
    "If-Match of anything": ({"If-Match": "*"}, 200),
    "If-Match of another tag": ({"If-Match": '"a"'}, 412),
    "If-Match of a weak tag": ({"If-Match": f"W/{TAG}"}, 412),
    "If-Modified-Since": ({"If-Modified-Since": "Sat, 21 Nov 2099 10:00:00 GMT"}, 200),
}


@pytest.mark.parametrize(("headers", "status"), CONDITIONS.values(), ids=CONDITIONS)
def test_conditional_headers_are_evaluated(site: Any, headers: dict[str, str], status: int) -> None:
    reply = site.client.get(PATH, headers=headers)
    assert reply.status_code == status
    if status == 304:
        assert reply.content == b""
        assert reply.headers["etag"] == TAG
        assert "immutable" in reply.headers["cache-control"]
        assert "content-length" not in reply.headers


def test_an_interrupted_download_resumes(own: Any, large: Path) -> None:
    path, data = "/artifacts/colors/1/model.large.bin", large.read_bytes()
    tag = own.client.head(path).headers["etag"]
    received = b""
    while len(received) < len(data):
        headers = {"Range": f"bytes={len(received)}-", "If-Range": tag}
        with own.client.stream("GET", path, headers=headers) as reply:
            assert reply.status_code == 206
            chunks = reply.iter_bytes(2**20)
            received += b"".join(next(chunks, b"") for _ in range(5))  # then the connection drops
    assert sha256(received) == sha256(data) == tag.strip('"')


# Everything else


@pytest.fixture(name="baited", scope="module")
def store_with_bait(artifact_template: Path, tmp_path_factory: pytest.TempPathFactory, serving: Any) -> Iterator[Any]:
    """A store with a canary in every place that a crafted path may reach; shared, so tests must not change it."""
    around = tmp_path_factory.mktemp("bait")
    store = around / "store"
    folder = store / "colors" / "1"
    shutil.copytree(artifact_template, folder)
    for place in (around, store, folder.parent, folder):
        (place / "canary.txt").write_text("canary")
        (place / "canary").mkdir()
        (place / "canary" / "canary.txt").write_text("canary")
    (folder / "link.txt").symlink_to(around / "canary.txt")
    (folder / "away").symlink_to(around / "canary")
    (folder.parent / "7").symlink_to(folder)
    (store / "linked").symlink_to(folder.parent)
    (store / "outside").symlink_to(around)
    with serving(artifact_template, store=store) as site:
        yield site


TRAVERSALS = [
    "/artifacts/../canary.txt",
    "/artifacts/colors/1/../../../canary.txt",
    "/artifacts/colors/1/../canary.txt",
    "/artifacts/colors/1/canary.txt",
    "/artifacts/colors/1/canary/canary.txt",
    "/artifacts/colors/1/golden/../canary.txt",
    "/artifacts/colors/1/golden/../model.onnx",
    "/artifacts/colors/1/./model.onnx",
    "/artifacts/colors/1//model.onnx",
    "/artifacts/colors/1/model.onnx/",
    "/artifacts/colors/1/MODEL.ONNX",
    "/artifacts/colors/1/%2e%2e/canary.txt",
    "/artifacts/colors/1/%2e%2e%2f%2e%2e%2fcanary.txt",
    "/artifacts/colors/1/%252e%252e%252fcanary.txt",
    "/artifacts/colors/1/..%5c..%5ccanary.txt",
    "/artifacts/colors/1/..\\canary.txt",
    "/artifacts/colors/1/model.onnx%00.txt",
    "/artifacts/colors/1/%00",
    "/artifacts/colors/1/%0a",
    "/artifacts/colors/1/" + "x" * 5000,
    "/artifacts/colors/1/" + "x/" * 2500,
    "/artifacts/colors/1//etc/passwd",
    "/artifacts//etc/passwd",
    "/artifacts/colors/1/link.txt",
    "/artifacts/colors/1/away/canary.txt",
    "/artifacts/colors/1/golden",
    "/artifacts/colors/1/",
    "/artifacts/colors/7/model.onnx",
    "/artifacts/colors/7",
    "/artifacts/linked/1/model.onnx",
    "/artifacts/linked/latest",
    "/artifacts/outside/store/canary.txt",
    "/artifacts/%2e%2e/canary/canary.txt",
    "/artifacts/../latest",
    "/artifacts/%2e%2e/latest",
    "/artifacts/%00/latest",
    "/artifacts/colors/01/model.onnx",
    "/artifacts/colors/1%00/model.onnx",
    "/artifacts/colors/%d9%a1/model.onnx",
    "/artifacts/colors/-1/model.onnx",
    "/artifacts/colors/2/model.onnx",
    "/artifacts/colors/" + "9" * 5000 + "/model.onnx",
    "/artifacts/colors/canary/canary.txt",
    "/artifacts/COLORS/1/model.onnx",
    "/artifacts/absent/latest",
    "/artifacts/canary/latest",
    "/artifacts/",
]


@pytest.mark.parametrize("path", TRAVERSALS, ids=lambda path: path.removeprefix("/artifacts")[:40])
def test_a_path_that_no_manifest_lists_is_a_404(baited: Any, path: str) -> None:
    answer = baited.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b'"code":"not_found"' in answer
    assert b"canary" not in answer.partition(b"\r\n\r\n")[2]


def test_a_percent_escape_that_is_not_utf_8_is_rejected(baited: Any) -> None:
    answer = baited.raw(b"GET /artifacts/colors/1/%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"canary" not in answer


def test_links_are_not_listed(baited: Any) -> None:
    assert baited.client.get("/artifacts").json()["artifacts"] == [
        {"name": "colors", "versions": [1], "latest": 1, "channels": {"stable": 1}}
    ]


def test_a_listed_file_replaced_by_a_link_is_a_404(own: Any, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / "card.md", tmp_path / "card.md")
    (folder / "card.md").symlink_to(tmp_path / "card.md")
    is_error(own.client.get("/artifacts/colors/1/card.md"), 404, "not_found")


def test_a_listed_file_replaced_by_a_pipe_is_a_404(own: Any, folder: Path) -> None:
    (folder / "card.md").unlink()
    os.mkfifo(folder / "card.md")
    is_error(own.client.get("/artifacts/colors/1/card.md"), 404, "not_found")


def test_without_a_store_there_are_no_downloads(artifact_template: Path, serving: Any) -> None:
    with serving(artifact_template) as site:
        is_error(site.client.get("/artifacts"), 404, "not_found")
        is_error(site.client.get("/artifacts/colors/1/model.onnx"), 404, "not_found")


def test_a_store_that_does_not_exist_yet_is_empty(artifact_template: Path, tmp_path: Path, serving: Any) -> None:
    with serving(artifact_template, store=tmp_path / "absent") as site:
        assert site.client.get("/artifacts").json() == {"artifacts": []}
        is_error(site.client.get("/artifacts/colors/latest"), 404, "not_found")


def test_a_store_that_cannot_be_read_is_a_503_without_its_path(artifact_template: Path, tmp_path: Path, serving: Any) -> None:
    (tmp_path / "store").touch()
    with serving(artifact_template, store=tmp_path / "store") as site:
        is_error(site.client.get("/artifacts"), 503, "store_unusable")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_a_store_is_read_only(site: Any, method: str) -> None:
    reply = site.client.request(method, PATH)
    is_error(reply, 405, "method_not_allowed")
    assert set(reply.headers["allow"].split(", ")) == {"GET", "HEAD"}


# Files that changed


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("before", [False, True], ids=["never given", "given before"])
def test_a_changed_file_is_not_sent_until_it_is_restored(own: Any, folder: Path, before: bool) -> None:
    path, whole = "/artifacts/colors/1/model.onnx", (folder / "model.onnx").read_bytes()
    if before:
        assert own.client.get(path).content == whole
    flip(folder / "model.onnx")
    for request in (own.client.get, own.client.head):
        assert request(path).status_code == 503
    is_error(own.client.get(path), 503, "digest_mismatch")
    (folder / "model.onnx").write_bytes(whole)
    assert own.client.get(path).content == whole


def test_a_change_that_keeps_size_and_time_is_noticed(own: Any, folder: Path) -> None:
    path = folder / "model.onnx"
    assert own.client.get("/artifacts/colors/1/model.onnx").status_code == 200
    held = path.stat()
    flip(path)
    os.utime(path, ns=(held.st_atime_ns, held.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (held.st_size, held.st_mtime_ns)
    is_error(own.client.get("/artifacts/colors/1/model.onnx"), 503, "digest_mismatch")


def test_a_longer_file_is_not_sent(own: Any, folder: Path) -> None:
    with (folder / "labels.txt").open("a") as file:
        file.write("pink\n")
    is_error(own.client.get(PATH), 503, "digest_mismatch")


def test_a_version_under_another_number_is_not_sent(own: Any, folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "2")
    is_error(own.client.get("/artifacts/colors/2/model.onnx"), 503, "artifact_invalid")
    is_error(own.client.get("/artifacts/colors/latest"), 503, "artifact_invalid")
    assert own.client.get("/artifacts/colors/1/model.onnx").status_code == 200


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "edgeline.artifact/1"}'])
def test_nothing_is_sent_under_a_broken_manifest(own: Any, folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    is_error(own.client.get("/artifacts/colors/1/manifest.json"), 503, "manifest_invalid")
    is_error(own.client.get("/artifacts/colors/1/model.onnx"), 503, "manifest_invalid")


def test_a_manifest_cannot_list_files_outside_its_folder(own: Any, folder: Path, tmp_path: Path) -> None:
    data = json.loads((folder / "manifest.json").read_text())
    canary = b"canary"
    (tmp_path / "canary.txt").write_bytes(canary)
    data["files"].append({"path": "../../../canary.txt", "size": 6, "sha256": sha256(canary), "role": "card"})
    (folder / "manifest.json").write_text(json.dumps(data))
    answer = own.raw(b"GET /artifacts/colors/1/../../../canary.txt HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"canary" not in answer


def test_a_file_that_changes_while_it_is_sent_is_cut_off(own: Any, large: Path) -> None:
    with own.client.stream("GET", "/artifacts/colors/1/model.large.bin") as reply:
        assert reply.status_code == 200
        chunks = reply.iter_raw()
        next(chunks)
        flip(large)
        with pytest.raises(httpx.RemoteProtocolError):
            for _ in chunks:
                pass


def test_a_new_version_is_hashed_once_for_all_clients(own: Any, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    digest = published.OpenFile.digest

    def counted(opened: published.OpenFile) -> str:
        hashed.append(opened.size)
        return digest(opened)

    monkeypatch.setattr(published.OpenFile, "digest", counted)
    with ThreadPoolExecutor(8) as pool:
        url = f"{own.url}/artifacts/colors/1/model.large.bin"
        replies = list(pool.map(lambda _: HTTP.head(url).status_code, range(24)))
    assert replies == [200] * 24
    assert hashed == [LARGE]


# Resources


def test_a_large_file_is_not_held_in_memory(own: Any, large: Path) -> None:
    path = "/artifacts/colors/1/model.large.bin"
    own.client.head(path)
    tracemalloc.start()
    try:
        with own.client.stream("GET", path) as reply:
            received = sum(len(chunk) for chunk in reply.iter_raw(2**16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert received == LARGE
    assert peak < LARGE / 4


def open_files(name: str) -> int:
    def target(number: str) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:
            return ""

    return sum(target(number).endswith(name) for number in os.listdir("/proc/self/fd"))


def test_a_client_that_disconnects_leaves_no_file_open(own: Any, large: Path) -> None:
    for _ in range(3):
        with own.connect() as connection:
            connection.sendall(b"GET /artifacts/colors/1/model.large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    for _ in range(2000):
        if not open_files(large.name):
            break
        own.client.get("/healthz")
    assert open_files(large.name) == 0


def test_a_file_opened_for_a_disconnected_client_is_closed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beneath, begun, go_on = OpenFile.beneath, threading.Event(), threading.Event()

    def slowly(*arguments: Any) -> OpenFile | None:
        begun.set()
        assert go_on.wait(20)
        return beneath(*arguments)

    async def leave_meanwhile() -> None:
        asking = asyncio.create_task(Published(folder.parent.parent).open(("colors", "1", "labels.txt")))
        await asyncio.to_thread(begun.wait, 20)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        go_on.set()
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    monkeypatch.setattr(OpenFile, "beneath", slowly)
    asyncio.run(leave_meanwhile())
    gc.collect()  # a file that was left open warns here, and warnings are errors


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_every_response_closes_its_file(own: Any, method: str) -> None:
    paths = ["model.onnx", "manifest.json", "labels.txt", "absent"]
    headers: list[dict[str, str]] = [
        {},
        {"Range": "bytes=1-2"},
        {"Range": "bytes=9999999-"},
        {"If-None-Match": "*"},
        {"If-Match": '"x"'},
    ]
    for path in paths:
        for header in headers:
            own.client.request(method, f"/artifacts/colors/1/{path}", headers=header)
    for _ in range(2000):
        if not any(map(open_files, paths)):
            break
        own.client.get("/healthz")
    assert [open_files(path) for path in paths] == [0] * 4


# The default store


def test_the_store_of_a_version_and_of_a_name_is_found(folder: Path) -> None:
    assert store_of(folder) == folder.parent.parent
    assert store_of(folder.parent) == folder.parent.parent
    assert re.fullmatch(r".*/store", str(store_of(folder)))


def test_an_artifact_elsewhere_has_no_store(folder: Path, tmp_path: Path) -> None:
    places = ["copy", "other/1", "colors/2", "1"]
    for place in places:
        shutil.copytree(folder, tmp_path / "elsewhere" / place)
    assert [store_of(tmp_path / "elsewhere" / place) for place in places] == [None] * 4
    assert store_of(tmp_path / "absent") is None


def test_a_link_to_an_artifact_finds_the_store_behind_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(folder)
    assert store_of(tmp_path / "current") == folder.parent.parent
