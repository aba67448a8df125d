"""Moments and calendars: what a person means by a day, in milliseconds. It is pure and never uses the machine's zone.

A window of usage belongs to the bucket in which it begins. Days and months are those of a zone, so that a day of a
change of clocks has 23 or 25 hours.
"""

import re
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tokenometer.processor.ledger.values import BadArgument

UNITS = ("hour", "day", "month", "total")
BUCKETS_MAX = 10_000  # more than a year of hours; a bucket is a branch of a statement
_HOUR_MS, _MINUTE_MS = 3_600_000, 60_000
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(:\d\d(\.\d{1,6})?)?)([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def zone(name: str) -> tzinfo:
    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadArgument(f"{name}: no such time zone; expected a name such as UTC or Europe/Berlin") from None


def moment(text: str, where: tzinfo) -> int:
    """A date is its beginning in the zone; a time says its offset itself."""
    try:
        if (found := _parsed(text, where)) is not None:
            _local(found, UTC), _local(found, where)  # at either end of the calendar one of them may not exist
            return found
    except (ValueError, OverflowError):
        pass
    raise BadArgument(
        f"{text!r} is not a moment: expected a date (2026-11-01), or a time with its offset (2026-11-01T00:00:00+01:00)"
    )


def _parsed(text: str, where: tzinfo) -> int | None:
    if _DATE.fullmatch(text):
        return _midnight(date.fromisoformat(text), where)
    if match := _MOMENT.fullmatch(text):
        day, clock, _, _, offset = match.groups()
        parsed = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if offset in 'Zz' else offset}")
        return (parsed - _EPOCH) // timedelta(milliseconds=1)
    return None


def _local(ms: int, where: tzinfo) -> datetime:
    return (_EPOCH + timedelta(milliseconds=ms)).astimezone(where)


def text(ms: int, where: tzinfo) -> str:
    """RFC 3339 in the zone; of what is beyond the calendar (a watermark may be any number), the calendar's end."""
    try:
        shown = _local(ms, where)
    except (ValueError, OverflowError):
        return "9999-12-31T23:59:59Z" if ms > 0 else "0001-01-01T00:00:00Z"
    precision = "milliseconds" if ms % 1000 else "seconds"
    written = shown.isoformat(timespec=precision)
    return written.removesuffix("+00:00") + "Z" if where is UTC else written


def bounds(begin: int, end: int, unit: str, where: tzinfo) -> list[int]:
    """Where buckets begin: the first at `begin`, the others at the unit's own beginnings in [begin, end)."""
    assert begin < end and unit in UNITS
    found = [begin]
    while unit != "total" and (following := _next(found[-1], unit, where)) < end:
        found.append(following)
        if len(found) > BUCKETS_MAX:
            raise BadArgument(f"more than {BUCKETS_MAX:,} {unit}s: ask for a shorter time")
    return found


def _next(ms: int, unit: str, where: tzinfo) -> int:
    """The next beginning of a unit after a moment."""
    local = _local(ms, where)
    try:
        if unit == "day":
            return _midnight(local.date() + timedelta(days=1), where)
        if unit == "month":
            return _midnight((local.date().replace(day=1) + timedelta(days=32)).replace(day=1), where)
        return _next_hour(ms, local, where)
    except OverflowError:
        raise BadArgument("the year 9999 is the last one") from None


def _next_hour(ms: int, local: datetime, where: tzinfo) -> int:
    """Where the clock shows a full hour next, or was set meanwhile by a part of an hour."""
    offset = local.utcoffset()
    assert offset is not None
    shown = ms + offset // timedelta(milliseconds=1)
    following = ms + _HOUR_MS - shown % _HOUR_MS
    for at in range(ms - ms % _MINUTE_MS + _MINUTE_MS, following, _MINUTE_MS) if not _fixed(where) else ():
        if _offset(at, where) != offset and (_offset(at, where) - offset) % timedelta(hours=1):
            return at
    return following


def _fixed(where: tzinfo) -> bool:
    return isinstance(where, timezone)


def _offset(ms: int, where: tzinfo) -> timedelta:
    offset = _local(ms, where).utcoffset()
    assert offset is not None
    return offset


def _midnight(day: date, where: tzinfo) -> int:
    """Where clocks skip midnight, the moment of the change; where they show it twice, the first."""
    return (datetime(day.year, day.month, day.day, tzinfo=where) - _EPOCH) // timedelta(milliseconds=1)
