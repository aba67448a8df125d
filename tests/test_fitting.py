"""A log that does not fit its mapping is heard of: when, how loudly, and that nothing else is."""

import logging
from collections.abc import Sequence

import orjson
import pytest

from tests import harness, streams
from tokenometer.kernels.engine import CONFLICTING
from tokenometer.kernels.values import Rejection
from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.meter.emission import DeadRecord
from tokenometer.processor.meter.fitting import FitSettings, Fitting
from tokenometer.processor.meter.health import Health
from tokenometer.processor.meter.meter import Clock
from tokenometer.processor.records.sample import KEYS_MAX, keys_of

TOPIC, OTHER = "logs", "other"
MISSING = Rejection("missing_field", "user")
SECOND = 1000


def fitting(**settings) -> Fitting:
    native = harness.shipped("native").engine
    return Fitting(FitSettings(**settings), {TOPIC: native, OTHER: native})


def letters(
    count: int, rejection: Rejection = MISSING, value: bytes = b'{"id":1,"usage":{"in":2}}'
) -> list[DeadRecord]:
    return [DeadRecord(Place(TOPIC, 0), Offset(k), 0, rejection, value) for k in range(count)]


def commit(one: Fitting, now_ms: int, judged: int, rejected: Sequence[DeadRecord] = ()) -> None:
    one.committed(now_ms, {TOPIC, OTHER}, {TOPIC: judged, OTHER: 1_000_000}, rejected)


@pytest.mark.parametrize(
    ("judged", "rejected", "alarm"), [(1000, 501, True), (1000, 500, False), (999, 999, False), (1000, 1000, True)]
)
def test_more_than_half_of_at_least_a_thousand_records_is_too_much(judged: int, rejected: int, alarm: bool) -> None:
    one = fitting()
    commit(one, 0, judged, letters(rejected))
    assert [misfit.topic for misfit in one.misfits] == ([TOPIC] if alarm else []), "the other topic fits"


def test_a_conflict_is_a_duplicate_and_no_reject() -> None:
    one = fitting()
    commit(one, 0, 2000, letters(2000, CONFLICTING))
    assert not one.misfits


def test_the_most_frequent_fault_is_named_with_the_keys_of_a_record_that_has_it() -> None:
    one = fitting()
    commit(one, 0, 1000, [*letters(400, Rejection("bad_count", "input_tokens"), b'{"no":1}'), *letters(500)])
    (misfit,) = one.misfits
    assert (misfit.judged, misfit.rejected, misfit.most) == (1000, 900, 500)
    assert misfit.fault == ("missing_field", "user") and misfit.keys == ("id", "usage.in")
    commit(one, SECOND, 1)  # without a reject
    assert one.misfits[0].keys == ("id", "usage.in")


def test_it_is_logged_once_an_interval_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one = fitting()
    for second in range(150):
        commit(one, second * SECOND, 1000, letters(900))
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 3, "at 0, 60 and 120 s"
    assert warnings[0] == (
        "logs does not fit its mapping native: 900 of its last 1,000 records were rejected, 900 of them for "
        'missing_field of user, read from "user"; such a record has the keys id, usage.in'
    )
    assert "of its last 61,000 records" in warnings[1]
    for second in range(150, 190):
        commit(one, second * SECOND, 1000)
    assert not one.misfits and caplog.records[-1].getMessage() == "logs fits its mapping again"


def test_a_slow_log_is_judged_by_its_last_thousand_records_of_ten_intervals() -> None:
    one = fitting()
    for second in range(0, 500):
        commit(one, second * SECOND, 2, letters(2))
        assert bool(one.misfits) == (second >= 499), second
    too_slow = fitting()
    for second in range(0, 3600, 2):
        commit(too_slow, second * SECOND, 1, letters(1))
        assert not too_slow.misfits


def test_a_topic_that_is_silent_or_went_elsewhere_is_not_told_of() -> None:
    one = fitting()
    commit(one, 0, 1000, letters(1000))
    commit(one, 600 * SECOND, 0)
    assert one.misfits, "nothing has come since, and that is what is known"
    commit(one, 601 * SECOND, 0)
    assert not one.misfits
    commit(one, 700 * SECOND, 1000, letters(1000))
    one.committed(701 * SECOND, {OTHER}, {}, [])
    assert not one.misfits


def test_settings_are_share_records_and_interval() -> None:
    one = fitting(share=0.1, records=10, interval_ms=SECOND)
    commit(one, 0, 10, letters(2))
    assert one.misfits
    commit(one, 2 * SECOND, 10, letters(1))
    assert not one.misfits
    never = fitting(share=1.0)
    commit(never, 0, 5000, letters(5000))
    assert not never.misfits


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        (b"no JSON", ()),
        (b"[]", ()),
        (b"17", ()),
        (b'[{"a":1}]', ("a",)),
        (b'{"a":{"b":{"c":null}},"d":[1]}', ("a.b.c", "d")),
        (orjson.dumps({"k" * 48: {"l" * 48: 1}}), ("k" * 48 + "." + "l" * 14 + "…",)),
        (
            orjson.dumps({f"k{n}": 0 for n in range(KEYS_MAX + 3)}),
            (*(f"k{n}" for n in range(KEYS_MAX)), "and 3 more"),
        ),
    ],
)  # fmt: skip
def test_keys_without_their_values(value: bytes, keys: tuple[str, ...]) -> None:
    assert keys_of(value) == keys


# --- A real meter ---


def test_a_meter_with_a_wrong_mapping_says_so_in_health_metrics_and_live_summaries() -> None:
    broker = MemoryBroker()
    inputs = {streams.INPUT: "native", OTHER: "native"}
    streams.make_topics(broker, 1, list(inputs))
    now = [1_795_000_000_000]
    clock = Clock(lambda: now[0], lambda: now[0], lambda seconds: None)
    health = Health(clock.now_ms, "cpu")
    meter = streams.make_meter(broker, "m", clock=clock, inputs=inputs, commit_interval_ms=1000)
    meter._on_commit = health.committed
    foreign = orjson.dumps({"id": "r", "usage": {"prompt_tokens": 5}})
    broker.append(streams.INPUT, [b"\n".join([foreign] * 600)] * 2)
    broker.append(OTHER, [b"\n \n"] * 2000)  # empty ones are not judged
    meter.open()
    for _ in range(100):
        now[0] += 100
        meter.step()
    healthy, state = health.status()
    assert healthy, "ending the meter would not help"
    assert state["status"].startswith(
        f"degraded: {streams.INPUT} does not fit its mapping: 1,200 of its last 1,200 records were rejected, 1,200 of "
        "them for missing_field of "
    )
    assert state["status"].endswith("such a record has the keys id, usage.prompt_tokens")
    fits = {sample.labels["topic"]: sample.value for family in health.registry.collect()
            if family.name == "tokenometer_log_fits" for sample in family.samples}  # fmt: skip
    assert fits == {streams.INPUT: 0.0, OTHER: 1.0}
    now[0] += 10_000  # without news there is a commit all the same
    for _ in range(3):
        meter.step()
    meter.close()
    summaries = [orjson.loads(value) for _, value, _ in streams.read_topic(broker, streams.LIVE)]
    (misfit,) = summaries[-1]["misfits"]
    assert misfit["topic"] == streams.INPUT and misfit["keys"] == ["id", "usage.prompt_tokens"]
    assert (misfit["judged"], misfit["rejected"]) == (1200, 1200)
