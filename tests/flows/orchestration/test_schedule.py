"""P20: schedules across daylight saving time."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prefect.server.schemas.schedules import CronSchedule

from edgeline.flows.orchestration.clock_changes import affected_hours, clock_change_warning
from edgeline.flows.orchestration.deployment import DeploymentOptions, check_schedule

DEFAULT = DeploymentOptions()


@pytest.mark.parametrize("cron", [DEFAULT.cron, "30 2 * * *"], ids=["the default", "an hour that is skipped and repeated"])
def test_a_daily_schedule_runs_once_on_every_day_of_two_years(cron: str) -> None:
    check_schedule(cron, DEFAULT.timezone)
    schedule = CronSchedule(cron=cron, timezone=DEFAULT.timezone)
    dates = asyncio.run(schedule.get_dates(n=730, start=datetime(2027, 3, 1, tzinfo=UTC)))
    offsets = {date.utcoffset() for date in dates}
    assert len(offsets) == 2, "summer and winter"
    days = [date.date() for date in dates]
    assert days == [days[0] + timedelta(days=number) for number in range(730)]


@pytest.mark.parametrize(
    ("timezone", "hours"),
    [
        ("Europe/Prague", {2}),
        ("America/New_York", {1, 2}),
        ("Australia/Lord_Howe", {1, 2}),
        ("Asia/Kolkata", set()),
        ("UTC", set()),
    ],
)
def test_the_hours_that_a_zone_skips_or_repeats_are_known(timezone: str, hours: set[int]) -> None:
    assert affected_hours(timezone, datetime(2026, 12, 1, tzinfo=UTC)) == hours


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/10 2 * * 1", "0 1-4 * * *", "15 * * * *"])
def test_a_schedule_in_such_an_hour_is_a_warning(cron: str) -> None:
    assert clock_change_warning(cron, "Europe/Prague").endswith("skips or repeats when its clocks change; choose another hour")


@pytest.mark.parametrize(
    ("cron", "timezone"), [(DEFAULT.cron, DEFAULT.timezone), ("30 2 * * *", "UTC"), ("0 4 * * MON", "Europe/Prague")]
)
def test_any_other_schedule_is_not(cron: str, timezone: str) -> None:
    assert clock_change_warning(cron, timezone) == ""
