"""What a meter tells the outside about itself: Prometheus metrics on /metrics, and /healthz.

Owns: the metrics' names, an HTTP server on a thread of its own.
Promises: it reads what commits tell, and never touches the engine. Counters count committed records only, so that they
agree with the topics.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tokenometer.kernels.values import Tally
from tokenometer.processor.broker import Place
from tokenometer.processor.meter import fitting
from tokenometer.processor.meter.emission import LiveSummary, Misfit, Range
from tokenometer.processor.meter.meter import Committed
from tokenometer.processor.meter.watching import Verdict
from tokenometer.schemas.usage import TOKENS, Usage

if TYPE_CHECKING:
    from tokenometer.processor.http.server import Server

STALE_MS = 60_000  # without a commit, where each second has one: it does not come to commit any more
UNSEEN_MS = 15_000  # without a look at the meter (watching.py): nobody can say that it is healthy
PARTS_REASONS = ("start", "age", "full", "rebalance", "failure")  # why counting.py opens one
_VERDICTS = ("counted", "duplicates", "rejected", "empty", "skipped")
_COMMIT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Health:
    """One meter's metrics. `committed` is called after each commit, from the meter's commit thread."""

    def __init__(self, now_ms: Callable[[], int], device: str) -> None:
        self._now_ms = now_ms
        self._began_ms = now_ms()
        self._last_ms: int | None = None
        self._before: LiveSummary | None = None
        self._shown: set[Place] = set()  # partitions that have gauges
        self._free: set[Place] = set()  # that nobody has, and whose lag is told here
        self._verdict: Verdict | None = None
        self._looked_ms = self._began_ms
        self._misfits: Sequence[Misfit] = ()
        registry = self.registry = CollectorRegistry()
        self._records = Counter(
            "tokenometer_records", "Committed records, by what became of them.", ["verdict"], registry=registry
        )
        self._conflicts = Counter(
            "tokenometer_conflicts", "Committed duplicates that say something else than the record that counted.",
            registry=registry,
        )  # fmt: skip
        self._rejected = Counter(
            "tokenometer_rejected_records", "Committed dead letters, by reason.", ["reason"], registry=registry
        )
        self._fits = Gauge(
            "tokenometer_log_fits", "0 while most records of a topic are rejected: its mapping is not the right one.",
            ["topic"], registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "tokenometer_tokens", "Committed tokens; input includes cached and cache-write ones, output reasoning.",
            ["category"], registry=registry,
        )  # fmt: skip
        self._rows = Counter("tokenometer_usage_rows", "Usage rows written.", registry=registry)
        self._commit_seconds = Histogram(
            "tokenometer_commit_seconds", "From the snapshot to the committed transaction.",
            buckets=_COMMIT_SECONDS, registry=registry,
        )  # fmt: skip
        self._lag = Gauge(
            "tokenometer_lag_messages", "Messages in a partition after the last committed one.",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self._freshness = Gauge(
            "tokenometer_freshness_seconds", "Age of the newest committed message of a partition at its commit.",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self._watermark = Gauge(
            "tokenometer_watermark_timestamp_seconds", "Highest event time counted in a partition.",
            ["topic", "partition"], registry=registry,
        )  # fmt: skip
        self._fill = Gauge(
            "tokenometer_table_fill_ratio", "Used part of what a table may hold before the part is closed.",
            ["table"], registry=registry,
        )  # fmt: skip
        self._parts = Gauge("tokenometer_parts_opened", "Parts opened, by reason.", ["reason"], registry=registry)
        for reason in PARTS_REASONS:  # from zero on, or an alert would miss the first failure
            self._parts.labels(reason)
        self._last_commit = Gauge(
            "tokenometer_last_commit_timestamp_seconds", "Time of the last commit.", registry=registry
        )
        self._healthy = Gauge("tokenometer_healthy", "1 while the meter is healthy.", registry=registry)
        self._healthy.set_function(lambda: float(self.status()[0]))
        self._device = Gauge("tokenometer_device_info", "What the engine runs on.", ["device"], registry=registry)
        self._device.labels(device).set(1)

    def committed(self, committed: Committed) -> None:
        summary = committed.snapshot.summary
        before = self._before if self._before and self._before.part == summary.part else None
        self._count(summary, before)
        self._rows.inc(committed.rows)
        self._commit_seconds.observe(committed.took_ms / 1000)
        self._last_commit.set(committed.began_ms / 1000)
        self._place(summary, committed)
        self._fit(committed)
        for reason, count in committed.snapshot.parts_opened.items():
            self._parts.labels(reason).set(count)
        for table, (used, usable) in committed.snapshot.fill.items():
            self._fill.labels(table).set(used / usable)
        self._before, self._last_ms = summary, self._now_ms()

    def _count(self, summary: LiveSummary, before: LiveSummary | None) -> None:
        """Summaries are absolute within a part."""
        tally = summary.tally - (before.tally if before else Tally())
        for verdict in _VERDICTS:
            self._records.labels(verdict).inc(getattr(tally, verdict))
        self._conflicts.inc(tally.conflicts)
        for reason, count in summary.rejects.items():
            self._rejected.labels(reason).inc(count - (before.rejects.get(reason, 0) if before else 0))
        totals_before = before.totals if before else Usage()
        for name in TOKENS:
            grown = getattr(summary.totals, name) - getattr(totals_before, name)
            self._tokens.labels(name.removesuffix("_tokens")).inc(grown)

    def _place(self, summary: LiveSummary, committed: Committed) -> None:
        """Where the meter is in the partitions that it holds; of those that went, another one tells."""
        held = committed.ends.keys() | committed.snapshot.positions.keys()
        for gone in self._shown - held:
            for gauge in (self._lag, self._freshness, self._watermark):
                with contextlib.suppress(KeyError):
                    gauge.remove(*_labels(gone))
        self._shown = set(held)
        for covered in summary.ranges:
            if covered.place in held:
                self._show(covered, committed)

    def _fit(self, committed: Committed) -> None:
        self._misfits = committed.misfits
        unfit = {misfit.topic for misfit in committed.misfits}
        self._fits.clear()
        for topic in {place.topic for place in self._shown} | unfit:
            self._fits.labels(topic).set(float(topic not in unfit))

    def _show(self, covered: Range, committed: Committed) -> None:
        labels = _labels(covered.place)
        if covered.place in committed.ends:
            self._lag.labels(*labels).set(max(0, committed.ends[covered.place] - covered.next))
        if covered.state.log_time_ms is not None:
            self._freshness.labels(*labels).set((committed.began_ms - covered.state.log_time_ms) / 1000)
        if covered.state.watermark_ms is not None:
            self._watermark.labels(*labels).set(covered.state.watermark_ms / 1000)

    def judged(self, verdict: Verdict) -> None:
        """Called by the watch, from its thread."""
        for place, lag in verdict.lags.items():
            self._lag.labels(*_labels(place)).set(lag)
        for gone in self._free - verdict.lags.keys() - self._shown:
            with contextlib.suppress(KeyError):
                self._lag.remove(*_labels(gone))
        self._free = set(verdict.lags) - self._shown
        self._verdict, self._looked_ms = verdict, self._now_ms()

    def status(self) -> tuple[bool, dict[str, Any]]:
        """Healthy while the watch finds nothing wrong, and commits come; a meter without news commits every ten
        seconds. A log that does not fit, or a partition that nobody has, is told and is no reason to end the meter:
        another one would do no better, so it is healthy and degraded."""
        now_ms = self._now_ms()
        age_ms = now_ms - (self._last_ms or self._began_ms)
        reasons = list(self._verdict.reasons) if self._verdict else []
        if self._verdict and now_ms - self._looked_ms >= UNSEEN_MS:
            reasons.append(f"Kafka has not answered for {(now_ms - self._looked_ms) // 1000} s")
        if age_ms >= STALE_MS:
            reasons.append("no commit for too long: see the meter's log")
        told = [fitting.sentence(misfit) for misfit in self._misfits]
        if self._verdict and self._verdict.unowned:
            told.append(f"nobody in the group has {_names(self._verdict.unowned)}")
        state = "; ".join([*reasons, *(f"degraded: {text}" for text in told)]) or "ok"
        said = {"status": state, "since_last_commit_ms": age_ms, "committed": self._last_ms is not None}
        refilling = self._verdict.refilling if self._verdict else 0
        return not reasons, said | ({"refilling_partitions": refilling} if refilling else {})

    # --- Over HTTP ---

    def serve(self, host: str, port: int) -> "Server":
        """Raises OSError where the address cannot be taken."""
        # Here, because a meter that serves nothing needs no aiohttp, which is a fifth of its start.
        from tokenometer.processor.http.health import serve_health

        return serve_health(self.registry, self.status, host, port)


def _names(places: Sequence[Place]) -> str:
    named = ", ".join(f"{place.topic}-{place.partition}" for place in places[:3])
    return named + (f" and {len(places) - 3} more" if len(places) > 3 else "")


def _labels(place: Place) -> tuple[str, str]:
    return place.topic, str(place.partition)
