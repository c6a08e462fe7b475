"""P20: schedules across daylight saving time."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prefect.server.schemas.schedules import CronSchedule

from edgeline.flows.orchestration.deployments.clock_changes import clock_change_warning, clock_changes
from edgeline.flows.orchestration.deployments.deployment import MONITOR_CRON, PRUNE_CRON, DeploymentOptions, check_schedule

DEFAULT = DeploymentOptions()
DAILY = {
    "retraining": DEFAULT.cron,
    "pruning": PRUNE_CRON,
    "monitoring": MONITOR_CRON,
    "an hour that is skipped and repeated": "30 2 * * *",
}
"""The schedules that ship, also those of `prefect.yaml`, and one that does not."""


@pytest.mark.parametrize("cron", DAILY.values(), ids=DAILY)
def test_a_daily_schedule_runs_once_on_every_day_of_two_years(cron: str) -> None:
    check_schedule(cron, DEFAULT.timezone)
    schedule = CronSchedule(cron=cron, timezone=DEFAULT.timezone)
    dates = asyncio.run(schedule.get_dates(n=730, start=datetime(2027, 3, 1, tzinfo=UTC)))
    offsets = {date.utcoffset() for date in dates}
    assert len(offsets) == 2, "summer and winter"
    days = [date.date() for date in dates]
    assert days == [days[0] + timedelta(days=number) for number in range(730)]


@pytest.mark.parametrize(
    ("timezone", "changes"),
    [
        ("Europe/Prague", {("03-28", 2), ("10-31", 2)}),
        ("America/New_York", {("03-14", 2), ("11-07", 1)}),
        ("Asia/Kolkata", set()),
        ("UTC", set()),
    ],
)
def test_the_hours_that_a_zone_skips_or_repeats_are_known(timezone: str, changes: set[tuple[str, int]]) -> None:
    found = clock_changes(timezone, datetime(2026, 12, 1, tzinfo=UTC))
    assert {(f"{day:%m-%d}", hour) for day, hour in found} == changes


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/10 2 * * SUN", "0 1-4 * * *", "0 22-23,0-2 * * *"])
def test_a_schedule_in_such_an_hour_is_a_warning(cron: str) -> None:
    assert clock_change_warning(cron, "Europe/Prague").endswith(
        "in an hour that Europe/Prague skips or repeats; choose another hour"
    )


@pytest.mark.parametrize(
    ("cron", "timezone"),
    [
        *((cron, DEFAULT.timezone) for cron in (DEFAULT.cron, PRUNE_CRON, MONITOR_CRON)),
        ("30 2 * * *", "UTC"),
        ("30 2 * * MON", "Europe/Prague"),
        ("15 * * * *", "Europe/Prague"),
    ],
)
def test_any_other_schedule_is_not(cron: str, timezone: str) -> None:
    assert clock_change_warning(cron, timezone) == ""
