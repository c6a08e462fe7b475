import re
import sys

import pytest

from edgeline.pipeline.progress import track, waiting


def test_items_pass_unchanged_and_nothing_is_printed_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading images", 3)) == ["a", "b", "c"]
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_progress_bar_on_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat this as a terminal
    assert list(track(iter("abc"), "reading images", 6, step=2)) == ["a", "b", "c"]
    output, bar = capfd.readouterr()
    assert output == ""
    assert "reading images" in bar
    assert "6/6" in bar


def test_waiting_is_shown_in_a_terminal_only(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting("loading"):
        pass
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat this as a terminal
    with waiting("loading"):
        pass
    output, status = capfd.readouterr()
    assert output == ""
    assert "loading …" in status


def test_two_threads_share_one_block_of_bars(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich treat this as a terminal
    out, err = sys.stdout, sys.stderr
    first, second = track(range(2), "evaluating", 2), track(range(2), "making variants", 2)
    next(first)
    next(second)
    assert [*first, *second] == [1, 1]  # the first that began ends first
    assert (sys.stdout, sys.stderr) == (out, err)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capfd.readouterr().err)
    assert re.search(r"evaluating +\S+ 0/2 \S+ \S+\nmaking variants +\S+ 0/2 ", plain)
    assert plain.rstrip().splitlines()[-1].startswith("making variants")
    assert "2/2" in plain.rstrip().splitlines()[-1]
