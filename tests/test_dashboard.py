"""The dashboard's server: what it answers, whom, with which headers; its stream, its metrics, its two ways to run."""

import contextlib
import gzip
import http.client
import logging
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from tests import totals_data
from tests.totals_data import Feed, Shape, make, nothing
from tokenometer.processor.dashboard import (
    DashboardError,
    Ledger,
    ServeAddress,
    SiteThread,
    assets,
    metrics,
    openapi,
    server,
)
from tokenometer.processor.http import access
from tokenometer.processor.rollup.summaries import FATES

TOKEN = "a-token-of-the-test-0123456789"
HOSTILE = '<script>alert(1)</script>"\u2028\u202e\x07\r\nSet-Cookie: x=1'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_SECONDS", 0.02)


@dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return orjson.loads(self.body)


def get(site: SiteThread, path: str, method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", site.site.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
def site(feed: Feed) -> Iterator[SiteThread]:
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site:
        yield site


@pytest.fixture
def guarded(feed: Feed) -> Iterator[SiteThread]:
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0, token=TOKEN))) as site:
        yield site


# --- Answers ---


def test_totals_are_those_of_the_source(site, feed):
    answer = get(site, "/api/totals")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json() == feed.totals


def test_before_the_first_totals_it_says_so(site, feed):
    empty = Feed(None)
    with contextlib.closing(SiteThread(empty.source(), ServeAddress(port=0))) as early:
        answer = get(early, "/api/totals")
        assert answer.status == 503 and answer.json() == {"error": "no totals yet"} and answer.headers["Retry-After"]
        assert "tokenometer" not in get(early, "/metrics").body.decode()
        empty.totals = nothing()
        wait_until(lambda: get(early, "/api/totals").status == 200)


@pytest.mark.parametrize("span", openapi.SPANS)
@pytest.mark.parametrize("by", openapi.KINDS)
def test_history_is_asked_for_with_its_step(site, feed, span, by):
    answer = get(site, f"/api/history?span={span}&by={by}")
    assert answer.status == 200 and feed.histories == [(*openapi.SPANS[span], by)]
    assert answer.json() == totals_data.history(feed.totals, *openapi.SPANS[span], by)


def test_history_has_defaults_and_is_asked_for_once_a_second(site, feed):
    answers = [get(site, path) for path in ("/api/history", "/api/history?span=1h", "/api/history?by=total")]
    assert feed.histories == [(3_600_000, 60_000, "total")] and len({answer.body for answer in answers}) == 1


@pytest.mark.parametrize("query", ["span=2h", "by=user", "span=", "by=Model", "span=1h%0d%0aX: y", "by=<script>"])
def test_a_wrong_parameter_is_named(site, query):
    answer = get(site, f"/api/history?{query.replace(' ', '%20')}")
    assert answer.status == 400 and answer.headers["Content-Type"] == "application/json"
    message = answer.json()["error"]
    assert message.startswith(query[:2]) and "expected one of" in message and "<script>" not in message


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/totals?modle=x", "modle: no such parameter; there are none"),
        ("/api/history?spam=1h", "spam: no such parameter; expected span, from, to, model, chip, meter, by"),
        ("/api/history?by=chip&by=model", "by: it comes twice"),
        ("/api/history?from=2026-11-23T10:00Z", "expected both, and no span"),
        ("/api/history?from=2026-11-23T10:00Z&to=2026-11-23T10:00Z", "to after from"),
        ("/api/history?from=2026-11-20T10:00Z&to=2026-11-22T10:00:01Z", "at most 48 hours"),
        ("/api/history?from=yesterday&to=2026-11-23T10:00Z", "from: expected a time"),
        ("/api/view?metre=m", "metre: no such parameter"),
        ("/api/view?meter=m", "expected span=15m"),
        ("/api/history?meter=m&span=1h", "expected span=15m"),
        ("/api/cost?meter=m&from=2026-11-23T10:00Z&to=2026-11-23T10:05Z", "expected span=15m"),
        ("/api/users?meter=m&model=x", "its users are known of the last hour, and of all models"),
        ("/api/users?meter=m&span=15m", "its users are known of the last hour"),
        ("/api/users?top=5", "top: no such parameter"),
        ("/api/about?x=1", "x: no such parameter; there are none"),
        ("/v1/alerts?rule=x", "rule: no such parameter"),
        ("/api/openapi.json?v=1", "v: no such parameter"),
        ("/metrics?name=x", "name: no such parameter; expected name[]"),
        ("/api/view?model=", "model: expected a name"),
        (f"/api/user?user={'x' * 257}", "user: expected a name"),
        ("/api/user", "user: expected a name"),
        ("/api/cost?by=model", "by: no such parameter"),
        ("/api/rate?span=1h", "span: no such parameter"),
        ("/api/stream?x=", "x: no such parameter"),
    ],
)
def test_what_is_not_known_is_refused_and_not_ignored(site, path, words):
    answer = get(site, path)
    assert answer.status == 400 and answer.headers["Content-Type"] == "application/json"
    assert words in answer.json()["error"]


def test_a_range_is_widened_to_whole_steps_of_which_a_chart_has_few(site, feed):
    assert get(site, "/api/history?from=2026-11-23T10:00:30Z&to=2026-11-23T10:44:31%2B00:00").status == 200
    assert get(site, "/api/history?from=2026-11-21T17:00Z&to=2026-11-23T17:00Z&model=m&chip=c").status == 200
    short, long = feed.asked
    assert (short.span_ms, short.step_ms, short.until_ms % 60_000) == (45 * 60_000, 60_000, 0)
    assert (long.span_ms // long.step_ms, long.model, long.chip) == (288, "m", "c")


def test_without_prices_there_is_no_money_and_a_user_is_looked_up_in_the_lists(site, feed):
    assert get(site, "/api/cost").status == 404
    user = feed.totals["top_users"][0]
    expected = {"user": user["user"], "source": "top_users", "total_tokens": user["total_tokens"]}
    assert get(site, f"/api/user?user={user['user']}").json() == expected
    assert get(site, "/api/user?user=nobody").json()["total_tokens"] is None
    assert get(site, "/api/about").json()["ledger"] is None


def test_users_of_a_meter_are_in_its_lists_and_those_of_a_model_are_only_in_a_ledger(site, feed):
    users = feed.totals["top_users"]
    assert get(site, "/api/users").json() == {"source": "top_users", "rows": users}
    assert get(site, "/api/users?meter=meter-1").json()["rows"] == feed._top_users("meter-1") != users
    for query in ("model=m", "chip=c", "span=24h", "from=2026-11-23T10:00Z&to=2026-11-23T11:00Z"):
        answer = get(site, f"/api/users?{query}").json()
        assert (answer["source"], answer["rows"]) == ("none", []) and "with --ledger" in answer["why"]


def test_a_ledger_that_does_not_answer_is_said_and_no_token_is_told(feed):
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    feed.ledger = Ledger(f"http://127.0.0.1:{port}", "a-secret-of-the-ledger")
    with contextlib.closing(SiteThread(feed.source(), ServeAddress(port=0))) as site:
        answer = get(site, "/api/user?user=u")
    assert (answer.status, answer.json()) == (502, {"error": "the ledger does not answer"})
    assert "a-secret" not in repr(feed.ledger)


def test_rate_health_and_description(site, feed):
    assert len(get(site, "/api/rate").json()["times"]) == 600
    healthy = get(site, "/healthz")
    assert (healthy.status, healthy.json()) == (200, {"status": "ok"}) and healthy.body.endswith(b"\n")
    feed.healthy = False
    assert get(site, "/healthz").status == 503
    assert get(site, "/api/openapi.json").json() == openapi.describe()


@pytest.mark.parametrize("path", ["/x", "/api", "/api/", "/static/", "/static/x.js", "/static/..%2fserver.py",
                                  "/static/%2e%2e/__init__.py", "//etc/passwd", "/static/plotly.min.js/x"])  # fmt: skip
def test_other_paths_are_not_found(site, path):
    answer = get(site, path)
    assert answer.status == 404 and "error" in answer.json()


def test_nothing_can_be_written(site):
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        answer = get(site, "/api/totals", method)
        assert answer.status == 405 and "GET" in answer.headers["Allow"] and answer.json()["error"]


def test_heads_are_answered_but_of_the_stream(site):
    for path in ("/", "/api/totals", "/metrics"):
        answer = get(site, path, "HEAD")
        assert (answer.status, answer.body) == (200, b"")
    assert get(site, "/api/stream", "HEAD").status == 405


def test_a_failing_source_is_logged_and_survived(site, feed, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    good, feed.totals = feed.totals, {"never": object()}
    wait_until(lambda: "totals cannot be had" in caplog.text)
    assert get(site, "/api/totals").json() == good
    feed.totals = make(at_ms=totals_data.AT_MS + 5000)
    wait_until(lambda: get(site, "/api/totals").json() == feed.totals)


def test_the_description_is_openapi():
    validate(openapi.describe())


def test_the_description_names_every_route(site):
    routes = {resource.canonical for resource in site.site.application().router.resources()}
    described = set(openapi.describe()["paths"])
    assert described == routes - {"/", "/static/{name}", "/api/openapi.json"}


# --- The page's files ---


def test_the_page_needs_nothing_from_elsewhere():
    for name, asset in assets.load().items():
        if name != "plotly.min.js":
            text = asset.plain.decode().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text and "https://" not in text and "//cdn" not in text, name
            assert "innerHTML" not in text and "document.write" not in text and "eval(" not in text, name


def test_every_file_that_the_page_names_is_served(site):
    page = get(site, "/").body.decode()
    names = {part.split('"')[0] for part in page.split('"/static/')[1:]}
    assert names >= {"app.js", "style.css", "icon.svg"} and "<script>" not in page
    modules = {name for name in assets.load() if name.endswith(".js")}
    for name in names | modules:
        answer = get(site, f"/static/{name}")
        assert answer.status == 200 and answer.body and answer.headers["Cache-Control"] == "no-cache"


def test_the_chart_library_is_the_package_s_and_is_compressed_once(site, monkeypatch):
    packed = get(site, "/static/plotly.min.js", Accept_Encoding="gzip, br")
    assert packed.headers["Content-Encoding"] == "gzip" and packed.headers["Vary"] == "Accept-Encoding"
    monkeypatch.setattr(gzip, "compress", None)
    assert get(site, "/static/plotly.min.js", Accept_Encoding="gzip").body == packed.body
    plain = get(site, "/static/plotly.min.js")
    assert plain.body == gzip.decompress(packed.body) and b"plotly.js" in plain.body[:100]
    again = get(site, "/static/plotly.min.js", If_None_Match=plain.headers["ETag"])
    assert (again.status, again.body) == (304, b"")


def test_a_missing_chart_library_names_the_fix(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly", None)
    with pytest.raises(DashboardError, match=r"pip install 'tokenometer\[dashboard\]'"):
        assets.load()


# --- Headers ---


@pytest.mark.parametrize(
    "path", ["/", "/static/app.js", "/api/totals", "/api/history?by=x", "/healthz", "/metrics", "/none"]
)
def test_every_answer_is_strict(site, path):
    headers = get(site, path).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert (
        policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["frame-ancestors"] == "'none'"
    )
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == ("no-cache" if path in ("/", "/static/app.js") else "no-store")
    assert "Server" not in headers and "Access-Control-Allow-Origin" not in headers


def test_hostile_names_are_data(site, feed):
    feed.totals = hostile()
    wait_until(lambda: get(site, "/api/totals").json() == feed.totals)
    answer = get(site, "/api/totals")
    assert answer.headers["Content-Type"] == "application/json" and answer.json() == feed.totals
    assert "Set-Cookie" not in answer.headers
    with stream(site) as events:
        assert orjson.loads(next(events)) == feed.totals, "line ends in names do not end an event"
    text = get(site, "/metrics").body.decode()
    assert HOSTILE not in text and by(text, "tokenometer_rollup_rejected_records_total")[HOSTILE] == 3


def hostile() -> dict[str, Any]:
    totals = make(Shape(models=2, chips=2, users=2))
    hour = totals["windows"]["last_1h"]
    for window in ("last_1h", "last_24h"):
        totals["windows"][window]["by_model"][0]["model"] = HOSTILE
    hour["by_chip"][0]["chip"] = totals["matrix"]["models"][0] = totals["matrix"]["chips"][0] = HOSTILE
    totals["top_users"][0]["user"] = totals["meters"][0]["device"] = HOSTILE
    totals["rejects"] = {HOSTILE: 3}
    return totals


# --- Who may ask ---


def test_without_a_token_only_loopback_is_bound(feed):
    for host in ("0.0.0.0", "", "::", "192.0.2.1", "example.org", "127.0.0.1.example.org"):
        with pytest.raises(DashboardError, match="refusing to serve on .* without a token"):
            ServeAddress(host, 0)
        assert ServeAddress(host, 0, TOKEN).token == TOKEN
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert ServeAddress(host, 0).token is None


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "with a space in it", "ümlaut-token-0123456789", "line\n" * 9]
)
def test_a_weak_token_is_refused(token):
    with pytest.raises(DashboardError) as refused:
        ServeAddress(token=token)
    assert "openssl rand" in str(refused.value) and (not token or token not in str(refused.value))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:{}", True), ("localhost:{}", True), ("LOCALHOST", True), ("[::1]:{}", True), ("127.0.0.1", True),
        ("evil.example:{}", False), ("127.0.0.1.evil.example", False), ("localhost.evil.example:{}", False),
        ("", False), ("192.168.0.7:{}", False), ("[::1", False), ("a@127.0.0.1@evil.example", False),
        ("0.0.0.0:{}", False),
    ],
)  # fmt: skip
def test_a_foreign_host_is_refused_on_loopback(site, host, allowed):
    for path in ("/", "/api/totals", "/api/stream", "/metrics", "/healthz"):
        if allowed and path == "/api/stream":
            continue
        assert get(site, path, Host=host.format(site.site.port)).status == (200 if allowed else 403)


def test_a_token_opens_by_header_query_and_cookie(guarded):
    for path in ("/", "/static/app.js", "/api/totals", "/api/stream", "/api/history", "/metrics", "/none"):
        answer = get(guarded, path)
        assert (
            answer.status == 401
            and answer.headers["WWW-Authenticate"] == "Bearer"
            and "token" in answer.json()["error"]
        )
        assert "Content-Security-Policy" in answer.headers
    assert get(guarded, "/api/totals", Authorization=f"Bearer {TOKEN}").status == 200
    assert get(guarded, "/api/totals", Authorization=f"bearer  {TOKEN}").status == 200
    opened = get(guarded, f"/?token={TOKEN}")
    assert opened.status == 200 and b"<html" in opened.body
    cookie, *attributes = opened.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(attributes) and TOKEN not in cookie
    assert get(guarded, "/api/totals", Cookie=cookie).status == 200
    assert "Set-Cookie" not in get(guarded, "/api/totals", Cookie=cookie).headers
    assert get(guarded, "/healthz").status == 200, "probes hold no secrets"


@pytest.mark.parametrize("wrong", ["", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é" * 20, "\udcff"])
def test_a_wrong_token_opens_nothing(guarded, wrong):
    assert not access.may_ask(TOKEN, f"Bearer {wrong}", wrong, wrong)
    assert not access.may_ask(TOKEN, TOKEN, None, TOKEN), "neither without its scheme, nor as the cookie"
    for query in (f"/?token={'x' if wrong else ''}", "/?token=", "/api/stream?token=1"):
        answer = get(guarded, query)
        assert answer.status == 401 and "Set-Cookie" not in answer.headers


def test_the_stream_takes_a_token_in_its_address(guarded):
    with stream(guarded, f"/api/stream?token={TOKEN}") as events:
        assert orjson.loads(next(events))["schema"] == 1


def test_a_token_is_in_no_log_and_no_repr(feed, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    settings = ServeAddress(port=0, token=TOKEN)
    with contextlib.closing(SiteThread(feed.source(), settings)) as site:
        get(site, f"/?token={TOKEN}")
        get(site, "/api/totals?token=wrong-one", Authorization="Bearer wrong-two")
        feed.histories = None  # type: ignore[assignment]
        assert get(site, f"/api/history?token={TOKEN}").status == 500
    written = "".join(capfd.readouterr()) + caplog.text + repr(settings)
    assert TOKEN not in written and "wrong-" not in written


# --- The stream ---


@contextlib.contextmanager
def stream(site: SiteThread, path: str = "/api/stream", **headers: str) -> Iterator[Iterator[bytes]]:
    """The data of its events."""
    connection = http.client.HTTPConnection("127.0.0.1", site.site.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream"), answer.read()
        with contextlib.closing(answer):
            yield _events(answer)


def _events(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    unpack = zlib.decompressobj(wbits=31).decompress if answer.headers["Content-Encoding"] == "gzip" else bytes
    text = b""
    while piece := answer.read1():
        text += unpack(piece)
        *events, text = text.split(b"\n\n")
        for event in events:
            if event.startswith(b"event: totals\ndata: "):
                yield event.removeprefix(b"event: totals\ndata: ")


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_the_stream_brings_the_totals_now_and_whenever_they_change(site, feed, coding):
    with stream(site, Accept_Encoding=coding) as events:
        for k in range(5):
            assert orjson.loads(next(events)) == feed.totals
            feed.totals = make(at_ms=totals_data.AT_MS + 1000 * (k + 1))


def test_one_serialisation_serves_all_streams(site, feed, monkeypatch):
    made: list[int] = []
    pack = server.pack
    monkeypatch.setattr(server, "pack", lambda text: (made.append(len(text)), pack(text))[1])
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(stream(site, Accept_Encoding="gzip")) for _ in range(8)]
        first = {next(events) for events in streams}
        made.clear()
        feed.totals = make(at_ms=totals_data.AT_MS + 1000)
        second = {next(events) for events in streams}
    assert len(first) == len(second) == 1 and first != second and len(made) == 1


def test_quiet_streams_get_a_comment(site, monkeypatch):
    monkeypatch.setattr(server, "HEARTBEAT_SECONDS", 0.05)
    connection = http.client.HTTPConnection("127.0.0.1", site.site.port, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/api/stream")
        answer = connection.getresponse()
        lines = [answer.readline() for _ in range(8)]
        answer.close()
    assert lines[0] == b"retry: 1000\n" and lines[2] == b"event: totals\n" and lines[5] == b":\n"


def big(k: int) -> dict[str, Any]:
    return make(Shape(models=64, chips=32), at_ms=totals_data.AT_MS + 1000 * k)


def test_a_slow_client_gets_the_newest_and_holds_up_nobody(site, feed):
    with silent_client(site) as slow:
        rounds = 120
        with stream(site) as events:
            for k in range(rounds):  # 20 MB, while the other one reads nothing
                feed.totals = big(k)
                while orjson.loads(next(events)) != feed.totals:
                    pass
        newest, seen, tail = feed.totals["at"].encode(), 0, b""
        while newest not in tail:
            piece = slow.recv(1 << 20)
            seen, tail = seen + piece.count(b"event: totals"), tail[-len(newest) :] + piece
    assert seen < rounds / 2


@contextlib.contextmanager
def silent_client(site: SiteThread) -> Iterator[socket.socket]:
    """Asks for the stream and does not read it."""
    with socket.socket() as client:
        client.settimeout(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.connect(("127.0.0.1", site.site.port))
        client.sendall(b"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        wait_until(lambda: site.site._streams == 1)
        yield client


def test_a_client_that_reads_nothing_is_dropped(site, feed, monkeypatch):
    monkeypatch.setattr(server, "SEND_SECONDS", 0.2)
    with silent_client(site):
        rounds = iter(range(10_000))

        def dropped() -> bool:
            feed.totals = big(next(rounds))
            return site.site._streams == 0

        wait_until(dropped)


def test_clients_that_leave_are_forgotten_without_a_word(site, feed, caplog):
    for _ in range(5):
        with stream(site) as events:
            next(events)
    feed.totals = make(at_ms=totals_data.AT_MS + 1000)
    wait_until(lambda: site.site._streams == 0)
    assert not caplog.records


def test_streams_have_a_limit(site, monkeypatch):
    monkeypatch.setattr(server, "STREAMS_MAX", 2)
    with stream(site) as one, stream(site) as two:
        next(one), next(two)
        refused = get(site, "/api/stream")
        assert refused.status == 503 and refused.headers["Retry-After"]
        assert get(site, "/api/totals").status == 200


# --- Metrics ---


def by(text: str, name: str) -> dict[str | None, float]:
    return {
        next(iter(sample.labels.values()), None): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_metrics_are_the_totals(site, feed):
    feed.totals = totals = make(Shape(meters=3))
    totals["meters"][2]["state"] = "stale"
    wait_until(lambda: get(site, "/api/totals").json() == totals)
    answer = get(site, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    text = answer.body.decode()
    found = {name: by(text, f"tokenometer_rollup_{name}") for name in (
        "tokens_per_second", "share_of_target", "tokens_total", "requests_total", "records_total", "active_users",
        "rejected_records_total", "lag_messages", "freshness_seconds", "meters", "stale",
    )}  # fmt: skip
    since, windows = totals["windows"]["since_start"]["tokens"], totals["windows"]
    assert found == {
        "tokens_per_second": {None: totals["rate"]["tokens_per_second"]},
        "share_of_target": {None: totals["rate"]["share_of_target"]},
        "tokens_total": {
            "input": since["input_tokens"], "cached_input": since["cached_input_tokens"],
            "cache_write": since["cache_write_tokens"], "output": since["output_tokens"],
            "reasoning": since["reasoning_tokens"],
        },
        "requests_total": {None: since["requests"]},
        "records_total": {name: totals["records"][name] for name in FATES},
        "active_users": {name: windows[f"last_{name}"]["active_users"] for name in ("1m", "1h", "24h")},
        "rejected_records_total": totals["rejects"],
        "lag_messages": {None: totals["lag_messages"]},
        "freshness_seconds": {None: totals["freshness_ms"] / 1000},
        "meters": {"live": 2, "late": 0, "stale": 1, "stopped": 0},
        "stale": {None: 0},
    }  # fmt: skip
    assert by(text, "tokenometer_rollup_complete_up_to_timestamp_seconds") == {None: (totals_data.AT_MS - 2300) / 1000}
    newest = max(meter["committed_at"] for meter in totals["meters"])
    [last] = by(text, "tokenometer_rollup_last_commit_timestamp_seconds").values()
    assert totals_data.instant(round(last * 1000)) == newest


@pytest.mark.parametrize("name", ["model", "chip"])
def test_metrics_by_model_and_chip_are_bounded_and_add_up(name):
    totals = make(Shape(64, 32, 20, 3))
    five = totals["windows"]["last_5m"]
    [family] = [one for one in metrics.families(totals) if one.name == f"tokenometer_rollup_{name}_tokens_per_second"]
    found = {sample.labels[name]: sample.value for sample in family.samples}
    assert len(found) == metrics.NAMES_MAX + 1 and sum(found.values()) == pytest.approx(five["tokens_per_second"])
    first = five[f"by_{name}"][0]
    share = first["total_tokens"] / five["tokens"]["total_tokens"]
    assert found[first[name]] == pytest.approx(five["tokens_per_second"] * share)


def test_what_is_unknown_has_no_sample():
    families = {family.name: family for family in metrics.families(nothing())}
    for name in ("tokens_per_second", "share_of_target", "lag_messages", "freshness_seconds",
                 "complete_up_to_timestamp_seconds", "last_commit_timestamp_seconds"):  # fmt: skip
        assert families[f"tokenometer_rollup_{name}"].samples == []
    assert families["tokenometer_rollup_stale"].samples[0].value == 1
    assert all(family.documentation for family in families.values())


# --- Running ---


def urlopen(url: str) -> tuple[int, bytes]:
    host, _, path = url.removeprefix("http://").partition("/")
    with contextlib.closing(http.client.HTTPConnection(host, timeout=10)) as connection:
        connection.request("GET", f"/{path}")
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_stopping_ends_open_streams(feed):
    site = SiteThread(feed.source(), ServeAddress(port=0))
    with stream(site) as events:
        next(events)
        site.close()
        assert list(events) == []
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", site.site.port), timeout=1).close()


def test_a_port_in_use_is_named(site, feed):
    port = site.site.port
    with pytest.raises(DashboardError, match=rf"127\.0\.0\.1:{port}: .*choose another address"):
        SiteThread(feed.source(), ServeAddress(port=port))


def test_ipv6_loopback(feed):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    with contextlib.closing(SiteThread(feed.source(), ServeAddress("::1", 0))) as site:
        assert site.url.startswith("http://[::1]:") and urlopen(f"{site.url}/healthz")[0] == 200


def wait_until(true: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
