"""`/predict` with the clients that people use, each as it sends an image by default: the bytes decide, not the Content-Type."""

import json
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.processes import HTTP

Reply = tuple[int, dict[str, Any]]
Client = Callable[[str, Path, dict[str, str]], Reply]


@pytest.fixture(name="server", scope="module", params=[False, True], ids=["application", "fast path"])
def real_server(artifact_template: Path, serving: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    with serving(artifact_template, fast_path=request.param) as site:
        yield site


@pytest.fixture(name="photo", scope="module")
def golden_photo(artifact_template: Path) -> Path:
    return artifact_template / "golden" / "0.jpg"


def curl(url: str, arguments: list[str], headers: dict[str, str]) -> Reply:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    options = [argument for name, value in headers.items() for argument in ("-H", f"{name}: {value}")]
    command = ["curl", "--silent", "--show-error", "--write-out", "\n%{http_code}", *options, *arguments, url]
    body, _, status = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.rpartition("\n")
    return int(status), json.loads(body)


def curl_data_binary(url: str, path: Path, headers: dict[str, str]) -> Reply:
    return curl(url, ["--data-binary", f"@{path}"], headers)


def curl_upload(url: str, path: Path, headers: dict[str, str]) -> Reply:
    return curl(url, ["-T", str(path)], headers)


def curl_form(url: str, path: Path, headers: dict[str, str]) -> Reply:
    return curl(url, ["-F", f"file=@{path}"], headers)


def python_urllib(url: str, path: Path, headers: dict[str, str]) -> Reply:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, path.read_bytes(), headers), timeout=20) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def python_httpx(url: str, path: Path, headers: dict[str, str]) -> Reply:
    reply = HTTP.post(url, content=path.read_bytes(), headers=headers, timeout=20)
    return reply.status_code, reply.json()


def httpx_put(url: str, path: Path, headers: dict[str, str]) -> Reply:
    reply = HTTP.put(url, content=path.read_bytes(), headers=headers, timeout=20)
    return reply.status_code, reply.json()


def raw_socket(url: str, path: Path, headers: dict[str, str]) -> Reply:
    """Without any Content-Type."""
    target, body = httpx.URL(url), path.read_bytes()
    lines = ["POST /predict HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((target.host, target.port or 0), timeout=20) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        head, _, answer = b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(answer)


CLIENTS: dict[str, Client] = {
    "curl --data-binary": curl_data_binary,
    "curl -T": curl_upload,
    "curl -F": curl_form,
    "urllib": python_urllib,
    "httpx": python_httpx,
    "httpx, PUT": httpx_put,
    "no Content-Type": raw_socket,
}
WITHOUT_A_FORM = {name: client for name, client in CLIENTS.items() if name != "curl -F"}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_an_image_is_classified_as_each_client_sends_it(server: Any, photo: Path, client: Client) -> None:
    status, answer = client(f"{server.url}/predict", photo, {})
    assert (status, answer["predictions"][0]["label"]) == (200, "red")


RAW_REQUESTS = {
    "F1, curl --data-binary": "Content-Type: application/x-www-form-urlencoded",
    "F1, text": "Content-Type: text/plain",
    "F1, no Content-Type": "User-Agent: x",
    "F2, Java's HttpClient": (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"
    ),
}
BINARY_V2 = "Inference-Header-Content-Length: 0\r\nAccept: application/json\r\n"


@pytest.mark.parametrize("half_closes", [False, True], ids=["waits", "G2, half-closes"])
@pytest.mark.parametrize("lines", RAW_REQUESTS.values(), ids=RAW_REQUESTS)
def test_the_bytes_that_a_client_sends_are_answered(server: Any, photo: Path, lines: str, half_closes: bool) -> None:
    body = photo.read_bytes()
    for path, more in (("/predict", ""), ("/v2/models/colors/infer", BINARY_V2)):
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode()
        with server.connect() as connection, connection.makefile("rb") as replies:
            for last in (False, True):  # the connection is kept for the second
                connection.sendall(head + body)
                if half_closes and last:
                    connection.shutdown(socket.SHUT_WR)
                status_line = replies.readline()
                headers = dict(line.decode().rstrip().lower().split(": ", 1) for line in iter(replies.readline, b"\r\n"))
                answer = json.loads(replies.read(int(headers["content-length"])))
                assert status_line == b"HTTP/1.1 200 OK\r\n"
                if path == "/predict":
                    assert answer["predictions"][0]["label"] == "red"
                else:
                    assert answer["outputs"][0]["data"][0] == pytest.approx(0.9968, abs=1e-3)
                assert half_closes or "connection" not in headers
            assert not half_closes or replies.read() == b""


TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/mixed; boundary=B", "image/x-unknown", "nonsense", ""]


@pytest.mark.parametrize("content_type", TYPES)
def test_the_content_type_does_not_change_the_answer(server: Any, photo: Path, content_type: str) -> None:
    status, answer = python_httpx(f"{server.url}/predict", photo, {"Content-Type": content_type})
    assert (status, answer["predictions"][0]["label"]) == (200, "red")


@pytest.mark.parametrize("client", WITHOUT_A_FORM.values(), ids=WITHOUT_A_FORM)
def test_json_is_a_415_that_names_the_v2_route(server: Any, photo: Path, client: Client) -> None:
    status, answer = client(f"{server.url}/predict", photo, {"Content-Type": "application/json"})
    assert (status, answer["code"]) == (415, "media_type_not_supported")
    assert "POST /v2/models/{model}/infer" in answer["error"]


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_what_is_not_an_image_is_a_422_that_names_the_formats(server: Any, tmp_path: Path, client: Client) -> None:
    (tmp_path / "notes.txt").write_text("top_k=5&image=none")
    status, answer = client(f"{server.url}/predict", tmp_path / "notes.txt", {})
    assert (status, answer["code"]) == (422, "not_an_image")
    assert "JPEG, PNG, WebP, GIF, BMP" in answer["error"]


def test_put_and_post_give_the_same_answer(server: Any, photo: Path) -> None:
    url = f"{server.url}/predict?top_k=2"
    assert httpx_put(url, photo, {}) == python_httpx(url, photo, {})


def test_put_is_counted_under_its_own_method(server: Any, photo: Path) -> None:
    httpx_put(f"{server.url}/predict", photo, {})
    assert 'method="PUT",route="/predict",status="200"' in HTTP.get(f"{server.url}/metrics").text


def test_openapi_describes_both_methods_alike(server: Any) -> None:
    described = HTTP.get(f"{server.url}/openapi.json").json()["paths"]["/predict"]
    post, put = ({**described[method], "operationId": ""} for method in ("post", "put"))
    assert post == put
    assert "Content-Type" in post["requestBody"]["description"]
