"""What commands run on: brokers, the dashboard, signals, logs. Each is made here, once."""

import contextlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from pythonjsonlogger.json import JsonFormatter

from tokenometer.processor import show
from tokenometer.processor.broker import Broker
from tokenometer.processor.cli.common import needs
from tokenometer.processor.cli.ending import ends_in_time
from tokenometer.processor.cli.options import Address, KafkaSettings, LogFormat, LogLevel, LogSettings
from tokenometer.processor.rollup.alerted import RecentAlerts
from tokenometer.processor.rollup.tables import Only
from tokenometer.processor.rollup.watch import Watch
from tokenometer.processor.secret import Secret, reveal, scrub
from tokenometer.schemas.errors import TokenometerError

if TYPE_CHECKING:
    from tokenometer.processor.http.server import Server

log = logging.getLogger("tokenometer")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOGGERS = ("tokenometer", "aiohttp", "aiokafka", "faust", "mode")  # libraries log only their warnings


class AddressUnusable(TokenometerError):
    """Nothing can be served at the address of --listen; the message says why."""


# --- Broker ---


def broker_of(settings: KafkaSettings) -> Broker:
    """The cluster that the settings name. Raises BrokerError, also for a setting that librdkafka does not know. A
    command opens its broker before it logs its settings, because the value of a misspelt name may be a secret."""
    return open_broker(settings.bootstrap, reveal(settings.client))


def open_broker(bootstrap: str, client: Mapping[str, str]) -> Broker:
    # Imported only where a broker is asked for, because the client is a large library.
    from tokenometer.processor.broker.kafka import KafkaBroker

    return KafkaBroker(bootstrap, client)


# --- The dashboard ---


Cost = Callable[[Watch, Only, int, int | None], dict[str, Any]]  # of whom, how long in ms, until when; None: now


@dataclass(frozen=True)
class LedgerAddress:
    """A running ledger. prices: the text of a price list, by which it says what users cost."""

    url: str
    token: Secret | None
    prices: str | None


@dataclass(frozen=True)
class PageExtras:
    """What a dashboard shows besides the totals. health: None is that of what is watched. cost: revenue and costs.
    docs: what the page links to."""

    health: Callable[[], tuple[bool, dict[str, Any]]] | None = None
    cost: Cost | None = None
    ledger: LedgerAddress | None = None
    docs: str | None = None
    alerts: RecentAlerts | None = None


@contextlib.contextmanager
def dashboard(
    watch: Watch,
    listen: Address | None,
    token: Secret | None = None,
    other: Address | None = None,
    extras: PageExtras | None = None,
) -> Iterator[str | None]:
    """Serves the dashboard of what is watched, on a thread of its own, and gives its address. listen: None serves none.
    other: the address to use if that one is taken."""
    if listen is None:
        yield None
        return
    with needs("dashboard", ", or serve none with --listen ''"):
        from tokenometer.processor.dashboard import DashboardError, ServeAddress, SiteThread

    def at(address: Address) -> SiteThread:
        return SiteThread(source, ServeAddress(address.host, address.port, token.reveal() if token else None))

    source = _source(watch, extras or PageExtras())
    try:
        site = at(listen)
    except DashboardError as error:
        if other is None:
            raise AddressUnusable(f"--listen {listen}: {error}") from None
        site = at(other)
    try:
        yield site.url
    finally:
        site.close()


def _source(watch: Watch, extras: PageExtras) -> Any:
    """The dashboard's Source; its libraries are an extra."""
    from tokenometer.processor.dashboard import Ledger, Question, Source, metrics

    cost, alerts = extras.cost, extras.alerts
    ledger = None
    if extras.ledger is not None:
        url, token, prices = extras.ledger.url, extras.ledger.token, extras.ledger.prices
        ledger = Ledger(url, token.reveal() if token else None, prices)

    def totals() -> bytes | None:
        return watch.latest

    def alerted() -> dict[str, Any]:
        return {"alerts": [], "more": 0} if alerts is None else alerts.shown(time.time_ns() // 1_000_000)

    def only(asked: Question) -> Only:
        return Only(asked.model, asked.chip, asked.meter)

    def history(asked: Question) -> dict[str, Any]:
        return watch.history(asked.span_ms, asked.step_ms, asked.by, asked.until_ms, only(asked))

    return Source(
        totals=totals,
        history=history,
        view=lambda asked: watch.view(only(asked), asked.span_ms, asked.until_ms),
        top_users=watch.top_users,
        top_user=watch.top_user,
        rate=watch.rate,
        healthy=extras.health or watch.health,
        registry=metrics.registry(totals),
        cost=None if cost is None else lambda asked: cost(watch, only(asked), asked.span_ms, asked.until_ms),
        ledger=ledger,
        docs=extras.docs,
        alerts=alerted,
    )


# --- /metrics and /healthz ---


class Served(Protocol):
    def serve(self, host: str, port: int) -> "Server": ...


@contextlib.contextmanager
def served(health: Served, listen: Address | None) -> Iterator[None]:
    """Serves /metrics and /healthz of a process. listen: None serves none."""
    if listen is None:
        yield
        return
    try:
        server = health.serve(listen.host, listen.port)
    except OSError as error:
        raise AddressUnusable(
            f"--listen {listen}: {error.strerror}; choose another port, or none with --listen ''"
        ) from None
    if listen.host not in _LOOPBACK:
        log.warning("metrics are served to other machines", extra={"listen": str(listen)})
    log.info("serving /metrics and /healthz", extra={"host": listen.host, "port": server.port})
    try:
        yield
    finally:
        server.close()


# --- Signals ---


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether SIGTERM or SIGINT came. A second signal ends the process at once, and so does
    the time limit (ending.py)."""
    stop = threading.Event()

    def note(number: int, _: Any) -> None:
        if stop.is_set():
            sys.exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ends_in_time():
            yield stop.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- Logs ---


def start_logs(settings: LogSettings) -> None:
    start_logging(settings.log_format, settings.log_level)


def start_logging(form: LogFormat, level: LogLevel = LogLevel.INFO) -> None:
    """Log to stderr from now on. Libraries log their warnings only, and everything at --log-level debug."""
    handler = _Handler()
    if form is LogFormat.JSON:
        fields = "%(asctime)s %(levelname)s %(name)s %(message)s"
        handler.setFormatter(_JsonLines(fields, rename_fields={"levelname": "level", "asctime": "time"}))
    else:
        handler.setFormatter(_TextFormatter())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        if name == "tokenometer" or level is not LogLevel.INFO:
            logger.setLevel(level.upper())


class _Handler(logging.StreamHandler[Any]):
    """No secret of ours is in a log line, whatever a library writes into it."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


def _time(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC, so that lines of several machines can be compared."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


class _JsonLines(JsonFormatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return _time(record)


class _TextFormatter(logging.Formatter):
    """A line for people: time, level, message, and the further fields that JSON would have."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        more = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in self._KNOWN)
        line = f"{_time(record)} {record.levelname:7} {record.getMessage()}{'  ' if more else ''}{more}"
        return show.printable_lines(f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line)
