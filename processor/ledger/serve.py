"""The ledger over HTTP, for the process that has its database open.

    GET  /v1/usage?from=..&to=..&group_by=user,model     as `tokenometer usage`; format=csv for a table
    POST /v1/usage        {"from": .., "to": .., "prices": ..}   the same, by a price list of its own
    GET  /v1/status                                      how far it is, and whether anything is disputed
    GET  /v1/statements                                  what is closed
    GET  /v1/statements/3/lines | /v1/statements/3/adjustments | /v1/statements/next/corrections
    GET  /v1/check                                       do the statements add up?
    POST /v1/close        {"to": "2026-12-01", "time_zone": "Europe/Berlin", "prices": ..}
    POST /v1/adjust       {"key": "credit-17", "reason": .., "user": .., "amount": "-5.00"}
    GET  /v1/openapi.json                                the description of all this
    GET  /metrics, /healthz

Promises: what is wrong with a question is said with status 400, and changes nothing; every answer is of one moment of
the database. Without a token it is served to this machine alone, by the same rules as the dashboard; a browser's page
of another origin cannot close a period, because a body that is not application/json is refused. A customer's token
reads that customer's usage and statements, and nothing else.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenometer.processor.http import access, answers
from tokenometer.processor.http.answers import RefusedRequest
from tokenometer.processor.http.server import Handler, Server, application, body
from tokenometer.processor.ledger import export, openapi, periods
from tokenometer.processor.ledger.adjust import Conflict
from tokenometer.processor.ledger.api import Api, ServeSettings, metrics
from tokenometer.processor.ledger.billing import Unpriced
from tokenometer.processor.ledger.periods import Customer
from tokenometer.processor.ledger.prices import PriceError
from tokenometer.processor.ledger.values import BadRequest, LedgerError

_READERS = 4  # questions that are answered at a time; others wait
_OF_CUSTOMERS = re.compile(r"/v1/(usage|statements(/[^/]+/[^/]+)?|openapi\.json)|/healthz")
T = TypeVar("T")


class LedgerServer:
    """Serves until it is closed. Raises LedgerError where the address cannot be taken."""

    def __init__(self, api: Api, settings: ServeSettings) -> None:
        self._api, self._settings = api, settings
        self._description = openapi.describe()
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="usage")
        try:
            self._server = Server(self._application(), settings.host, settings.port, "ledger")
        except OSError as error:
            self._pool.shutdown()
            raise LedgerError(
                f"{settings.host}:{settings.port}: {error.strerror or error}; choose another port with --listen"
            ) from None
        self.port = self._server.port

    def close(self) -> None:
        self._server.close()
        self._pool.shutdown(cancel_futures=True)

    # --- Requests ---

    def _application(self) -> web.Application:
        gets = {
            "/healthz": self._health,
            "/metrics": self._metrics,
            "/v1/usage": self._usage,
            "/v1/status": self._status,
            "/v1/statements": self._statements,
            "/v1/statements/{name}/{kind}": self._page,
            "/v1/check": self._check_statements,
            "/v1/openapi.json": self._openapi,
        }
        posts = {
            "/v1/usage": self._api.posted_usage,
            "/v1/close": self._api.close,
            "/v1/adjust": self._api.adjust,
        }
        asked = ("/v1/usage", "/v1/statements/{name}/{kind}", "/metrics")  # these look at their parameters themselves
        # A probe that adds something to /healthz must not be told that the ledger is not well.
        bare = {path: handler if path in (*asked, "/healthz") else _bare(handler) for path, handler in gets.items()}
        routes = [web.get(path, _told(handler)) for path, handler in bare.items()]
        routes += [web.post(path, _told(_bare(self._posted(question)))) for path, question in posts.items()]
        return application(routes, self._check)

    def _check(self, request: web.Request) -> None:
        token = self._settings.token
        if token is None:
            if not access.is_own_host(request.headers.get("Host")):
                raise RefusedRequest(403, "the Host header names another machine")
            return
        if access.may_ask(token, request.headers.get("Authorization")) or request.path in access.OPEN_PATHS:
            return
        if self._customer(request) is None:
            raise RefusedRequest(401, "a bearer token is wanted", WWW_Authenticate="Bearer")
        if request.method not in ("GET", "HEAD") or not _OF_CUSTOMERS.fullmatch(request.path):
            raise RefusedRequest(403, "this token reads the usage and the statements of one customer")

    def _customer(self, request: web.Request) -> Customer | None:
        """Whose token it is. All are compared, so that how long it takes says nothing."""
        given = request.headers.get("Authorization")
        found = [each for own, each in self._settings.customers.items() if access.may_ask(own, given)]
        return found[0] if found else None

    async def _answer(self, question: Callable[[], dict[str, Any]]) -> web.Response:
        return answers.of(await self._ask(question))

    async def _ask(self, question: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, question)

    async def _health(self, request: web.Request) -> web.Response:
        return answers.of({"status": "ok"})

    async def _openapi(self, request: web.Request) -> web.Response:
        return answers.of(self._description)

    async def _metrics(self, request: web.Request) -> web.Response:
        status = await self._ask(self._api.status)
        found = CollectorRegistry()
        found.register(_Metrics(status))
        return answers.metrics(request, found)

    async def _check_statements(self, request: web.Request) -> web.Response:
        return await self._answer(self._api.check)

    async def _status(self, request: web.Request) -> web.Response:
        return await self._answer(self._api.status)

    async def _statements(self, request: web.Request) -> web.Response:
        return await self._answer(lambda: self._api.statements(self._customer(request)))

    async def _usage(self, request: web.Request) -> web.Response:
        given: dict[str, Any] = _once(request, "label")
        if "label" in request.query:
            given["label"] = request.query.getall("label")
        form = given.pop("format", "json")
        if form not in ("json", "csv"):
            raise BadRequest(f"format {form!r}: expected json or csv")
        found = await self._ask(lambda: self._api.usage(given, None, self._customer(request)))
        if form == "json":
            return answers.of(found)
        text = export.csv_text(found["rows"], export.columns_of(found))
        following = {"X-Next": found["next"]} if found["next"] else {}
        return web.Response(text=text, content_type="text/csv", charset="utf-8", headers=following)

    async def _page(self, request: web.Request) -> web.Response:
        given, name, kind = _once(request), request.match_info["name"], request.match_info["kind"]
        return await self._answer(lambda: self._api.page(name, kind, given, self._customer(request)))

    def _posted(self, question: Callable[[Any], dict[str, Any]]) -> Handler:
        async def posted(request: web.Request) -> web.StreamResponse:
            if request.content_type != "application/json":
                raise BadRequest("expected a body of application/json")
            try:
                asked = json.loads(await body(request))
            except (ValueError, RecursionError):
                raise BadRequest("the body is not JSON") from None
            return await self._answer(lambda: question(asked))

        return posted


class _Metrics(Collector):
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for name, text, value in metrics(self._status):
            if value is not None:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                yield kind(f"tokenometer_ledger_{name.removesuffix('_total')}", text, value)


def _told(handler: Handler) -> Handler:
    """The ledger's own errors, as statuses."""

    async def told(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequest as error:
            raise RefusedRequest(400, str(error)) from None
        except (periods.NotComplete, Unpriced, Conflict) as error:
            raise RefusedRequest(409, str(error)) from None
        except PriceError as error:
            raise RefusedRequest(400, str(error)) from None
        except LedgerError as error:
            raise RefusedRequest(503, str(error)) from None

    return told


def _bare(handler: Handler) -> Handler:
    """Of a route that has no parameters in its address. One that is given is refused, and not ignored."""

    async def bare(request: web.Request) -> web.StreamResponse:
        if request.query:
            raise BadRequest(f"no such parameter: {min(request.query)}; there are none")
        return await handler(request)

    return bare


def _once(request: web.Request, but: str = "") -> dict[str, str]:
    """All parameters, but one that may come again."""
    for name in request.query:
        if name != but and len(request.query.getall(name)) > 1:
            raise BadRequest(f"{name} is given twice")
    return {name: value for name, value in request.query.items() if name != but}
