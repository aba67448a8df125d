"""The description of the HTTP API: OpenAPI 3.1, with the schema of token-totals as the schema of its totals.

Promises: pure; the same description for every caller, so that it can be built once.
"""

import importlib.metadata
import json
from importlib import resources
from typing import Any

SPANS = {"1h": (3_600_000, 60_000), "6h": (21_600_000, 300_000), "24h": (86_400_000, 300_000)}  # span, step in ms
KINDS = ("total", "model", "chip", "category")
_SCHEMAS = "#/components/schemas/"


def describe() -> dict[str, Any]:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tokenometer",
            "version": importlib.metadata.version("tokenometer"),
            "description": "Rolling totals of LLM tokens, out of the committed summaries of all meters. Read-only. "
            "Integers may pass 2^53: read them as integers.",
        },
        "paths": _paths(),
        "security": [{}, {"bearer": []}, {"query": []}],
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
            "responses": {
                "Refused": {
                    "description": "A missing or wrong token (401), or a Host header that names another machine (403).",
                    "content": _json({"$ref": f"{_SCHEMAS}Error"}),
                }
            },
            "schemas": {**_totals(), **_SMALL_SCHEMAS},
        },
    }


def _totals() -> dict[str, Any]:
    """Its definitions become components of their own, where every tool looks for them."""
    text = (resources.files("schemas") / "totals.schema.json").read_text()
    schema = json.loads(text.replace('"#/$defs/', f'"{_SCHEMAS}'))
    definitions = schema.pop("$defs")
    return {"Totals": {key: value for key, value in schema.items() if key not in ("$schema", "$id")}, **definitions}


def _paths() -> dict[str, Any]:
    history = [
        _parameter("span", list(SPANS), "How far back, in event time."),
        _parameter("by", list(KINDS), "What makes a series."),
    ]
    totals, error = _json({"$ref": f"{_SCHEMAS}Totals"}), {"400": "A wrong parameter."}
    stream = {"text/event-stream": {"schema": {"type": "string"}}}
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    health = _json({"$ref": f"{_SCHEMAS}Health"})
    return {
        "/api/totals": _get("The newest totals.", totals, {"503": "No totals yet."}),
        "/api/history": _get("Tokens per step of event time.", _json({"$ref": f"{_SCHEMAS}History"}), error, history),
        "/api/rate": _get(
            "Tokens committed per second: ten minutes, by the second.", _json({"$ref": f"{_SCHEMAS}Rate"})
        ),
        "/api/stream": _get(
            "Server-sent events: `totals`, once a second; its data is what /api/totals answers.",
            stream,
            {"503": "Too many streams."},
        ),
        "/healthz": _get("Is the rollup well?", health, {"503": "It is not."}, guarded=False),
        "/metrics": _get("For Prometheus.", metrics),
    }


def _get(
    summary: str,
    content: dict[str, Any],
    errors: dict[str, str] | None = None,
    parameters: list[dict[str, Any]] | None = None,
    guarded: bool = True,
) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    if guarded:
        responses |= {status: {"$ref": "#/components/responses/Refused"} for status in ("401", "403")}
    for status, text in (errors or {}).items():
        error = content if not guarded else _json({"$ref": f"{_SCHEMAS}Error"})
        responses[status] = {"description": text, "content": error}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if not guarded:
        operation["security"] = []
    return {"get": operation}


def _parameter(name: str, values: list[str], text: str) -> dict[str, Any]:
    schema = {"type": "string", "enum": values, "default": values[0]}
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TIMES = _array({"type": "integer", "description": "Milliseconds since the epoch."})
_SMALL_SCHEMAS = {
    "Error": _object(error={"type": "string"}),
    "Health": _object(status={"type": "string"}),
    "Rate": _object(times=_TIMES, tokens_per_second=_array({"type": "number"})),
    "History": _object(
        **{"from": {"type": "string", "format": "date-time"}, "to": {"type": "string", "format": "date-time"}},
        step_ms={"type": "integer"},
        times=_TIMES,
        series=_array(
            _object(
                name={"type": ["string", "null"], "description": "null: all others together"},
                tokens=_array({"type": "integer"}),
            )
        ),
    ),
}
