"""The ledger over HTTP, for the process that has its database open.

    GET  /v1/usage?from=..&to=..&group_by=user,model     as `tokenometer usage`; format=csv for a table
    GET  /v1/status                                      how far it is, and whether anything is disputed
    GET  /v1/statements                                  what is closed
    GET  /v1/statements/3/lines | /v1/statements/3/adjustments | /v1/statements/next/adjustments
    POST /v1/close        {"to": "2026-12-01", "time_zone": "Europe/Berlin"}
    GET  /v1/openapi.json                                the description of all this
    GET  /healthz

Promises: what is wrong with a question is said with status 400, and changes nothing; every answer is of one moment of
the database. Without a token it is served to this machine alone, by the same rules as the dashboard; a browser's page
of another origin cannot close a period, because a body that is not application/json is refused.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, TypeVar

from aiohttp import web

from tokenometer.processor.http import access, answers
from tokenometer.processor.http.answers import Refused
from tokenometer.processor.http.server import Handler, Server, application, body
from tokenometer.processor.ledger import export, intake, openapi, periods, times, usage
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.prices import Prices
from tokenometer.processor.ledger.store import Store
from tokenometer.processor.ledger.values import BadRequest, LedgerError

_READERS = 4  # questions that are answered at a time; others wait
_CLOSE_SECONDS = 300  # a batch may be on its way, and a month has many rows
T = TypeVar("T")


@dataclass(frozen=True)
class ServeSettings:
    """token: what a request must bear; needed for any address but this machine's own."""

    host: str = "127.0.0.1"
    port: int = 9465
    token: str | None = field(default=None, repr=False)
    grace_ms: int = 300_000
    prices: Prices | None = None

    def __post_init__(self) -> None:
        try:
            access.check(self.host, self.token)
        except access.ServeError as error:
            raise BadRequest(f"{error} (--token-file)") from None


class Api:
    """The questions, without HTTP: texts in, plain values out. Raises LedgerError."""

    def __init__(
        self,
        database: Database,
        settings: ServeSettings,
        ask: Callable[[Callable[[Store], Any]], "Future[Any]"],
        progress: Callable[[], intake.IntakeProgress],
        now_ms: Callable[[], int],
    ) -> None:
        self._database, self._settings = database, settings
        self._ask, self._progress, self._now_ms = ask, progress, now_ms

    def usage(self, given: usage.Given) -> dict[str, Any]:
        query = usage.parse(given)
        with self._database.snapshot() as database:
            return usage.as_json(usage.answer(database, query, self._settings.prices))

    def status(self) -> dict[str, Any]:
        with self._database.snapshot() as database:
            [(closed,)] = database.rows("SELECT closed_until FROM book")
            states = database.rows("SELECT state, count(*) FROM parts GROUP BY state ORDER BY state")
            mark = usage.watermark(database)
        return {
            "complete_up_to": None if mark is None else times.text(mark, UTC),
            "closed_until": None if closed is None else times.text(closed, UTC),
            "parts": {state: int(count) for state, count in states},
            **intake.view(self._progress()),
        }

    def statements(self) -> dict[str, Any]:
        with self._database.snapshot() as database:
            return {"statements": [periods.statement_json(each) for each in periods.statements(database)]}

    def page(self, name: str, kind: str, given: Mapping[str, str]) -> dict[str, Any]:
        if unknown := given.keys() - {"limit", "after"}:
            raise BadRequest(f"no such parameter: {min(unknown)}; expected limit, after")
        with self._database.snapshot() as database:
            return periods.page_json(database, name, kind, usage.limit(given.get("limit")), given.get("after"))

    def close(self, body: Any) -> dict[str, Any]:
        if not isinstance(body, dict) or body.keys() - {"to", "time_zone", "anyway"} or not _text(body.get("to")):
            raise BadRequest('expected {"to": "2026-12-01"}, and if wanted time_zone and anyway')
        where, anyway = body.get("time_zone", "UTC"), body.get("anyway", False)
        if not _text(where) or not isinstance(anyway, bool):
            raise BadRequest("time_zone is a name, and anyway is true or false")
        end = times.moment(body["to"], times.zone(where))
        grace, now = self._settings.grace_ms, self._now_ms()
        asked = self._ask(lambda store: periods.close(store.database, end, grace, now, anyway))
        try:
            return periods.statement_json(asked.result(_CLOSE_SECONDS))
        except TimeoutError:
            raise LedgerError("the ledger has not come to it yet; look at /v1/statements before asking again") from None


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


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
            "/v1/usage": self._usage,
            "/v1/status": self._status,
            "/v1/statements": self._statements,
            "/v1/statements/{name}/{kind}": self._page,
            "/v1/openapi.json": self._openapi,
        }
        routes = [web.get(path, _told(handler)) for path, handler in gets.items()]
        return application([*routes, web.post("/v1/close", _told(self._close))], self._check)

    def _check(self, request: web.Request) -> None:
        token = self._settings.token
        if token is None:
            if not access.is_own_host(request.headers.get("Host")):
                raise Refused(403, "the Host header names another machine")
        elif not access.may_ask(token, request.headers.get("Authorization")) and request.path not in access.OPEN_PATHS:
            raise Refused(401, "a bearer token is wanted", WWW_Authenticate="Bearer")

    async def _answer(self, question: Callable[[], dict[str, Any]]) -> web.Response:
        return answers.of(await self._ask(question))

    async def _ask(self, question: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, question)

    async def _health(self, request: web.Request) -> web.Response:
        return answers.of({"status": "ok"})

    async def _openapi(self, request: web.Request) -> web.Response:
        return answers.of(self._description)

    async def _status(self, request: web.Request) -> web.Response:
        return await self._answer(self._api.status)

    async def _statements(self, request: web.Request) -> web.Response:
        return await self._answer(self._api.statements)

    async def _usage(self, request: web.Request) -> web.Response:
        given: dict[str, Any] = _once(request, "label")
        if "label" in request.query:
            given["label"] = request.query.getall("label")
        form = given.pop("format", "json")
        if form not in ("json", "csv"):
            raise BadRequest(f"format {form!r}: expected json or csv")
        found = await self._ask(lambda: self._api.usage(given))
        if form == "json":
            return answers.of(found)
        text = export.csv_text(found["rows"], export.columns_of(found))
        following = {"X-Next": found["next"]} if found["next"] else {}
        return web.Response(text=text, content_type="text/csv", charset="utf-8", headers=following)

    async def _page(self, request: web.Request) -> web.Response:
        given, name, kind = _once(request), request.match_info["name"], request.match_info["kind"]
        return await self._answer(lambda: self._api.page(name, kind, given))

    async def _close(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise BadRequest("expected a body of application/json")
        try:
            asked = json.loads(await body(request))
        except (ValueError, RecursionError):
            raise BadRequest("the body is not JSON") from None
        return await self._answer(lambda: self._api.close(asked))


def _told(handler: Handler) -> Handler:
    """The ledger's own errors, as statuses."""

    async def told(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except BadRequest as error:
            raise Refused(400, str(error)) from None
        except periods.NotComplete as error:
            raise Refused(409, str(error)) from None
        except LedgerError as error:
            raise Refused(503, str(error)) from None

    return told


def _once(request: web.Request, but: str = "") -> dict[str, str]:
    """All parameters, but one that may come again."""
    for name in request.query:
        if name != but and len(request.query.getall(name)) > 1:
            raise BadRequest(f"{name} is given twice")
    return {name: value for name, value in request.query.items() if name != but}
