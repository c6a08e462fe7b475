"""Monitoring as a flow: a table for each window, an event for each new alarm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.events.filters import EventFilter, EventNameFilter

from edgeline.flows.orchestration.monitoring import DRIFTED, monitor
from edgeline.serve.classifier import Classifier
from edgeline.serve.drift.collector import Drift, drift_of
from edgeline.serve.drift.report import FILE_NAME
from edgeline.serve.drift.snapshot import OF_A_VERSION
from tests.serve.drift.test_report import LABELS, observe


@pytest.mark.slow
def test_an_alarm_is_an_event_with_what_has_changed_and_is_emitted_once(
    make_artifact: Any, seal: Any, tmp_path: Path, prefect_api: str, wait_for: Callable[..., Any]
) -> None:
    folder: Path = make_artifact(store=tmp_path / "store", name="dimmed")
    reference = observe(Drift(LABELS, 12, 16, model="dimmed", version=1, manifest_sha256=None), 200, seed=0)
    (folder / FILE_NAME).write_text(json.dumps(reference.snapshot() | dict.fromkeys(OF_A_VERSION)))
    seal(folder)
    path = tmp_path / "device.json"
    path.write_text(json.dumps(observe(drift_of(Classifier.open(folder)), 150, 1, 40).snapshot()))
    found = monitor("dimmed", [str(path)], artifacts=tmp_path)
    assert found.monitored is not None
    assert found.monitored.alarm[0] == "brightness"
    assert monitor("dimmed", [str(path)], artifacts=tmp_path).monitored is None

    with get_client(sync_client=True) as client:

        def events() -> list[Any]:
            wanted = EventFilter(event=EventNameFilter(name=[DRIFTED]))
            reply = client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json")})
            return [each for each in reply.json()["events"] if each["resource"]["prefect.resource.name"] == "dimmed"]

        wait_for(lambda: len(events()) >= 1)
        [event] = events()
        assert event["payload"]["drifted"][0] == "brightness"
        [table] = [each for each in client.read_artifacts() if each.key == "edgeline-dimmed-drift"][:1]
        assert '"result": "alarm"' in table.data
