"""The server of all HTTP faces, on real sockets: whoever is silent, slow or rude holds up nobody and fills no log."""

import asyncio
import contextlib
import http.client
import logging
import pathlib
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests import books
from tests.test_dashboard import wait_until
from tests.test_ledger_usage import serving
from tests.totals_data import Feed
from tokenometer.processor.dashboard import ServeAddress, SiteThread
from tokenometer.processor.http import access, server
from tokenometer.processor.http.access import ServeError
from tokenometer.processor.http.answers import of
from tokenometer.processor.http.server import Server, application, body
from tokenometer.processor.meter.health import Health

TOKEN = "a-token-of-the-test-0123456789"
STOP = web.AppKey("stop", asyncio.Event)


@contextlib.contextmanager
def meter() -> Iterator[int]:
    with contextlib.closing(Health(lambda: 0, "cpu").serve("127.0.0.1", 0)) as face:
        yield face.port


@contextlib.contextmanager
def dashboard() -> Iterator[int]:
    with contextlib.closing(SiteThread(Feed().source(), ServeAddress(port=0, token=TOKEN))) as face:
        yield face.site.port


@contextlib.contextmanager
def ledger(folder: pathlib.Path) -> Iterator[int]:
    with books.opened(str(folder / "ledger.duckdb")) as store, serving(store, token=TOKEN) as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture(params=["meter", "dashboard", "ledger"])
def port(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[int]:
    """Of each face."""
    made = {"meter": meter, "dashboard": dashboard, "ledger": lambda: ledger(tmp_path)}[request.param]
    with made() as port:
        yield port


def get(port: int, path: str = "/healthz", method: str = "GET", seconds: float = 10, **more: Any) -> tuple[int, Any]:
    """Status, and the JSON of the answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)) as connection:
        connection.request(method, path, **more)
        answer = connection.getresponse()
        text = answer.read()
        assert answer.headers["Content-Type"] == "application/json", text
        return answer.status, orjson.loads(text)


def raw(port: int, sent: bytes, seconds: float = 10) -> bytes:
    """All that comes back, until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as client:
        client.sendall(sent)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1 << 16):
                found += piece
        return found


@contextlib.contextmanager
def crowd(port: int, count: int, sent: bytes = b"") -> Iterator[list[socket.socket]]:
    """Connections that have sent this, and no more."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            with contextlib.suppress(ConnectionError):  # it has given way already
                client.sendall(sent)
            clients.append(client)
        yield clients


# --- Silent and slow clients ---


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"])
def test_a_silent_connection_blocks_nobody(port: int, sent: bytes) -> None:
    with crowd(port, 3, sent):
        assert get(port)[0] == 200


@pytest.mark.slow
def test_two_thousand_silent_connections_block_nobody(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with crowd(port, 2_000, b"GET / HTTP/1.1\r\n") as clients:
        assert get(port)[0] == 200
        assert ended(clients[0]), "who has waited longest gives way"
        assert get(port)[0] == 200
    assert not caplog.records


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\n"])
def test_a_head_that_does_not_come_ends_its_connection(
    port: int, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(server, "_SWEEP_SECONDS", 0.1)
    with crowd(port, 5, begun) as clients:
        assert all(ended(client) for client in clients)


def test_a_head_that_comes_byte_by_byte_ends_its_connection(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(server, "_SWEEP_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        with pytest.raises(ConnectionError):
            for _ in range(1_000):
                client.sendall(b"x")
                time.sleep(0.02)


def test_a_connection_is_kept_between_requests_and_not_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(server, "_SWEEP_SECONDS", 0.1)
    asked = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        for _ in range(3):
            client.sendall(asked)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert ended(client)


@pytest.mark.slow
def test_descriptors_are_not_exhausted_and_the_log_is_not_filled(tmp_path: pathlib.Path) -> None:
    """A process that may open 256 files, and 2,000 clients that are silent, each of them for as long as it may."""
    code = (
        "import sys; from tokenometer.processor.meter.health import Health\n"
        "server = Health(lambda: 0, 'cpu').serve('127.0.0.1', 0)\n"
        "print(server.port, flush=True); sys.stdin.read(); print(server.connections.limit, flush=True)\n"
    )
    with open(tmp_path / "errors", "w+b") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            port = int(process.stdout.readline())
            for _ in range(3):
                with crowd(port, 2_000):
                    assert get(port)[0] == 200
                    assert len(list(pathlib.Path(f"/proc/{process.pid}/fd").iterdir())) < 250
            process.stdin.close()
            assert int(process.stdout.readline()) == 64
            assert process.wait(10) == 0
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        errors.seek(0)
        assert errors.read() == b""


def test_requests_that_do_not_wait_for_an_answer_get_one(port: int) -> None:
    """Fifty at once on each of 400 connections kept a meter's probe waiting for minutes."""
    found = raw(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50)
    assert found.count(b"HTTP/1.1 200 OK") == 1 and b"Connection: close" in found


# --- What is no request ---

NO_REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",  # TLS
    b"hello\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: \x00\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"a" * 10_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
]


@pytest.mark.parametrize("sent", NO_REQUESTS, ids=lambda sent: repr(sent[:30]))
def test_what_is_no_request_is_refused_as_json_and_writes_no_line(
    port: int, sent: bytes, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    found = raw(port, sent)
    if found:  # a connection may be reset while its answer is on the way
        head, _, text = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.") and b" 400 " in head and b"aiohttp" not in head
        assert orjson.loads(text) == {"error": "this is no request of HTTP/1.1"}
    assert get(port)[0] == 200
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_errors_are_json(port: int) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    for path, method, status in (("/none", "GET", 404), ("/healthz", "POST", 405), ("/healthz", "PATCH", 405)):
        found, text = get(port, path, method, headers=bearer)
        assert found == status and list(text) == ["error"]


# --- Bodies and answers ---


@pytest.fixture
def echo() -> Iterator[Server]:
    """What no face has: an answer of any length, and faults."""

    async def take(request: web.Request) -> web.Response:
        return of({"bytes": len(await body(request))})

    async def much(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * (64 << 20))

    async def fail(request: web.Request) -> web.Response:
        raise RuntimeError("a fault of ours")

    async def wait(request: web.Request) -> web.Response:
        await request.app[STOP].wait()
        return of("done")

    app = application([web.post("/take", take), web.get("/much", much), web.get("/fail", fail), web.get("/wait", wait)])
    app[STOP] = asyncio.Event()
    with contextlib.closing(Server(app, "127.0.0.1", 0)) as made:
        yield made


def test_a_body_that_does_not_come_is_refused(echo: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.2)
    found = raw(echo.port, b"POST /take HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc")
    assert found.startswith(b"HTTP/1.1 408 ") and b"the body did not come" in found


@pytest.mark.parametrize(("size", "status"), [(server.BODY_BYTES_MAX, 200), (server.BODY_BYTES_MAX + 1, 413)])
def test_bodies_have_a_limit(echo: Server, size: int, status: int) -> None:
    assert get(echo.port, "/take", "POST", body=b"x" * size)[0] == status


def test_a_client_that_does_not_read_is_ended(echo: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.3)
    monkeypatch.setattr(server, "_SWEEP_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as client:
        client.sendall(b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: len(echo.connections) == 1)
        wait_until(lambda: len(echo.connections) == 0)


def test_a_client_that_reads_slowly_gets_all(echo: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SEND_SECONDS", 0.5)
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(server, "_SWEEP_SECONDS", 0.1)
    with socket.create_connection(("127.0.0.1", echo.port), timeout=10) as client:
        client.sendall(b"GET /much HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        found = 0
        while piece := client.recv(4 << 20):
            found += len(piece)
            time.sleep(0.05)
    assert found > 64 << 20


def test_a_fault_is_said_once_a_second(echo: Server, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(50):
        assert get(echo.port, "/fail") == (500, {"error": "the server failed; its log says why"})
    assert 1 <= len(caplog.records) <= 5 and "a fault of ours" in caplog.text


def test_at_the_limit_who_asks_stays_and_who_waits_gives_way(echo: Server) -> None:
    echo.connections.limit = 4
    asked = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with crowd(echo.port, 3, asked) as askers, crowd(echo.port, 1) as (silent,):
        wait_until(lambda: len(echo.connections) == 4 and len(echo.connections._waiting) == 1)
        assert get(echo.port, "/none")[0] == 404
        assert ended(silent)
        wait_until(lambda: len(echo.connections) == 3)
        with crowd(echo.port, 1, asked) as (fourth,):
            wait_until(lambda: len(echo.connections) == 4 and not echo.connections._waiting)
            assert raw(echo.port, asked) == b"", "all others ask, so there is no room"
            echo._loop.call_soon_threadsafe(echo._runner.app[STOP].set)
            for each in (*askers, fourth):
                assert each.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")


def test_an_address_that_cannot_be_had_raises_and_leaves_no_thread(echo: Server) -> None:
    before = threading.active_count()
    for host, port in (("127.0.0.1", echo.port), ("192.0.2.1", 0), ("no.such.host.invalid", 0)):
        with pytest.raises(OSError):
            Server(application([]), host, port)
    assert threading.active_count() == before


def test_a_usage_needs_a_token_or_this_machine() -> None:
    with pytest.raises(ServeError, match="refusing to serve on all addresses without a token"):
        access.check("", None)
    with pytest.raises(ServeError, match="16 or more"):
        access.check("127.0.0.1", "short")
