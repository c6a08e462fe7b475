import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events.filters import EventFilter, EventNameFilter

from edgeline.flows import steps as line
from edgeline.flows.orchestration import tasks
from edgeline.flows.orchestration.flow import edgeline, errors_in_one_line
from edgeline.flows.orchestration.report import artifact_key, confusion_table
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import ConfigError, DataError, EdgelineError, StoreError

STEPS = ["prepare", "train", "evaluate", "export", "variants", "verify", "publish"]


@pytest.fixture
def client(prefect_api: str) -> Any:
    with get_client(sync_client=True) as client:
        yield client


def task_states(client: SyncPrefectClient, run_id: Any) -> dict[str, str]:
    """Of the tasks that have ended. They reach the database a little after the flow itself."""
    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return {run.name: run.state_name for run in runs if run.state and run.state.is_final()}


def last_flow_run(client: SyncPrefectClient) -> Any:
    return client.read_flow_runs(sort="EXPECTED_START_TIME_DESC", limit=1)[0]


@pytest.mark.slow
def test_a_run_whose_results_are_there_reuses_each_of_them(
    client: SyncPrefectClient, finished: PipelineConfig, wait_for: Callable[..., Any]
) -> None:
    run, steps = edgeline(finished)
    assert [step.name for step in steps] == STEPS
    assert all(step.reused for step in steps)
    assert run.config == finished
    flow_run = last_flow_run(client)
    assert (flow_run.name, flow_run.state_name) == ("tints", "Completed")
    wait_for(lambda: task_states(client, flow_run.id) == dict.fromkeys(STEPS, "Cached"))


@pytest.mark.slow
def test_a_finished_run_can_be_read_in_the_ui(client: SyncPrefectClient, finished: PipelineConfig) -> None:
    edgeline(finished)
    mine = {artifact.key: artifact for artifact in client.read_artifacts() if artifact.flow_run_id == last_flow_run(client).id}
    names = {"edgeline-tints", "edgeline-tints-variants", "edgeline-tints-confusion", "edgeline-tints-confusion-image"}
    assert set(mine) == names
    assert '"onnx-fp32"' in mine["edgeline-tints-variants"].data
    assert '"artifact"' in mine["edgeline-tints"].data
    assert "tints version 1" in mine["edgeline-tints"].data
    assert mine["edgeline-tints-confusion"].data.startswith("| true \\ predicted | cold | warm |")
    assert mine["edgeline-tints-confusion-image"].data.startswith("data:image/png;base64,iVBORw0KGgo")


@pytest.mark.slow
def test_what_is_published_is_announced_once(
    client: SyncPrefectClient, unpublished: PipelineConfig, wait_for: Callable[..., Any]
) -> None:
    def announced() -> list[Any]:
        wanted = EventFilter(event=EventNameFilter(name=["edgeline.model.published"]))
        events = client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json")}).json()["events"]
        return [event for event in events if event["payload"]["artifact"].startswith(unpublished.artifacts)]

    for reused in (False, True):
        _, steps = edgeline(unpublished)
        assert steps[-1].reused is reused
    [event] = wait_for(announced)
    assert event["resource"]["prefect.resource.id"] == "edgeline.model.tints"
    assert event["payload"]["version"] == 1
    assert event["payload"]["artifact"] == str(unpublished.store / "tints" / "1")


@pytest.mark.slow
def test_a_store_that_fails_for_a_moment_costs_no_run(
    prefect_api: str, unpublished: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, failures = line.publish, [StoreError("gone for a moment")]

    def publish_later(run: Run) -> StepResult:
        if failures:
            raise failures.pop()
        return publish(run)

    monkeypatch.setattr(line, "publish", publish_later)
    monkeypatch.setattr(tasks.publish, "retry_delay_seconds", 0)
    _, steps = edgeline(unpublished)
    assert steps[-1].folder == unpublished.store / "tints" / "1"


REFUSED = {
    "no such folder": ({"data": "/no/such/folder"}, DataError, "data_missing"),
    "a name that leaves the store": ({"name": "../elsewhere"}, ConfigError, "config_invalid"),
}


@pytest.mark.parametrize(("values", "kind", "code"), REFUSED.values(), ids=REFUSED)
def test_an_error_comes_back_as_it_was_and_is_one_line_in_the_log(
    client: SyncPrefectClient,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    values: dict[str, str],
    kind: type[EdgelineError],
    code: str,
) -> None:
    with pytest.raises(kind) as error:
        edgeline(PipelineConfig(artifacts=str(tmp_path), **values))
    assert error.value.code == code
    assert last_flow_run(client).state_name == "Failed"
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert said
    assert not any(record.exc_info or "\n" in record.getMessage() for record in said)
    assert all(str(error.value) in record.getMessage() for record in said)


def test_a_bug_keeps_its_traceback() -> None:
    try:
        raise KeyError("a bug")
    except KeyError as error:
        record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, "it broke", (), (KeyError, error, None))
    assert errors_in_one_line(record)
    assert record.exc_info
    assert record.getMessage() == "it broke"


KEYS = {"digits": "edgeline-digits", "big_birds-2": "edgeline-big-birds-2", "a__b": "edgeline-a-b"}


@pytest.mark.parametrize(("name", "key"), KEYS.items(), ids=KEYS)
def test_an_artifact_key_is_one_that_prefect_takes(name: str, key: str) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    assert ArtifactCreate(key=artifact_key(name)).key == key


def test_a_confusion_matrix_is_a_markdown_table_whatever_the_classes_are_called() -> None:
    assert confusion_table([[3, 0], [1, 2]], ["a|b", "<i>"]).split("\n") == [
        "| true \\ predicted | a\\|b | \\<i\\> |",
        "| --- | --: | --: |",
        "| **a\\|b** | 3 | · |",
        "| **\\<i\\>** | 1 | 2 |",
    ]
