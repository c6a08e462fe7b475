"""The order of steps, and what becomes of the others if one fails. The steps are functions that wait for each other."""

import threading
from collections.abc import Callable, Iterable

import pytest

from edgeline.flows.side_by_side import run_side_by_side
from edgeline.flows.steps import DEPENDS, STEPS
from edgeline.pipeline.progress import track
from edgeline.serve.errors import TrainingError

TWO_WAYS = {
    "train": (),
    "evaluate": ("train",),
    "export": ("train",),
    "variants": ("export",),
    "verify": ("evaluate", "variants"),
}
TIMEOUT_S = 30


def endless(started: threading.Event) -> Iterable[int]:
    """Items without an end, as of a step that takes long; fails the test if nobody stops it."""
    for number in range(TIMEOUT_S * 100):
        started.set()
        threading.Event().wait(0.01)
        yield number
    raise AssertionError("was not stopped")


def test_steps_that_do_not_depend_on_each_other_run_at_the_same_time() -> None:
    evaluating, exported = threading.Event(), threading.Event()
    finished: list[str] = []

    def call(name: str) -> str:
        if name == "evaluate":
            evaluating.set()
            assert exported.wait(TIMEOUT_S)
        if name == "export":
            assert evaluating.wait(TIMEOUT_S)
        finished.append(name)
        if name == "variants":
            exported.set()
        return name.upper()

    results = run_side_by_side(TWO_WAYS, call)
    assert finished == ["train", "export", "variants", "evaluate", "verify"]
    assert list(results.items()) == [(name, name.upper()) for name in TWO_WAYS]


def test_a_step_alone_runs_in_the_calling_thread_where_an_interrupt_arrives() -> None:
    threads = run_side_by_side(TWO_WAYS, lambda name: threading.get_ident())
    here = threading.get_ident()
    assert {name for name, thread in threads.items() if thread == here} == {"train", "export", "variants", "verify"}


def failing(failed: str, error: BaseException) -> Callable[[str], None]:
    """A step that fails while the one beside it runs."""
    other = {"evaluate": "export", "export": "evaluate"}[failed]
    started = threading.Event()

    def call(name: str) -> None:
        if name == failed:
            assert started.wait(TIMEOUT_S)
            raise error
        if name == other:
            for _ in track(endless(started), "computing", 1):
                pass
        assert name not in ("variants", "verify")

    return call


@pytest.mark.parametrize("failed", ["evaluate", "export"])
@pytest.mark.parametrize("error", [TrainingError("not finite"), KeyboardInterrupt()], ids=["an error", "an interrupt"])
def test_if_a_step_fails_the_one_beside_it_ends_and_its_error_is_raised(failed: str, error: BaseException) -> None:
    before = threading.active_count()
    with pytest.raises(type(error)) as raised:
        run_side_by_side(TWO_WAYS, failing(failed, error))
    assert raised.value is error
    assert threading.active_count() == before
    assert list(track("abc", "computing", 3)) == ["a", "b", "c"]  # loops after it are not stopped


def test_evaluation_runs_beside_export_and_variants() -> None:
    assert "evaluate" not in {*DEPENDS["export"], *DEPENDS["variants"]}
    assert DEPENDS["evaluate"] == ("prepare", "train")
    assert set(DEPENDS["publish"]) == {"prepare", *(step.name for step in STEPS)}
