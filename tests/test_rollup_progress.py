"""A rollup that does not do its work says so: what of its partitions, its group and its name it is judged by."""

import orjson
import pytest

from tests import streams
from tests.test_schemas import validator
from tokenometer.processor.broker import BrokerError, Refused
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.rollup import worker
from tokenometer.processor.rollup.progress import PATIENCE_MS, Progress

LIVE = "token-live"


def looked(*looks: tuple[int, bool, int, int]) -> list[list[str]]:
    """looks: second, joined, last offset learned of partition 0, its end."""
    progress = Progress("app", LIVE, 0)
    return [progress.look(second * 1000, joined, {0: last}, {0: end}) for second, joined, last, end in looks]


def test_a_worker_that_does_not_join_its_group_says_so_within_ten_seconds():
    reasons = looked(*((second, False, -1, 0) for second in range(10)))
    assert not reasons[PATIENCE_MS // 1000 - 1] and "has not joined the group app" in reasons[9][0]
    assert looked(*((second, False, -1, 0) for second in range(10)), (10, True, -1, 0))[-1] == []


def test_a_partition_that_goes_on_and_is_not_counted_is_told_by_every_worker():
    reasons = looked(*((second, True, 4, 6 + 2 * second) for second in range(10)))
    assert not reasons[7] and "partition 0" in reasons[9][0] and "offset 24" in reasons[9][0]
    assert "for 8 s" in looked(*((second, True, -1, 6) for second in range(9)))[8][0], "what was there is not read"


def test_a_partition_that_is_counted_or_quiet_is_healthy():
    assert not any(looked(*((second, True, 4 + second, 6 + second) for second in range(60))))
    assert not any(looked(*((second, True, 4, 6) for second in range(60)))), "a mark follows the last message"
    assert not any(looked(*((second, True, -1, 0) for second in range(60)))), "an empty partition"
    assert not looked(*((second, True, 4, 6) for second in range(60)), (60, True, 4, 8))[-1], "it came just now"


@pytest.mark.parametrize("running", [True, False])
def test_the_name_of_a_meters_group_is_refused_at_start(running):
    broker = MemoryBroker()
    streams.make_topics(broker)
    settings = worker.RollupSettings(streams.GROUP, "", {})
    worker.create_topics(broker, settings, 1)
    worker.Rollup(broker, settings)  # nobody has the name yet
    meter = streams.make_meter(broker, commit_interval_ms=0, idle_interval_ms=0)
    meter.open()
    for _ in range(4):
        meter.step()
    if not running:
        meter.close()
    with pytest.raises(Refused, match="billing is the name of another group, which reads inference-logs"):
        worker.Rollup(broker, settings)
    if running:
        meter.close()


def test_a_coordinator_that_begins_its_work_is_waited_for(monkeypatch):
    broker = MemoryBroker()
    streams.make_topics(broker)
    settings = worker.RollupSettings("app", "", {})
    worker.create_topics(broker, settings, 1)
    answers = iter([BrokerError("NOT_COORDINATOR"), BrokerError("NOT_COORDINATOR"), []])

    def members(group):
        answer = next(answers)
        if isinstance(answer, BrokerError):
            raise answer
        return answer

    monkeypatch.setattr(broker, "members", members)
    worker.Rollup(broker, settings)
    assert next(answers, None) is None


def test_a_meter_that_is_told_to_stop_says_so_with_its_last_summary_and_with_no_other():
    broker = MemoryBroker()
    streams.make_topics(broker)
    looks = iter([False] * 5 + [True] * 100)
    streams.make_meter(broker, commit_interval_ms=0, idle_interval_ms=0).run(lambda: next(looks))
    told = [orjson.loads(value) for _, value, _ in streams.read_topic(broker, streams.LIVE)]
    assert [each.get("leaving", False) for each in told] == [False] * (len(told) - 1) + [True] and len(told) > 1
    for each in told:
        validator("live").validate(each)
