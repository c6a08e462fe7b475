"""A series of windows of one version: each is tested once, and an alarm is false with a stated probability over all of them.

Testing every window at 5 % gives a false alarm every 20 windows. The series therefore spends its probability: window k is
tested at `alpha` times 6 / (pi k)^2, which adds up to `alpha` over all windows (alpha spending), also if they overlap.
A change that lasts is found in the first windows after it; one that is weak may be shown by a window alone, which is reported
and raises no alarm.
"""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgeline.pipeline.monitoring.windows import WindowResult, compare_window
from edgeline.pipeline.runs.atomic_files import digest_of, replace_file, write_json
from edgeline.serve.errors import DataError

ALPHA = 0.05
KEPT = 1000
"""Windows whose results are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """What has been tested of one version."""

    manifest_sha256: str
    """Of the version; another version begins another series."""
    windows: int = 0
    tested: tuple[str, ...] = ()
    """Digests of the snapshots, so that none is tested twice."""
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
    known: bool
    """Whether it was tested before; then nothing was added to the series."""


def monitor_window(path: Path, snapshot: dict[str, Any], reference: dict[str, Any], *, alpha: float = ALPHA) -> Monitored:
    """Test a window, and add it to the series in a file.

    Args:
        path: JSON file of the series; created if it does not exist.
        snapshot: of devices, with the artifact's bins.
        reference: the artifact's own.
        alpha: probability of any false alarm in a window, and in the whole series.

    Raises:
        DataError: the file is not a series.
    """
    series = read_series(path, snapshot["manifest_sha256"])
    digest = digest_of(snapshot)
    known = digest in series.tested
    number = series.tested.index(digest) + 1 + series.windows - len(series.tested) if known else series.windows + 1
    test = compare_window(snapshot, reference, alpha)
    spent = alpha * 6 / (math.pi * number) ** 2
    alarm = tuple(each.name for each in test.statistics if each.p_value <= spent)
    if not known:
        alarms = series.alarms
        if alarm:
            alarms = (*alarms, {"window": number, "until": snapshot["until"], "drifted": list(alarm)})[-KEPT:]
        series = replace(series, windows=number, tested=(*series.tested, digest)[-KEPT:], alarms=alarms)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda temporary: write_json(temporary, asdict(series)))
    return Monitored(
        window=number,
        count=snapshot["count"],
        since=snapshot["since"],
        until=snapshot["until"],
        test=test,
        alarm=alarm,
        known=known,
    )


def read_series(path: Path, manifest_sha256: str) -> Series:
    """The series of a version; an empty one if the file does not exist or is that of another version.

    Raises:
        DataError: the file is not a series.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        series = Series(**{**held, "tested": tuple(held["tested"]), "alarms": tuple(held["alarms"])})
    except FileNotFoundError:
        return Series(manifest_sha256=manifest_sha256)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a series of windows ({error}); remove it to begin a new one", code="series_invalid"
        ) from error
    return series if series.manifest_sha256 == manifest_sha256 else Series(manifest_sha256=manifest_sha256)
