"""A series of windows of one version: each image is in one of them, and an alarm is false with a stated probability over all.

Testing every window at 5 % gives a false alarm every 20 windows. The series therefore spends its probability: window k is
tested at `alpha` times 6 / (pi k)^2, which adds up to `alpha` over all windows (alpha spending). A clear change is an alarm in
the first window that has enough of it. A weak one may be significant in a single window and not in the series: it is reported,
and is no alarm.
"""

import fcntl
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeline.pipeline.monitoring.windows import WindowResult, compare_window
from edgeline.pipeline.runs.atomic_files import replace_file, write_json
from edgeline.serve.drift.snapshot import merge, subtract
from edgeline.serve.errors import DataError

ALPHA = 0.05
KEPT = 1000
"""Alarms that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """What has been tested of one version."""

    windows: int = 0
    seen: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The last snapshot of each source, so that no image is in two windows."""
    alarms: tuple[dict[str, Any], ...] = ()
    """Window, until when it lasted, and the statistics that drifted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Monitored:
    """The result of a window."""

    window: int
    """Its number in the series, from 1."""
    count: int
    since: str
    until: str
    test: WindowResult
    """At the rate of a single window."""
    alarm: tuple[str, ...]
    """The statistics that drifted at the rate that this window has in the series."""


def monitor_window(
    path: Path, snapshots: Mapping[str, dict[str, Any]], reference: dict[str, Any], *, alpha: float = ALPHA
) -> Monitored | None:
    """Test what is new in the snapshots of one version as a window, and add it to the series in a file.

    Args:
        path: JSON file of the version's series; created if it does not exist.
        snapshots: the current one of each source, with the artifact's bins. A device's snapshot has all images since it
            started; those that an earlier window had are subtracted.
        reference: the artifact's own.
        alpha: probability of any false alarm in a window, and in the whole series.

    Returns:
        The result; None without a new image.

    Raises:
        DataError: the file is not a series.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        series = read_series(path)
        parts = []
        for source, snapshot in snapshots.items():
            earlier = series.seen.get(source)
            rest = None if earlier is None else subtract(snapshot, earlier)
            parts.append(snapshot if rest is None else rest)
        parts = [part for part in parts if part["count"]]
        if not parts:
            return None
        window, number = merge(parts), series.windows + 1
        test = compare_window(window, reference, alpha)
        spent = alpha * 6 / (math.pi * number) ** 2
        alarm = tuple(each.name for each in test.statistics if each.p_value <= spent)
        alarms = series.alarms
        if alarm:
            alarms = (*alarms, {"window": number, "until": window["until"], "drifted": list(alarm)})[-KEPT:]
        series = Series(windows=number, seen={**series.seen, **snapshots}, alarms=alarms)
        replace_file(path, lambda temporary: write_json(temporary, asdict(series)))
    return Monitored(window=number, count=window["count"], since=window["since"], until=window["until"], test=test, alarm=alarm)


def read_series(path: Path) -> Series:
    """Read a version's series; an empty one if the file does not exist.

    Raises:
        DataError: the file is not a series.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Series(windows=int(held["windows"]), seen=dict(held["seen"]), alarms=tuple(held["alarms"]))
    except FileNotFoundError:
        return Series()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a series of windows ({error}); remove it to begin a new one", code="series_invalid"
        ) from error
