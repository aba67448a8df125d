"""What a commit writes: every message obeys its schema, a key is its value's beginning, nothing is lost in between."""

import base64
import dataclasses
import datetime

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.test_output import expected, some_rows, usage_rows
from tests.test_schemas import schema, validator
from tokenometer.kernels.values import CellTotals, PartitionState, Rejection, Tally, UsageRows, WindowStartMs
from tokenometer.processor.broker import Column, Offset, Place
from tokenometer.processor.meter import emission
from tokenometer.processor.meter.emission import LIVE_BYTES_MAX, DeadRecord, LiveSummary, Range
from tokenometer.processor.records import hyperloglog
from tokenometer.processor.records.referee import REASONS
from tokenometer.processor.rollup.summaries import RECORDS as FATES
from tokenometer.schemas.usage import COUNTERS, Usage

U64_MAX = (1 << 64) - 1
WINDOW_MS = 60_000
LAST_WINDOW = 253_402_300_740_000  # 9999-12-31T23:59:00Z
MESSAGE_BYTES_MAX = 1 << 20  # what a broker takes by default
NAME_BYTES_MAX = 256
ABOUT_A_FIELD = schema("rejected")["if"]["properties"]["reason"]["enum"]
FIELDS = [*schema("rejected")["properties"]["field"]["anyOf"][0]["enum"], "labels.team"]

property_test = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

HOSTILE = [
    '"',
    "\\",
    '\\"',
    'a,"window_ms":60000,"b',
    '","part":"x","window_ms":1',
    '\\",\\"window_ms\\":',
    ',"window_ms":',
    "}",
    "\x00",
    "\x01\x1f\x7f",
    "line\nbreak\r\n",
    "\u2028\u2029",
    "😀",
    "👩‍👩‍👧‍👦",
    "é",
    "x" * NAME_BYTES_MAX,
    "\x01" * NAME_BYTES_MAX,
    '"' * NAME_BYTES_MAX,
    "😀" * (NAME_BYTES_MAX // 4),
]

# --- Strategies ---

names = st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=60).filter(
    lambda text: len(text.encode("utf-8", "replace")) <= NAME_BYTES_MAX
)
names = names.filter(lambda text: text.isprintable() or not any("\ud800" <= c <= "\udfff" for c in text))
parts = st.from_regex(r"\A[0-9A-Za-z._:-]{1,128}\Z")
windows = st.integers(0, LAST_WINDOW // WINDOW_MS).map(lambda k: k * WINDOW_MS)
counter = st.integers(0, 9) | st.integers(0, U64_MAX) | st.just(U64_MAX)


@st.composite
def counters(draw: st.DrawFn) -> list[int]:
    """Anything that 64 bits hold; the engine keeps the total within them, too."""
    row = [draw(counter) for _ in COUNTERS]
    row[4] = min(row[4], U64_MAX - row[1])
    return row


rows = st.dictionaries(st.tuples(windows, names, names, names), counters(), max_size=12)
label_names = st.from_regex(r"\A[a-z][a-z0-9_]{0,62}\Z")
label_sets = st.dictionaries(label_names, names.filter(lambda text: text.encode()), max_size=8)
further_counters = st.lists(st.just(0) | st.just(0) | counter, min_size=5, max_size=5)
optional_ms = st.none() | st.integers(0, (1 << 63) - 1)
states = st.builds(PartitionState, optional_ms, optional_ms, optional_ms)


@st.composite
def ranges(draw: st.DrawFn) -> Range:
    first = draw(st.integers(0, (1 << 63) - 1))
    place = Place(draw(st.from_regex(r"\A[a-zA-Z0-9._-]{1,249}\Z")), draw(st.integers(0, (1 << 31) - 1)))
    return Range(place, Offset(first), Offset(draw(st.integers(first, (1 << 63) - 1))), draw(states))


@st.composite
def summaries(draw: st.DrawFn) -> LiveSummary:
    tally = Tally(*(draw(st.integers(0, U64_MAX >> 2)) for _ in range(4)))
    keys = draw(st.lists(st.tuples(windows, names, names), max_size=8, unique=True))
    return LiveSummary(
        meter=draw(parts),
        part=draw(parts),
        sequence=draw(st.integers(0, 1 << 40)),
        window_ms=WINDOW_MS,
        device=draw(st.sampled_from(["cpu", "NVIDIA H100 80GB HBM3"])),
        tally=tally,
        rejects=draw(st.dictionaries(st.sampled_from(REASONS), st.integers(1, U64_MAX))),
        ranges=draw(st.lists(ranges(), max_size=4)),
        totals=Usage(*draw(counters())),
        cells=[CellTotals(WindowStartMs(start), *key, Usage(*draw(counters()))) for start, *key in keys],
        top_users=draw(st.lists(st.tuples(names, st.integers(0, U64_MAX)), max_size=5)),
        sketches={WindowStartMs(start): draw(sketches) for start, *_ in keys},
    )


def sketch(seed: int, share: float = 0.5) -> np.ndarray:
    draw = np.random.default_rng(seed)
    ranks = draw.integers(0, hyperloglog.RANK_MAX + 1, hyperloglog.REGISTERS).astype(np.uint8)
    return np.where(draw.random(hyperloglog.REGISTERS) < share, ranks, 0).astype(np.uint8)


sketches = st.builds(sketch, st.integers(0, 1 << 30), st.sampled_from([0.0, 0.01, 0.5, 1.0]))

PLAIN = LiveSummary(
    meter="meter-0",
    part="meter-0.run.1",
    sequence=3,
    window_ms=WINDOW_MS,
    device="cpu",
    tally=Tally(5, 1, 2, 1),
    rejects={"invalid_json": 2},
    ranges=[Range(Place("inference-logs", 0), Offset(7), Offset(16), PartitionState(10, 20, 7))],
    totals=Usage(5, 10, 0, 0, 20, 0),
    cells=[],
    top_users=[("ann", 30)],
    sketches={},
)


def with_cells(count: int, name: str = "m", sketches: int = 0) -> LiveSummary:
    cells = [CellTotals(WindowStartMs(k * WINDOW_MS), name, name, Usage(1, 2, 0, 0, 4, 0)) for k in range(count)]
    users = {WindowStartMs(k * WINDOW_MS): sketch(k) for k in range(sketches)}
    return dataclasses.replace(PLAIN, cells=cells, sketches=users)


def usage(rows: UsageRows, part: str = "run.1") -> list[tuple[bytes, bytes]]:
    found = []
    for keys, values in emission.usage_messages(rows, part):
        assert len(keys) == len(values) > 0
        found += zip(texts(keys), texts(values), strict=True)
    return found


def texts(column: Column) -> list[bytes]:
    """By the column's definition."""
    assert column.data.dtype == np.uint8 and column.data.flags.c_contiguous
    places = zip(column.starts.tolist(), column.lengths.tolist(), strict=True)
    found = [column.data[start : start + length].tobytes() for start, length in places]
    assert found == column.tolist() == list(column)
    return found


def live(
    summary: LiveSummary, committed_at_ms: int = 1_795_000_000_123, ends: dict[Place, Offset] | None = None
) -> list[dict]:
    messages = [orjson.loads(message) for message in emission.live_messages(summary, committed_at_ms, ends or {})]
    for message in messages:
        validator("live").validate(message)
    return messages


# --- Usage rows ---


@property_test
@given(rows=rows, part=parts)
def test_keys_and_values_say_what_the_rows_say(rows, part):
    table = usage_rows(list(rows), list(rows.values()))
    wanted = expected(table, part)
    found = usage(table, part)
    assert [orjson.loads(value) for _, value in found] == wanted
    identity = schema("usage-key")["required"]
    for (key, value), row in zip(found, wanted, strict=True):
        validator("usage").validate(orjson.loads(value))
        validator("usage-key").validate(orjson.loads(key))
        assert orjson.loads(key) == {name: row[name] for name in identity}
        assert key.endswith(b"}") and value.startswith(key[:-1] + b',"window_ms":'), "byte for byte"
        assert b"\n" not in value


@pytest.mark.slow
@property_test
@given(rows=rows, part=parts, data=st.data())
def test_labels_and_further_counters_are_said_where_there_are_some(rows, part, data):
    beside = data.draw(st.lists(st.tuples(label_sets, further_counters), min_size=len(rows), max_size=len(rows)))
    labels, further = [one for one, _ in beside], [one for _, one in beside]
    table = usage_rows(list(rows), list(rows.values()), labels=labels, further=further)
    wanted, found = expected(table, part), usage(table, part)
    assert [orjson.loads(value) for _, value in found] == wanted
    identity = [*schema("usage-key")["required"], "labels"]
    for (key, value), row in zip(found, wanted, strict=True):
        validator("usage").validate(orjson.loads(value))
        validator("usage-key").validate(orjson.loads(key))
        assert orjson.loads(key) == {name: row[name] for name in identity if name in row}
        assert list(orjson.loads(key).get("labels", {})) == sorted(row.get("labels", {}))
        assert key.endswith(b"}") and value.startswith(key[:-1] + b',"window_ms":'), "byte for byte"
    if rows:
        compiled, joined = (write(table, part) for write in (emission._formatted, emission._joined))
        assert [texts(column) for column in compiled] == [texts(column) for column in joined]


@property_test
@given(rows=rows.filter(bool), part=parts)
def test_compiled_and_joined_by_arrow_are_the_same_bytes(rows, part):
    table = usage_rows(list(rows), list(rows.values()))
    compiled, joined = (write(table, part) for write in (emission._formatted, emission._joined))
    assert [texts(column) for column in compiled] == [texts(column) for column in joined]


@pytest.mark.parametrize("length", range(1, 27))
def test_an_escape_at_each_place_of_a_name_is_written(length):
    """The compiled formatter looks at eight characters at a time."""
    plain = "".join(chr(ord("a") + i % 26) for i in range(length))
    escaped = [plain[:i] + c + plain[i + 1 :] for i in range(length) for c in '"\\\x00\x1f\n']
    table = usage_rows([(0, name, "m", "c") for name in (plain, *escaped)], [[1, 2, 0, 0, 3, 0]] * (1 + len(escaped)))
    compiled, joined = (write(table, "p") for write in (emission._formatted, emission._joined))
    assert list(map(texts, compiled)) == list(map(texts, joined))


def test_without_a_compiler_rows_are_joined_by_arrow(monkeypatch):
    table = usage_rows([(0, "a", "b", "c")], [[1] * 6])
    wanted = usage(table)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("shutil.which", lambda name: None)
    emission._formatter.cache_clear()
    try:
        assert emission._formatter() is None and usage(table) == wanted
    finally:
        emission._formatter.cache_clear()


@property_test
@given(rows=rows.filter(bool))
def test_a_row_has_the_same_key_in_any_company(rows):
    """Compaction compares bytes: neither the other rows of a commit nor their order may show in a key."""
    together = {tuple(orjson.loads(key).items()): key for key, _ in usage(usage_rows(list(rows), list(rows.values())))}
    for row, counts in rows.items():
        [(key, _)] = usage(usage_rows([row], [counts]))
        assert together[tuple(orjson.loads(key).items())] == key


def test_equal_keys_are_equal_rows():
    keys = [
        (0, "a", "b", "c"),
        (0, "a", "c", "b"),
        (0, "b", "a", "c"),
        (60_000, "a", "b", "c"),
        (0, 'a","model":"b', "b", "c"),
    ]
    assert len({key for key, _ in usage(usage_rows(keys, [[1] * 6] * len(keys)))}) == len(keys)


def test_every_counter_may_be_the_largest_and_the_total_is_exact():
    row = [U64_MAX, U64_MAX - 5, U64_MAX, U64_MAX, 5, U64_MAX]
    [(_, value)] = usage(usage_rows([(LAST_WINDOW, "u", "m", "c")], [row]))
    assert value.endswith(b'"total_tokens":18446744073709551615,"schema":2}')
    found = orjson.loads(value)
    assert [found[name] for name in COUNTERS] == row and found["window_start"] == "9999-12-31T23:59:00Z"


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 14, 50])
def test_pieces_join_without_a_seam(monkeypatch, count):
    monkeypatch.setattr(emission, "_ROWS_PER_PIECE", 7)
    rows = some_rows(count)
    pieces = list(emission.usage_messages(rows, "run.1"))
    assert all(1 <= len(keys) <= 7 for keys, _ in pieces)
    assert [orjson.loads(value) for _, values in pieces for value in texts(values)] == expected(rows, "run.1")


# --- Live summaries ---


@property_test
@given(summary=summaries(), committed_at_ms=st.integers(0, 253_402_300_799_999))
def test_a_summary_says_what_the_part_says(summary, committed_at_ms):
    ends = {covered.place: Offset(min(covered.next + 5, (1 << 63) - 1)) for covered in summary.ranges[::2]}
    [message] = live(summary, committed_at_ms, ends)
    assert {name: message[name] for name in ("schema", "meter", "part", "sequence", "window_ms", "device")} == {
        "schema": 1, "meter": summary.meter, "part": summary.part, "sequence": summary.sequence,
        "window_ms": WINDOW_MS, "device": summary.device,
    }  # fmt: skip
    assert message["records"].pop("read") == summary.tally.read == sum(message["records"].values())
    assert (
        message["records"] == {name: getattr(summary.tally, name) for name in FATES}
        and message["rejects"] == summary.rejects
    )
    for found, covered in zip(message["partitions"], summary.ranges, strict=True):
        assert (found["topic"], found["partition"]) == covered.place
        assert (found["from"], found["next"]) == (covered.first, covered.next)
        assert found["end"] == ends.get(covered.place)
        assert (found["watermark"], found["log_time"]) == (covered.state.watermark_ms, covered.state.log_time_ms)
    for found, counts in [
        (message["tokens"], summary.totals),
        *zip(message["cells"], (cell.counters for cell in summary.cells), strict=True),
    ]:
        assert tuple(found[name] for name in COUNTERS) == counts
        assert found["total_tokens"] == found["input_tokens"] + found["output_tokens"]
    starts = [(ms_of(cell["window_start"]), cell["model"], cell["chip"]) for cell in message["cells"]]
    assert starts == [(cell.window_start, cell.model, cell.chip) for cell in summary.cells]
    assert [(top["user"], top["total_tokens"]) for top in message["top_users"]] == list(summary.top_users)
    assert ms_of(message["committed_at"]) == committed_at_ms


def ms_of(text: str) -> int:
    moment = datetime.datetime.fromisoformat(text) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return moment // datetime.timedelta(milliseconds=1)


@property_test
@given(registers=sketches, start=windows)
def test_registers_come_back(registers, start):
    [message] = live(dataclasses.replace(PLAIN, sketches={WindowStartMs(start): registers}))
    [found] = message["users"]
    assert ms_of(found["window_start"]) == start
    assert base64.b64decode(found["registers"], validate=True) == registers.tobytes()
    assert 1 << found["precision"] == len(registers)
    assert found["estimate"] == pytest.approx(hyperloglog.estimate(registers), abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cells", "sketches", "messages"),
    [(0, 0, 1), (1, 1, 1), (400, 16, 1), (0, 100, 3), (10_000, 0, 3), (10_000, 100, 5)],
)
def test_a_large_summary_is_several_messages_that_repeat_all_else(cells, sketches, messages):
    summary = with_cells(cells, sketches=sketches)
    found = live(summary)
    assert len(found) == messages, [len(orjson.dumps(message)) for message in found]
    all_cells = [cell for message in found for cell in message["cells"]]
    all_users = [users for message in found for users in message["users"]]
    assert [ms_of(cell["window_start"]) for cell in all_cells] == [cell.window_start for cell in summary.cells]
    assert [base64.b64decode(users["registers"]) for users in all_users] == [
        registers.tobytes() for registers in summary.sketches.values()
    ]
    frames = [{name: value for name, value in message.items() if name not in ("cells", "users")} for message in found]
    assert all(frame == frames[0] for frame in frames) and frames[0] == {
        name: value for name, value in live(PLAIN)[0].items() if name not in ("cells", "users")
    }


def largest(name: str, cells: int, sketches: int) -> int:
    """Bytes of the largest message of a summary whose every name and number is as long as it may be."""
    full = Usage(U64_MAX, U64_MAX >> 1, U64_MAX, U64_MAX, U64_MAX >> 1, U64_MAX)
    rows = [CellTotals(WindowStartMs(LAST_WINDOW), name, name, full) for _ in range(cells)]
    users = {WindowStartMs(k * WINDOW_MS): np.full(hyperloglog.REGISTERS, 20, np.uint8) for k in range(sketches)}
    top = [(name, U64_MAX)] * 20
    covered = [
        Range(Place("t" * 249, k), Offset(1 << 62), Offset(1 << 62), PartitionState(1 << 62, 1 << 62, 0))
        for k in range(64)
    ]
    summary = dataclasses.replace(
        PLAIN, part="p" * 128, meter="m" * 128, cells=rows, sketches=users, top_users=top, ranges=covered, totals=full
    )
    return max(map(len, emission.live_messages(summary, 1_795_000_000_123, {})))


@pytest.mark.parametrize("name", ["x" * NAME_BYTES_MAX, "😀" * 64, "gpt-4o-mini", "\x01" * NAME_BYTES_MAX])
def test_no_live_message_is_larger_than_a_broker_takes(name):
    assert LIVE_BYTES_MAX - 4096 < largest(name, 5000, 80) <= LIVE_BYTES_MAX < MESSAGE_BYTES_MAX


# --- Dead letters ---


@property_test
@given(
    reason=st.sampled_from(REASONS),
    field=st.sampled_from(FIELDS),
    place=st.builds(Place, st.from_regex(r"\A[a-zA-Z0-9._-]{1,249}\Z"), st.integers(0, (1 << 31) - 1)),
    offset=st.integers(0, (1 << 63) - 1),
    line=st.integers(0, 1 << 20),
)
def test_headers_of_dead_letters_obey_their_schema(reason, field, place, offset, line):
    rejection = Rejection(reason, field if reason in ABOUT_A_FIELD else None)
    headers = emission.rejected_headers(DeadRecord(place, Offset(offset), line, rejection, b"\xff\x00"))
    assert all(isinstance(value, bytes) for _, value in headers)
    texts = {name: value.decode() for name, value in headers}
    assert len(texts) == len(headers), "no header stands twice"
    validator("rejected").validate(texts)
    assert (texts["reason"], texts.get("field")) == (rejection.reason, rejection.field)
    assert (texts["topic"], int(texts["partition"]), int(texts["offset"]), int(texts["line"])) == (*place, offset, line)
