"""`edgeline conformance`: output, exit codes and errors."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from edgeline.flows.cli.main import main
from tests.support.cases import cases

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(name="run")
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(...)`: exit code, stdout and stderr of `edgeline conformance ...`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["edgeline", "conformance", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def test_a_conforming_server_gets_a_table_and_exit_code_0(run: Run, site: Any) -> None:
    code, out, err = run(site.url, "-k", "infer_id or infer_json_data")
    assert (code, err) == (0, "")
    assert "The request's id is returned." in out
    assert "image cannot be sent as JSON" in out
    assert "specification: 2 passed, 0 failed, 1 skipped" in out
    assert "with model colors conforms" in out


def test_a_failed_check_gets_exit_code_1_and_shows_what_was_seen(run: Run, tiny: Any) -> None:
    with tiny("no id") as url:
        code, out, _ = run(url, "-k", "infer_id")
    assert code == 1
    assert "id should be 'r-1'; seen: None" in out
    assert "with model tiny does not conform" in out


def test_the_json_report_is_one_document(run: Run, tiny: Any) -> None:
    with tiny("no id") as url:
        code, out, _ = run(url, "--json", "--model", "tiny", "-k", "infer_id or live")
    report = json.loads(out)
    assert (code, report["url"], report["model"], report["conforms"]) == (1, url, "tiny", False)
    assert report["counts"]["specification"] == {"passed": 2, "failed": 2, "skipped": 0}
    found = {check["id"]: (check["group"], check["outcome"]) for check in report["checks"]}
    assert found["live"] == ("specification", "passed")
    assert found["infer_id"] == ("specification", "failed")


def test_a_base_path_is_part_of_every_request(run: Run, tiny: Any) -> None:
    with tiny("below /base") as url:
        assert run(f"{url}/base/", "-k", "infer_id or client_infer or keep_alive")[0] == 0
        assert run(url, "-k", "infer_id")[0] == 1


def is_one_line(err: str, code: str) -> bool:
    return err.count("\n") == 1 and err.startswith("edgeline: ") and err.endswith(f"[{code}]\n")


def test_an_unreachable_server_is_reported_in_one_line(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, out, err = run(f"http://127.0.0.1:{port}")
    assert (code, out) == (1, "")
    assert is_one_line(err, "unreachable")
    assert "Connection refused" in err


WRONG: dict[str, tuple[list[str], str, str]] = {
    "an unknown model": (["--model", "nope"], "no_metadata", "404"),
    "an unknown check id": (["-k", "nope"], "no_check", "no check matches"),
    "an invalid expression": (["-k", "infer and"], "no_check", "is not a valid expression"),
    "no such image": (["--image", "/nowhere/photo.jpg"], "io_error", "No such file"),
}


@pytest.mark.parametrize(("arguments", "error", "sentence"), WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_reported_in_one_line(run: Run, site: Any, arguments: list[str], error: str, sentence: str) -> None:
    code, out, err = run(site.url, *arguments)
    assert (code, out) == (1, "")
    assert is_one_line(err, error)
    assert sentence in err


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://", "127.0.0.1:x", "http://127.0.0.1:99999", "http://[::1"])
def test_an_invalid_address_is_reported_in_one_line(run: Run, url: str) -> None:
    code, out, err = run(url)
    assert (code, out) == (1, "")
    assert is_one_line(err, "url_invalid")


class Strange(BaseHTTPRequestHandler):
    """Answers every request with the same body."""

    body = b""

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET


@pytest.mark.parametrize("body", [b"hello", b"[]", b"{}", b'[{"name": "m"}]', b'{"inputs": 1}', b"null"], ids=repr)
def test_a_server_of_another_protocol_is_reported_in_one_line(run: Run, body: bytes) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Strange,), {"body": body})) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            for more in ([], ["--model", "m"]):
                code, out, err = run(f"http://127.0.0.1:{server.server_address[1]}", *more)
                assert (code, out) == (1, "")
                assert err.count("\n") == 1
                assert err.startswith("edgeline: ")
                assert "Traceback" not in err
        finally:
            server.shutdown()
            thread.join()


PACKAGES = {name: name for name in ("tritonclient", "geventhttpclient", "pytest")}


@pytest.mark.parametrize("package", cases(PACKAGES, quick=["tritonclient"]))
def test_a_missing_extra_is_named(package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; from edgeline.flows.cli.main import main; main()"
    command = [sys.executable, "-c", program, "conformance", "http://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).resolve().parents[3])
    expected = f"edgeline: this needs the package '{package}': pip install 'edgeline[conformance]' [missing_extra]\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


def test_the_callers_pytest_configuration_is_ignored(
    run: Run, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conftest.py").write_text("raise SystemExit('the caller’s conftest ran')")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --nonsense\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--more-nonsense")
    with tiny() as url:
        assert run(url, "-k", "infer_id")[0] == 0
