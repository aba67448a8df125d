"""Serves an application on a thread and a loop of its own, within limits that no client can pass.

Owns: the listening socket, the connections and when one is ended, what becomes of errors.
Promises: a client that is silent or slow, or sends what is no request, delays nobody and costs one connection for a few
seconds. There are never more than `connections_max` connections. At the limit, the one that has waited longest for a
request gives way to a new one, so a probe is answered however many clients are silent. A connection has one request at
a time: one that sends the next before it has the answer gets that answer, and is ended. What a client sends writes no
line in the log; a fault of ours writes one a second at most.

    accepted ──> waits ──head of a request is there──> asks ──answer is sent──> waits ...
                   └─ HEAD_SECONDS, or room is needed: ended  └─ SEND_SECONDS without a byte taken: ended
"""

import asyncio
import logging
import os
import resource
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

from aiohttp import web

from tokenometer.processor.http import access
from tokenometer.processor.http.answers import RefusedRequest, error

log = logging.getLogger("tokenometer.http")

CONNECTIONS_MAX = 1200  # the dashboard's event streams (1,000), and probes, scrapes and pages beside them
HEAD_SECONDS = 10.0  # for the head of a request, the first or a later one of a connection
SEND_SECONDS = 30.0  # without a byte that the client has taken; such a client does not read
BODY_BYTES_MAX = 1 << 16  # the one request with a body, /v1/close, has a hundred bytes
BODY_SECONDS = 10.0
_LINGER_SECONDS = 2.0  # for a body that nobody wanted
_STOP_SECONDS = 2.0  # for open requests
_QUEUE = 1024  # connections that wait for the system to be accepted; beyond it clients try again after a second
_BATCH = 16  # of them that are accepted at a time, and may be above the limit for a moment
_SWEEP_SECONDS = 1.0
_COMPLAINT_SECONDS = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Gate = Callable[[web.Request], None]


def application(
    routes: Iterable[web.RouteDef], gate: Gate | None = None, finish: Gate | None = None, hint: str = "no such path"
) -> web.Application:
    """What is served: routes, who may ask (`gate` raises Refused), and errors as JSON. hint: of status 404."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if isinstance(request.protocol, _Connection):
            request.protocol.asks()
        try:
            if gate is not None:
                gate(request)
            return await handler(request)
        except RefusedRequest as refused:
            return error(refused.status, refused.message, refused.headers)
        except web.HTTPException as refused:
            allow = {"Allow": refused.headers["Allow"]} if "Allow" in refused.headers else {}
            return error(refused.status, hint if refused.status == 404 else refused.reason, allow)

    app = web.Application(middlewares=[guard], client_max_size=BODY_BYTES_MAX)
    app.on_response_prepare.append(_strict)
    app.router.add_routes(routes)
    return app


async def _strict(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(access.HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers.pop("Server", None)


async def body(request: web.Request) -> bytes:
    """The whole body. Raises Refused where it is too large, or does not come."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise RefusedRequest(408, f"the body did not come within {BODY_SECONDS:.0f} s", Connection="close") from None


def connections_max() -> int:
    """A quarter of the process's descriptors is for one server. The soft limit is raised for that, where the hard one
    allows it, because a shell or a service manager gives only 1,024 to a process that has not asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS_MAX
    if 0 <= soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return CONNECTIONS_MAX if soft < 0 else min(CONNECTIONS_MAX, soft // 4)


class Server:
    """Serves until it is closed. Raises OSError where the address cannot be taken."""

    def __init__(self, app: web.Application, host: str, port: int, name: str = "http") -> None:
        self._runner = web.AppRunner(app, shutdown_timeout=_STOP_SECONDS)
        self._complaints = _Complaints()
        self.connections = _Connections(connections_max())
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda loop, context: self._complaints.of_the_loop(context))
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        try:
            self.port = asyncio.run_coroutine_threadsafe(self._start(host, port), self._loop).result()
        except BaseException:
            self._end()
            raise

    async def _start(self, host: str, port: int) -> int:
        await self._runner.setup()
        try:
            self._listener = await self._loop.create_server(self._connection, host or None, port, backlog=_BATCH)
            for listening in self._listener.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as same:
                    same.listen(_QUEUE)  # asyncio takes one number for the queue and the batch
        except BaseException:
            await self._runner.cleanup()
            raise
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    def _connection(self) -> "_Connection":
        assert self._runner.server is not None
        return _Connection(self._runner.server, self._loop, self.connections, self._complaints)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._end()

    async def _stop(self) -> None:
        self._listener.close()
        await asyncio.sleep(0)  # what was accepted becomes a connection
        await self._runner.cleanup()
        self.connections.end_all()  # such as never take the end of their answers
        left = asyncio.all_tasks() - {asyncio.current_task()}  # such as wait for a body
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0)  # the loop closes the sockets

    def _end(self) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class _Connections:
    """All connections of one server. Used only on its loop."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._all: set[_Connection] = set()
        self._waiting: dict[_Connection, None] = {}  # for a request; the longest first
        self._sweeping = False

    def __len__(self) -> int:
        return len(self._all)

    def enter(self, connection: "_Connection") -> None:
        self._all.add(connection)
        self.waits(connection)
        if len(self._all) > self.limit:
            self.end(next(iter(self._waiting)))  # the new one itself, where all others ask
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)

    def leave(self, connection: "_Connection") -> None:
        self._all.discard(connection)
        self._waiting.pop(connection, None)

    def asks(self, connection: "_Connection") -> None:
        self._waiting.pop(connection, None)

    def waits(self, connection: "_Connection") -> None:
        if connection in self._all:
            self._waiting.pop(connection, None)
            self._waiting[connection] = None
            connection.since = asyncio.get_running_loop().time()

    def end(self, connection: "_Connection") -> None:
        self.leave(connection)
        if connection.transport is not None:
            connection.transport.abort()

    def end_all(self) -> None:
        for connection in list(self._all):
            self.end(connection)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self._all):
            unsent = connection.transport.get_write_buffer_size() if connection.transport else 0
            if unsent and unsent != connection.unsent:
                connection.since = now  # it takes what it is sent
            connection.unsent = unsent
            idle = connection in self._waiting
            if now - connection.since > (SEND_SECONDS if unsent else HEAD_SECONDS) and (unsent or idle):
                self.end(connection)
        self._sweeping = bool(self._all)
        if self._sweeping:
            asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._sweep)


class _Connection(web.RequestHandler):
    """One connection of HTTP/1.1. since: when it began to wait, or last took a byte. unsent: bytes for it, then."""

    __slots__ = ("since", "unsent", "_among", "_complaints")

    def __init__(
        self, server: web.Server, loop: asyncio.AbstractEventLoop, among: _Connections, complaints: "_Complaints"
    ) -> None:
        # How long it may be idle is for `among` to say; aiohttp's own limit is beyond.
        super().__init__(
            server, loop=loop, access_log=None,  # type: ignore[arg-type]  # none
            keepalive_timeout=4 * HEAD_SECONDS, lingering_time=_LINGER_SECONDS,
        )  # fmt: skip
        self.since, self.unsent = 0.0, 0
        self._among, self._complaints = among, complaints

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._among.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._among.leave(self)
        super().connection_lost(exc)

    def asks(self) -> None:
        self._among.asks(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._messages:  # Requests that did not wait for this answer: fifty in each of 400 connections are 20,000.
            resp.force_close()
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._among.waits(self)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answers what no handler has answered: bytes that are no request, or a fault of ours."""
        if status >= 500:
            self._complaints.about("a request failed", exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is sent already")
        text = "the server failed; its log says why" if status >= 500 else "this is no request of HTTP/1.1"
        answer = error(status, text, {"Server": "tokenometer", "Cache-Control": "no-store"})
        answer.force_close()
        return answer

    def log_exception(self, *arguments: Any, **more: Any) -> None:
        self._complaints.about(str(arguments[0]) if arguments else "a request failed", more.get("exc_info"))


class _Complaints:
    """Writes at most one line a second to the log, because whoever can make a request fail must not fill the disk."""

    def __init__(self) -> None:
        self._next, self._unsaid = 0.0, 0

    def about(self, what: str, cause: Any) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._next:
            self._unsaid += 1
            return
        log.error("%s (%d more since the last line)", what, self._unsaid, exc_info=cause)
        self._next, self._unsaid = now + _COMPLAINT_SECONDS, 0

    def of_the_loop(self, context: Mapping[str, Any]) -> None:
        cause = cast(BaseException | None, context.get("exception"))
        if not isinstance(cause, ConnectionError):  # a client that went away
            self.about(str(context.get("message", "the server's loop failed")), cause)
