"""Times in the eyes of `tokenometer verify`: a part of the audit's judge, and as independent as that."""

import datetime
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tokenometer.processor.verify.values import RefusedRecord
from tokenometer.schemas.mapping import Field

TIME_END_MS = 253_402_300_800_000  # 10000-01-01T00:00:00Z
Object = dict[str, Any]
ReadValue = Callable[[Object], Any]
ReadTime = Callable[[Object, int | None], int]


def time_reader(
    field: Field, value_of: ReadValue, max_future_skew_ms: int, max_past_ms: int | None, not_before_ms: int
) -> ReadTime:
    milliseconds_of = _milliseconds_reader(field)

    def read(top: Object, message_time: int | None) -> int:
        value = value_of(top)
        if value is not None:
            time_ms = milliseconds_of(value)
        elif field.message_time_fallback and message_time is not None:
            time_ms = message_time
        else:
            raise RefusedRecord("missing_field", field.name)
        if not 0 <= time_ms < TIME_END_MS:
            raise RefusedRecord("bad_timestamp", field.name)
        if time_ms < not_before_ms:
            raise RefusedRecord("past_timestamp", field.name)
        if message_time is not None:
            if max_past_ms is not None and message_time - time_ms > max_past_ms:
                raise RefusedRecord("past_timestamp", field.name)
            if time_ms - message_time > max_future_skew_ms:
                raise RefusedRecord("future_timestamp", field.name)
        return time_ms

    return read


def _milliseconds_reader(field: Field) -> Callable[[Any], int]:
    """Turns a time in one of the formats into milliseconds, which may still be out of range."""
    epochs = [name for name in field.formats if name.startswith("epoch")]
    epoch = epochs[0] if epochs else None
    multiply, divide = {"epoch_s": (1000, 1), "epoch_us": (1, 1000), "epoch_ns": (1, 10**6)}.get(epoch or "", (1, 1))
    text_ms = _text_reader_of_times(field)

    def milliseconds(value: Any) -> int:
        if type(value) is str and field.digits:
            number = _number_of_digits(value, epoch == "epoch_s_decimal")
            value = value if number is None else number
        kind = type(value)
        if kind is str and text_ms:
            return text_ms(value)
        if epoch == "epoch_s_decimal" and kind in (int, float):
            thousandfold = float(value) * 1000
            return round(thousandfold) if math.isfinite(thousandfold) else TIME_END_MS
        if epoch is not None and kind is int:
            return int(value) * multiply // divide
        raise RefusedRecord("bad_timestamp" if kind is str and field.digits else "wrong_type", field.name)

    return milliseconds


_ENDLESS = 10**30  # no unit of ours has a time so late


def _number_of_digits(text: str, decimal: bool) -> int | float | None:
    """As the JSON number of the same text, without a sign and an exponent; None where it is none."""
    whole, point, fraction = text.partition(".")
    digits = whole + fraction
    if not digits.isascii() or not whole.isdigit() or (point and not (decimal and fraction.isdigit())):
        return None
    if whole[0] == "0" and whole != "0":
        return None
    if decimal:
        return float(text)
    return int(whole) if len(whole) <= 30 else _ENDLESS


def _text_reader_of_times(field: Field) -> Callable[[str], int] | None:
    if "rfc3339" in field.formats:
        return lambda text: _calendar_ms(_RFC3339.fullmatch(text), None, field.name)
    if "iso8601" in field.formats:
        return lambda text: _calendar_ms(_ISO8601.fullmatch(text), field.zone_minutes, field.name)
    return None


_DAY_AND_TIME = r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([01][0-9]|2[0-3]):([0-5][0-9]):([0-5][0-9]|60)"
_RFC3339 = re.compile(_DAY_AND_TIME + r"(?:\.([0-9]{1,9}))?(?P<zone>[Zz]|([+-])([01][0-9]|2[0-3]):([0-5][0-9]))")
_ISO8601 = re.compile(
    _DAY_AND_TIME + r"(?:[.,]([0-9]{1,9}))?(?P<zone>[Zz]|([+-])([01][0-9]|2[0-3])(?::?([0-5][0-9]))?)?"
)
_MINUTES_PER_DAY = 1440


def _calendar_ms(match: re.Match[str] | None, zone_minutes: int | None, name: str) -> int:
    """`zone_minutes`: how far a time without a zone is ahead of UTC."""
    day = match and _days_since_epoch(match[1])
    if match is None or day is None:
        raise RefusedRecord("bad_timestamp", name)
    _, hour, minute, second, fraction, zone, sign, offset_hours, offset_minutes = match.groups()
    if zone is None:
        if zone_minutes is None:
            raise RefusedRecord("bad_timestamp", name)
        ahead = zone_minutes
    elif sign:
        ahead = int(offset_hours) * 60 + int(offset_minutes or 0)
        ahead = -ahead if sign == "-" else ahead
    else:
        ahead = 0
    utc_minute = day * _MINUTES_PER_DAY + int(hour) * 60 + int(minute) - ahead
    if second != "60":
        return (utc_minute * 60 + int(second)) * 1000 + (int(fraction[:3].ljust(3, "0")) if fraction else 0)
    if utc_minute % _MINUTES_PER_DAY != _MINUTES_PER_DAY - 1:
        raise RefusedRecord("bad_timestamp", name)
    return utc_minute * 60_000 + 59_999  # the last millisecond of its own day


@lru_cache(maxsize=4096)  # a log has few days
def _days_since_epoch(date: str) -> int | None:
    try:
        return datetime.date.fromisoformat(date).toordinal() - 719_163  # 1970-01-01
    except ValueError:
        return None
