"""The face of a process that only counts: /metrics and /healthz."""

from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from tokenometer.processor.http import answers
from tokenometer.processor.http.server import Server, application


def serve_health(
    registry: CollectorRegistry, status: Callable[[], tuple[bool, dict[str, Any]]], host: str, port: int
) -> Server:
    """status: whether it is healthy, and what /healthz says. Raises OSError where the address cannot be taken."""

    async def metrics(request: web.Request) -> web.Response:
        return answers.metrics(request, registry)

    async def healthz(request: web.Request) -> web.Response:
        healthy, state = status()
        return answers.of(state, 200 if healthy else 503)

    routes = [web.get("/metrics", metrics), web.get("/healthz", healthz)]
    return Server(application(routes, hint="here are /metrics and /healthz"), host, port, "health")
