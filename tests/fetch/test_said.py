"""While a broker is away its clients say the same many times a second: the log has it once in a while."""

import logging

import pytest

from tokenometer.processor.broker.kafka import settings
from tokenometer.processor.broker.kafka.settings import Said

REFUSED = "127.0.0.1:9092/1: Connect to ipv4#127.0.0.1:9092 failed: Connection refused"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(settings.time, "monotonic", lambda: now[0])
    return now


def test_a_line_comes_again_after_half_a_minute(clock: list[float]) -> None:
    said = Said()
    found = []
    for second in range(0, 95, 5):
        clock[0] = 100.0 + second
        found.append(
            said.again(f"{REFUSED} (after {second}ms in state CONNECT, {second} identical error(s) suppressed)")
        )
    assert [5 * index for index, again in enumerate(found) if not again] == [0, 30, 60, 90]
    assert not said.again(REFUSED.replace("9092", "9093")), "another line is another one"


def test_many_different_lines_take_no_memory(clock: list[float]) -> None:
    said = Said()
    assert not any(said.again(f"line {number}") for number in range(10_000))
    assert len(said._said) <= 101


def test_a_client_s_lines_are_logged_once(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    lines = settings._Lines()
    for _ in range(20):
        lines.log(logging.WARNING, "%s (after %dms)", REFUSED, 3)
        lines.log(logging.WARNING, "Configuration property %s will be ignored by this client", "x")
    assert [record.getMessage() for record in caplog.records] == [f"{REFUSED} (after 3ms)"]
