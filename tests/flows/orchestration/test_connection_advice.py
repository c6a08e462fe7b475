"""A Prefect server that cannot be used: the message names what to change (F15)."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from edgeline.flows.orchestration.embedded import EmbeddedServer
from edgeline.flows.orchestration.server import check_server
from edgeline.serve.errors import EdgelineError

HTML, JSON = "text/html", "application/json"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Handler(BaseHTTPRequestHandler):
    """Answers `pages`, by path, and everything else with `other`: status, content type, body."""

    pages: ClassVar[dict[str, tuple[int, str, str]]] = {}
    other: ClassVar[tuple[int, str, str]] = (404, JSON, '{"detail":"Not Found"}')

    def do_GET(self) -> None:
        status, kind, body = self.pages.get(self.path, self.other)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "https://login.example.org/start?password=none")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *arguments: object) -> None:
        pass


PREFECT = {"/api/health": (200, JSON, "true")}
INTERFACE = (200, HTML, "<!doctype html><title>Prefect Server</title>")
LOGIN = (200, HTML, "<html><head><title>\n Sign in to the\n network </title></head></html>")


@contextmanager
def server(
    pages: dict[str, tuple[int, str, str]], other: tuple[int, str, str] = Handler.other, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Yield the host and port of a small server."""
    handler = type("Pages", (Handler,), {"pages": pages, "other": other})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        if tls is not None:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that is bound, but not listening."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The files of an untrusted certificate, and of its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    options = ["-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command = ["openssl", "req", "-x509", *options, "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(command, check=True, capture_output=True)
    return files


def message_for(url: str) -> str:
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(EdgelineError) as caught:
        check_server(url)
    assert caught.value.code == "prefect_unreachable"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", ["", "/"], ids=["F15-without /api", "F15-with a slash only"])
@pytest.mark.parametrize("other", [INTERFACE, Handler.other], ids=["with the interface", "without it"])
def test_a_missing_api_in_the_address_is_named(other: tuple[int, str, str], path: str) -> None:
    with server(PREFECT, other) as host:
        assert f"; /api is missing: set PREFECT_API_URL to http://{host}/api, unset" in message_for(f"http://{host}{path}")


def test_a_missing_api_is_named_for_a_real_server(prefect_server: EmbeddedServer) -> None:
    """F15: the answers of the other tests' server are those of Prefect."""
    url = prefect_server.url.removesuffix("/api")
    assert f"/api is missing: set PREFECT_API_URL to {prefect_server.url}, unset" in message_for(url)


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"], ids=lambda name: f"F15-{name}")
def test_a_dead_proxy_is_named_if_the_server_responds_without_it(
    variable: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"http://me:secret@127.0.0.1:{closed_port}")
    with server(PREFECT) as host:
        message = message_for(f"http://{host}/api")
    expected = f"it responds without the proxy http://127.0.0.1:{closed_port} ({variable.upper()}): add 127.0.0.1 to NO_PROXY"
    assert expected in message
    assert "secret" not in message


def test_a_proxy_is_named_if_nothing_responds(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """F15."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port}")
    message = message_for(f"http://127.0.0.1:{closed_port}/api")
    assert f"requests to it are sent through the proxy http://127.0.0.1:{closed_port} (HTTP_PROXY)" in message


def test_a_proxy_that_needs_another_package_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """F15: httpx raises an ImportError."""
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1080")
    with server(PREFECT) as host:
        assert "it responds without the proxy socks5://127.0.0.1:1080 (ALL_PROXY)" in message_for(f"http://{host}/api")


def test_a_server_without_tls_is_named() -> None:
    """F15."""
    with server(PREFECT) as host:
        assert f"it uses http: set PREFECT_API_URL to http://{host}/api, unset" in message_for(f"https://{host}/api")


def test_a_server_with_tls_is_named(certificate: tuple[Path, Path]) -> None:
    """F15: its certificate need not be trusted to find this out."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with server(PREFECT, tls=context) as host:
        assert f"it uses https: set PREFECT_API_URL to https://{host}/api, unset" in message_for(f"http://{host}/api")


PAGES = {
    "a captive portal": (LOGIN, "it answers with a web page (Sign in to the network), expected Prefect's API"),
    "a redirect": ((302, HTML, ""), "it redirects to https://login.example.org/start, expected Prefect's API"),
    "an error of a reverse proxy": (
        (502, HTML, "<title>502 Bad Gateway</title>"),
        "it answers with a web page (502 Bad Gateway), expected Prefect's API",
    ),
}


@pytest.mark.parametrize(("page", "expected"), PAGES.values(), ids=[f"F15-{case}" for case in PAGES])
def test_a_page_in_place_of_the_api_is_named(page: tuple[int, str, str], expected: str) -> None:
    with server({}, page) as host:
        assert expected in message_for(f"http://{host}/api")


def test_missing_credentials_are_named() -> None:
    """F15."""
    with server(PREFECT, (401, JSON, '{"exception_message":"Unauthorized"}')) as host:
        message = message_for(f"http://{host}/api")
    assert "401 Unauthorized" in message
    assert "set PREFECT_API_AUTH_STRING" in message


def test_an_address_where_nothing_listens_is_to_be_started(closed_port: int) -> None:
    """F15."""
    assert "Connection refused; start it (prefect server start), unset" in message_for(f"http://127.0.0.1:{closed_port}/api")
