"""Times of a schedule that the change to and from summer time skips or repeats."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

YEAR = timedelta(days=366)


def affected_hours(timezone: str, after: datetime) -> set[int]:
    """The hours of the wall clock that a zone skips or repeats within a year; empty for a zone without summer time.

    Args:
        timezone: a name of the IANA database.
        after: the year begins here, UTC.
    """
    zone, found = ZoneInfo(timezone), set()
    hour = after.replace(minute=0, second=0, microsecond=0)
    while hour < after + YEAR:
        local, later = hour.astimezone(zone), (hour + timedelta(hours=1)).astimezone(zone)
        moved = (later.hour - local.hour) % 24
        if moved > 1:
            found |= {(local.hour + step) % 24 for step in range(1, moved)}
        elif moved == 0:
            found.add(local.hour)
        hour += timedelta(hours=1)
    return found


def clock_change_warning(cron: str, timezone: str) -> str:
    """A sentence if a valid schedule runs in such an hour; empty otherwise."""
    from cronsim import CronSim

    hours = affected_hours(timezone, datetime.now(UTC))
    # The fields repeat within a year or so; what is asked is only at which hours they can match.
    start = datetime.now(UTC).replace(tzinfo=None)
    times = CronSim(cron, start)
    for _ in range(500):
        time = next(times, None)
        if time is None or time > start + YEAR:
            return ""
        if time.hour in hours:
            return (
                f"{cron!r} runs at {time.hour}:{time.minute:02}, in an hour that {timezone} skips or repeats when its clocks "
                "change; choose another hour"
            )
    return ""
