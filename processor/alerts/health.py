"""What the process tells the outside about itself: Prometheus metrics on /metrics, and /healthz."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenometer.processor.alerts.hooks import HookThread
from tokenometer.processor.alerts.worker import AlertProgress
from tokenometer.processor.http.health import serve_health
from tokenometer.processor.http.server import Server

STALE_MS = 30_000  # without a step of the loop


class AlertHealth(Collector):
    def __init__(self, progress: AlertProgress, hooks: Sequence[HookThread], now_ms: Callable[[], int]) -> None:
        self._progress, self._hooks, self._now_ms, self._began_ms = progress, hooks, now_ms, now_ms()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def status(self) -> tuple[bool, dict[str, Any]]:
        """Unhealthy while the loop does not go on. A webhook that fails is told and is no reason to end the process:
        another one would do no better."""
        progress = self._progress
        age_ms = self._now_ms() - (progress.stepped_ms or self._began_ms)
        wrong = [f"a thread of webhook {hook.name} has ended" for hook in self._hooks if hook.failure is not None]
        if age_ms >= STALE_MS:
            wrong.append(progress.trouble or "nothing was read for too long: see the log")
        unwell = [f"degraded: webhook {hook.name}: {said}" for hook in self._hooks
                  if (said := hook.deliverer.progress.trouble)]  # fmt: skip
        unwell += [f"degraded: no price for usage of {model}" for model in sorted(progress.unpriced)[:3]]
        unwell += [f"degraded: {progress.gap}"] if progress.gap else []
        state = {
            "status": "; ".join([*wrong, *unwell]) or "ok", "since_last_step_ms": age_ms, "rows": progress.rows,
            "behind": progress.behind, "announced": sum(progress.announced.values()),
        }  # fmt: skip
        return not wrong, state

    def collect(self) -> Iterator[Metric]:
        progress = self._progress
        announced = CounterMetricFamily(
            "tokenometer_alerts_announced", "Alerts written to the topic.", labels=["rule", "threshold"]
        )
        for (rule, threshold), count in sorted(progress.announced.items()):
            announced.add_metric([rule, str(threshold)], count)
        yield announced
        yield CounterMetricFamily("tokenometer_alerts_rows", "Usage rows that were judged.", value=progress.rows)
        yield CounterMetricFamily(
            "tokenometer_alerts_late_rows",
            "Rows of periods whose sums are not kept any more.",
            value=progress.late_rows,
        )
        yield CounterMetricFamily(
            "tokenometer_alerts_stray_rows", "Rows of parts that had ended; they are not counted.",
            value=progress.stray_rows,
        )  # fmt: skip
        yield CounterMetricFamily(
            "tokenometer_alerts_unpriced_tokens", "Tokens that no price, or two prices, fit.",
            value=sum(progress.unpriced.values()),
        )  # fmt: skip
        if progress.behind is not None:
            yield GaugeMetricFamily(
                "tokenometer_alerts_lag_messages", "Messages of token-usage that are not judged yet.",
                value=progress.behind,
            )  # fmt: skip
        if progress.state_ms is not None:
            yield GaugeMetricFamily(
                "tokenometer_alerts_state_timestamp_seconds", "When the state was last kept.",
                value=progress.state_ms / 1000,
            )  # fmt: skip
        yield from self._of_hooks()
        yield GaugeMetricFamily(
            "tokenometer_alerts_healthy", "1 while the process is healthy.", value=float(self.status()[0])
        )

    def _of_hooks(self) -> Iterator[Metric]:
        told = CounterMetricFamily("tokenometer_alerts_webhook_told", "Alerts that a webhook took.", labels=["webhook"])
        failures = CounterMetricFamily(
            "tokenometer_alerts_webhook_failures", "Requests that a webhook did not take.", labels=["webhook"]
        )
        given_up = CounterMetricFamily(
            "tokenometer_alerts_webhook_given_up", "Alerts that a webhook did not take for a day.", labels=["webhook"]
        )
        waiting = GaugeMetricFamily(
            "tokenometer_alerts_webhook_waiting", "Alerts that wait for a webhook.", labels=["webhook"]
        )
        for hook in self._hooks:
            progress = hook.deliverer.progress
            told.add_metric([hook.name], progress.told)
            failures.add_metric([hook.name], progress.failures)
            given_up.add_metric([hook.name], progress.given_up)
            waiting.add_metric([hook.name], progress.waiting)
        yield from (told, failures, given_up, waiting)

    # --- Over HTTP ---

    def serve(self, host: str, port: int) -> Server:
        """Raises OSError where the address cannot be taken."""
        return serve_health(self.registry, self.status, host, port)
