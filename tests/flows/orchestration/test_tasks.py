import errno
from typing import Any

import pytest
from prefect.states import Failed

from edgeline.flows import steps
from edgeline.flows.orchestration import tasks
from edgeline.pipeline.config import PipelineConfig
from edgeline.pipeline.runs.run import Run, StepResult
from edgeline.serve.errors import DataError, EdgelineError, StoreError, VerificationError


def test_there_is_a_task_for_each_step_in_the_order_of_the_line() -> None:
    assert list(tasks.AFTER_PREPARE) == list(steps.AFTER_PREPARE)


@pytest.mark.parametrize("name", steps.AFTER_PREPARE)
@pytest.mark.parametrize("reused", [True, False])
def test_a_task_is_a_call_of_the_step(name: str, reused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    run = Run(tmp_path, PipelineConfig())
    result = StepResult(name, tmp_path / name, reused=reused, seconds=2.0)
    asked: list[Run] = []
    monkeypatch.setitem(steps.AFTER_PREPARE, name, lambda run: asked.append(run) or result)
    state = tasks.AFTER_PREPARE[name].fn(run)
    assert asked == [run]
    assert (state.data, state.name) == (result, "Cached" if reused else "Completed")


def test_the_first_task_is_a_call_of_prepare(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    config = PipelineConfig()
    made = Run(tmp_path, config), StepResult("prepare", tmp_path, reused=False, seconds=0.1)
    monkeypatch.setattr(tasks, "prepare_samples", lambda given: made if given is config else None)
    assert tasks.prepare.fn(config).data == made


def failing(error: EdgelineError, cause: OSError | None = None) -> EdgelineError:
    error.__cause__ = cause
    return error


FAILURES = {
    "a network's hiccup": (failing(StoreError("..."), OSError(errno.EIO, "...")), True),
    "a store published to by somebody else": (StoreError("..."), True),
    "a bare one": (OSError(errno.ETIMEDOUT, "..."), True),
    "no permission": (failing(StoreError("..."), PermissionError(errno.EACCES, "...")), False),
    "a full disk": (failing(StoreError("..."), OSError(errno.ENOSPC, "...")), False),
    "a model that is not verified": (VerificationError("..."), False),
    "data that are not fit": (failing(DataError("..."), OSError(errno.EIO, "...")), False),
    "a bug": (KeyError("..."), False),
}


@pytest.mark.parametrize(("error", "again"), FAILURES.values(), ids=FAILURES)
def test_publishing_is_tried_again_where_that_may_help(error: Exception, again: bool) -> None:
    assert tasks.may_pass(tasks.publish, None, Failed(data=error)) is again


def test_nothing_but_publishing_is_tried_again() -> None:
    assert {task.name: task.retries for task in (tasks.prepare, *tasks.AFTER_PREPARE.values()) if task.retries} == {
        "publish": 3
    }
