"""Real HTTP clients, each posting a photo by its defaults, as the body and as its usual form.

`python -m tests.support.clients.matrix ARTIFACT PHOTO` prints which of them get the classifier's prediction, as Markdown.
"""

import base64
import importlib.metadata
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from edgeline.serve.classifier import Classifier
from tests.support import processes

HERE = Path(__file__).resolve().parent
JARS = (Path("/usr/share/java/okhttp.jar"), Path("/usr/share/java/okio.jar"))
TIMEOUT_S = 120
Replies = dict[str, str]
"""Each way to send a photo, and the body of the response."""


@dataclass(frozen=True, slots=True)
class Client:
    """One program or library."""

    ways: tuple[str, ...]
    send: Callable[[str, Path], Replies]
    """Called with the URL of `/predict` and a photo's file."""
    version: Callable[[], str]
    missing: Callable[[], str | None]
    """Returns what has to be installed, or None."""
    slow: bool = False
    """Whether it takes seconds of processor time."""


def output(*command: str | Path, stdin: bytes | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.decode(errors='replace')}")
    return (done.stdout or done.stderr).decode()


def lines_of(*command: str | Path) -> Replies:
    """The output of a program that prints a line for each way: its name, a tab, and the response."""
    return dict(line.split("\t", 1) for line in output(*command).splitlines())


def need_program(*names: str) -> Callable[[], str | None]:
    return lambda: next((f"the program {name}" for name in names if shutil.which(name) is None), None)


def need_package(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"the package {name}"


def need_okhttp() -> str | None:
    return need_program("java")() or next((f"the file {jar}" for jar in JARS if not jar.exists()), None)


def need_browser() -> str | None:
    return need_program("chromium")() or need_package("playwright")()


def version_from(*command: str) -> Callable[[], str]:
    def version() -> str:
        found = re.search(r"\d+(\.\d+)+", output(*command))
        return found[0] if found else "unknown"

    return version


def version_of(package: str) -> Callable[[], str]:
    return lambda: importlib.metadata.version(package)


CURL = {
    "--data-binary": ("--data-binary", "@{photo}"),
    "-T": ("-T", "{photo}"),
    "-T - (chunked)": ("-T", "-"),
    "-F": ("-F", "file=@{photo}"),
    "-F with a field": ("-F", "note=from a script", "-F", "file=@{photo}"),
    "--http2": ("--http2", "--data-binary", "@{photo}"),
    "--http2 -F": ("--http2", "-F", "file=@{photo}"),
    "--http1.0": ("--http1.0", "--data-binary", "@{photo}"),
}


def curl(url: str, photo: Path) -> Replies:
    def send(options: tuple[str, ...]) -> str:
        arguments = [option.format(photo=photo) for option in options]
        return output("curl", "--silent", "--show-error", *arguments, url, stdin=photo.read_bytes() if "-" in options else None)

    return {way: send(options) for way, options in CURL.items()}


def wget(url: str, photo: Path) -> Replies:
    return {"--post-file": output("wget", "--quiet", "--output-document=-", f"--post-file={photo}", url)}


def python_urllib(url: str, photo: Path) -> Replies:
    found: Replies = {}
    with photo.open("rb") as file:
        for way, data in (("bytes", photo.read_bytes()), ("file (chunked)", file)):
            with urllib.request.urlopen(urllib.request.Request(url, data), timeout=TIMEOUT_S) as reply:
                found[way] = reply.read().decode()
    return found


def python_requests(url: str, photo: Path) -> Replies:
    import requests

    with photo.open("rb") as raw, photo.open("rb") as form, photo.open("rb") as more:
        sent = {
            "data": requests.post(url, data=raw, timeout=TIMEOUT_S),
            "data, iterator (chunked)": requests.post(url, data=iter([photo.read_bytes()]), timeout=TIMEOUT_S),
            "files": requests.post(url, files={"file": form}, timeout=TIMEOUT_S),
            "files and data": requests.post(url, files={"file": ("é.jpg", more)}, data={"note": "a"}, timeout=TIMEOUT_S),
        }
    return {way: reply.text for way, reply in sent.items()}


def python_httpx(url: str, photo: Path) -> Replies:
    data = photo.read_bytes()
    with photo.open("rb") as form:
        sent = {
            "content": httpx.post(url, content=data, timeout=TIMEOUT_S),
            "content, iterator (chunked)": httpx.post(url, content=iter([data]), timeout=TIMEOUT_S),
            "files": httpx.post(url, files={"file": form}, timeout=TIMEOUT_S),
            "files and data": httpx.post(url, files={"file": data}, data={"note": "a"}, timeout=TIMEOUT_S),
        }
    return {way: reply.text for way, reply in sent.items()}


def python_aiohttp(url: str, photo: Path) -> Replies:
    import asyncio

    import aiohttp

    async def post(session: aiohttp.ClientSession, data: object) -> str:
        async with session.post(url, data=data) as reply:
            return await reply.text()

    async def send() -> Replies:
        async with aiohttp.ClientSession() as session:
            form = aiohttp.FormData({"note": "a"})
            form.add_field("file", io.BytesIO(photo.read_bytes()), filename="é.jpg")
            return {"data": await post(session, io.BytesIO(photo.read_bytes())), "FormData": await post(session, form)}

    return asyncio.run(send())


def chromium(url: str, photo: Path) -> Replies:
    from playwright import sync_api

    program = shutil.which("chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url.removesuffix("predict"))
        script = (HERE / "browser.js").read_text(encoding="utf-8").partition("\n")[2].rstrip().removesuffix(";")
        found: Replies = page.evaluate(script, [url, base64.b64encode(photo.read_bytes()).decode()])
        browser.close()
    return found


CLIENTS = {
    "curl": Client(tuple(CURL), curl, version_from("curl", "--version"), need_program("curl")),
    "wget": Client(("--post-file",), wget, version_from("wget", "--version"), need_program("wget")),
    "Python urllib": Client(
        ("bytes", "file (chunked)"), python_urllib, lambda: ".".join(map(str, sys.version_info[:3])), lambda: None
    ),
    "Python requests": Client(
        ("data", "data, iterator (chunked)", "files", "files and data"),
        python_requests,
        version_of("requests"),
        need_package("requests"),
    ),
    "Python httpx": Client(
        ("content", "content, iterator (chunked)", "files", "files and data"),
        python_httpx,
        version_of("httpx"),
        need_package("httpx"),
    ),
    "Python aiohttp": Client(("data", "FormData"), python_aiohttp, version_of("aiohttp"), need_package("aiohttp")),
    "Node fetch and http": Client(
        (
            "fetch, Buffer",
            "fetch, Blob",
            "fetch, stream (chunked)",
            "fetch, FormData",
            "fetch, FormData with a field",
            "http.request (chunked)",
        ),
        lambda url, photo: lines_of("node", "--no-warnings", HERE / "node.mjs", url, photo),
        version_from("node", "--version"),
        need_program("node"),
    ),
    "Java HttpClient": Client(
        ("ofFile", "ofInputStream (chunked)", "ofFile, expectContinue", "multipart"),
        lambda url, photo: lines_of("java", HERE / "JavaHttpClient.java", url, photo),
        version_from("java", "--version"),
        need_program("java"),
        slow=True,
    ),
    "OkHttp": Client(
        ("RequestBody", "MultipartBody", "MultipartBody with a field"),
        lambda url, photo: lines_of("java", "-cp", ":".join(map(str, JARS)), HERE / "OkHttp.java", url, photo),
        lambda: next(JARS[0].parent.glob("okhttp-[0-9]*.jar")).stem.removeprefix("okhttp-"),
        need_okhttp,
        slow=True,
    ),
    "Go net/http": Client(
        ("http.Post", "http.Post, reader (chunked)", "multipart with a field"),
        lambda url, photo: lines_of("go", "run", HERE / "client.go", url, photo),
        version_from("go", "version"),
        need_program("go"),
        slow=True,
    ),
    "Chromium": Client(
        (
            "fetch, File",
            "fetch, bytes",
            "fetch, FormData",
            "fetch, FormData with a field",
            "XMLHttpRequest, File",
            "XMLHttpRequest, FormData",
        ),
        chromium,
        version_from("chromium", "--version"),
        need_browser,
        slow=True,
    ),
}


def main(artifact: Path, photo: Path) -> None:
    """Print the table of all clients, for one artifact and one photo."""
    [expected] = Classifier.open(artifact).predict([photo.read_bytes()])
    print("| client | version | sent as | result |\n|---|---|---|---|")
    with processes.started(artifact) as (_, url):
        processes.wait_until_ready(url)
        for name, client in CLIENTS.items():
            if (missing := client.missing()) is not None:
                print(f"| {name} | - | - | skipped: needs {missing} |")
                continue
            for way, reply in client.send(f"{url}/predict", photo).items():
                answer = json.loads(reply)
                passed = "predictions" in answer and answer["predictions"][0]["label"] == expected[0].label
                print(f"| {name} | {client.version()} | {way} | {'passed' if passed else answer} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
