"""Streams whose chunks each say the usage so far, on a real Kafka: whatever is killed or moves between two chunks of a
request, its counters are its greatest values, once. The audit and the oracle compare every row.
"""

import itertools
import json
import random
import signal
import time
from collections.abc import Iterator

import pytest

from tests.kafka.meter_process import POINTS, Trip
from tests.kafka.stream import HASTY, PATIENCE_SECONDS, SMALL, START_MS, Stream, eventually

pytestmark = pytest.mark.kafka
OPEN_REQUESTS = 30  # at a time


def chunks(seed: int) -> Iterator[bytes]:
    """Interleaved streams of up to 200 chunks each, as vLLM writes them; one in ten comes twice, late, or is odd."""
    rng, numbers = random.Random(seed), itertools.count()
    opened: list[list[bytes]] = []
    while True:
        while len(opened) < OPEN_REQUESTS:
            opened.append(request(rng, next(numbers)))
        waiting = rng.choice(opened)
        if rng.random() < 0.05 and len(waiting) > 1:
            waiting[-1], waiting[-2] = waiting[-2], waiting[-1]
        yield waiting.pop()
        opened = [each for each in opened if each]


def request(rng: random.Random, number: int) -> list[bytes]:
    """Its chunks, the last one first."""
    sent, user = rng.randint(1, 5000), f"u-{number % 40}"
    found = []
    for made in range(rng.choice([1, 3, 50, 200])):
        usage = {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}
        record = {
            "request_id": f"cmpl-{number}", "timestamp": START_MS + number * 1000 + made, "user": user, "chip": "H100",
            "response": {"model": "m", "usage": usage if rng.random() < 0.95 else None},
        }  # fmt: skip
        text = json.dumps(record, separators=(",", ":")).encode()
        found += [text] * (2 if rng.random() < 0.05 else 1)
    return found[::-1]


@pytest.fixture
def streamed(stream: Stream) -> Stream:
    stream.mapping, stream.log = "vllm", chunks(7)
    return stream


def test_a_meter_that_is_killed_between_two_chunks_counts_each_counter_up_to_its_greatest(streamed: Stream) -> None:
    with streamed.flowing(per_second=2000):
        for point in POINTS:
            meter = streamed.meter(trip=Trip(point, commit=3))
            meter.wait_for_end(-signal.SIGKILL)
        draw = random.Random(5)
        for _ in range(4):
            meter = streamed.meter(engine=SMALL)
            meter.wait_for_count()
            time.sleep(draw.uniform(0, 1))
            meter.kill()
        streamed.meter(engine=SMALL).wait_for_count()
    streamed.settle()
    found = streamed.audit()
    assert found.tallies["duplicates"] > 0 and found.tallies["skipped"] > 0 and found.parts > len(POINTS)
    assert sum(row[0] for row in found.rows.values()) < found.tallies["counted"] / 10, "requests have many chunks"


def test_streams_go_on_where_their_partition_moves_to(streamed: Stream) -> None:
    with streamed.flowing(per_second=2000):
        first = streamed.meter("meter-0", kafka=HASTY)
        eventually(lambda: len(first.held) == 3, "all partitions", PATIENCE_SECONDS, [first])
        for turn in range(3):
            other = streamed.meter(f"meter-{1 + turn}", kafka=HASTY)
            eventually(lambda: len(other.held) >= 1, "a share", PATIENCE_SECONDS, [first, other])  # noqa: B023
            other.wait_for_count(since=len(other.events))
            if turn % 2:
                other.stop()
            else:
                other.kill()
            eventually(lambda: len(first.held) == 3, "all partitions again", PATIENCE_SECONDS, [first])
    streamed.settle()
    found = streamed.audit()
    assert found.tallies["counted"] > 0 and found.parts > 3
