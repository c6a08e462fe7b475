"""P20: schedules across daylight saving time."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prefect.server.schemas.schedules import CronSchedule

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
