"""Answers: JSON, errors (always JSON), metrics.

Promises: an error is `{"error": "..."}` whatever went wrong, and says nothing of this machine.
"""

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tokenometer.processor.http import access

_JSON = "application/json"
_COMPRESS_FROM = 1024  # bytes; smaller answers fit a packet


class RefusedRequest(Exception):
    """A request that gets an error for an answer. headers: with _ for -."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def answer(body: bytes, status: int = 200) -> web.Response:
    """An answer of JSON that is already text."""
    return compressed(web.Response(body=body, status=status, content_type=_JSON))


def of(value: Any, status: int = 200) -> web.Response:
    """A JSON answer of a plain value."""
    return answer(json.dumps(value).encode() + b"\n", status)


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    # What a client sent may come back in it, and half a surrogate pair is no text to a strict reader of JSON.
    found = of({"error": message.encode(errors="backslashreplace").decode()}, status)
    found.headers.update(access.HEADERS)
    found.headers.update(headers or {})
    return found


def metrics(request: web.Request, registry: CollectorRegistry) -> web.Response:
    """Metrics for Prometheus, in the format that it asks for; only those that it names (`name[]`), if it names some.
    Raises RefusedRequest for another parameter, but the token of who asks."""
    if unknown := request.query.keys() - {"name[]", "token"}:
        raise RefusedRequest(400, f"{min(unknown)[:256]}: no such parameter; expected name[]")
    if names := request.query.getall("name[]", None):
        registry = registry.restricted_registry(names)  # type: ignore[assignment]
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return compressed(web.Response(body=encode(registry), headers={"Content-Type": content_type}))


def compressed(response: web.Response) -> web.Response:
    if isinstance(response.body, bytes) and len(response.body) >= _COMPRESS_FROM:
        response.enable_compression()
    return response
