"""The dashboard's HTTP server.

Owns: routes, the event stream, how often totals are taken; no arithmetic. What it serves comes from a `Source`.
Promises: totals are taken, and put into the form of an event, once a second for all clients together. A client that
reads too slowly skips to the newest totals, so it costs no more memory than its socket's buffer; one that does not
read at all is dropped.

    Source.totals ──once a second──> Frame ──> /api/totals
                                       └─────> every /api/stream: plain, or compressed once for all
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import time
import zlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry

from tokenometer.processor.dashboard import assets, openapi, questions
from tokenometer.processor.dashboard.ledgers import Ledger
from tokenometer.processor.dashboard.questions import Question
from tokenometer.processor.http import access, answers
from tokenometer.processor.http.access import ServeAddress, ServeError
from tokenometer.processor.http.answers import RefusedRequest
from tokenometer.processor.http.server import Server, application, connections_max

log = logging.getLogger("tokenometer.dashboard")

TICK_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0  # of a stream without news; proxies close silent connections after 30 or more
SEND_SECONDS = 30.0  # for one event; a client that takes longer does not read
STREAMS_MAX = 1000  # each may hold an event in the socket's buffer
HISTORY_SECONDS = 1.0  # an answer serves all who ask within
LEDGER_SECONDS = 4.0  # the same of what a ledger answers, to which a question is work
_KEPT_MAX = 200  # answers
_ONLY_A_LEDGER = "users of a model, a chip or another time are in the ledger; start the rollup with --ledger"
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # RFC 1952: deflate, no name, no time


@dataclass(frozen=True)
class Source:
    """Where the server's data comes from. All are called on the server's loop, and must not wait."""

    totals: Callable[[], bytes | None]  # the newest, as JSON on one line; None before the first
    history: Callable[[Question], dict[str, Any]]
    view: Callable[[Question], dict[str, Any]]
    top_users: Callable[[str | None], list[dict[str, Any]]]  # of a meter; None: any
    top_user: Callable[[str], int | None]  # tokens of the last hour in the lists of largest users
    rate: Callable[[], dict[str, Any]]
    healthy: Callable[[], tuple[bool, dict[str, Any]]]
    registry: CollectorRegistry
    cost: Callable[[Question], dict[str, Any]] | None = None  # None: there are no prices
    ledger: Ledger | None = None
    docs: str | None = None  # where the documentation is published
    alerts: Callable[[], dict[str, Any]] = lambda: {"alerts": [], "more": 0}  # of budgets


class Frame:
    """One second's totals, in every form in which they are sent."""

    def __init__(self, number: int, totals: bytes) -> None:
        assert b"\n" not in totals, "an event's data is one line"
        self.number, self.totals = number, totals

    @cached_property
    def plain(self) -> bytes:
        return b"event: totals\ndata: " + self.totals + b"\n\n"

    @cached_property
    def packed(self) -> bytes:
        return pack(self.plain)


def pack(text: bytes) -> bytes:
    """A piece of a gzip stream that does not refer to what came before it, so that one piece fits every stream."""
    squeeze = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(text) + squeeze.flush(zlib.Z_FULL_FLUSH)


class Site:
    """The application that is served; it lives on the loop of whoever serves it."""

    def __init__(self, source: Source, settings: ServeAddress) -> None:
        """Raises ServeError where the page's files are missing."""
        self._source, self._settings = source, settings
        self._assets = assets.load()
        self._description = orjson.dumps(openapi.describe())
        self._kept: dict[Any, tuple[float, bytes]] = {}  # answers of the last second
        self._asking: dict[Question, tuple[float, asyncio.Task[dict[str, Any]]]] = {}  # when, of the ledger
        self._frame: Frame | None = None
        self._news = asyncio.Condition()
        self._ending = False
        self._streams = 0
        self._ticker: asyncio.Task[None] | None = None
        self._room = connections_max() * 5 // 6  # for streams; the others are for all else
        self.port = settings.port  # as it is bound

    @property
    def url(self) -> str:
        host = self._settings.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    def application(self) -> web.Application:
        routes = [
            # A stream has no head alone.
            web.get(path, handler, allow_head=path != "/api/stream")
            for path, handler in {
                "/": self._page,
                "/static/{name}": self._static,
                "/api/totals": self._totals,
                "/api/history": self._history,
                "/api/view": self._view,
                "/api/user": self._user,
                "/api/users": self._users,
                "/api/cost": self._cost,
                "/api/about": self._about,
                "/api/rate": self._rate,
                "/api/stream": self._stream,
                "/v1/alerts": self._alerts,
                "/api/openapi.json": self._openapi,
                "/healthz": self._healthz,
                "/metrics": self._metrics,
            }.items()
        ]
        app = application(routes, self._check)
        app.on_response_prepare.append(self._give_cookie)
        app.on_startup.append(self._start)
        app.on_shutdown.append(self._end)
        return app

    # --- Totals, once a second ---

    async def _start(self, app: web.Application) -> None:
        await self._take()
        self._ticker = asyncio.create_task(self._tick())

    async def _end(self, app: web.Application) -> None:
        """Ends open streams, before the server waits for them."""
        self._ending = True
        if self._ticker:
            self._ticker.cancel()
        async with self._news:
            self._news.notify_all()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            await self._take()

    async def _take(self) -> None:
        try:
            totals = self._source.totals()
        except Exception:  # the page says that it is stale, the log says why; the next second may be better
            log.exception("totals cannot be had")
            return
        if totals is None or (self._frame and totals == self._frame.totals):
            return
        self._frame = Frame(self._frame.number + 1 if self._frame else 1, totals)
        async with self._news:
            self._news.notify_all()

    # --- Who may ask ---

    def _check(self, request: web.Request) -> None:
        token = self._settings.token
        if token is None:
            if not access.is_own_host(request.headers.get("Host")):
                raise RefusedRequest(
                    403, "the Host header names another machine; open the dashboard by 127.0.0.1 or localhost"
                )
            return
        query, cookie = request.query.get("token"), request.cookies.get(self._cookie_name)
        allowed = access.may_ask(token, request.headers.get("Authorization"), query, cookie)
        if not allowed and request.path not in access.OPEN_PATHS:
            message = "a token is needed: open /?token=TOKEN once, or send the header Authorization: Bearer TOKEN"
            raise RefusedRequest(401, message, WWW_Authenticate="Bearer")

    @property
    def _cookie_name(self) -> str:
        """A browser sends a cookie to all ports of a host, so each port has one of its own."""
        return f"tokenometer_{self.port}"

    async def _give_cookie(self, request: web.Request, response: web.StreamResponse) -> None:
        token, query = self._settings.token, request.query.get("token")
        if token and query and access.may_ask(token, None, query, None):
            secure = "; Secure" if request.secure else ""
            response.headers.add(
                "Set-Cookie",
                f"{self._cookie_name}={access.cookie_of(token)}; HttpOnly; SameSite=Strict; Path=/; "
                f"Max-Age={access.COOKIE_SECONDS}{secure}",
            )

    # --- Answers ---

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return await self._send_asset(request, self._assets[assets.PAGE])

    async def _static(self, request: web.Request) -> web.StreamResponse:
        asset = self._assets.get(request.match_info["name"])
        if asset is None:
            raise RefusedRequest(404, "no such file")
        return await self._send_asset(request, asset)

    async def _send_asset(self, request: web.Request, asset: assets.Asset) -> web.StreamResponse:
        """Browsers keep the file and ask again by its tag, so an upgrade shows at once."""
        headers = {"ETag": asset.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if request.headers.get("If-None-Match") == asset.tag:
            return web.Response(status=304, headers=headers)
        headers["Content-Type"] = asset.content_type
        if not _takes_gzip(request):
            return web.Response(body=asset.plain, headers=headers)
        return web.Response(body=await asset.packed(), headers={**headers, "Content-Encoding": "gzip"})

    async def _totals(self, request: web.Request) -> web.StreamResponse:
        questions.only(request)
        if self._frame is None:
            raise RefusedRequest(503, "no totals yet", Retry_After="1")
        return answers.answer(self._frame.totals)

    async def _history(self, request: web.Request) -> web.StreamResponse:
        question = questions.history(request)
        return self._once_a_second(question, lambda: self._source.history(question))

    async def _view(self, request: web.Request) -> web.StreamResponse:
        question = questions.sums(request)
        if self._frame is None:
            raise RefusedRequest(503, "no totals yet", Retry_After="1")
        return self._once_a_second(("view", question), lambda: self._source.view(question))

    async def _cost(self, request: web.Request) -> web.StreamResponse:
        question, cost = questions.sums(request), self._source.cost
        if cost is None:
            raise RefusedRequest(404, "no prices: start the rollup with --prices FILE or --chip-costs FILE")
        return self._once_a_second(("cost", question), lambda: cost(question))

    async def _users(self, request: web.Request) -> web.StreamResponse:
        """Out of the meters' lists where these have what is asked for and there is no ledger, which has all of it."""
        question, ledger = questions.users(request), self._source.ledger
        if question.meter is not None or (ledger is None and questions.is_usual(question) and not question.filtered):
            return answers.of({"source": "top_users", "rows": self._source.top_users(question.meter)})
        if ledger is None:
            return answers.of({"source": "none", "rows": [], "why": _ONLY_A_LEDGER})
        end_ms = question.until_ms or time.time_ns() // 1_000_000
        begin_ms = end_ms - question.span_ms
        found = self._shared(question, lambda: ledger.users(begin_ms, end_ms, question.model, question.chip))
        return answers.answer(await found)

    def _once_a_second(self, key: Any, ask: Callable[[], dict[str, Any]]) -> web.StreamResponse:
        now = time.monotonic()
        taken, answer = self._kept.get(key, (-HISTORY_SECONDS, b""))
        if now - taken >= HISTORY_SECONDS:
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            answer = orjson.dumps(ask())
            self._kept[key] = now, answer
        return answers.answer(answer)

    async def _user(self, request: web.Request) -> web.StreamResponse:
        user = questions.name(questions.only(request, "user"), "user")
        if user is None:
            raise RefusedRequest(400, "user: expected a name")
        if self._source.ledger is not None:
            return answers.answer(orjson.dumps(await self._source.ledger.user(user)))
        tokens = self._source.top_user(user)
        return answers.answer(orjson.dumps({"user": user, "source": "top_users", "total_tokens": tokens}))

    async def _shared(self, question: Question, ask: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> bytes:
        """All who ask the same within a few seconds share one question to the ledger."""
        now = time.monotonic()
        asked, task = self._asking.get(question, (0.0, None))
        if task is None or (task.done() and now - asked >= LEDGER_SECONDS):
            if len(self._asking) >= _KEPT_MAX:
                self._asking.clear()
            task = asyncio.ensure_future(ask())
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # who asked may be gone
            self._asking[question] = now, task
        return orjson.dumps(await asyncio.shield(task))

    async def _about(self, request: web.Request) -> web.StreamResponse:
        questions.only(request)
        ledger = self._source.ledger
        return answers.of(
            {
                "version": importlib.metadata.version("tokenometer"),
                "docs": self._source.docs,
                "ledger": ledger.url if ledger else None,
                "prices": self._source.cost is not None,
            }
        )

    async def _rate(self, request: web.Request) -> web.StreamResponse:
        questions.only(request)
        return answers.answer(orjson.dumps(self._source.rate()))

    async def _alerts(self, request: web.Request) -> web.StreamResponse:
        questions.only(request)
        return answers.answer(orjson.dumps(self._source.alerts()))

    async def _openapi(self, request: web.Request) -> web.StreamResponse:
        questions.only(request)
        return answers.answer(self._description)

    async def _healthz(self, request: web.Request) -> web.StreamResponse:
        healthy, state = self._source.healthy()
        return answers.answer(orjson.dumps(state, option=orjson.OPT_APPEND_NEWLINE), 200 if healthy else 503)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        return answers.metrics(request, self._source.registry)

    # --- The event stream ---

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        questions.only(request)
        if self._streams >= min(STREAMS_MAX, self._room):
            raise RefusedRequest(503, f"there are {self._streams:,} streams already", Retry_After="10")
        packed = _takes_gzip(request)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        if packed:
            response.headers["Content-Encoding"] = "gzip"
        self._streams += 1
        try:
            await response.prepare(request)
            await self._send_events(response, packed)
        except ConnectionError:
            pass  # it went away
        except TimeoutError:
            if request.transport:
                request.transport.abort()  # what waits in its buffer will never be read
        finally:
            self._streams -= 1
        return response

    async def _send_events(self, response: web.StreamResponse, packed: bool) -> None:
        begin = b"retry: 1000\n\n"
        await _send(response, _GZIP_HEADER + pack(begin) if packed else begin)
        seen = 0
        while not self._ending:
            frame = await self._newer_than(seen)
            if frame is None:
                await _send(response, pack(b":\n\n") if packed else b":\n\n")
            else:
                await _send(response, frame.packed if packed else frame.plain)
                seen = frame.number

    async def _newer_than(self, seen: int) -> Frame | None:
        """The next frame; None after a long silence, or at the end."""

        def is_newer() -> bool:
            return self._ending or (self._frame is not None and self._frame.number > seen)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS), self._news:
                await self._news.wait_for(is_newer)
                return None if self._ending else self._frame
        return None


async def _send(response: web.StreamResponse, event: bytes) -> None:
    async with asyncio.timeout(SEND_SECONDS):
        await response.write(event)


def _takes_gzip(request: web.Request) -> bool:
    codings = request.headers.get("Accept-Encoding", "").lower().split(",")
    return any(coding.strip() in ("gzip", "gzip;q=1", "gzip;q=1.0") for coding in codings)


class SiteThread:
    """A site that is served, on a thread and a loop of its own. Raises ServeError."""

    def __init__(self, source: Source, settings: ServeAddress) -> None:
        self.site = Site(source, settings)
        host, port = settings.host, settings.port
        try:
            self._server = Server(self.site.application(), host, port, "dashboard")
        except OSError as error:
            raise ServeError(f"{host}:{port}: {error.strerror}; choose another address for the dashboard") from None
        self.site.port = self._server.port

    @property
    def url(self) -> str:
        return self.site.url

    def close(self) -> None:
        self._server.close()
