import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.states import Failed

from edgeline.flows import steps
from edgeline.flows.orchestration import flow, store
from edgeline.flows.orchestration.flow import TASKS, drop_traceback_of_user_errors, edgeline
from edgeline.flows.orchestration.report import artifact_key, confusion_table
from edgeline.pipeline.config import PipelineConfig, load_config
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import ConfigError, DataError, EdgelineError, StoreError, VerificationError

STEPS = ["prepare", "train", "evaluate", "export", "variants", "verify", "publish"]


@pytest.fixture
def client(prefect_api: str) -> Any:
    with get_client(sync_client=True) as client:
        yield client


def task_states(client: SyncPrefectClient, run_id: Any) -> dict[str, str]:
    """The states of finished tasks; they reach the database shortly after the flow's own."""
    runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
    return {run.name: run.state_name for run in runs if run.state and run.state.is_final()}


def graph(client: SyncPrefectClient, run_id: Any) -> dict[str, set[str]]:
    """Each task in the graph of the UI, with those that it hangs from."""
    nodes = client.request("GET", f"/flow_runs/{run_id}/graph-v2").json()["nodes"]
    names = {identity: node["label"] for identity, node in nodes}
    return {node["label"]: {names[parent["id"]] for parent in node["parents"]} for _, node in nodes}


GRAPH = {
    "prepare": set(),
    "train": {"prepare"},
    "evaluate": {"train"},
    "export": {"train"},
    "variants": {"export"},
    "verify": {"evaluate", "variants"},
    "publish": {"verify"},
}


def last_flow_run(client: SyncPrefectClient) -> Any:
    return client.read_flow_runs(sort="EXPECTED_START_TIME_DESC", limit=1)[0]


@pytest.mark.slow
def test_a_run_whose_results_exist_reuses_all_of_them_and_its_graph_is_that_of_the_steps(
    client: SyncPrefectClient, finished: PipelineConfig, wait_for: Callable[..., Any]
) -> None:
    run, results = edgeline(finished)
    assert [result.name for result in results] == STEPS
    assert all(result.reused for result in results)
    assert run.config == finished
    flow_run = last_flow_run(client)
    assert (flow_run.name, flow_run.state_name) == ("tints", "Completed")
    wait_for(lambda: task_states(client, flow_run.id) == dict.fromkeys(STEPS, "Cached"))
    assert graph(client, flow_run.id) == GRAPH


@pytest.mark.slow
def test_a_finished_run_has_tables_and_the_confusion_matrix_in_the_ui(
    client: SyncPrefectClient, finished: PipelineConfig
) -> None:
    edgeline(finished)
    mine = {artifact.key: artifact for artifact in client.read_artifacts() if artifact.flow_run_id == last_flow_run(client).id}
    plots = ("confusion", "history", "learning-curve", "reliability", "embedding")
    kinds = ("-variants", "-findings", "-confusion", *(f"-{plot}-image" for plot in plots))
    assert set(mine) == {"edgeline-tints", *(f"edgeline-tints{kind}" for kind in kinds)}
    assert '"onnx-fp32"' in mine["edgeline-tints-variants"].data
    assert "Rejected files, listed in rejected.csv: 1 not_an_image (warm/broken.jpg)." in mine["edgeline-tints-findings"].data
    assert '"artifact"' in mine["edgeline-tints"].data
    assert "tints version 1" in mine["edgeline-tints"].data
    assert mine["edgeline-tints-confusion"].data.startswith("| true \\ predicted | cold | warm |")
    for plot in plots:
        assert mine[f"edgeline-tints-{plot}-image"].data.startswith("data:image/png;base64,iVBORw0KGgo")


@pytest.mark.slow
def test_an_event_is_emitted_only_when_something_new_is_published(
    client: SyncPrefectClient, unpublished: PipelineConfig, wait_for: Callable[..., Any]
) -> None:
    def published_events() -> list[Any]:
        wanted = EventFilter(event=EventNameFilter(name=["edgeline.model.published"]))
        events = client.request("POST", "/events/filter", json={"filter": wanted.model_dump(mode="json")}).json()["events"]
        return [event for event in events if event["payload"]["artifact"].startswith(unpublished.artifacts)]

    for reused in (False, True):
        _, results = edgeline(unpublished)
        assert results[-1].reused is reused
    [event] = wait_for(published_events)
    assert event["resource"]["prefect.resource.id"] == "edgeline.model.tints"
    assert event["payload"]["version"] == 1
    assert event["payload"]["artifact"] == str(unpublished.store / "tints" / "1")


@pytest.mark.slow
def test_a_temporary_failure_of_the_store_does_not_fail_the_run(
    prefect_api: str, unpublished: PipelineConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, failures = steps.publish, [StoreError("temporarily unavailable")]

    def publish_later(run: Run) -> StepResult:
        if failures:
            raise failures.pop()
        return publish(run)

    monkeypatch.setattr(steps, "publish", publish_later)
    monkeypatch.setattr(TASKS["publish"], "retry_delay_seconds", 0)
    _, results = edgeline(unpublished)
    assert results[-1].folder == unpublished.store / "tints" / "1"


INVALID = {
    "no such folder": ({"data": "/no/such/folder"}, DataError, "data_missing"),
    "a name outside the store": ({"name": "../elsewhere"}, ConfigError, "config_invalid"),
}


@pytest.mark.parametrize(("values", "kind", "code"), INVALID.values(), ids=INVALID)
def test_an_error_is_raised_unchanged_and_logged_in_one_line(
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
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors
    assert not any(record.exc_info or "\n" in record.getMessage() for record in errors)
    assert all(str(error.value) in record.getMessage() for record in errors)


def test_an_unexpected_exception_keeps_its_traceback() -> None:
    try:
        raise KeyError("a bug")
    except KeyError as error:
        record = logging.LogRecord("prefect.flow_runs", logging.ERROR, "", 0, "failed", (), (KeyError, error, None))
    assert drop_traceback_of_user_errors(record)
    assert record.exc_info
    assert record.getMessage() == "failed"


KEYS = {"digits": "edgeline-digits", "big_birds-2": "edgeline-big-birds-2", "a__b": "edgeline-a-b"}


@pytest.mark.parametrize(("name", "key"), KEYS.items(), ids=KEYS)
def test_an_artifact_key_is_valid_for_prefect(name: str, key: str) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    assert ArtifactCreate(key=artifact_key(name)).key == key


def test_class_names_are_escaped_in_the_confusion_table() -> None:
    assert confusion_table([[3, 0], [1, 2]], ["a|b", "<i>"]).split("\n") == [
        "| true \\ predicted | a\\|b | \\<i\\> |",
        "| --- | --: | --: |",
        "| **a\\|b** | 3 | · |",
        "| **\\<i\\>** | 1 | 2 |",
    ]


def test_there_is_a_task_for_each_step_in_order() -> None:
    assert (flow.prepare.name, *TASKS) == steps.STEP_NAMES
    assert [task.name for task in TASKS.values()] == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("reused", [True, False])
def test_a_task_executes_its_step(name: str, reused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(tmp_path, PipelineConfig())
    result = StepResult(name, tmp_path / name, reused=reused, seconds=2.0)
    executed: list[tuple[str, Run]] = []
    monkeypatch.setattr(steps, "execute", lambda *arguments: executed.append(arguments) or result)
    state = TASKS[name].fn(run, [])
    assert executed == [(name, run)]
    assert (state.data, state.name) == (result, "Cached" if reused else "Completed")


def test_the_first_task_calls_prepare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = PipelineConfig()
    prepared = Run(tmp_path, config), StepResult("prepare", tmp_path, reused=False, seconds=0.1)
    monkeypatch.setattr(flow, "prepare_samples", lambda given: prepared if given is config else None)
    assert flow.prepare.fn(config).data == prepared


def failing(error: EdgelineError, cause: OSError | None = None) -> EdgelineError:
    error.__cause__ = cause
    return error


FAILURES = {
    "a network error": (failing(StoreError("..."), OSError(errno.EIO, "...")), True),
    "a store that another process published to": (StoreError("..."), True),
    "a timeout outside the store": (OSError(errno.ETIMEDOUT, "..."), True),
    "no permission": (failing(StoreError("..."), PermissionError(errno.EACCES, "...")), False),
    "a full disk": (failing(StoreError("..."), OSError(errno.ENOSPC, "...")), False),
    "a model that is not verified": (VerificationError("..."), False),
    "unsuitable data": (failing(DataError("..."), OSError(errno.EIO, "...")), False),
    "a bug": (KeyError("..."), False),
}


@pytest.mark.parametrize(("error", "retried"), FAILURES.values(), ids=FAILURES)
def test_publishing_is_retried_only_after_temporary_failures(error: Exception, retried: bool) -> None:
    assert flow.is_temporary(TASKS["publish"], None, Failed(data=error)) is retried


def test_only_publishing_is_retried() -> None:
    assert {task.name: task.retries for task in (flow.prepare, *TASKS.values()) if task.retries} == {"publish": 3}


@pytest.mark.long
def test_retraining_is_a_flow_whose_decision_is_an_artifact(
    client: SyncPrefectClient, finished_folder: Path, tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    shutil.copytree(finished_folder, tmp_path, dirs_exist_ok=True)
    [file] = (tmp_path / "artifacts" / "runs").glob("*/config.json")
    config = load_config(file, ["promote.margin=0.5"], data=str(tmp_path / "tints"), artifacts=str(tmp_path / "artifacts"))
    for label, red, blue in (("warm", 200, 60), ("cold", 40, 220)):
        for number in range(6):
            noise = np.random.default_rng((number, red)).integers(-60, 61, (32, 40, 3))
            pixels = np.clip(noise + (red, 60, blue), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "tints" / label / f"new-{number}.png")
    done = flow.retrain(config)
    flow_run = last_flow_run(client)
    assert (flow_run.name, flow_run.state_name) == ("tints", "Completed")
    assert done.decision is not None
    assert done.decision.promoted
    assert (done.version, done.stable) == (2, 2)
    wait_for(lambda: task_states(client, flow_run.id).keys() >= {*STEPS, "compare", "promote"})
    assert graph(client, flow_run.id) == GRAPH | {"compare": {"publish"}, "promote": {"compare"}}
    assert task_states(client, flow_run.id)["promote"] == "Promoted"
    [decision] = [artifact for artifact in client.read_artifacts() if artifact.key == "edgeline-tints-decision"]
    assert decision.description == f"Version 2 is promoted to stable: {done.decision.reason}"
    assert '"variant": "onnx-fp32"' in decision.data
    [document] = [artifact for artifact in client.read_artifacts() if artifact.key == "edgeline-tints-promotion"]
    assert str(done.event.decision) in document.data
    assert "    onnx-fp32: " in document.data
    (tmp_path / "inbox").mkdir()
    for photo in ("a.jpg", "b.jpg", "c.png"):
        (tmp_path / "inbox" / photo).touch()
    (tmp_path / "inbox" / "labels.csv").write_text("path,label\na.jpg,warm\n")
    again = flow.retrain(config, drifted=("brightness",), inbox=tmp_path / "inbox")
    assert (again.version, again.trained, again.decision) == (2, False, None)
    state = last_flow_run(client).state
    assert (state.name, state.type.value) == ("Waiting for labels", "COMPLETED")
    assert state.message == (
        f"brightness drifted; no photos with a new label since version 2; 2 photos in {tmp_path / 'inbox'} wait for one"
    )
    unchanged = store.compare("tints", 2, against="1", artifacts=tmp_path / "artifacts")
    assert unchanged == done.decision
