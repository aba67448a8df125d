"""The rolling totals as Prometheus metrics, computed from the newest totals at each scrape.

Owns: the names of the rollup's metrics.
Promises: `families` is a function of the totals; what is unknown there has no sample here, rather than a zero.
"""

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_CATEGORIES = ("input", "cached_input", "cache_write", "output", "reasoning")
_VERDICTS = ("counted", "duplicates", "rejected", "empty", "skipped")
_ACTIVE_WINDOWS = ("1m", "1h", "24h")
NAMES_MAX = 20  # of models and of chips; each name is a time series, and what there are beyond is one more
OTHERS = "(others)"


def registry(totals: Callable[[], bytes | None]) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(TotalsCollector(totals))
    return found


class TotalsCollector(Collector):
    def __init__(self, totals: Callable[[], bytes | None]) -> None:
        self._totals = totals

    def describe(self) -> Iterable[Metric]:
        """Nothing is described when the collector is registered, because there are no totals yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        totals = self._totals()
        if totals is not None:
            yield from families(orjson.loads(totals))


def families(totals: dict[str, Any]) -> Iterator[Metric]:
    rate, tokens, records = totals["rate"], totals["windows"]["since_start"]["tokens"], totals["records"]
    meters = totals["meters"]
    yield _gauge("tokens_per_second", "Tokens committed per second, over the last minute.", rate["tokens_per_second"])
    yield _gauge("share_of_target", "Run-rate per day as a share of the target.", rate["share_of_target"])
    for name in ("model", "chip"):
        yield _by_name(name, totals["windows"]["last_5m"])
    yield _counter(
        "tokens", "Tokens since start; input includes cached and cache-write ones, output reasoning.", "category",
        {name: tokens[f"{name}_tokens"] for name in _CATEGORIES},
    )  # fmt: skip
    requests = CounterMetricFamily("tokenometer_rollup_requests", "Requests since start.")
    requests.add_metric([], tokens["requests"])
    yield requests
    yield _counter("records", "Records since start, by what became of them.", "verdict",
                   {name: records[name] for name in _VERDICTS})  # fmt: skip
    conflicts = CounterMetricFamily("tokenometer_rollup_conflicts", "Duplicates that say something else, since start.")
    conflicts.add_metric([], records["conflicts"])
    yield conflicts
    yield _counter("rejected_records", "Dead letters since start, by reason.", "reason", totals["rejects"])
    active = GaugeMetricFamily(
        "tokenometer_rollup_active_users", "Users with usage in the last minute, hour, day of event time (estimate).",
        labels=["window"],
    )  # fmt: skip
    for window in _ACTIVE_WINDOWS:
        users = totals["windows"][f"last_{window}"].get("active_users")
        if users is not None:
            active.add_metric([window], users)
    yield active
    yield _gauge("lag_messages", "Messages after the last committed ones.", totals["lag_messages"])
    yield _gauge("freshness_seconds", "Age of the newest committed message of the worst partition at its commit.",
                 _seconds(totals["freshness_ms"]))  # fmt: skip
    states = GaugeMetricFamily("tokenometer_rollup_meters", "Meters, by whether commits come.", labels=["state"])
    for state in ("live", "late", "stale", "stopped"):
        states.add_metric([state], sum(meter["state"] == state for meter in meters))
    yield states
    yield _gauge("complete_up_to_timestamp_seconds", "Least watermark over the partitions.",
                 _timestamp(totals["complete_up_to"]))  # fmt: skip
    yield _gauge("last_commit_timestamp_seconds", "Time of the newest commit of any meter.",
                 max((_timestamp(meter["committed_at"]) or 0.0 for meter in meters), default=None))  # fmt: skip
    yield _gauge("stale", "1 if no meter has committed lately.", float(totals["stale"]))


def _by_name(name: str, span: dict[str, Any]) -> Metric:
    """Tokens per second of those that have most, and of all others together, so that they add up."""
    family = GaugeMetricFamily(
        f"tokenometer_rollup_{name}_tokens_per_second",
        f"Tokens per second by {name}, over the last five minutes of event time: the {NAMES_MAX} largest and {OTHERS}.",
        labels=[name],
    )
    total, speed = span["tokens"]["total_tokens"], span["tokens_per_second"]
    if not total or speed is None:
        return family
    shown = {row[name]: row["total_tokens"] for row in span[f"by_{name}"][:NAMES_MAX]}
    shown[OTHERS] = shown.get(OTHERS, 0) + total - sum(shown.values())
    for key, tokens in shown.items():
        family.add_metric([key], speed * tokens / total)
    return family


def _gauge(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"tokenometer_rollup_{name}", text)
    if value is not None:
        family.add_metric([], value)
    return family


def _counter(name: str, text: str, label: str, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"tokenometer_rollup_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _timestamp(instant: str | None) -> float | None:
    return None if instant is None else datetime.fromisoformat(instant).timestamp()
