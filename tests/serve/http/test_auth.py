"""Bearer tokens: which requests are accepted, and that nothing else decides it."""

import os
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.errors import ConfigError
from edgeline.serve.http.auth import Tokens

FIRST, SECOND = "first-" + "a" * 20, "second-" + "b" * 20


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"# of the camera boxes\n  # and of the old one, which is gone\n{FIRST}\n\n  {SECOND}  \n")
    return path


@pytest.fixture
def guarded(artifact_template: Path, tokens: Path, serving: Any) -> Any:
    with serving(artifact_template, tokens=Tokens(tokens), store=artifact_template.parent.parent) as site:
        yield site


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("token", [FIRST, SECOND])
def test_each_token_of_the_file_is_accepted(guarded: Any, artifact_template: Path, token: str) -> None:
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    assert guarded.client.post("/predict", content=photo, headers=bearer(token)).status_code == 200


REJECTED: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "a wrong one": [("Authorization", "Bearer " + "c" * 26)],
    "an empty one": [("Authorization", "Bearer")],
    "no scheme": [("Authorization", FIRST)],
    "another scheme": [("Authorization", f"Basic {FIRST}")],
    "in capitals": [("Authorization", f"Bearer {FIRST.upper()}")],
    "one letter less": [("Authorization", f"Bearer {FIRST[:-1]}")],
    "one letter more": [("Authorization", f"Bearer {FIRST}a")],
    "the comment": [("Authorization", "Bearer # of the camera boxes")],
    "an indented comment": [("Authorization", "Bearer # and of the old one, which is gone")],
    "two headers": [("Authorization", f"Bearer {FIRST}"), ("Authorization", f"Bearer {FIRST}")],
    "in another header": [("X-API-Key", FIRST)],
    "a rewritten address": [("X-Original-URL", "/healthz")],
    "another method": [("X-HTTP-Method-Override", "OPTIONS")],
}
PATHS = [
    "/predict",
    "/metrics",
    "/artifacts",
    "/artifacts/colors/latest",
    "/model",
    "//healthz",
    "/healthz/",
    "/HEALTHZ",
    "/healthz;",
]


@pytest.mark.parametrize("headers", REJECTED.values(), ids=REJECTED)
def test_requests_without_a_valid_token_are_rejected(guarded: Any, headers: list[tuple[str, str]]) -> None:
    reply = guarded.client.get("/metrics", headers=headers)
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"] == 'Bearer realm="edgeline"'


@pytest.mark.parametrize("path", PATHS)
def test_every_other_path_requires_a_token(guarded: Any, path: str) -> None:
    answer = guarded.raw(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


def test_a_token_in_the_query_is_not_accepted(guarded: Any) -> None:
    assert guarded.client.get("/metrics", params={"token": FIRST, "access_token": FIRST}).status_code == 401


def test_credentials_that_are_not_text_are_rejected(guarded: Any) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
    assert guarded.raw(request).startswith(b"HTTP/1.1 401 ")


def test_the_pages_files_need_no_token_but_their_data_does(guarded: Any) -> None:
    page = guarded.client.get("/").text
    assert "page.js" in page
    assert guarded.client.get("/page.js").status_code == 200
    assert "colors" not in page
    assert guarded.client.get("/model").status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_checks_need_no_token(guarded: Any, path: str) -> None:
    assert guarded.client.get(path).status_code == 200


def test_a_changed_token_file_applies_to_the_next_request(guarded: Any, tokens: Path) -> None:
    other = tokens.with_name("new")
    other.write_text("third-" + "d" * 20)
    os.replace(other, tokens)
    assert guarded.client.get("/metrics", headers=bearer(FIRST)).status_code == 401
    assert guarded.client.get("/metrics", headers=bearer("third-" + "d" * 20)).status_code == 200


@pytest.mark.parametrize("content", [None, "", "short\n"])
def test_a_token_file_that_becomes_invalid_changes_nothing(guarded: Any, tokens: Path, content: str | None) -> None:
    if content is None:
        tokens.unlink()
    else:
        tokens.write_text(content)
    for _ in range(2):
        assert guarded.client.get("/metrics", headers=bearer(FIRST)).status_code == 200


BAD_FILES = {
    "empty": ("", "has no tokens"),
    "comments only": ("# nothing\n", "has no tokens"),
    "a short one": (f"{FIRST}\nshort\n", "1 of the tokens .* shorter than 16"),
    "not ASCII": ("ü" * 30, "not ASCII"),
    "too large": ("a" * 70_000, "limit of a token file"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_token_file_without_valid_tokens_is_an_error(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(ConfigError, match=reason):
        Tokens(tmp_path / "tokens")


def test_a_missing_token_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        Tokens(tmp_path / "absent")


def test_every_token_is_compared_whichever_matches(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared: list[int] = []
    real = hmac.compare_digest
    monkeypatch.setattr("edgeline.serve.http.auth.hmac.compare_digest", lambda a, b: compared.append(len(a)) or real(a, b))
    read = Tokens(tokens)
    for token in (FIRST, SECOND, "wrong"):
        read.accept([f"Bearer {token}".encode()])
    assert compared == [32] * 6  # digests, so that their length reveals nothing either


ORIGIN = "https://example.org"


def test_other_origins_get_no_cors_headers_unless_configured(artifact_template: Path, serving: Any) -> None:
    with serving(artifact_template) as site:
        assert "access-control-allow-origin" not in site.client.get("/readyz", headers={"Origin": ORIGIN}).headers
        preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
        assert site.client.options("/predict", headers=preflight).status_code == 405
    with serving(artifact_template, cors=[ORIGIN]) as site:
        assert site.client.get("/readyz", headers={"Origin": ORIGIN}).headers["access-control-allow-origin"] == ORIGIN
        assert site.client.options("/predict", headers=preflight).status_code == 200
        assert "access-control-allow-origin" not in site.client.get("/readyz", headers={"Origin": "https://other.org"}).headers


def test_a_cors_preflight_needs_no_token(artifact_template: Path, tokens: Path, serving: Any) -> None:
    with serving(artifact_template, cors=[ORIGIN], tokens=Tokens(tokens)) as site:
        preflight = {
            "Origin": ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        assert site.client.options("/predict", headers=preflight).status_code == 200
        assert site.client.get("/metrics", headers={"Origin": ORIGIN}).status_code == 401
