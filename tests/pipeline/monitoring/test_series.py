"""A series of windows: none is tested twice, and the alarms over all of them are as rare as stated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.pipeline.monitoring.series import Series, monitor_window, read_series
from edgeline.serve.errors import DataError
from tests.pipeline.monitoring.test_windows import draw


def window(rng: np.random.Generator, count: int = 100, sha256: str = "a", **change: float) -> dict[str, Any]:
    return draw(rng, count, **change) | {"manifest_sha256": sha256, "since": "2026-11-30", "until": "2026-12-01"}


def test_a_lasting_change_raises_an_alarm_within_a_few_windows(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "birds.json"
    reference = draw(rng, 300)
    quiet = [monitor_window(path, window(rng), reference) for _ in range(5)]
    assert [found.window for found in quiet] == [1, 2, 3, 4, 5]
    assert not any(found.alarm for found in quiet)
    changed = [monitor_window(path, window(rng, shift=0.25), reference) for _ in range(2)]
    assert "top" in changed[-1].alarm
    assert read_series(path, "a").alarms[-1]["drifted"] == list(changed[-1].alarm)


def test_a_window_is_tested_once(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(1), tmp_path / "birds.json"
    reference, first, second = draw(rng, 300), window(rng), window(rng)
    before = [monitor_window(path, each, reference) for each in (first, second)]
    again = monitor_window(path, first, reference)
    assert (again.window, again.known, again.test) == (1, True, before[0].test)
    assert read_series(path, "a").windows == 2


def test_another_version_begins_another_series(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(2), tmp_path / "birds.json"
    reference = draw(rng, 300)
    for sha256 in ("a", "a", "b"):
        found = monitor_window(path, window(rng, sha256=sha256), reference)
    assert found.window == 1
    assert read_series(path, "a") == Series(manifest_sha256="a")


def test_over_many_windows_false_alarms_stay_as_rare_as_stated(tmp_path: Path) -> None:
    """40 series of 10 quiet windows each; at 20 % for each window alone nearly every series would have an alarm."""
    rng, alarms, windows = np.random.default_rng(3), 0, 0
    for number in range(40):
        path, reference = tmp_path / f"{number}.json", draw(rng, 150)
        found = [monitor_window(path, window(rng, 40), reference, alpha=0.2) for _ in range(10)]
        alarms += any(each.alarm for each in found)
        windows += any(each.test.drifted for each in found)
    assert alarms <= 0.2 * 40 + 3 * np.sqrt(0.2 * 0.8 * 40)
    assert windows > alarms


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"manifest_sha256": "a", "windows": 1, "tested": 1, "alarms": []}'])
def test_a_damaged_file_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "birds.json").write_text(content)
    with pytest.raises(DataError, match=r"birds\.json is not a series of windows"):
        read_series(tmp_path / "birds.json", "a")
