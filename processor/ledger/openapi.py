"""The description of the ledger's API: OpenAPI 3.1. serve.py answers it at /v1/openapi.json.

Promises: pure; it names every path, parameter and status that serve.py has.
"""

from typing import Any

from tokenometer.processor.http import openapi
from tokenometer.processor.http.openapi import array_of, choice, json_of, object_of, operation, parameter, ref
from tokenometer.processor.ledger import times, usage
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

_WRONG = {"400": "What is asked for is wrong; the message says what."}
_AWAY = {"503": "The database, or the ledger, cannot answer now."}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_MONEY = {"type": ["string", "null"], "pattern": r"^-?\d+(\.\d+)?$", "description": "A decimal, all of its digits."}
_INSTANT = {"type": "string", "format": "date-time"}
_MAYBE = {"type": ["string", "null"], "format": "date-time"}
_NEXT = {"type": ["string", "null"], "description": "`after` of the next page; null: this is the last one."}


def describe() -> dict[str, Any]:
    text = (
        "What was used: tokens by user, model and chip, exactly, and the statements of closed periods. "
        "Integers may pass 2^64: read them as integers of any size."
    )
    return openapi.document("Tokenometer ledger", text, _paths(), _schemas())


def _paths() -> dict[str, Any]:
    health = json_of(ref("Health"))
    page = [
        parameter("name", {"type": "string", "pattern": r"^([1-9]\d{0,7}|next)$"}, "Of a statement.", True, "path"),
        parameter("kind", {"type": "string", "enum": ["lines", "adjustments"]}, "The next: adjustments.", True, "path"),
        *_paging(),
    ]
    incomplete = {"409": "The period is not complete."}
    closing = operation(
        "Close a period: its statement is final.", json_of(ref("Statement")),
        {**_WRONG, "408": "The body does not come.", **incomplete, "413": "The body is too large.", **_AWAY},
        body=ref("Close"),
    )  # fmt: skip
    gets = {
        "/v1/usage": _usage(),
        "/v1/status": operation("How far it is, and whether anything is disputed.", json_of(ref("Status")), _AWAY),
        "/v1/statements": operation("What is closed.", json_of(ref("Statements")), _AWAY),
        "/v1/statements/{name}/{kind}": operation(
            "A statement's lines, or late usage that it reports.", json_of(ref("Page")), {**_WRONG, **_AWAY}, page
        ),
        "/v1/openapi.json": operation("This description.", json_of({"type": "object"})),
        "/healthz": operation("Does it answer?", health, guarded=False),
    }
    return {**{path: {"get": each} for path, each in gets.items()}, "/v1/close": {"post": closing}}


def _usage() -> dict[str, Any]:
    moment = {"type": "string", "minLength": 10, "examples": ["2026-11-01", "2026-11-01T00:00:00+01:00"]}
    parameters = [
        parameter("from", moment, "A date (its beginning in time_zone), or RFC 3339 with an offset.", True),
        parameter("to", moment, "The first moment that is not meant.", True),
        parameter("time_zone", {**_TEXT, "default": "UTC"}, "An IANA name: where days and months begin."),
        parameter("window", {**choice(*times.UNITS), "default": "total"}, "A row for each of these."),
        parameter(
            "group_by",
            {**_TEXT, "examples": ["user,model", "team,service_tier"]},
            f"Of {', '.join(usage.DIMENSIONS)}, and the names of labels.",
        ),
        *(parameter(name, _TEXT, f"Only of this {name}.") for name in usage.DIMENSIONS),
        parameter(
            "label",
            {**array_of({**_TEXT, "examples": ["team=blue"]}), "default": []},
            "Only with this label, NAME=VALUE; NAME= is without it. May be repeated.",
        ),
        parameter("top", _number(), "Only the rows of the most tokens."),
        *_paging(),
        parameter("priced", choice("false", "true"), "With revenue and chip costs, by the ledger's price list."),
        parameter("further", choice("false", "true"), "With further counters also where they are 0."),
        parameter("format", choice("json", "csv"), "csv: a table."),
    ]
    content = {**json_of(ref("Usage")), "text/csv": {"schema": _TEXT}}
    headers = {"X-Next": {"description": "Of csv: `after` of the next page.", "schema": _TEXT}}
    return operation("What was used.", content, {**_WRONG, **_AWAY}, parameters, headers=headers)


def _paging() -> list[dict[str, Any]]:
    return [
        parameter("limit", {**_number(), "default": usage.LIMIT}, "Rows of a page."),
        parameter("after", _TEXT, "`next` of the page before."),
    ]


def _number() -> dict[str, Any]:
    return {"type": "integer", "minimum": 1, "maximum": usage.LIMIT_MAX}


def _schemas() -> dict[str, Any]:
    counters: dict[str, Any] = {name: _COUNT for name in (*COUNTERS, TOTAL)}
    names: dict[str, Any] = {name: _TEXT for name in usage.DIMENSIONS}
    priced: dict[str, Any] = {
        "revenue": _MONEY,
        "unpriced_tokens": _COUNT,
        "chip_cost": _MONEY,
        "uncosted_tokens": _COUNT,
    }
    further: dict[str, Any] = {name: _COUNT for name in FURTHER}
    optional = (*usage.DIMENSIONS, *further, *priced)
    row = object_of(optional, begin=_INSTANT, end=_INSTANT, **names, **counters, **further, **priced)
    row["additionalProperties"] = {"type": ["string", "null"], "description": "A label; null: it is absent."}
    statement = object_of(
        statement={"type": "integer", "minimum": 1}, begin=_MAYBE, end=_INSTANT, closed_at=_INSTANT,
        complete={"type": "boolean"}, complete_up_to=_MAYBE,
    )  # fmt: skip
    return {
        "Health": object_of(status=_TEXT),
        "Usage": object_of(
            ("currency",),
            **{"from": _INSTANT, "to": _INSTANT},
            time_zone=_TEXT,
            window={"type": "string", "enum": list(times.UNITS)},
            group_by=array_of(_TEXT),
            complete={"type": "boolean"},
            complete_up_to=_MAYBE,
            rows=array_of(row),
            next=_NEXT,
            currency=_TEXT,
        ),  # fmt: skip
        "Status": object_of(
            complete_up_to=_MAYBE,
            closed_until=_MAYBE,
            parts={"type": "object", "additionalProperties": _COUNT},
            rows_taken=_COUNT,
            batches=_COUNT,
            rows_ignored=_COUNT,
            messages_behind={"type": ["integer", "null"]},
            disputed_parts=array_of(_TEXT),
        ),  # fmt: skip
        "Statement": statement,
        "Statements": object_of(statements=array_of(ref("Statement"))),
        "Page": object_of(
            rows=array_of(object_of(("window_start",), window_start=_INSTANT, **names, **counters)), next=_NEXT
        ),
        "Close": {
            **object_of(
                ("time_zone", "anyway"),
                to={**_TEXT, "minLength": 10, "examples": ["2026-12-01"]},
                time_zone={**_TEXT, "minLength": 1, "default": "UTC"},
                anyway={"type": "boolean", "default": False},
            ),
            "additionalProperties": False,
        },
    }
