"""A series of windows: no image is tested twice, and the alarms over all of them are as rare as stated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.pipeline.monitoring.series import Monitored, Series, monitor_window, read_series
from edgeline.serve.drift.snapshot import merge
from edgeline.serve.errors import DataError
from tests.pipeline.monitoring.test_windows import draw

TIMES = {"since": "2026-11-30T00:00:00+00:00", "until": "2026-12-01T00:00:00+00:00"}


def window(rng: np.random.Generator, count: int = 100, **change: float) -> dict[str, Any]:
    return draw(rng, count, **change) | {"schema": "", "model": "birds", "version": 1, "manifest_sha256": "a"} | TIMES


def examined(path: Path, snapshot: dict[str, Any], reference: dict[str, Any], source: str, **options: float) -> Monitored:
    found = monitor_window(path, {source: snapshot}, reference, **options)
    assert found is not None
    return found


def test_a_lasting_change_raises_an_alarm_within_a_few_windows(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "birds.json"
    reference = draw(rng, 300)
    quiet = [examined(path, window(rng), reference, f"{number}") for number in range(5)]
    assert [found.window for found in quiet] == [1, 2, 3, 4, 5]
    assert not any(found.alarm for found in quiet)
    changed = [examined(path, window(rng, shift=0.25), reference, f"changed {number}") for number in range(2)]
    assert "top" in changed[-1].alarm
    assert read_series(path).alarms[-1]["drifted"] == list(changed[-1].alarm)


def test_of_a_device_that_goes_on_only_the_new_images_are_tested(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(1), tmp_path / "birds.json"
    reference, first, second = draw(rng, 300), window(rng), window(rng, 60, shift=0.3)
    assert examined(path, first, reference, "http://box/drift").count == 100
    assert monitor_window(path, {"http://box/drift": first | {"until": "2026-12-02T00:00:00+00:00"}}, reference) is None
    found = examined(path, merge([first, second]), reference, "http://box/drift")
    assert (found.window, found.count, found.since) == (2, 60, first["until"])
    means = {each.name: each.mean for each in found.test.statistics}
    assert means["top"] == pytest.approx(second["statistics"]["top"]["mean"])
    assert "top" in found.alarm


def test_a_device_that_was_restarted_is_tested_from_its_start(tmp_path: Path) -> None:
    rng, path = np.random.default_rng(2), tmp_path / "birds.json"
    reference = draw(rng, 300)
    examined(path, window(rng, 80), reference, "box")
    again = window(rng, 30) | {"since": "2026-12-05T00:00:00+00:00", "until": "2026-12-06T00:00:00+00:00"}
    assert examined(path, again, reference, "box").count == 30


def test_over_many_windows_false_alarms_stay_as_rare_as_stated(tmp_path: Path) -> None:
    """40 series of 10 quiet windows each; at 20 % for each window alone nearly every series would have an alarm."""
    rng, alarms, windows = np.random.default_rng(3), 0, 0
    for number in range(40):
        path, reference = tmp_path / f"{number}.json", draw(rng, 150)
        found = [examined(path, window(rng, 40), reference, f"{turn}", alpha=0.2) for turn in range(10)]
        alarms += any(each.alarm for each in found)
        windows += any(each.test.drifted for each in found)
    assert alarms <= 0.2 * 40 + 3 * np.sqrt(0.2 * 0.8 * 40)
    assert windows > alarms


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"windows": "x", "seen": {}, "alarms": []})])
def test_a_damaged_file_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "birds.json").write_text(content)
    with pytest.raises(DataError, match=r"birds\.json is not a series of windows"):
        read_series(tmp_path / "birds.json")
    assert read_series(tmp_path / "absent.json") == Series()
