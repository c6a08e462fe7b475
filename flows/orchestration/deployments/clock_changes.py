"""Times of a schedule that the change to and from summer time skips or repeats."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

YEAR, HOUR = timedelta(days=366), timedelta(hours=1)


def clock_changes(timezone: str, after: datetime) -> set[tuple[date, int]]:
    """The days and hours of the wall clock that a zone skips or repeats within a year; empty for a zone without summer time.

    Args:
        timezone: a name of the IANA database.
        after: the year begins here, UTC.
    """
    zone, found = ZoneInfo(timezone), set()
    hour = after.replace(minute=0, second=0, microsecond=0)
    while hour < after + YEAR:
        local, later = hour.astimezone(zone), (hour + HOUR).astimezone(zone)
        moved = (later.hour - local.hour) % 24
        if moved > 1:
            found |= {(local.date(), (local.hour + step) % 24) for step in range(1, moved)}
        elif moved == 0:
            found.add((local.date(), local.hour))
        hour += HOUR
    return found


def clock_change_warning(cron: str, timezone: str) -> str:
    """A sentence if a valid schedule runs in such an hour within a year; empty otherwise, and for one that runs every hour."""
    from prefect.server.schemas.schedules import CronSchedule

    if cron.split()[1].startswith("*"):
        return ""
    # In UTC, so that no time is skipped or repeated.
    schedule = CronSchedule(cron=cron, timezone="UTC")
    for day, hour in sorted(clock_changes(timezone, datetime.now(UTC))):
        start = datetime(day.year, day.month, day.day, hour, tzinfo=UTC)
        for time in asyncio.run(schedule.get_dates(n=1, start=start, end=start + HOUR - timedelta(seconds=1))):
            return (
                f"{cron!r} runs at {time.hour}:{time.minute:02} on {time:%d %B}, in an hour that {timezone} skips or repeats; "
                "choose another hour"
            )
    return ""
