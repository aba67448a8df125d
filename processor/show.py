"""What a number, a share, a time and a foreign name look like to people, on every page and in every table."""

import json
from datetime import UTC, datetime

_UNITS = ((10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))


def si(value: float, digits: int = 3) -> str:
    """`1.24 G`: three significant digits and a unit."""
    for size, unit in _UNITS:
        if value >= size * 0.9995:
            return f"{_significant(value / size, digits)} {unit}"
    return f"{value:,.0f}" if value == round(value) or value >= 100 else _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    whole = len(str(int(value)))
    return f"{value:,.{max(0, digits - whole)}f}"


def percent(share: float) -> str:
    """`12.3 %`, `0.31 %`, `< 0.01 %`."""
    if 0 < share < 0.0001:
        return "< 0.01 %"
    return f"{share * 100:,.{0 if share >= 9.995 else 1 if share >= 0.0995 else 2}f} %"


def printable(text: str) -> str:
    """A foreign text for a terminal. Names and records are other people's: nothing in them may steer it, or hide."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same for a text of several lines, each of which ends with a newline or a carriage return and a newline."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "\n".join(map(printable, text.replace("\r\n", "\n").split("\n")))


def printable_json(text: str) -> str:
    """JSON, or lines of it, with every character that might steer a terminal as `\\uXXXX`: it says the same."""
    return "\n".join(line if line.isprintable() else _escaped(line) for line in text.split("\n"))


def _escaped(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] if c > "\x7f" else f"\\u{ord(c):04x}" for c in line)


def share_of(value: float, whole: float) -> str:
    """`4.3 % of 120 T`."""
    return f"{percent(value / whole)} of {si(whole)}"


def time(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 100 else f"{int(value) // 60} min {int(value) % 60:02d} s"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
