"""Webhooks: each alert is told to each of them, at least once.

A hook has a thread that follows token-alerts by itself, so a dead one holds nobody up. Where it is to go on is kept in
the state's topic, after what was told before.

    token-alerts ── follow ──> waiting, oldest first ── POST ──> 2xx: told; the offset is kept
                                                        ├─ 4xx of this alert: later again, others go on
                                                        └─ no answer, 3xx, 408, 429, 5xx: the hook waits as a whole

A request is signed as Standard Webhooks describes it (https://www.standardwebhooks.com): HMAC-SHA256 over id, time and
body. A redirect is not followed, because the alert would go where nobody has configured it to go.
"""

import asyncio
import base64
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import orjson

from tokenometer.processor.alerts import messages
from tokenometer.processor.alerts.rules import Webhook
from tokenometer.processor.alerts.worker import AlertSettings, newest
from tokenometer.processor.broker import Broker, BrokerError, Messages, Offset, Place
from tokenometer.processor.secret import Secret, scrub

log = logging.getLogger("tokenometer.alerts.webhook")
ANSWER_SECONDS = 10.0  # for the whole request
BACKOFF_SECONDS = (1.0, 60.0)  # doubled from the first to the second
GIVE_UP_SECONDS = 86_400.0  # an alert that was refused for so long; it stays in the topic
WAITING_MAX = 100  # alerts that are held at a time; the others wait in the topic
_POLL_SECONDS = 0.5
_WHOLE = (408, 425, 429)  # statuses that speak of the hook and not of the alert


@dataclass
class Waiting:
    """An alert that a hook has not taken yet. began: of its first try, by a steady clock."""

    place: Place
    offset: int
    id: str
    body: bytes
    began: float | None = None
    due: float = 0.0
    tries: int = 0


@dataclass
class HookProgress:
    told: int = 0
    failures: int = 0
    given_up: int = 0
    waiting: int = 0
    trouble: str | None = None


class _Failure(Exception):
    """whole: it speaks of the hook, not of this alert."""

    def __init__(self, why: str, whole: bool) -> None:
        super().__init__(why)
        self.whole = whole


def signature(secret: Secret, id: str, at: int, body: bytes) -> str:
    """What `webhook-signature` says. A secret that begins with whsec_ is base64, as those of others; else its text is
    the key."""
    text = secret.reveal()
    key = base64.b64decode(text.removeprefix("whsec_")) if text.startswith("whsec_") else text.encode()
    signed = hmac.new(key, f"{id}.{at}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def post(hook: Webhook, id: str, body: bytes) -> None:
    """Raises _Failure unless the answer is 2xx."""
    asyncio.run(_post(hook, id, body))


async def _post(hook: Webhook, id: str, body: bytes) -> None:
    at = int(time.time())
    headers = {
        "Content-Type": "application/json", "User-Agent": "tokenometer", "webhook-id": id,
        "webhook-timestamp": str(at), "webhook-signature": signature(hook.secret, id, at, body),
    }  # fmt: skip
    try:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            url = hook.url.reveal()
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
    except TimeoutError:
        raise _Failure(f"no answer within {ANSWER_SECONDS:.0f} s", True) from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _Failure(scrub(str(error)) or type(error).__name__, True) from None
    if 300 <= status < 400:
        raise _Failure(f"status {status}: redirects are not followed; give the address it leads to", True)
    if not 200 <= status < 300:
        raise _Failure(f"status {status}", status >= 500 or status in _WHOLE)


@dataclass
class Deliverer:
    """What one hook is to hear, and when. steady: a clock in seconds that only goes forward."""

    hook: Webhook
    rules: frozenset[str]
    steady: Callable[[], float] = time.monotonic
    send: Callable[[Webhook, str, bytes], None] = post
    waiting: list[Waiting] = field(default_factory=list)
    next: dict[Place, int] = field(default_factory=dict)  # to be read after what waits
    progress: HookProgress = field(default_factory=HookProgress)
    _due: float = 0.0  # of the hook as a whole
    _failed: int = 0  # tries of the hook as a whole, since one went well

    @property
    def room(self) -> int:
        return WAITING_MAX - len(self.waiting)

    def take(self, polled: Sequence[Messages]) -> None:
        for each in polled:
            for offset, value in zip(each.offsets.tolist(), each.values, strict=True):
                alert = {} if value is None else orjson.loads(value)
                if value is not None and alert["rule"] in self.rules:
                    self.waiting.append(Waiting(each.place, offset, alert["id"], value))
            self.next[each.place] = int(each.next_offset)
        self.progress.waiting = len(self.waiting)

    def positions(self) -> dict[Place, int]:
        """Where to read from after a crash: what waits comes again."""
        found = dict(self.next)
        for waiting in self.waiting:
            found[waiting.place] = min(found[waiting.place], waiting.offset)
        return found

    def attempt(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Try what is due, oldest first, until the hook as a whole fails. Whether something was done with."""
        before = len(self.waiting)
        for waiting in list(self.waiting):
            if self.steady() < self._due or stopped():
                break
            if self.steady() >= waiting.due:
                self._try(waiting)
        self.progress.waiting = len(self.waiting)
        return len(self.waiting) < before

    def _try(self, waiting: Waiting) -> None:
        waiting.began = self.steady() if waiting.began is None else waiting.began
        try:
            self.send(self.hook, waiting.id, waiting.body)
        except _Failure as failure:
            self._fail(waiting, failure)
        else:
            self.progress.told += 1
            self.progress.trouble, self._failed = None, 0
            self.waiting.remove(waiting)

    def _fail(self, waiting: Waiting, failure: _Failure) -> None:
        assert waiting.began is not None
        self.progress.failures += 1
        self.progress.trouble = str(failure)
        first, longest = BACKOFF_SECONDS
        if failure.whole:
            self._due = self.steady() + min(first * 2 ** min(self._failed, 10), longest)
            self._failed += 1
        else:
            waiting.due = self.steady() + min(first * 2 ** min(waiting.tries, 10), longest)
            waiting.tries += 1
            self._failed = 0
        where = {"webhook": self.hook.name, "id": waiting.id}
        if self.steady() - waiting.began >= GIVE_UP_SECONDS:
            log.error("given up: %s", failure, extra=where)
            self.progress.given_up += 1
            self.waiting.remove(waiting)
        else:
            log.warning("not taken, trying again later: %s", failure, extra=where)


class HookThread:
    """Delivers until it is closed."""

    def __init__(self, broker: Broker, settings: AlertSettings, hook: Webhook, rules: frozenset[str]) -> None:
        self._broker, self._settings = broker, settings
        self._key = messages.hook_key(settings.name, hook.name)
        self.deliverer = Deliverer(hook, rules if hook.rules is None else hook.rules)
        self.failure: BaseException | None = None  # what nobody foresaw; the thread has ended
        self.ready = threading.Event()  # where it begins is kept: it hears of all that is announced from now on
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"webhook {hook.name}", daemon=True)

    @property
    def name(self) -> str:
        return self.deliverer.hook.name

    def start(self) -> "HookThread":
        self._thread.start()
        return self

    def stop(self) -> None:
        """Begin to end. The request that is on its way is waited for by `close`."""
        self._stop.set()

    def close(self) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._follow()
                except BrokerError as error:
                    log.warning("the broker cannot yet, trying again: %s", error, extra={"webhook": self.name})
                    self._stop.wait(1.0)
        except BaseException as error:
            log.exception("a webhook's thread ended")
            self.failure = error

    def _follow(self) -> None:
        deliverer = self.deliverer
        deliverer.waiting.clear()
        starts = self._starts()
        deliverer.next = {place: int(offset) for place, offset in starts.items()}
        self._keep()
        self.ready.set()
        follower = self._broker.follow(starts)
        try:
            while not self._stop.is_set():
                if deliverer.room > 0:
                    polled = follower.poll(_POLL_SECONDS, deliverer.room)
                    deliverer.take(polled)
                else:
                    self._stop.wait(_POLL_SECONDS)
                if deliverer.attempt(self._stop.is_set):
                    self._keep()
        finally:
            follower.close()

    def _starts(self) -> dict[Place, Offset]:
        """Where it was; a hook that is new hears of what is announced from now on."""
        said = newest(self._broker, self._settings.state_topic).get(self._key)
        kept: Mapping[str, int] = {} if said is None else orjson.loads(said)
        extents = self._broker.extents([self._settings.alerts_topic])
        return {
            place: Offset(min(max(kept.get(str(place.partition), extent.end), extent.begin), extent.end))
            for place, extent in extents.items()
        }

    def _keep(self) -> None:
        at = {str(place.partition): offset for place, offset in self.deliverer.positions().items()}
        self._broker.append(self._settings.state_topic, [orjson.dumps(at)], [self._key])
        self._broker.flush()
