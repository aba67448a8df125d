"""Putting a log into a topic: every line once, a user's lines in one partition and in order, at the log's pace."""

import json
from collections import defaultdict
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import harness
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.load import produce, synth
from tokenometer.processor.load.blocks import ahead, send_blocks
from tokenometer.processor.load.produce import Pacing, Sent, send
from tokenometer.processor.load.profile import BLOCK_RECORDS, Profile
from tokenometer.processor.records.referee import Referee

TOPIC = "inference-logs"
NATIVE = harness.shipped("native").engine
START_MS = 1_795_000_000_000
FAST = Pacing(None, lambda: 0, lambda seconds: pytest.fail("nothing waits"))

property_test = settings(max_examples=40, deadline=None)


def line(user: str, number: int = 0, time_ms: int = 0, **fields: object) -> bytes:
    record = {"request_id": f"r-{number}", "timestamp": START_MS + time_ms, "user": user, "model": "m", "chip": "c"}
    return json.dumps(record | {"input_tokens": 1, "output_tokens": 1} | fields).encode()


MALFORMED = [b"", b" ", b"{", b"\xff\xfe", b"[]", b"null", line("u")[:-1], b'{"user":"u"}', b"\x00", line("", 3)]


class Wall:
    """A clock that only sleeping moves, and what was in the topic whenever somebody slept."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.now_ms = 0.0
        self.slept: list[float] = []
        self.sent_at: dict[bytes, float] = {}
        self._broker = broker

    def look(self) -> None:
        for _, _, value in read(self._broker):
            for text in value.split(b"\n"):
                self.sent_at.setdefault(text, self.now_ms)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.look()
        self.slept.append(seconds)
        self.now_ms += seconds * 1000

    def pacing(self, speed: float) -> Pacing:
        return Pacing(speed, lambda: int(self.now_ms), self.sleep)


def make_broker(partitions: int = 4) -> MemoryBroker:
    broker = MemoryBroker(patience_seconds=0)
    broker.create_topic(TOPIC, partitions, {})
    return broker


@pytest.fixture
def broker() -> MemoryBroker:
    return make_broker()


def read(broker: MemoryBroker) -> list[tuple[int, bytes, bytes]]:
    """Partition, key and value of every message."""
    found = []
    for place, extent in broker.extents([TOPIC]).items():
        for messages in broker.read(place, extent.begin, extent.end, keys=True):
            found += [(place.partition, key, value) for key, value in zip(messages.keys, messages.values, strict=True)]
    return found


def put(
    broker: MemoryBroker, lines: Iterable[bytes], lines_per_message: int = 1, pacing: Pacing = FAST, **more
) -> Sent:
    return send(broker, TOPIC, lines, NATIVE, Referee(), pacing, lines_per_message, **more)


users = st.sampled_from(["ann", "bob", "Zoë", '"q"', "用户", "d" * 200])
logs = st.lists(st.one_of(users, users, users, users, st.sampled_from(MALFORMED)), max_size=60)


@property_test
@given(
    log=logs,
    lines_per_message=st.sampled_from([1, 2, 7, 100]),
    partitions=st.integers(1, 5),
    block=st.sampled_from([1, 7, 1000]),
)
def test_every_line_is_sent_once_and_a_users_lines_stay_together(log, lines_per_message, partitions, block):
    lines = [entry if isinstance(entry, bytes) else line(entry, number) for number, entry in enumerate(log)]
    by_user = defaultdict(list)
    for entry, text in zip(log, lines, strict=True):
        if isinstance(entry, str):
            by_user[entry].append(text)
    broker = make_broker(partitions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(produce, "_BLOCK_LINES", block)
        sent = put(broker, iter(lines), lines_per_message)
    messages = read(broker)
    found = [(partition, text) for partition, _, value in messages for text in value.split(b"\n")]
    assert sorted(text for _, text in found) == sorted(lines)
    assert sent == Sent(len(lines), len(messages), sum(len(value) for _, _, value in messages))
    for user, wanted in by_user.items():
        own = [(partition, text) for partition, text in found if text in wanted]
        assert len({partition for partition, _ in own}) == 1, user
        assert [text for _, text in own] == wanted, user
    for _, _, value in messages:
        assert 1 <= len(value.split(b"\n")) <= lines_per_message


def test_a_message_of_one_line_has_its_user_as_the_key(broker):
    put(broker, [line("ann", 1), line("Zo\u00eb", 2), line("ann", 3)])
    assert {(key.decode(), json.loads(value)["user"]) for _, key, value in read(broker)} == {
        ("ann", "ann"),
        ("Zoë", "Zoë"),
    }


def test_without_a_user_the_request_id_is_the_key_and_else_the_bytes_which_are_counted(broker):
    bare = [b'{"id":1}', b'{"user":"","request_id":null}']
    sent = put(broker, [b'{"request_id":"r-1","n":1}', b'{"request_id":77,"user":{}}', *bare, b"no record", b"[]", b""])
    assert {key for _, key, _ in read(broker)} == {b"r-1", b"77", *bare, b"no record", b"[]", b""}
    assert sent.keyed_by_bytes == 2, "what is no record cannot be counted twice"


def test_the_user_is_the_canonical_one(broker):
    """However it is written, and wherever the mapping finds it."""
    put(broker, [b'{"us\\u0065r": "a\\u0062", ' + line("x")[1:].replace(b'"user": "x", ', b""), line("ab")])
    assert [key for _, key, _ in read(broker)] == [b"ab", b"ab"]
    other = make_broker()
    mapping = harness.shipped("openai-chat").engine
    response = {"model": "m", "usage": {"prompt_tokens": 1, "completion_tokens": 1}}
    text = json.dumps({"timestamp": START_MS, "user": "eve", "chip": "c", "response": response}).encode()
    send(other, TOPIC, [text], mapping, Referee(), FAST)
    assert [key for _, key, _ in read(other)] == [b"eve"]


@pytest.mark.parametrize("lines_per_message", [2, 50])
def test_messages_of_several_lines_share_a_few_keys(broker, lines_per_message):
    lines = [line(f"user-{k % 700}", k) for k in range(2100)]
    put(broker, lines, lines_per_message)
    keys = {key for _, key, _ in read(broker)}
    assert 4 < len(keys) <= produce.KEY_GROUPS
    assert {len({partition for partition, key, _ in read(broker) if key == one}) for one in keys} == {1}


@pytest.mark.parametrize(("count", "each", "messages"), [(1, 1, 1), (10, 5, 2), (11, 5, 3), (4, 5, 1), (0, 5, 0)])
def test_so_many_lines_make_a_message(broker, count, each, messages):
    sent = put(broker, [line("ann", k) for k in range(count)], each)
    sizes = [len(value.split(b"\n")) for _, _, value in read(broker)]
    assert (len(sizes), sum(sizes), sent.messages, sent.records) == (messages, count, messages, count)
    assert all(size == each for size in sizes[:-1])
    assert not any(value.endswith(b"\n") for _, _, value in read(broker))


@pytest.mark.parametrize("lines_per_message", [1, 3])
def test_malformed_lines_are_sent_as_they_are(broker, lines_per_message):
    """A meter is to reject them, so they must arrive; a line that nobody can read has some key."""
    put(broker, MALFORMED, lines_per_message)
    assert sorted(text for _, _, value in read(broker) for text in value.split(b"\n")) == sorted(MALFORMED)


def test_progress_is_told_after_each_block(broker):
    told = []
    sent = put(broker, [line("u", k) for k in range(2500)], progress=lambda sent: told.append(sent.records))
    assert told == [1000, 2000, 2500] and sent.records == 2500


def test_lines_are_taken_as_they_are_sent(broker):
    """A log may be longer than the memory, and may never end."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield line("u", taken)

    class Enough(Exception):
        pass

    def progress(sent: Sent) -> None:
        assert taken - sent.records <= 1000
        if sent.records >= 5000:
            raise Enough

    with pytest.raises(Enough):
        put(broker, endless(), progress=progress)


# --- Pacing ---


@pytest.mark.parametrize("speed", [0.5, 1, 10, 1000])
@pytest.mark.parametrize("step_ms", [1, 10, 500])
def test_the_log_passes_so_many_times_as_fast(broker, speed, step_ms):
    """A record is sent when its time has come, and no more than a moment before or a few records behind."""
    wall = Wall(broker)
    lines = [line(f"u{k % 5}", k, k * step_ms) for k in range(300)]
    put(broker, lines, pacing=wall.pacing(speed))
    wall.look()
    slack_ms = produce.TOGETHER_MS + 1 + 3 * step_ms / speed
    for number, text in enumerate(lines):
        due_ms = number * step_ms / speed
        assert due_ms - slack_ms <= wall.sent_at[text], "never early"
        assert wall.sent_at[text] <= due_ms + slack_ms or wall.now_ms <= due_ms + slack_ms, "a block is not held up"
    assert wall.now_ms == pytest.approx(299 * step_ms / speed, abs=slack_ms)


@pytest.mark.parametrize("odd_ms", [-3 * 86_400_000, -60_000, 7_200_000, 7 * 86_400_000])
@pytest.mark.parametrize("share", [20, 4])
def test_late_and_future_records_neither_block_nor_hurry(broker, odd_ms, share):
    wall, plain = Wall(broker), Wall(make_broker())
    times = [(k * 10, odd_ms if k % share == share // 2 else 0) for k in range(400)]
    put(plain._broker, [line("u", k, time) for k, (time, _) in enumerate(times)], pacing=plain.pacing(1))
    put(broker, [line("u", k, time + odd) for k, (time, odd) in enumerate(times)], pacing=wall.pacing(1))
    assert wall.now_ms == pytest.approx(plain.now_ms, abs=100)
    assert max(wall.slept) < 0.2, "nobody waits for a record of another day"


@pytest.mark.parametrize("odd_ms", [-86_400_000, 86_400_000])
def test_an_odd_first_record_neither_blocks_nor_hurries(broker, odd_ms):
    wall = Wall(broker)
    lines = [line("u", 0, odd_ms), *(line("u", k, k * 10) for k in range(1, 300))]
    put(broker, lines, pacing=wall.pacing(1))
    assert wall.now_ms == pytest.approx(2990, abs=200)


def test_malformed_lines_do_not_disturb_the_pace(broker):
    wall = Wall(broker)
    lines = [text for k in range(200) for text in (line("u", k, k * 10), MALFORMED[k % len(MALFORMED)])]
    sent = put(broker, lines, pacing=wall.pacing(1))
    assert sent.records == 400 and wall.now_ms == pytest.approx(1990, abs=60)


def test_a_sender_that_is_behind_does_not_wait(broker):
    wall = Wall(broker)
    pacing = Pacing(1, lambda: int(wall.now_ms) + 3_600_000 * bool(read(broker)), wall.sleep)
    put(broker, [line("u", k, k * 10) for k in range(100)] + [line("u", 100, 1000)], pacing=pacing)
    assert sum(wall.slept) <= 0.05


def test_lines_wait_for_no_company_at_the_end(broker):
    wall = Wall(broker)
    put(broker, [line(f"user-{k}", k, k * 10) for k in range(50)], 1000, wall.pacing(1))
    assert sum(len(value.split(b"\n")) for _, _, value in read(broker)) == 50


# --- Blocks ---

LOG = Profile(BLOCK_RECORDS + 3_000, seed=8, users=500, duplicates=0.05, malformed=0.02, escaped=0.02, compact=True)


@pytest.mark.parametrize("lines_per_message", [1, 2, 50, 10_000])
def test_every_line_of_a_block_is_sent_once_and_a_users_lines_stay_in_order(lines_per_message):
    lines = b"".join(synth.generate(LOG)).splitlines()
    broker, told = make_broker(), []
    progress = told.append
    sent = send_blocks(broker, TOPIC, synth.blocks(LOG), FAST, lines_per_message, lambda sent: progress(sent.records))
    messages = read(broker)
    found = [(partition, text) for partition, _, value in messages for text in value.split(b"\n")]
    assert sorted(text for _, text in found) == sorted(lines)
    assert sent == Sent(len(lines), len(messages), sum(len(value) for _, _, value in messages))
    assert told == [BLOCK_RECORDS, len(lines)]
    assert all(1 <= value.count(b"\n") + 1 <= lines_per_message for _, _, value in messages)
    assert sum(value.count(b"\n") + 1 < lines_per_message for _, _, value in messages) <= produce.KEY_GROUPS
    by_user: dict[str, list[bytes]] = defaultdict(list)
    for text in lines:
        if user := user_of(text):
            by_user[user].append(text)
    partitions = defaultdict(set)
    went: dict[str, list[bytes]] = defaultdict(list)
    for partition, text in found:
        if user := user_of(text):
            partitions[user].add(partition)
            went[user].append(text)
    assert went == by_user and len(by_user) > 400
    assert {len(some) for some in partitions.values()} == {1}
    if lines_per_message == 1:
        assert all(key.decode() == user_of(value) for _, key, value in messages if user_of(value))


def user_of(text: bytes) -> str | None:
    try:
        record = json.loads(text)
        return (
            record["user"] if isinstance(record["input_tokens"], int) and record["user"].startswith("user-0") else None
        )
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


class Holding:
    """As Kafka's broker: what `append` takes may wait for others until `flush`."""

    def __init__(self, broker):
        self.broker, self.held = broker, []

    def append(self, *given):
        self.held.append(given)

    def flush(self):
        while self.held:
            self.broker.append(*self.held.pop(0))


@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("speed", [1, 10])
@pytest.mark.parametrize("lines_per_message", [1, 5])
def test_blocks_pass_so_many_times_as_fast_as_the_logs_clock(broker, speed, lines_per_message, holds):
    profile = Profile(400, rate=50.0, bursts=0, late=0.1, future=0.1, malformed=0, duplicates=0)  # no line twice
    wall = Wall(broker)
    blocks = list(synth.blocks(profile))
    to = Holding(broker) if holds else broker
    assert send_blocks(to, TOPIC, blocks, wall.pacing(speed), lines_per_message).records == 400
    wall.look()
    began = int(blocks[0].due_ms[0])
    for row, due_ms in enumerate(blocks[0].due_ms.tolist()):
        text, wanted = blocks[0].line(row), (due_ms - began) / speed
        if lines_per_message == 1:
            assert wanted - produce.TOGETHER_MS - 1 <= wall.sent_at[text] <= wanted + 1
        else:
            assert wall.sent_at[text] >= wanted - produce.TOGETHER_MS - 1, "a line waits for its message's others"


def test_a_block_that_is_behind_does_not_wait(broker):
    wall = Wall(broker)
    pacing = Pacing(1, lambda: int(wall.now_ms) + 3_600_000 * bool(read(broker)), wall.sleep)
    send_blocks(broker, TOPIC, synth.blocks(Profile(100, rate=100.0, bursts=0)), pacing)
    assert sum(wall.slept) == 0


def test_what_is_made_ahead_comes_in_order_and_so_does_its_failure():
    class Broken(Exception):
        pass

    def items():
        yield from range(100)
        raise Broken

    got = []
    with pytest.raises(Broken):
        for item in ahead(items()):
            got.append(item)
    assert got == list(range(100)) and list(ahead([])) == []


def test_not_more_than_a_few_are_made_ahead():
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield made[-1]

    taking = ahead(endless(), 3)
    assert [next(taking) for _ in range(5)] == [0, 1, 2, 3, 4]
    taking.close()
    assert len(made) <= 5 + 3
