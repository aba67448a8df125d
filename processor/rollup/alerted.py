"""The alerts that the page shows: the newest of token-alerts, in memory, read by a thread of its own."""

import logging
import threading
from datetime import datetime
from typing import Any

import orjson

from tokenometer.processor.broker import Broker, BrokerError, Messages, Offset

log = logging.getLogger("tokenometer.rollup")
READ_MAX = 5_000  # messages of a partition that are read at the start
SHOWN_MAX = 50
KEPT_MAX = 1_000  # budgets of which an alert is kept
RECENT_MS = 86_400_000  # an alert is shown so long after its period's end
_POLL_SECONDS = 0.5
_RETRY_SECONDS = 2.0


class RecentAlerts:
    """Of each budget and period, the highest threshold that was announced."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker, self._topic = broker, topic
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str | None, str], dict[str, Any]] = {}  # the newest are the last
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="alerts", daemon=True)

    def start(self) -> "RecentAlerts":
        self._thread.start()
        return self

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def shown(self, now_ms: int) -> dict[str, Any]:
        """For the page: the newest first, and how many there are more."""
        with self._lock:
            held = [alert for alert in self._held.values() if _ms(alert["end"]) + RECENT_MS > now_ms]
        return {"alerts": held[: -SHOWN_MAX - 1 : -1], "more": max(0, len(held) - SHOWN_MAX)}

    def take(self, messages: Messages) -> None:
        for value in messages.values:
            if value is None:
                continue
            alert = orjson.loads(value)
            budget = alert["rule"], alert["subject"], alert["begin"]
            with self._lock:
                before = self._held.get(budget)
                if before is None or before["threshold"] < alert["threshold"] or before["limit"] != alert["limit"]:
                    self._held.pop(budget, None)
                    self._held[budget] = alert
                while len(self._held) > KEPT_MAX:
                    del self._held[next(iter(self._held))]

    # --- The thread ---

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                if self._broker.topics([self._topic])[self._topic] is None:  # nobody has budgets
                    self._stop.wait(_RETRY_SECONDS)
                else:
                    self._follow()
            except BrokerError as error:
                log.warning("alerts do not change, trying again in %.0f s: %s", _RETRY_SECONDS, error)
                self._stop.wait(_RETRY_SECONDS)
            except Exception:  # a foreign message; totals go on
                log.exception("alerts cannot be read")
                self._stop.wait(_RETRY_SECONDS)

    def _follow(self) -> None:
        with self._lock:
            self._held.clear()
        starts = {
            place: Offset(max(extent.begin, extent.end - READ_MAX))
            for place, extent in self._broker.extents([self._topic]).items()
        }
        follower = self._broker.follow(starts)
        try:
            while not self._stop.is_set():
                for messages in follower.poll(_POLL_SECONDS, READ_MAX):
                    self.take(messages)
        finally:
            follower.close()


def _ms(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp() * 1000
