"""The description of the ledger's API: OpenAPI 3.1. serve.py answers it at /v1/openapi.json.

Promises: pure; it names every path, parameter and status that serve.py has.
"""

from typing import Any

from tokenometer.processor.http import openapi
from tokenometer.processor.http.openapi import array_of, choice, json_of, object_of, operation, parameter, ref
from tokenometer.processor.ledger import focus, statements, times, usage
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

_WRONG = {"400": "What is asked for is wrong; the message says what."}
_AWAY = {"503": "The database, or the ledger, cannot answer now."}
_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_MONEY = {"type": ["string", "null"], "pattern": r"^-?\d+(\.\d+)?$", "description": "A decimal, all of its digits."}
_INSTANT = {"type": "string", "format": "date-time"}
_MAYBE = {"type": ["string", "null"], "format": "date-time"}
_LABELS = {"type": "object", "additionalProperties": _TEXT}
_NEXT = {"type": ["string", "null"], "description": "`after` of the next page; null: this is the last one."}


def describe() -> dict[str, Any]:
    text = (
        "What was used: tokens by user, model and chip, exactly, and the statements of closed periods. "
        "Integers may pass 2^64: read them as integers of any size."
    )
    return openapi.document("Tokenometer ledger", text, _paths(), _schemas())


def _paths() -> dict[str, Any]:
    text = {"text/plain": {"schema": _TEXT}}
    gets = {
        "/v1/usage": _usage(),
        "/v1/status": operation("How far it is, and whether anything is disputed.", json_of(ref("Status")), _AWAY),
        "/v1/statements": operation("What is closed.", json_of(ref("Statements")), {**_WRONG, **_AWAY}),
        "/v1/statements/{name}/{kind}": operation(
            "A statement's lines, or late usage and corrections that it reports; or all of it in FOCUS's columns.",
            json_of(ref("Page")), {**_WRONG, **_AWAY}, _page(),
        ),
        "/v1/check": operation("Do all statements add up to the rows?", json_of(ref("Check")), _AWAY),
        "/v1/openapi.json": operation("This description.", json_of({"type": "object"})),
        "/metrics": operation("For Prometheus.", text, _AWAY),
        "/healthz": operation("Whether it answers.", json_of(ref("Health")), guarded=False),
    }  # fmt: skip
    usage_of_body = _posted("What was used, by a price list of its own.", "Usage", "UsageQuestion", {})
    posts = {
        "/v1/usage": usage_of_body,
        "/v1/close": _posted(
            "Close a period: its statement is final.", "Statement", "Close",
            {"409": "The period is not complete, or some usage has no price."},
        ),
        "/v1/adjust": _posted(
            "A credit, a correction, or a void; the same key again is the same entry.", "Correction", "Adjust",
            {"409": "The key is another entry's."},
        ),
    }  # fmt: skip
    paths: dict[str, Any] = {path: {"get": each} for path, each in gets.items()}
    for path, each in posts.items():
        paths.setdefault(path, {})["post"] = each
    return paths


def _posted(summary: str, answer: str, body: str, errors: dict[str, str]) -> dict[str, Any]:
    of_body = {"408": "The body does not come.", "413": "The body is too large."}
    return operation(summary, json_of(ref(answer)), {**_WRONG, **of_body, **errors, **_AWAY}, body=ref(body))


def _page() -> list[dict[str, Any]]:
    kinds = {"type": "string", "enum": [*statements.KINDS, "focus"]}
    return [
        parameter("name", {"type": "string", "pattern": r"^([1-9]\d{0,7}|next)$"}, "Of a statement.", True, "path"),
        parameter("kind", kinds, "The next has adjustments and corrections.", True, "path"),
        *_paging(),
    ]


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


_NAMES: dict[str, Any] = {name: _TEXT for name in usage.DIMENSIONS}
_COUNTS: dict[str, Any] = {name: _COUNT for name in (*COUNTERS, TOTAL)}
_FURTHER: dict[str, Any] = {name: _COUNT for name in FURTHER}


def _schemas() -> dict[str, Any]:
    return {
        "Health": object_of(status=_TEXT),
        "Usage": object_of(
            ("currency",), **{"from": _INSTANT, "to": _INSTANT}, time_zone=_TEXT,
            window={"type": "string", "enum": list(times.UNITS)}, group_by=array_of(_TEXT),
            complete={"type": "boolean"}, complete_up_to=_MAYBE, rows=array_of(_usage_row()), next=_NEXT,
            currency=_TEXT,
        ),
        "UsageQuestion": _question(),
        "Status": object_of(
            complete_up_to=_MAYBE, closed_until=_MAYBE, parts={"type": "object", "additionalProperties": _COUNT},
            rows_taken=_COUNT, batches=_COUNT, rows_ignored=_COUNT, messages_behind={"type": ["integer", "null"]},
            disputed_parts=array_of(_TEXT),
        ),
        "Statement": _statement(),
        "Statements": object_of(statements=array_of(ref("Statement"))),
        "Page": object_of(rows=array_of({"anyOf": [ref("Line"), ref("Correction"), ref("Focus")]}), next=_NEXT),
        "Line": object_of(
            ("window_start", "labels", *FURTHER, "begin", "end", "price_line", "amount"), window_start=_INSTANT,
            **_NAMES, labels=_LABELS, **_COUNTS, **_FURTHER, begin=_MAYBE, end=_INSTANT,
            price_line={"type": ["integer", "null"], "description": "Of the entry in the list; null: unpriced."},
            amount=_MONEY,
        ),
        "Correction": _correction(),
        "Focus": object_of(**{name: {"type": ["string", "null"]} for name in focus.COLUMNS}),
        "Check": object_of(statements=_COUNT, differences=_COUNT),
        "Adjust": _adjust(_NAMES),
        "Close": _close(),
    }  # fmt: skip


def _usage_row() -> dict[str, Any]:
    priced: dict[str, Any] = {
        "revenue": _MONEY,
        "unpriced_tokens": _COUNT,
        "chip_cost": _MONEY,
        "uncosted_tokens": _COUNT,
    }
    optional = (*_NAMES, *_FURTHER, *priced)
    row = object_of(optional, begin=_INSTANT, end=_INSTANT, **_NAMES, **_COUNTS, **_FURTHER, **priced)
    return {**row, "additionalProperties": {"type": ["string", "null"], "description": "A label; null: it is absent."}}


_SUBTOTALS = object_of((), **dict.fromkeys(statements.KINDS, _MONEY))


def _statement() -> dict[str, Any]:
    return object_of(
        ("customer", "time_zone", "amount", "subtotals", "currency", "price_list"),
        statement={"type": "integer", "minimum": 1}, begin=_MAYBE, end=_INSTANT, closed_at=_INSTANT,
        complete={"type": "boolean"}, complete_up_to=_MAYBE, customer={"type": "object", "additionalProperties": _TEXT},
        time_zone=_TEXT, amount=_MONEY, subtotals=_SUBTOTALS, currency=_TEXT,
        price_list={**_TEXT, "description": "SHA-256 of the list."},
    )  # fmt: skip


def _correction() -> dict[str, Any]:
    counts = dict.fromkeys((*COUNTERS, *FURTHER), {"type": "integer"})
    return object_of(
        ("voids", "at", *_NAMES, "labels", *counts, "currency"),
        key=_TEXT, kind={"type": "string", "enum": ["credit", "correction", "void"]}, reason=_TEXT, made_at=_INSTANT,
        voids=_TEXT, at=_INSTANT, **_NAMES, labels=_LABELS, **counts, currency=_TEXT, amount=_MONEY,
        statement={"type": ["integer", "null"]},
    )  # fmt: skip


def _close() -> dict[str, Any]:
    found = object_of(
        ("time_zone", "anyway", "user", "label", "prices", "priced", "allow_unpriced", "without_prices"),
        to={**_TEXT, "minLength": 10, "examples": ["2026-12-01"]},
        time_zone={**_TEXT, "minLength": 1, "default": "UTC"},
        anyway={"type": "boolean", "default": False},
        user={**_TEXT, "minLength": 1, "description": "Only of this user."},
        label={**_TEXT, "minLength": 1, "description": "Only of this label's value, NAME=VALUE."},
        prices={**_TEXT, "minLength": 1, "description": "The text of a price list."},
        priced={"type": "boolean", "default": False, "description": "By the ledger's own list."},
        allow_unpriced={"type": "boolean", "default": False},
        without_prices={"type": "boolean", "default": False, "description": "Although earlier statements have prices."},
    )
    return {**found, "additionalProperties": False}


def _question() -> dict[str, Any]:
    texts = {
        each["name"]: {"type": "string"} for each in _usage()["parameters"] if each["name"] not in ("label", "format")
    }
    optional = [name for name in (*texts, "label", "prices") if name not in ("from", "to")]
    found = object_of(optional, **texts, label=array_of(_TEXT), prices={**_TEXT, "description": "A price list."})
    return {**found, "additionalProperties": False}


def _adjust(names: dict[str, Any]) -> dict[str, Any]:
    counts = dict.fromkeys((*COUNTERS, *FURTHER), {"type": "integer"})
    optional = ("amount", "currency", *names, "labels", "at", "tokens", "void")
    short = {**_TEXT, "minLength": 1, "maxLength": 1024}
    found = object_of(
        optional, key=short, reason=short, amount={**_TEXT, "examples": ["-12.50"]}, currency=_TEXT, **names,
        labels=_LABELS, at=_TEXT, void=short,
        tokens={"type": "object", "properties": counts, "additionalProperties": False},
    )  # fmt: skip
    return {**found, "additionalProperties": False}
