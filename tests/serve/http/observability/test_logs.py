"""The log: one line per event, with the expected fields."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.http.observability.logs import JsonLines, TextLines


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("serve.x", logging.INFO, __file__, 1, message, arguments, None)
    made.__dict__.update(extra)
    return made


def test_a_json_line_is_one_object_with_its_fields() -> None:
    fields = json.loads(JsonLines().format(record("a %s", "b", request_id="r1", status=200, secret="no")))
    assert (fields["message"], fields["level"], fields["logger"]) == ("a b", "info", "serve.x")
    assert (fields["request_id"], fields["status"]) == ("r1", 200)
    assert "secret" not in fields


@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()], ids=["json", "text"])
@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\n2026-01-01 ERROR forged: line"])
def test_text_from_a_client_cannot_start_a_new_line(formatter: logging.Formatter, text: str) -> None:
    assert len(formatter.format(record("seen: %s", text)).splitlines()) == 1


def test_an_error_is_logged_with_its_traceback() -> None:
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        made = record("failed")
        made.exc_info = (RuntimeError, error, error.__traceback__)
    assert "RuntimeError: why" in json.loads(JsonLines().format(made))["traceback"]
    assert "RuntimeError: why" in TextLines().format(made)


def test_the_access_log_has_a_line_for_each_request_with_its_route(
    artifact_template: Path, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgeline.serve.access_log")
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    with serving(artifact_template, access_log=True) as site:
        caplog.clear()
        site.client.post("/predict", content=photo, headers={"X-Request-Id": "mine"})
        site.client.get("/secret/path?token=secret")
        site.client.get("/healthz")
    # The line of the request that found the server ready may be written after the list was cleared.
    lines = [each for each in caplog.records if each.name == "edgeline.serve.access_log"][-3:]
    assert [(line.route, line.status, line.method) for line in lines] == [  # type: ignore[attr-defined]
        ("/predict", 200, "POST"),
        ("other", 404, "GET"),
        ("/healthz", 200, "GET"),
    ]
    assert lines[0].request_id == "mine"  # type: ignore[attr-defined]
    assert "secret" not in "".join(line.getMessage() for line in lines)


def test_requests_are_not_logged_by_default(artifact_template: Path, serving: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(artifact_template) as site:
        caplog.clear()
        site.client.get("/healthz")
    assert [each for each in caplog.records if each.name == "edgeline.serve.access_log"] == []
