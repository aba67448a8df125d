"""The soak under attack: everything that may go wrong goes wrong at once, and afterwards every token is there once.

    python -m bench.bench_soak --attack --minutes 10

    producer, with hostile names ──> three brokers ──> two meters ──> ledger (DuckDB), rollup
                                     one is killed     one is killed   silent, slow and rude connections
                                     each minute       each 30 s       on each of the four HTTP faces

Asserts: `verify` is clean; the ledger's and the rollup's totals are the audit's; no /healthz was wrong for longer than
HEALTH_WRONG_SECONDS; all logs together stay below LOG_BYTES_MAX. A process that ends by itself is started again, as a
supervisor would, and is told of.
"""

import contextlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench import common
from tests.kafka_cluster import KafkaCluster
from tests.kafka_server import free_ports
from tokenometer.processor import verify
from tokenometer.processor.broker import BrokerError, GroupMember, Offset, Place
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.cli.common import stdout_console
from tokenometer.processor.verify.report import render
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.usage import COUNTERS

HEALTH_WRONG_SECONDS = 15.0
LOG_BYTES_MAX = 10_000_000
CONNECTIONS = 2000  # on each face
BROKER_SECONDS, BROKER_AWAY_SECONDS, METER_SECONDS = 60.0, 15.0, 30.0
TOPICS = {"soak-logs": 6, "soak-usage": 4, "soak-live": 2, "soak-rejected": 2}
GROUP, METERS = "soak", ("meter-0", "meter-1")
CLIENT = ("--kafka", "session.timeout.ms=10000", "--kafka", "transaction.timeout.ms=8000")
_LOOK_SECONDS = 1.0
_ID_BYTES = 64  # of a request id where its table has just grown: 16 at three eighths of the room, and the table before
_START_SECONDS = 30.0  # of a process, until its face must answer
_SETTLE_SECONDS = 300.0
HOSTILE = [
    "\u202eevil\u202c", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "\x1b]0;title\x07", "a" * 256, "\u6f22" * 85,
    "'; DROP TABLE usage; --", "..%2f..%2fetc", "\x00\x01", "\t=1+1", "user\r\nX-Injected: 1", "\ufeff\u200b",
]  # fmt: skip


def hostile(block: bytes) -> bytes:
    """Names of users and models in one of fifty records are ones that somebody else might trip over."""
    lines = block.splitlines(keepends=True)
    for k in range(0, len(lines), 50):
        name = json.dumps(HOSTILE[k // 50 % len(HOSTILE)]).encode()
        key = b'"user":' if k // 50 % 3 else b'"model":'
        lines[k] = re.sub(key + rb'"[^"\\]*"', lambda _, key=key, name=name: key + name, lines[k], count=1)
    return b"".join(lines)


# --- What runs ---


@dataclass
class Service:
    """One command of ours, under a supervisor."""

    arguments: list[str]
    port: int
    log: pathlib.Path
    ended: list[int] = field(default_factory=list)  # codes of ends that nobody asked for
    started: float = 0.0
    wanted: bool = True  # it is started again where it ends
    process: "subprocess.Popen[bytes] | None" = None
    lock: threading.Lock = field(default_factory=threading.Lock)  # its killer and its supervisor are two

    def start(self) -> None:
        command = [sys.executable, "-m", "tokenometer.processor.cli", *self.arguments]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--listen", f"127.0.0.1:{self.port}"],
                stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=common.ROOT,
            )  # fmt: skip
        self.started = time.monotonic()

    def look_after(self) -> None:
        assert self.process is not None
        with self.lock:
            if self.wanted and (code := self.process.poll()) is not None:
                self.ended.append(code)
                self.start()

    def kill(self) -> None:
        """And start it again."""
        with self.lock:
            self.end(signal.SIGKILL)
            self.start()

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(60)

    def ask(self, path: str) -> tuple[int, Any]:
        """Status and JSON; 0: no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")
        except (OSError, ValueError):
            return 0, None


def services(bootstrap: str, folder: pathlib.Path, rate: float, horizon: float) -> dict[str, Service]:
    topics = ["--usage-topic", "soak-usage", "--live-topic", "soak-live"]
    # One meter has to remember all ids of two generations while the other is dead; half of its memory is for them.
    memory = max(1 << 30, round(2 * 2 * horizon * rate * _ID_BYTES))
    found = {
        name: [
            "meter", "--name", name, "--group", GROUP, "--input", "soak-logs", *topics, "--rejected-topic",
            "soak-rejected", "--device", "cpu", "--memory", str(memory), "--dedup-horizon", str(round(horizon)),
            *CLIENT,
        ] for name in METERS
    } | {
        "ledger": ["ledger", "--database", str(folder / "ledger.duckdb"), *topics],
        "rollup": ["rollup", "--live-topic", "soak-live", "--create-topics", "--replication", "3"],
    }  # fmt: skip
    return {
        name: Service([*arguments, "--bootstrap", bootstrap], free_ports()[0], folder / f"{name}.log")
        for name, arguments in found.items()
    }


# --- Is /healthz true? ---


@dataclass
class _Wrong:
    """For how long a face has been saying what is not so."""

    since: float | None = None
    most: float = 0.0
    what: str = ""

    def look(self, now: float, wrong: str) -> None:
        self.since = (self.since if self.since is not None else now) if wrong else None
        if self.since is not None and now - self.since > self.most:
            self.most, self.what = now - self.since, wrong


class Watchman:
    """Compares what meters say with what the group has committed, and asks whether the other faces answer at all."""

    def __init__(self, broker: KafkaBroker, faces: dict[str, Service]) -> None:
        self._broker, self._faces = broker, faces
        self.wrong = {name: _Wrong() for name in faces}
        self._moved: dict[Place, tuple[Offset, float]] = {}
        self._looked = 0.0  # at Kafka
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            members = self._outside()
            for name, service in self._faces.items():
                now = time.monotonic()
                if now - service.started < _START_SECONDS:
                    self.wrong[name].look(now, "")
                    continue
                status, said = service.ask("/healthz")
                wrong = "" if status else "does not answer"
                if status and name in METERS and members is not None:
                    wrong = self._judge(name, status, members, said.get("refilling_partitions", 0))
                self.wrong[name].look(time.monotonic(), wrong and f"{wrong}: {said}")

    def _outside(self) -> list[GroupMember] | None:
        """Who has what; and when each partition's committed offset moved last, or had nothing to move for."""
        try:
            members, extents = self._broker.members(GROUP), self._broker.extents(["soak-logs"])
            committed = self._broker.committed(GROUP, ["soak-logs"])
        except BrokerError:
            return None  # nobody knows what is true
        now = self._looked = time.monotonic()
        for place, position in committed.items():
            offset = position.offset if position else Offset(0)
            before = self._moved.get(place)
            if before is None or before[0] != offset or offset >= extents[place].end:
                self._moved[place] = offset, now
        return list(members)

    def _judge(self, name: str, status: int, members: list[GroupMember], refilling: int) -> str:
        """refilling: of how many partitions a meter says that their messages wait until it has read request ids."""
        places = [place for member in members if member.name == name for place in member.places]
        if status == 200 and 0 < len(places) <= refilling:
            return ""
        still = sorted(self._looked - self._moved[place][1] for place in places)[: max(0, len(places) - refilling)]
        if status == 200 and (not places or max(still) > _LOOK_SECONDS * 3):
            return f"says that it is healthy, and has {len(places)} partitions, still for {max(still, default=0):.0f} s"
        if status != 200 and still and max(still) < _LOOK_SECONDS * 3:
            return "says that it is not healthy, and commits"
        return ""


# --- The attack ---


def _every(seconds: float, until: float, action: Callable[[int], None]) -> threading.Thread:
    def run() -> None:
        for turn in range(10_000):
            time.sleep(max(0.0, min(seconds, until - time.monotonic())))
            if time.monotonic() >= until:
                return
            action(turn)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _kill_a_broker(cluster: KafkaCluster, turn: int) -> None:
    broker = cluster.brokers[turn % len(cluster.brokers)]
    broker.kill()
    time.sleep(BROKER_AWAY_SECONDS)
    broker.start()


def _kill_a_meter(faces: dict[str, Service], turn: int) -> None:
    faces[METERS[turn % len(METERS)]].kill()


@contextlib.contextmanager
def _supervised(faces: dict[str, Service]) -> Iterator[None]:
    done = threading.Event()

    def supervise() -> None:
        while not done.wait(1):
            for service in faces.values():
                service.look_after()

    for service in faces.values():
        service.start()
    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    try:
        yield
    finally:
        done.set()
        supervisor.join()
        for service in faces.values():
            if service.process and service.process.poll() is None:
                service.process.kill()
                service.process.wait()


def _flooded(faces: dict[str, Service]) -> "subprocess.Popen[str]":
    ports = [str(service.port) for service in faces.values()]
    return subprocess.Popen(
        [sys.executable, "-m", "bench.flood", str(CONNECTIONS), *ports],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=common.ROOT,
    )  # fmt: skip


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _SETTLE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {_SETTLE_SECONDS:.0f} s for {what}"
        time.sleep(1)


def _all_committed(broker: KafkaBroker) -> bool:
    try:
        committed, extents = broker.committed(GROUP, ["soak-logs"]), broker.extents(["soak-logs"])
    except BrokerError:
        return False
    return all((position := committed[place]) and position.offset >= extents[place].end for place in extents)


def run(seconds: float, rate: float, horizon: float, produce: Callable[[dict[str, Any]], "subprocess.Popen[str]"],
        answer: Callable[["subprocess.Popen[str]"], dict[str, Any]]) -> dict[str, Any]:  # fmt: skip
    """What happened; raises AssertionError where a promise is broken. produce, answer: bench_soak's producer."""
    with tempfile.TemporaryDirectory(prefix="tokenometer-attack-") as name, KafkaCluster() as cluster:
        folder, broker = pathlib.Path(name), KafkaBroker(cluster.bootstrap)
        for topic, partitions in TOPICS.items():
            settings = {"cleanup.policy": "compact"} if topic == "soak-usage" else {}
            broker.create_topic(topic, partitions, settings, replication=3)
        faces = services(cluster.bootstrap, folder, rate, horizon)
        with _supervised(faces), contextlib.closing(Watchman(broker, faces)) as watchman:
            try:
                facts = _attack(cluster, faces, seconds, rate, produce, answer)
                _until(lambda: _all_committed(broker), "all to be committed")
                watchman.close()
                return facts | _verdict(broker, faces, folder, horizon, watchman)
            except BaseException:
                print(json.dumps(_story(faces, watchman), indent=1))
                for service in faces.values():
                    print(f"--- {service.log.name}\n{service.log.read_text(errors='replace')[-3000:]}")
                raise


def _attack(
    cluster: KafkaCluster, faces: dict[str, Service], seconds: float, rate: float, produce: Any, answer: Any
) -> dict[str, Any]:
    time.sleep(_START_SECONDS)
    for name, service in faces.items():
        assert name not in METERS or not service.ended, f"{name} did not start"
    until = time.monotonic() + seconds
    request = {"role": "produce", "bootstrap": cluster.bootstrap, "seconds": seconds, "rate": rate, "hostile": True}
    sent, flood = produce(request), _flooded(faces)
    killers = [
        _every(BROKER_SECONDS, until, lambda turn: _kill_a_broker(cluster, turn)),
        _every(METER_SECONDS, until, lambda turn: _kill_a_meter(faces, turn)),
    ]
    for killer in killers:
        killer.join()
    told = flood.communicate("")[0].splitlines()
    return answer(sent) | {"flood": json.loads(told[-1])}


def _verdict(
    broker: KafkaBroker, faces: dict[str, Service], folder: pathlib.Path, horizon: float, watchman: Watchman
) -> dict[str, Any]:
    for name in METERS:
        faces[name].wanted = False
        assert faces[name].end(signal.SIGTERM) == 0, f"{name} did not end well"
    settings = verify.VerifySettings(
        "soak-usage", "soak-live", "soak-rejected", dedup_horizon_ms=round(horizon) * 1000, scratch=str(folder)
    )
    audit = verify.verify(broker, GROUP, {"soak-logs": mappings.resolve("native")}, settings)
    if not audit.clean:
        stdout_console().print(render(audit))
    wanted = dict(zip(COUNTERS, audit.expected, strict=True))
    totals = {name: _totals(faces[name], name, wanted) for name in ("ledger", "rollup")}
    found = _story(faces, watchman) | {
        "records": audit.tally.read, "parts": audit.parts, "wanted": wanted, "totals": totals,
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    assert audit.clean, "verify is not clean"
    assert all(said == wanted for said in totals.values()), "totals differ"
    assert sum(found["log_bytes"].values()) < LOG_BYTES_MAX, "the logs are too large"
    assert all(wrong.most <= HEALTH_WRONG_SECONDS + _LOOK_SECONDS for wrong in watchman.wrong.values()), (
        "health is wrong"
    )
    return found


def _story(faces: dict[str, Service], watchman: Watchman) -> dict[str, Any]:
    return {
        "log_bytes": {service.log.name: service.log.stat().st_size for service in faces.values()},
        "healthz_wrong_seconds": {name: (round(wrong.most, 1), wrong.what) for name, wrong in watchman.wrong.items()},
        "ended_by_themselves": {name: service.ended for name, service in faces.items()},
    }


def _totals(service: Service, name: str, wanted: dict[str, int]) -> dict[str, int]:
    """What it says once it has said the same as the audit, or what it says at last."""
    deadline, said = time.monotonic() + 120, {}
    while time.monotonic() < deadline:
        if name == "ledger":
            status, answer = service.ask("/v1/usage?from=2000-01-01&to=2100-01-01")
            rows = answer["rows"] if status == 200 else []
            said = {key: rows[0][key] for key in wanted} if rows else {}
        else:
            status, answer = service.ask("/api/totals")
            said = {key: answer["windows"]["since_start"]["tokens"][key] for key in wanted} if status == 200 else {}
        if said == wanted:
            break
        time.sleep(1)
    return said
