"""What a request may ask for, and what is wrong with it.

Promises: it is pure. A parameter that is not known, comes twice, or has no sensible value is refused with status 400
and never ignored: a misspelt filter would answer for everything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from aiohttp import web

from tokenometer.processor.dashboard import openapi
from tokenometer.processor.http.answers import RefusedRequest

NAME_MAX = 256  # characters of a model, chip, meter or user
STEPS_MAX = 300  # that a chart draws
_STEPS_MS = (60_000, 300_000, 600_000)
_DAY_MS = 86_400_000


_METER_MS = 900_000  # so long a meter's own usage is kept apart (rollup/entries.py)


@dataclass(frozen=True)
class Question:
    """A time, and whose usage in it. until_ms: None is now. model, chip, meter: None is any."""

    span_ms: int
    step_ms: int
    by: str
    until_ms: int | None
    model: str | None
    chip: str | None
    meter: str | None

    @property
    def filtered(self) -> bool:
        return (self.model, self.chip) != (None, None)


def only(request: web.Request, *names: str) -> Mapping[str, str]:
    """The parameters, each of which comes once. Raises RefusedRequest for others than these names and `token`."""
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in (*names, "token"):
            expected = f"expected {_listed(names)}" if names else "there are none"
            raise RefusedRequest(400, f"{name[:NAME_MAX]}: no such parameter; {expected}")
        if name in found:
            raise RefusedRequest(400, f"{name}: it comes twice")
        found[name] = value
    return found


def history(request: web.Request) -> Question:
    given = only(request, *_OF_TIME, "by")
    return _question(given, _choice(given, "by", openapi.KINDS))


def sums(request: web.Request) -> Question:
    """As a history, of one step."""
    return _question(only(request, *_OF_TIME), openapi.KINDS[0])


def users(request: web.Request) -> Question:
    """Of a meter they are known of the last hour."""
    given = only(request, *_OF_TIME)
    asked = _question({key: value for key, value in given.items() if key != "meter"}, openapi.KINDS[0])
    meter = name(given, "meter")
    if meter and (asked.model or asked.chip or not is_usual(asked)):
        raise RefusedRequest(400, "meter: its users are known of the last hour, and of all models and chips together")
    return replace(asked, meter=meter)


def is_usual(asked: Question) -> bool:
    """The time that is meant where none is given: the last hour."""
    return asked.until_ms is None and asked.span_ms == next(iter(openapi.SPANS.values()))[0]


_OF_TIME = ("span", "from", "to", "model", "chip", "meter")


def _question(given: Mapping[str, str], by: str) -> Question:
    if ("from" in given) != ("to" in given) or "from" in given and "span" in given:
        raise RefusedRequest(400, "from, to: expected both, and no span")
    whose = name(given, "model"), name(given, "chip"), name(given, "meter")
    if "from" not in given:
        span_ms, step_ms = openapi.SPANS[_choice(given, "span", tuple(openapi.SPANS))]
        if whose[2] is not None and span_ms > _METER_MS:
            raise RefusedRequest(400, "meter: its own usage is kept for a quarter of an hour; expected span=15m")
        return Question(span_ms, step_ms, by, None, *whose)
    begin_ms, until_ms = _instant(given, "from"), _instant(given, "to")
    if not 0 < until_ms - begin_ms <= openapi.RANGE_MAX_MS:
        raise RefusedRequest(400, "from, to: expected a time of at most 48 hours, to after from")
    if whose[2] is not None:
        raise RefusedRequest(400, "meter: its own usage is kept for a quarter of an hour; expected span=15m")
    step_ms = next((step for step in _STEPS_MS if until_ms - begin_ms <= step * STEPS_MAX), _STEPS_MS[-1])
    begin_ms = begin_ms // step_ms * step_ms
    until_ms = -(-until_ms // step_ms) * step_ms
    return Question(until_ms - begin_ms, step_ms, by, until_ms, *whose)


def name(given: Mapping[str, str], parameter: str) -> str | None:
    """Of a model, a chip, a meter or a user."""
    value = given.get(parameter)
    if value is not None and not 0 < len(value) <= NAME_MAX:
        raise RefusedRequest(400, f"{parameter}: expected a name of at most {NAME_MAX} characters")
    return value


def _choice(given: Mapping[str, str], parameter: str, allowed: tuple[str, ...]) -> str:
    value = given.get(parameter, allowed[0])
    if value not in allowed:
        raise RefusedRequest(400, f"{parameter}: expected one of {', '.join(allowed)}")
    return value


def _instant(given: Mapping[str, str], parameter: str) -> int:
    """In ms since the epoch."""
    try:
        moment = datetime.fromisoformat(given[parameter])
        at_ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        at_ms = -1
    if not 0 <= at_ms < 253_402_300_800_000:
        raise RefusedRequest(400, f"{parameter}: expected a time such as 2026-11-29T15:00Z")
    return at_ms


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
