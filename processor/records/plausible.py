"""Tells which unit a time is in: the one that gives a year of our time."""

from typing import Any

FIRST_MS = 978_307_200_000  # 2001-01-01; seconds, read as milliseconds, are in 1970
NOT_BEFORE_MS = 1_420_070_400_000  # 2015-01-01; no event is earlier, for there was no such service
END_MS = 4_102_444_800_000  # 2100-01-01
UNITS = {"epoch_s": 1000, "epoch_ms": 1, "epoch_us": 1 / 1000, "epoch_ns": 1 / 1_000_000}  # milliseconds in each
NAMES = {
    "epoch_s": "seconds",
    "epoch_s_decimal": "seconds",
    "epoch_ms": "milliseconds",
    "epoch_us": "microseconds",
    "epoch_ns": "nanoseconds",
}


def is_of_our_time(time_ms: float) -> bool:
    return FIRST_MS <= time_ms < END_MS


def unit_of(value: Any) -> str | None:
    """The epoch format in which a number is a year from 2001 to 2099. The units' ranges do not overlap."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return next((name for name, each in UNITS.items() if is_of_our_time(value * each)), None)
