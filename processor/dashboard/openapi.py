"""The description of the dashboard's API: OpenAPI 3.1, with the schema of token-totals as the schema of its totals.

Promises: it is pure, and the description is the same for every caller, so that it can be built once.
"""

import json
from importlib import resources
from typing import Any

import tokenometer.schemas
from tokenometer.processor.http import openapi
from tokenometer.processor.http.openapi import array_of, choice, json_of, object_of, operation, parameter, ref

SPANS = {  # span, step in ms
    "1h": (3_600_000, 60_000), "15m": (900_000, 60_000), "6h": (21_600_000, 300_000), "24h": (86_400_000, 300_000),
    "48h": (172_800_000, 600_000),
}  # fmt: skip
RANGE_MAX_MS = 172_800_000  # yesterday and today are kept
KINDS = ("total", "model", "chip", "category")


def describe() -> dict[str, Any]:
    text = (
        "Rolling totals of LLM tokens, out of the committed summaries of all meters. Read-only. "
        "Integers may pass 2^53: read them as integers."
    )
    return openapi.document("Tokenometer", text, _paths(), {**_totals(), **_SMALL_SCHEMAS}, in_query=True)


def _totals() -> dict[str, Any]:
    """The schema's definitions become components of their own, where every tool looks for them."""
    text = (resources.files(tokenometer.schemas) / "totals.schema.json").read_text()
    schema = json.loads(text.replace('"#/$defs/', f'"{openapi.SCHEMAS}'))
    definitions = schema.pop("$defs")
    return {"Totals": {key: value for key, value in schema.items() if key not in ("$schema", "$id")}, **definitions}


def _paths() -> dict[str, Any]:
    time = [
        parameter("span", choice(*SPANS), "How far back, in event time; an hour by default."),
        parameter("from", _INSTANT, "In place of span, with to: at most 48 hours."),
        parameter("to", _INSTANT, "The first moment that is not meant."),
        parameter("model", _NAME, "Only of this model."),
        parameter("chip", _NAME, "Only of this chip."),
        parameter("meter", _NAME, "Only of this meter, whose own usage is known of span=15m."),
    ]
    history = [parameter("by", choice(*KINDS), "What makes a series."), *time]
    wrong = {"400": "A wrong or unknown parameter."}
    health = json_of(ref("Health"))
    operations = {
        "/api/totals": operation("The newest totals.", json_of(ref("Totals")), {"503": "No totals yet."}),
        "/api/history": operation("Tokens per step of event time.", json_of(ref("History")), wrong, history),
        "/api/view": operation(
            "What the totals say of a model, a chip, a meter and a time; by event time.",
            json_of({"type": "object"}),
            {**wrong, "503": "No totals yet."},
            time,
        ),
        "/api/user": operation(
            "A user's usage of the last day: out of the ledger, or of the lists of largest users.",
            json_of(ref("User")),
            {**wrong, "502": "The ledger does not answer."},
            [parameter("user", _NAME, "The user.", True)],
        ),
        "/api/users": operation(
            "Who used most: out of the ledger, or the last hour's out of the lists of largest users.",
            json_of(ref("Users")),
            {**wrong, "502": "The ledger does not answer."},
            time,
        ),
        "/api/cost": operation(
            "Revenue and chip costs by model and chip, at list prices.",
            json_of({"type": "object"}),
            {**wrong, "404": "There is no price list and no list of costs."},
            time,
        ),
        "/api/about": operation("What else there is: links, and whether there are prices.", json_of(ref("About"))),
        "/api/rate": operation("Tokens committed per second: ten minutes, by the second.", json_of(ref("Rate"))),
        "/api/stream": operation(
            "Server-sent events: `totals`, once a second; its data is what /api/totals answers.",
            {"text/event-stream": {"schema": {"type": "string"}}},
            {"503": "Too many streams."},
        ),
        "/v1/alerts": operation(
            "Budgets whose thresholds were passed, the newest first: of each period the highest one.",
            json_of(ref("Alerts")),
        ),
        "/healthz": operation(
            "Says whether the rollup is healthy.",
            health,
            {"503": "It is not healthy."},
            guarded=False,
            error_content=health,
        ),
        "/metrics": operation("For Prometheus.", {"text/plain": {"schema": {"type": "string"}}}),
    }
    return {path: {"get": each} for path, each in operations.items()}


_NAME = {"type": "string", "minLength": 1, "maxLength": 256}


_INSTANT = {"type": "string", "format": "date-time"}
_TIMES = array_of({"type": "integer", "description": "Milliseconds since the epoch."})
_SERIES = object_of(
    name={"type": ["string", "null"], "description": "null: all others together"},
    tokens=array_of({"type": "integer"}),
)
_AMOUNT = {"type": ["integer", "string"], "description": "Tokens, or an exact decimal of a currency."}
_ALERT = object_of(
    schema={"type": "integer"}, id={"type": "string"}, rule={"type": "string"}, threshold={"type": "integer"},
    each={"type": ["string", "null"]}, subject={"type": ["string", "null"]}, unit={"type": "string"},
    limit=_AMOUNT, used=_AMOUNT, per={"enum": ["hour", "day", "month"]}, begin=_INSTANT, end=_INSTANT, at=_INSTANT,
)  # fmt: skip
_SMALL_SCHEMAS = {
    "About": object_of(
        version={"type": "string"},
        docs={"type": ["string", "null"]},
        ledger={"type": ["string", "null"]},
        prices={"type": "boolean"},
    ),
    "User": object_of(
        ("rows",),
        user=_NAME,
        source=choice("ledger", "top_users"),
        total_tokens={"type": ["integer", "null"]},
        rows=array_of({"type": "object"}),
    ),
    "Users": object_of(source=choice("ledger", "top_users", "none"), rows=array_of({"type": "object"})),
    "Alerts": object_of(
        alerts=array_of(_ALERT), more={"type": "integer", "description": "How many there are besides."}
    ),
    "Health": object_of(status={"type": "string"}),
    "Rate": object_of(times=_TIMES, tokens_per_second=array_of({"type": "number"})),
    "History": object_of(
        **{"from": _INSTANT, "to": _INSTANT}, step_ms={"type": "integer"}, times=_TIMES, series=array_of(_SERIES)
    ),
}
