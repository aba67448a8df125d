"""How requests are cut and how many are on their way, with a broker that is played by a few lines."""

import struct
import time
from typing import Any

import pytest

from tests.write.test_packer import column, packed
from tokenometer.processor.broker import BrokerError
from tokenometer.processor.broker.kafka.fetch.wire import Reader
from tokenometer.processor.broker.kafka.write import Identity, TransactionWriter, sender
from tokenometer.processor.broker.kafka.write.packer import Packer, hash_of

LEADER = ("127.0.0.1", 1)


class Played:
    """Takes requests, and answers that all of a topic `rows` is written."""

    def __init__(self) -> None:
        self.requests: list[int] = []  # partitions of each
        self.waiting = self.most = 0

    def send(self, request: Any, body: bytes) -> None:
        at = body.index(b"rows") + 4
        self.requests.append(body[at] - 1)
        self.waiting += 1
        self.most = max(self.most, self.waiting)

    def answer(self, request: Any) -> Reader:
        count = self.requests[len(self.requests) - self.waiting]
        self.waiting -= 1
        parts = b"".join(struct.pack(">ihqqq", n, 0, 0, 0, 0) + b"\x01\x00\x00" for n in range(count))
        return Reader(memoryview(b"\x02\x05rows" + bytes([count + 1]) + parts + b"\x00\x00" + bytes(4) + b"\x00"))

    def close(self) -> None:
        pass


def made(partitions: int, batch_bytes: int) -> tuple[TransactionWriter, Played]:
    made = TransactionWriter({"bootstrap.servers": "127.0.0.1:1", "compression.type": "none"}, "id", 30)
    made.begin(Identity(1, 0), time.monotonic() + 60)
    topic = made._topics["rows"] = sender._Topic(Packer(Identity(1, 0), batch_bytes, "none"))
    topic.packer.grow(partitions)
    topic.leaders, topic.added = dict.fromkeys(range(partitions), LEADER), set(range(partitions))
    topic.asked_at = time.monotonic() + 60
    played = Played()
    made._lines[LEADER] = sender._Line(played)  # type: ignore[arg-type]
    return made, played


def test_five_requests_at_most_are_on_their_way() -> None:
    """A broker knows a producer's last five batches of a partition again."""
    made_one, played = made(1, 1_000)
    values = [b"x" * 900] * 40
    made_one.write("rows", column([b"k"] * 40), column(values))
    assert played.requests == [1] * 39 and played.most == 5  # the last batch is still open
    made_one.finish()
    assert played.requests == [1] * 40 and played.most == 5 and played.waiting == 0


@pytest.mark.parametrize("beyond, requests", [(0, [6]), (1, [5, 1])])
def test_a_request_has_one_batch_of_each_partition_up_to_its_limit(
    monkeypatch: pytest.MonkeyPatch, beyond: int, requests: list[int]
) -> None:
    keys = {(hash_of(b"%d" % number) & 0x7FFFFFFF) % 6: b"%d" % number for number in range(1_000)}
    some = [keys[partition] for partition in range(6)]
    batches = packed(some, some, partitions=6, compression="none")
    monkeypatch.setattr(sender, "_REQUEST_BYTES_MAX", sum(len(batch.data) for batch in batches) - beyond)
    made_one, played = made(6, 10_000)
    made_one.write("rows", column(some), column(some))
    made_one.push()
    assert played.requests == requests


def test_what_does_not_pass_in_time_says_what_it_was() -> None:
    lonely = TransactionWriter({"bootstrap.servers": "127.0.0.1:1", "compression.type": "none"}, "id", 30)
    lonely.begin(Identity(1, 0), time.monotonic() + 0.3)
    with pytest.raises(BrokerError, match="writing in the transaction of id: .*refused"):
        lonely.write("rows", column([b"k"]), column([b"v"]))
