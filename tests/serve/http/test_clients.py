"""F1, F2, G4: real HTTP clients post a photo by their defaults and get the classifier's prediction."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeline.serve.classifier import Classifier
from tests.support.clients.matrix import CLIENTS, Client

ROOT = Path(__file__).resolve().parents[3]
PHOTO_BYTES = 1_500_000
"""As large as a photo: curl sends `Expect: 100-continue` with it, and it arrives in many pieces."""
NAMED = [pytest.param(name, client, id=name, marks=[pytest.mark.long] * client.slow) for name, client in CLIENTS.items()]


@pytest.fixture(name="server", scope="module", params=[False, True], ids=["application", "fast path"])
def real_server(artifact_template: Path, serving: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    with serving(artifact_template, fast_path=request.param) as site:
        yield site


@pytest.fixture(name="photo", scope="module")
def large_photo(artifact_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo of a robin é.jpg"
    photo = (artifact_template / "golden" / "0.jpg").read_bytes()
    path.write_bytes(photo + bytes(PHOTO_BYTES - len(photo)))
    return path


@pytest.mark.parametrize(("name", "client"), NAMED)
def test_a_client_gets_the_prediction_however_it_sends_the_photo(
    server: Any, artifact_template: Path, photo: Path, name: str, client: Client
) -> None:
    if (missing := client.missing()) is not None:
        pytest.skip(f"{name} needs {missing}")
    [expected] = Classifier.open(artifact_template).predict([photo.read_bytes()])
    replies = client.send(f"{server.url}/predict", photo)
    assert tuple(replies) == client.ways
    for way, reply in replies.items():
        got = [(each["label"], each["probability"]) for each in json.loads(reply)["predictions"]]
        assert got == [(each.label, pytest.approx(each.probability, abs=1e-6)) for each in expected], way


def test_the_documentation_lists_exactly_these_clients() -> None:
    page = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    table = page.partition("| client | ways to send a photo |\n|---|---|\n")[2].partition("\n\n")[0]
    rows = dict(re.findall(r"(?m)^\| ([^|]+) \| ([^|]+) \|$", table))
    assert rows == {name: ", ".join(f"`{way}`" for way in client.ways) for name, client in CLIENTS.items()}
