"""Webhooks against a receiver on loopback that fails in every way, with signatures read by another's library."""

import base64
import contextlib
import http.server
import itertools
import pathlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from tokenometer.processor.alerts import hooks, worker
from tokenometer.processor.alerts.hooks import HookThread
from tokenometer.processor.alerts.rules import Webhook
from tokenometer.processor.alerts.worker import AlertSettings
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.secret import Secret

DEADLINE_SECONDS = 60
SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
SETTINGS = AlertSettings()


class Receiver(http.server.ThreadingHTTPServer):
    """Answers what `answers` says for a body, 204 without; `silent`: it does not answer."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answer: Callable[[dict[str, Any]], int] = lambda alert: 204
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.silent = threading.Event()
        self.ending = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/in?a=b"

    def close(self) -> None:
        self.ending.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if self.server.silent.is_set():
            self.server.ending.wait(DEADLINE_SECONDS)
            return
        status = self.server.answer(orjson.loads(body))
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST  # where a redirect would lead

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with contextlib.closing(Receiver()) as receiver:
        yield receiver


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    monkeypatch.setattr(hooks, "BACKOFF_SECONDS", (0.02, 0.1))
    monkeypatch.setattr(hooks, "_POLL_SECONDS", 0.02)
    broker = MemoryBroker()
    worker.create_topics(broker, SETTINGS, 1)
    return broker


def announce(broker: MemoryBroker, *numbers: int, rule: str = "r") -> None:
    values = [orjson.dumps({"id": f"{number:032}", "rule": rule, "number": number}) for number in numbers]
    broker.append("token-alerts", values)


@contextlib.contextmanager
def hooked(
    broker: MemoryBroker, url: str, rules: frozenset[str] | None = None, name: str = "pager"
) -> Iterator[HookThread]:
    thread = HookThread(broker, SETTINGS, Webhook(name, Secret(url, url), Secret(SECRET), rules), frozenset({"r", "s"}))
    with contextlib.closing(thread.start()):
        until(lambda: thread.deliverer.next, "the hook to follow")
        yield thread
    assert thread.failure is None


def until(true: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.01)


def told(receiver: Receiver) -> list[int]:
    return [orjson.loads(body)["number"] for _, _, body in receiver.requests]


def test_an_alert_is_posted_once_and_signed_as_standard_webhooks_says(broker, receiver):
    announce(broker, 1)  # before the hook was there
    with hooked(broker, receiver.url) as hook:
        announce(broker, 2, 3)
        announce(broker, 4, rule="of another process")
        until(lambda: hook.deliverer.progress.told == 2, "two alerts")
    assert told(receiver) == [2, 3]
    for path, headers, body in receiver.requests:
        assert path == "/in?a=b" and headers["webhook-id"] == orjson.loads(body)["id"]
        assert Verifier(SECRET).verify(body.decode(), headers) == orjson.loads(body)
        with pytest.raises(WebhookVerificationError):
            Verifier(SECRET).verify(body.decode() + " ", headers)


def test_a_secret_that_is_plain_text_is_the_key_itself(receiver):
    text = "a plain secret of some length"
    signed = hooks.signature(Secret(text), "id", 12, b"{}")
    encoded = hooks.signature(Secret("whsec_" + base64.b64encode(text.encode()).decode()), "id", 12, b"{}")
    assert signed == encoded


@pytest.mark.parametrize("status", [301, 307, 429, 500, 503])
def test_what_the_hook_cannot_take_now_comes_again_in_order(broker, receiver, status):
    failing = itertools.count()
    receiver.answer = lambda alert: status if next(failing) < 3 else 200
    with hooked(broker, receiver.url) as hook:
        announce(broker, 1, 2)
        until(lambda: hook.deliverer.progress.told == 2, "both")
    assert told(receiver) == [1, 1, 1, 1, 2], "no redirect is followed, and the second waits for the first"
    assert hook.deliverer.progress.failures == 3 and hook.deliverer.progress.trouble is None


def test_an_alert_that_is_refused_holds_up_no_other(broker, receiver):
    refused = threading.Event()
    refused.set()
    receiver.answer = lambda alert: 400 if alert["number"] == 1 and refused.is_set() else 200
    with hooked(broker, receiver.url) as hook:
        announce(broker, 1, 2, 3)
        until(lambda: hook.deliverer.progress.told == 2, "the others")
        refused.clear()
        until(lambda: hook.deliverer.progress.told == 3, "the first")


def test_an_alert_that_is_refused_for_a_day_is_given_up(broker, receiver, monkeypatch):
    monkeypatch.setattr(hooks, "GIVE_UP_SECONDS", 0.2)
    receiver.answer = lambda alert: 400 if alert["number"] == 1 else 200
    with hooked(broker, receiver.url) as hook:
        announce(broker, 1, 2)
        until(lambda: hook.deliverer.progress.given_up == 1, "the first to be given up")
    assert told(receiver).count(1) > 1 and told(receiver).count(2) == 1


def test_a_receiver_that_is_silent_or_away_holds_up_nobody_else(broker, receiver, monkeypatch):
    monkeypatch.setattr(hooks, "ANSWER_SECONDS", 0.3)
    receiver.silent.set()
    with contextlib.closing(Receiver()) as well, contextlib.closing(Receiver()) as gone:
        gone.close()
        with (
            hooked(broker, receiver.url, name="silent") as silent,
            hooked(broker, gone.url, name="gone") as away,
            hooked(broker, well.url, name="well"),
        ):
            announce(broker, 1)
            until(lambda: told(well) == [1], "the one that is well")
            until(lambda: silent.deliverer.progress.trouble and away.deliverer.progress.trouble, "the others to fail")
            receiver.silent.clear()
            until(lambda: silent.deliverer.progress.told == 1, "the silent one to speak")
        assert "Connect" in away.deliverer.progress.trouble or "refused" in away.deliverer.progress.trouble


def test_what_was_told_is_durable_and_what_was_not_comes_after_a_restart(broker, receiver):
    receiver.answer = lambda alert: 200 if alert["number"] < 3 else 500
    with hooked(broker, receiver.url) as hook:
        announce(broker, 1, 2, 3, 4)
        until(lambda: hook.deliverer.progress.told == 2 and hook.deliverer.progress.trouble, "the third to fail")
    announce(broker, 5)
    receiver.requests.clear()
    receiver.answer = lambda alert: 200
    with hooked(broker, receiver.url) as hook:
        until(lambda: hook.deliverer.progress.told == 3, "the rest")
    assert told(receiver) == [3, 4, 5]


def test_a_hook_may_hear_of_some_rules_only(broker, receiver):
    with hooked(broker, receiver.url, frozenset({"s"})) as hook:
        announce(broker, 1)
        announce(broker, 2, rule="s")
        until(lambda: hook.deliverer.progress.told == 1, "one")
    assert told(receiver) == [2]


def test_more_alerts_than_are_held_at_a_time_all_come(broker, receiver, monkeypatch):
    monkeypatch.setattr(hooks, "WAITING_MAX", 3)
    with hooked(broker, receiver.url) as hook:
        announce(broker, *range(10))
        until(lambda: hook.deliverer.progress.told == 10, "ten")
    assert told(receiver) == list(range(10))


def test_a_secret_is_in_no_message(broker, receiver, caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path):
    receiver.answer = lambda alert: 500
    with hooked(broker, receiver.url) as hook:
        announce(broker, 1)
        until(lambda: hook.deliverer.progress.trouble, "a failure")
    assert caplog.records and SECRET not in caplog.text and SECRET not in repr(hook.deliverer)
