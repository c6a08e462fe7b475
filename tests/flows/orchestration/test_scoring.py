"""Batch inference as a flow: typed parameters, and a table of the classes."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.orchestration import get_client

from edgeline.flows.orchestration.scoring import score


def test_the_parameters_of_the_flow_are_described() -> None:
    properties = score.parameters.properties
    assert set(properties) == {"artifact", "source", "output", "channel", "options"}
    assert properties["source"]["description"].startswith("A folder of images")


@pytest.mark.long
def test_a_run_scores_a_folder_and_shows_a_table(make_artifact: Any, tmp_path: Path, prefect_api: str) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 16), (200, 40, 30)).save(tmp_path / "photos" / "red.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"")
    scored = score(make_artifact(name="scored"), tmp_path / "photos", str(tmp_path / "scores"))
    assert scored.summary["errors"] == {"image_empty": 1}
    with get_client(sync_client=True) as client:
        [table] = [each for each in client.read_artifacts() if each.key == "edgeline-scored-scores"][:1]
        assert '"class": "red"' in table.data
        assert '"error: image_empty"' in table.data
