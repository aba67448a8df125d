"""The ledger's way from messages to rows, on every database: exactly once, whatever comes, however often it comes."""

import pathlib
import random
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import bad_input, books, harness, streams
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker import BrokerError, Messages, Offset, OutOfRange, Place, TopicMissing
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.ledger import decode, intake
from tokenometer.processor.ledger.database import shown
from tokenometer.processor.ledger.opening import open_clerk, open_database
from tokenometer.processor.ledger.parts import DISPUTED, MERGED, OPEN, UNPROVED, PartGoesOn
from tokenometer.processor.ledger.store import Stand, Store
from tokenometer.processor.ledger.values import (
    BadRequest,
    Busy,
    DatabaseError,
    LedgerBatch,
    LedgerError,
    Malformed,
    UnknownSchema,
)
from tokenometer.processor.load import synth
from tokenometer.processor.load.profile import Profile
from tokenometer.schemas.usage import COUNTERS, FURTHER

SCHEMAS = pathlib.Path(__file__).parents[1] / "schemas"
PLACE = Place(streams.USAGE, 0)
IDENTITY = (books.START_MS, "alice", "llama", "H100", "meter.1")
COUNTS = [1, 100, 40, 20, 30, 10]
# Texts that are syntax somewhere between a log and a database.
HOSTILE = [
    "'; DROP TABLE open_rows; --", '"', "\\", "\\\\x41", "\\x41", "$1", "?", "%s", "%(a)s", "{}", "a,b", "\t", "\n",
    "\r\n", "NULL", "\\N", "\\.", "\u0000", "a\u0000b", "a\u0000", "A", "a", "a ", " a", "é", "e\u0301", "\u202e", "😀",
    "ж" * 128, "x" * 256, "\ud7ff", "\uffff", "𝔘𝔫𝔦", "''", "0x41", "true", "\u0001", "\u007f", "=1+1", "}[", "[]",
]  # fmt: skip


def messages(values: list[bytes | None], first: int = 0, place: Place = PLACE) -> Messages:
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    return Messages(place, values, np.zeros(len(values), np.uint64), offsets)


def take(store: Store, values: list[bytes | None]) -> None:
    """As the next messages of the topic."""
    if PLACE not in store.positions:
        store.place({PLACE: Stand("id", Offset(0))})
    first = store.positions[PLACE].next
    batch = messages(values, first)
    store.take(LedgerBatch(decode.usage_rows([batch]), [], {PLACE: batch.next_offset}))


# --- From bytes to rows ---


def test_a_row_comes_out_as_it_went_in() -> None:
    rows = decode.usage_rows([messages([books.usage_row(IDENTITY, COUNTS)])])
    assert rows is not None and len(rows) == 1
    assert rows.window_starts.tolist() == [books.START_MS] and rows.window_ms == [60_000]
    names = [column.names[column.codes[0]] for column in (rows.user, rows.model, rows.chip, rows.part)]
    assert names == [b"alice", b"llama", b"H100", b"meter.1"]
    assert [int(column[0]) for column in rows.counters] == COUNTS


@pytest.mark.parametrize(
    "spoil",
    [
        lambda row: orjson.dumps(orjson.loads(row), option=orjson.OPT_INDENT_2),
        lambda row: b" " + row + b"\r\n",
        lambda row: row.replace(b'"alice"', b'"\\u0061lice"'),
        lambda row: orjson.dumps(dict(reversed(orjson.loads(row).items()))),
    ],
)
def test_another_layout_of_the_same_row_says_the_same(spoil: Any) -> None:
    row = books.usage_row(IDENTITY, COUNTS)
    plain, odd = (decode.usage_rows([messages([row, value])]) for value in (row, spoil(row)))
    assert repr(odd) == repr(plain)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"requests": -1}, "requests is not an unsigned"),
        ({"requests": 1.0}, "requests is not an unsigned"),
        ({"requests": True}, "requests is not an unsigned"),
        ({"requests": "1"}, "requests is not an unsigned"),
        ({"requests": None}, "requests is not an unsigned"),
        ({"total_tokens": 131}, "contradict"),
        ({"cached_input_tokens": 101}, "contradict"),
        ({"cache_write_tokens": 61}, "contradict"),
        ({"reasoning_tokens": 31}, "contradict"),
        ({"input_tokens": 2**64 - 1, "total_tokens": 29}, "contradict"),
        ({"user": ""}, "user has not 1 to 256 bytes"),
        ({"chip": "é" * 129}, "chip has not 1 to 256 bytes"),
        ({"model": 7}, "model is not a text"),
        ({"part": "a part"}, "part is not a name"),
        ({"window_ms": 1500}, "whole seconds"),
        ({"window_ms": 0}, "whole seconds"),
        ({"window_start": "2026-11-23T00:00:00+00:00"}, "window_start is not a moment"),
        ({"window_start": "2026-02-30T00:00:00Z"}, "window_start is not a moment"),
        ({"window_start": 1}, "window_start is not a text"),
        ({"extra": 1}, "an unknown field extra"),
    ],
)
def test_a_row_that_breaks_its_schema_names_its_place(changes: dict[str, Any], words: str) -> None:
    good, bad = books.usage_row(IDENTITY, COUNTS), books.usage_row(IDENTITY, COUNTS, **changes)
    with pytest.raises(Malformed, match=f"token-usage, partition 0, offset 8: .*{words}"):
        decode.usage_rows([messages([good, bad, good], 7)])


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b'"x"', b"{}x", b"\xff", b'{"user":"\xff"}', b"{}[]{}"])
def test_what_is_no_object_names_its_place(value: bytes) -> None:
    with pytest.raises(LedgerError, match="partition 0, offset 1: "):
        decode.usage_rows([messages([books.usage_row(IDENTITY, COUNTS), value])])


@pytest.mark.parametrize("version", [0, 3, "1", 1.0, True, None])
def test_an_unknown_schema_version_stops(version: Any) -> None:
    words = r"token-usage, partition 0, offset 0: schema version .*; this tokenometer knows version 1 and 2: upgrade it"
    with pytest.raises(UnknownSchema, match=words):
        decode.usage_rows([messages([books.usage_row(IDENTITY, COUNTS, schema=version)])])
    with pytest.raises(UnknownSchema, match="offset 3: schema version"):
        decode.summaries([messages([books.live_summary("m", "m.1", 0, COUNTS, schema=version)], 3)])


@pytest.mark.parametrize("file", sorted((SCHEMAS / "examples" / "usage").glob("*.json")), ids=lambda file: file.stem)
def test_examples_of_usage_rows_have_the_verdict_that_they_name(file: pathlib.Path) -> None:
    value = orjson.dumps(orjson.loads(file.read_bytes()))
    if file.stem.startswith("y_"):
        rows = decode.usage_rows([messages([value, file.read_bytes()])])
        assert rows is not None and len(rows) == 2
    else:
        with pytest.raises(LedgerError, match="partition 0, offset 0: "):
            decode.usage_rows([messages([value])])


@pytest.mark.parametrize("file", sorted((SCHEMAS / "examples" / "live").glob("y_*.json")), ids=lambda file: file.stem)
def test_examples_of_live_summaries_are_read(file: pathlib.Path) -> None:
    top = orjson.loads(file.read_bytes())
    [summary] = decode.summaries([messages([file.read_bytes()])])
    assert (summary.meter, summary.part, summary.sequence) == (top["meter"], top["part"], top["sequence"])
    assert list(summary.tokens) == [top["tokens"][name] for name in COUNTERS]


def labelled(labels: Any, counts: Any = COUNTS, identity: Any = IDENTITY, **further: Any) -> bytes:
    """A row of schema 2."""
    return books.usage_row(identity, counts, schema=2, **({"labels": labels} if labels else {}), **further)


ODD_LABELS = [
    {}, {"team": "blue"}, {"team": "2026-11-01"}, {"team": "2026-11-01T00:00:00Z", "tier": "12"}, {"team": "12:00:00"},
    {f"label_{number}": "x" * 256 for number in range(8)}, {"a": "ж" * 128}, {"l" * 63: "{}"},
    *({"team": name} for name in HOSTILE),
]  # fmt: skip


@pytest.mark.parametrize("odd", [False, True], ids=["columns", "row by row"])
def test_labels_come_out_as_they_went_in(odd: bool) -> None:
    """On both ways of reading, together and alone."""
    values: list[bytes | None] = [labelled(each) for each in ODD_LABELS]
    for some in (values, *([value] for value in values)):
        again = [
            orjson.dumps(orjson.loads(value or b""), option=orjson.OPT_INDENT_2) if odd else value for value in some
        ]
        rows = decode.usage_rows([messages(again)])
        assert rows is not None
        found = [
            {} if rows.labels is None else {n.decode(): v.decode() for n, v in rows.labels.sets[rows.labels.codes[i]]}
            for i in range(len(rows))
        ]
        assert found == [orjson.loads(value or b"").get("labels", {}) for value in some]


def test_rows_of_both_versions_come_together() -> None:
    rows = decode.usage_rows(
        [messages([books.usage_row(IDENTITY, COUNTS), labelled({"a": "b"}, audio_input_tokens=7)])]
    )
    assert rows is not None and rows.labels is not None
    assert [rows.labels.sets[code] for code in rows.labels.codes] == [(), ((b"a", b"b"),)]
    assert [column.tolist() for column in rows.further] == [[0, 0], [0, 7], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": {f"l{number}": "x" for number in range(9)}}, "at most 8 labels, not 9"),
        ({"labels": {"team": "x" * 257}}, "label team has not 1 to 256 bytes"),
        ({"labels": {"team": ""}}, "label team has not 1 to 256 bytes"),
        ({"labels": {"team": 7}}, "label team is not a text"),
        ({"labels": {"team": {"a": "b"}}}, "label team is not a text"),
        ({"labels": {"Team": "x"}}, "'Team' is not a label's name"),
        ({"labels": {"user": "x"}}, "'user' is not a label's name"),
        ({"labels": {"input_tokens": "x"}}, "'input_tokens' is not a label's name"),
        ({"labels": {"a" * 64: "x"}}, "is not a label's name"),
        ({"labels": []}, "labels is not an object"),
        ({"labels": {}}, "labels is empty"),
        ({"labels": {"team": None}}, "labels is empty"),
        ({"audio_input_tokens": 0}, "a further counter that is 0 is not there"),
        ({"labels": "x"}, "labels is not an object"),
        ({"audio_input_tokens": -1}, "audio_input_tokens is not an unsigned"),
        ({"audio_input_tokens": 1.5}, "audio_input_tokens is not an unsigned"),
        ({"audio_input_tokens": 101}, "contradict"),
        ({"cache_write_1h_tokens": 21}, "contradict"),
        ({"audio_cached_input_tokens": 41}, "contradict"),
        ({"audio_output_tokens": 31}, "contradict"),
        ({"video_tokens": 1}, "an unknown field video_tokens"),
        ({"labels": {"team": "x"}, "schema": 1}, "an unknown field labels"),
        ({"audio_input_tokens": 1, "schema": 1}, "an unknown field audio_input_tokens"),
    ],
)
def test_a_row_of_schema_2_that_breaks_it_names_its_place(changes: dict[str, Any], words: str) -> None:
    good, bad = labelled({"team": "x"}), books.usage_row(IDENTITY, COUNTS, **{"schema": 2, **changes})
    for some in ([good, bad, good], [bad]):
        with pytest.raises(Malformed, match=f"token-usage, partition 0, offset {8 - (len(some) == 1)}: .*{words}"):
            decode.usage_rows([messages(some, 7)])


def test_labels_are_part_of_a_row_s_identity_and_further_counters_grow(database: str) -> None:
    def sums(store: Store) -> list[Any]:
        names = ", ".join(f"sum({name})" for name in ("requests", *FURTHER))
        return [list(map(int, row)) for row in store.database.rows(
            f"SELECT labels_id, {names} FROM usage GROUP BY labels_id ORDER BY labels_id"
        )]  # fmt: skip

    with books.opened(database) as store:
        take(store, [labelled({"team": "blue"}), labelled({"team": "red"}), labelled({}), labelled({"team": "blue"})])
        assert sums(store) == [[number, 1, 0, 0, 0, 0, 0] for number in range(3)]
        assert store.database.rows("SELECT further FROM book") == [(False,)]
        take(store, [labelled({"team": "red"}, cache_write_1h_tokens=20, audio_output_tokens=3)])
        take(store, [labelled({"team": "red"}), labelled({"team": "red"}, audio_output_tokens=2)])
        assert sums(store)[2] == [2, 1, 20, 0, 0, 0, 3]
    with books.opened(database) as store:  # label sets are known from the database now
        take(store, [labelled({"team": "red"}, identity=(*IDENTITY[:4], "meter.2"), audio_input_tokens=5)])
        for part in ("meter.1", "meter.2"):
            with store.database.transaction():
                store.database.merge_part(store.parts.of(part, books.WINDOW_MS).id)
        assert sums(store) == [[0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0], [2, 2, 20, 5, 0, 0, 3]]
        assert store.database.rows("SELECT count(*) FROM merged_rows") == [(3,)]
        assert store.database.rows("SELECT count(*) FROM label_sets") == [(3,)]


@pytest.mark.slow
def test_a_hundred_thousand_values_of_a_label(database: str) -> None:
    rows = [labelled({"key": f"value-{number}", "team": f"{number % 7}"}) for number in range(100_000)]
    with books.opened(database) as store:
        take(store, rows)
        take(store, rows[:10])
        assert store.database.rows("SELECT count(*) FROM open_rows") == [(100_000,)]
        assert store.database.rows("SELECT count(*) FROM set_labels") == [(200_000,)]


def test_a_tombstone_is_no_row() -> None:
    assert decode.usage_rows([messages([None, None])]) is None
    rows = decode.usage_rows([messages([None, books.usage_row(IDENTITY, COUNTS)])])
    assert rows is not None and len(rows) == 1


@pytest.mark.parametrize("change", [{"window_ms": "1"}, {"partitions": None}, {"partitions": [{}]}])
def test_a_summary_that_breaks_its_schema_names_its_place(change: dict[str, Any]) -> None:
    with pytest.raises(Malformed, match="offset 5: not a live summary"):
        decode.summaries([messages([books.live_summary("m", "m.1", 0, COUNTS, **change)], 5)])


# --- From rows to sums ---


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60))
def test_shuffled_and_repeated_delivery_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    _shuffle_and_compare(str(tmp_path_factory.mktemp("books") / "ledger.duckdb"), seed, count)


@pytest.mark.postgres
@pytest.mark.parametrize("seed", range(6))
def test_shuffled_and_repeated_delivery_changes_nothing_in_postgres(postgres: Any, seed: int) -> None:
    with postgres.database() as url:
        _shuffle_and_compare(url, seed, 60)


def _shuffle_and_compare(database: str, seed: int, count: int) -> None:
    rows, draw = books.history(seed, count), random.Random(seed)
    delivered = rows + draw.choices(rows, k=count)
    draw.shuffle(delivered)
    values: list[bytes | None] = [books.usage_row(*row) for row in delivered]
    cuts = sorted(draw.choices(range(len(values)), k=4))
    for begin, end in zip([0, *cuts], [*cuts, len(values)], strict=True):
        if begin < end:
            with books.opened(database) as store:  # a process of its own, as after a crash between batches
                take(store, values[begin:end])
    with books.opened(database) as store:
        assert books.totals(store) == books.truth(rows), f"seed {seed}"


def test_counters_of_64_bits_and_sums_beyond(database: str) -> None:
    most = 2**64 - 1
    parts = [(*IDENTITY[:4], f"meter.{number}") for number in range(3)]
    with books.opened(database) as store:
        take(store, [books.usage_row(part, [most, most, 0, 0, 0, 0]) for part in parts])
        assert books.totals(store)[IDENTITY[:4]] == [3 * most, 3 * most, 0, 0, 0, 0]


def test_hostile_names_stay_what_they_are(database: str) -> None:
    identities = [(books.START_MS, name, HOSTILE[-number], name, "m.1") for number, name in enumerate(HOSTILE)]
    rows = [(identity, [1, number, 0, 0, 0, 0]) for number, identity in enumerate(identities)]
    with books.opened(database) as store:
        take(store, [books.usage_row(*row) for row in rows])
        take(store, [books.usage_row(*row) for row in rows])
        assert books.totals(store) == books.truth(rows)
        assert store.database.rows("SELECT count(*) FROM open_rows") == [(len(rows),)]
    with books.opened(database) as store:  # known from the database by now, not from memory
        take(store, [books.usage_row(*row) for row in rows])
        assert books.totals(store) == books.truth(rows)


# --- From meters to the ledger ---


def _metered(broker: MemoryBroker, rounds: int, records: int = 300) -> None:
    """A meter that is started anew each round."""
    profile = Profile(
        records=rounds * records, seed=5, users=20, models=3, chips=2, start_ms=books.START_MS, duplicates=0.05,
        malformed=0.03,
    )  # fmt: skip
    lines = [line for chunk in synth.generate(profile) for line in chunk.splitlines()]
    for number in range(rounds):
        some = lines[number * records : (number + 1) * records]
        broker.append(streams.INPUT, some, times=streams.times_of(books.START_MS + number * 10_000, len(some)))
        meter = streams.make_meter(broker, run=f"meter-0.run-{number}")
        meter.open()
        for _ in range(20):
            meter.step()
        meter.close()


def test_real_meters_and_a_ledger_agree_with_the_oracle(database: str) -> None:
    broker = MemoryBroker()
    streams.make_topics(broker, 2)
    _metered(broker, 3)
    with books.opened(database) as store:
        books.drain(books.make_ledger(broker, store, batch_rows=50))
        wanted, _ = streams.expected(broker)
        assert books.totals(store) == {key: list(row) for key, row in wanted.rows.items()}
        states = [state for (state,) in store.database.rows("SELECT state FROM parts")]
        assert states.count(MERGED) >= 2 and states.count(OPEN) == 1
        [(left,)] = store.database.rows("SELECT count(DISTINCT part_id) FROM open_rows")
        assert left <= 1


def test_replaying_from_the_beginning_changes_nothing(database: str) -> None:
    broker = MemoryBroker()
    streams.make_topics(broker, 2)
    _metered(broker, 3)
    with books.opened(database) as store:
        taken = books.drain(books.make_ledger(broker, store))
        before = books.contents(store)
        store.database.rows("UPDATE positions SET next = 0")
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        assert books.drain(ledger) == taken
        assert books.contents(store) == before
        assert ledger.progress.ignored_rows > 0
    with books.opened(database) as store:
        assert books.drain(books.make_ledger(broker, store)) == 0


class Crash(Exception):
    """The process is gone."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_crash_anywhere_is_no_loss_and_no_double(tmp_path: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements fail at random, the transaction is lost, and another process goes on."""
    from tokenometer.processor.ledger.duck import DuckDatabase

    broker, draw = MemoryBroker(), random.Random(seed)
    streams.make_topics(broker, 2)
    _metered(broker, 3, 150)
    name, left, real = str(tmp_path / "ledger.duckdb"), [0], DuckDatabase.rows

    def failing(self: DuckDatabase, statement: str, parameters: Any = ()) -> Any:
        left[0] -= 1
        if left[0] == 0 and statement != "ROLLBACK":
            raise Crash
        return real(self, statement, parameters)

    with books.opened(name):
        pass
    monkeypatch.setattr(DuckDatabase, "rows", failing)
    crashes, done = 0, False
    while not done:
        left[0] = draw.randrange(8, 40 + 10 * crashes)
        try:
            with books.opened(name) as store:
                books.drain(books.make_ledger(broker, store, batch_rows=draw.choice([7, 40, 500])))
            done = True
        except Crash:
            crashes += 1
    monkeypatch.undo()
    wanted, _ = streams.expected(broker)
    with books.opened(name) as store:
        assert books.totals(store) == {key: list(row) for key, row in wanted.rows.items()}, f"seed {seed}"
    assert crashes


# --- Parts ---


def _publish(broker: MemoryBroker, rows: list[tuple[Any, list[int]]], *summaries: bytes) -> None:
    """One commit of a meter."""
    producer = broker.producer("meter")
    producer.begin()
    if rows:
        producer.produce(streams.USAGE, [books.usage_row(*row) for row in rows], [repr(r[0]).encode() for r in rows])
    if summaries:
        producer.produce(streams.LIVE, list(summaries), [b"meter"] * len(summaries))
    producer.commit()
    producer.close()


def _state(store: Store, part: str) -> str:
    [(state,)] = store.database.rows("SELECT state FROM parts WHERE name = ?", [part])
    return str(state)


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    streams.make_topics(broker)
    return broker


FIRST, SECOND = ((*IDENTITY[:4], f"meter.{number}") for number in (1, 2))


def test_a_part_is_merged_when_its_successor_is_seen_and_it_adds_up(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, COUNTS))
        books.drain(ledger)
        assert _state(store, "meter.1") == OPEN
        _publish(broker, [(SECOND, COUNTS)], books.live_summary("m", "meter.2", 0, COUNTS))
        books.drain(ledger)
        assert (_state(store, "meter.1"), _state(store, "meter.2")) == (MERGED, OPEN)
        assert books.totals(store) == {IDENTITY[:4]: books.add(COUNTS, COUNTS)}


def test_a_part_is_not_merged_while_an_open_transaction_hides_rows(broker: MemoryBroker, database: str) -> None:
    """Of another meter, it began before: token-usage can be read up to there, and the rows behind cannot."""
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        other = broker.producer("other")
        other.begin()
        other.produce(streams.USAGE, [books.usage_row((*IDENTITY[:4], "other.1"), COUNTS)] * 2, [b"a", b"bcd"])
        _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, COUNTS, [books.START_MS]))
        _publish(broker, [], books.live_summary("m", "meter.2", 0, [0] * 6))
        books.drain(ledger)
        assert _state(store, "meter.1") != MERGED
        assert store.database.rows("SELECT complete FROM watermarks") == [(None,)]
        other.commit()
        books.drain(ledger)
        assert _state(store, "meter.1") == MERGED
        assert store.database.rows("SELECT complete FROM watermarks") == [(books.START_MS,)]


def test_a_part_that_does_not_add_up_is_kept_apart_and_reported(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, books.add(COUNTS, COUNTS)))
        _publish(broker, [], books.live_summary("m", "meter.2", 0, [0] * 6))
        books.drain(ledger)
        assert _state(store, "meter.1") == DISPUTED
        assert [(each.part, list(each.found)) for each in ledger.progress.disputes] == [("meter.1", COUNTS)]
        assert books.totals(store) == {IDENTITY[:4]: COUNTS}


def test_a_part_that_goes_on_after_its_end_stops_the_ledger(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, COUNTS))
        _publish(broker, [], books.live_summary("m", "meter.2", 0, [0] * 6))
        books.drain(ledger)
        _publish(broker, [], books.live_summary("m", "meter.1", 1, COUNTS))
        with pytest.raises(PartGoesOn, match=r"part meter\.1 of meter m ended with summary 0"):
            books.drain(ledger)


def test_summaries_that_stand_in_two_partitions_prove_nothing(database: str) -> None:
    broker = MemoryBroker()
    streams.make_topics(broker)
    broker.create_topic("live-of-two", 2, {})
    with books.opened(database) as store:
        for part, partition in (("meter.1", 0), ("meter.2", 1)):
            batch = messages([books.live_summary("m", part, 0, [0] * 6)], 0, Place(streams.LIVE, partition))
            store.parts.take(decode.summaries([batch])[0])
        assert [part.state for part in store.parts.in_state(UNPROVED)] == [UNPROVED]


# --- What stops it, and what does not ---


def test_a_second_writer_is_kept_out(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenometer.processor.ledger.postgres._LOCK_SECONDS", 0.2)
    with books.opened(database):
        if database.startswith("postgresql"):
            with pytest.raises(Busy, match="another ledger writes to it"):
                open_database(database, writer=True)
    with books.opened(database):
        pass


def test_offsets_that_somebody_moved_stop_the_ledger(database: str) -> None:
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, COUNTS)])
        before = books.totals(store)
        store.database.rows("UPDATE positions SET next = 7")
        with pytest.raises(DatabaseError, match="another process has moved token-usage, partition 0"):
            take(store, [books.usage_row(IDENTITY, books.add(COUNTS, COUNTS))])
        assert books.totals(store) == before


def test_a_topic_that_is_made_anew_stops_the_ledger(broker: MemoryBroker, database: str) -> None:
    _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, COUNTS))
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        books.drain(ledger)
        broker.delete_topic(streams.USAGE)
        with pytest.raises(TopicMissing):
            ledger._look()
        streams.make_topics(broker)
        with pytest.raises(OutOfRange, match="deleted and made anew while"):
            ledger._look()
        with pytest.raises(OutOfRange, match="token-usage was deleted and made anew since"):
            books.make_ledger(broker, store)


def test_usage_that_retention_took_stops_the_ledger(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        books.make_ledger(broker, store)
    broker.append(streams.USAGE, [books.usage_row(FIRST, COUNTS)] * 4, [b"a"] * 4)
    place = next(place for place, extent in broker.extents([streams.USAGE]).items() if extent.end)
    broker.delete_before(place, Offset(2))
    with books.opened(database) as store, pytest.raises(OutOfRange, match="retention deleted offsets 0 to 1"):
        books.make_ledger(broker, store)


def test_a_ledger_does_not_begin_in_the_middle_unasked(broker: MemoryBroker, database: str) -> None:
    broker.append(streams.USAGE, [books.usage_row(FIRST, COUNTS)] * 4, [b"a"] * 4)
    place = next(place for place, extent in broker.extents([streams.USAGE]).items() if extent.end)
    broker.delete_before(place, Offset(2))
    with books.opened(database) as store:
        with pytest.raises(OutOfRange, match="begins at offset 2: older usage was deleted.*--accept-gap"):
            books.make_ledger(broker, store)
        books.drain(books.make_ledger(broker, store, accept_gap=True))
        assert books.totals(store) == {IDENTITY[:4]: COUNTS}


def test_once_ends_though_a_stream_goes_on(broker: MemoryBroker, database: str) -> None:
    """What was there is in, and said to be complete; what came meanwhile may be."""
    _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, COUNTS, [books.START_MS]))
    with books.opened(database) as store:
        ledger = intake.Ledger(broker, store, intake.IntakeSettings(streams.USAGE, streams.LIVE, 3, 0))
        number = [1]

        def stopped() -> bool:
            number[0] += 1
            user = (*IDENTITY[:1], f"user-{number[0]}", *IDENTITY[2:4], "meter.2")
            _publish(broker, [(user, COUNTS)], books.live_summary("m", "meter.2", number[0], COUNTS, [books.START_MS]))
            return number[0] > 1_000

        ledger.run(stopped, once=True)
        assert number[0] <= 1_000
        assert store.database.rows("SELECT complete FROM watermarks") == [(books.START_MS,)]
        assert books.totals(store)[IDENTITY[:4]] == COUNTS


def test_summaries_that_retention_took_only_leave_parts_unmerged(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        _publish(broker, [(FIRST, COUNTS)], books.live_summary("m", "meter.1", 0, COUNTS))
        books.drain(ledger)
    doubled = books.add(COUNTS, COUNTS)
    _publish(broker, [(FIRST, doubled)], books.live_summary("m", "meter.1", 1, doubled))
    _publish(broker, [], books.live_summary("m", "meter.2", 0, [0] * 6))
    broker.delete_before(Place(streams.LIVE, 0), broker.extents([streams.LIVE])[Place(streams.LIVE, 0)].end)
    _publish(broker, [], books.live_summary("m", "meter.3", 0, [0] * 6))
    with books.opened(database) as store:
        books.drain(books.make_ledger(broker, store))
        assert _state(store, "meter.1") == UNPROVED
        assert books.totals(store) == {IDENTITY[:4]: doubled}


def test_a_database_is_the_ledger_of_its_topics(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        books.make_ledger(broker, store)
        with pytest.raises(LedgerError, match="this database is the ledger of token-usage and token-live, not of"):
            store.bind("other", streams.LIVE)


def test_a_misspelt_topic_binds_no_database(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        with pytest.raises(TopicMissing, match="no such topic: nope; start a meter first"):
            intake.Ledger(broker, store, intake.IntakeSettings("nope", streams.LIVE)).open()
        books.make_ledger(broker, store)


def test_partitions_that_are_added_are_read(broker: MemoryBroker, database: str) -> None:
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        broker.add_partitions(streams.USAGE, 6)
        rows = [((*IDENTITY[:1], f"user-{n}", *IDENTITY[2:]), COUNTS) for n in range(20)]
        _publish(broker, rows)
        ledger._look()
        books.drain(ledger)
        assert books.totals(store) == books.truth(rows)


def test_a_database_that_is_not_there(tmp_path: Any) -> None:
    for name, words in (
        (str(tmp_path / "none.duckdb"), "there is no such ledger"),
        (str(tmp_path / "none" / "ledger.duckdb"), "there is no such ledger"),
        ("postgresql://nobody:hunter2@127.0.0.1:1/none", "postgresql://nobody@127.0.0.1:1/none: "),
    ):
        with pytest.raises(DatabaseError, match=words) as raised:
            open_database(name, writer=False)
        assert "hunter2" not in str(raised.value)
    with pytest.raises(DatabaseError, match="there is no such ledger; name one with --database or --url, or start one"):
        open_clerk(str(tmp_path / "none.duckdb"))
    assert not (tmp_path / "none.duckdb").exists()
    with pytest.raises(BadRequest, match="expected postgresql"):
        open_database("mysql://a:b@c/d", writer=False)
    assert shown("postgresql://a:b@c/d?password=e&sslmode=require") == "postgresql://a@c/d?sslmode=require"


def test_poison_is_in_the_table_of_bad_input() -> None:
    """Whatever a log may hold, the rows that a meter makes of it are rows to the ledger."""
    broker = MemoryBroker()
    streams.make_topics(broker)
    values = [case.value for case in bad_input.CASES if case.message_time is None]
    broker.append(streams.INPUT, [value for value in values if len(value or b"") < 1 << 20])
    engine = harness.make_engine(HostTarget(), **harness.LARGE, dedup_horizon_ms=streams.HORIZON_MS)
    meter = streams.make_meter(broker, engine=engine)
    meter.open()
    for _ in range(10):
        meter.step()
    meter.close()
    for place, extent in broker.extents([streams.USAGE]).items():
        decode.usage_rows(list(broker.read(place, extent.begin, extent.end)))


# --- The loop ---


def test_a_batch_is_bounded_by_rows_and_by_bytes(
    broker: MemoryBroker, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker.append(streams.USAGE, [books.usage_row(IDENTITY, COUNTS)] * 100, [b"a"] * 100)
    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store, batch_rows=30, linger_ms=60_000)
        assert ledger.step(0.0) == 30
        monkeypatch.setattr(intake, "BATCH_BYTES", 1)
        monkeypatch.setattr(intake, "_POLL_MESSAGES", 7)
        assert ledger.step(0.0) == 7


def test_jobs_are_done_between_batches(broker: MemoryBroker, database: str) -> None:
    def refuse(store: Store) -> None:
        raise BadRequest("no")

    with books.opened(database) as store:
        ledger = books.make_ledger(broker, store)
        asked, refused = ledger.ask(lambda store: len(store.positions)), ledger.ask(refuse)
        assert not asked.done()
        ledger.step(0.0)
        assert asked.result(0) == 3
        with pytest.raises(BadRequest, match="no"):
            refused.result(0)


def test_a_run_survives_a_broker_that_cannot_for_a_while(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every fifth call of the broker fails; what was read twice changes nothing."""
    draw, armed, failures = random.Random(1), False, [0]

    def fault(name: str) -> None:
        if armed and draw.random() < 0.2:
            failures[0] += 1
            raise BrokerError(f"no {name}")

    broker = MemoryBroker(faults=fault)
    streams.make_topics(broker)
    rows = books.history(3, 200)
    broker.append(streams.USAGE, [books.usage_row(*row) for row in rows], [repr(row[0]).encode() for row in rows])
    monkeypatch.setattr(intake, "_RETRY_SECONDS", 0.0)
    with books.opened(database) as store:
        ledger = intake.Ledger(broker, store, intake.IntakeSettings(streams.USAGE, streams.LIVE, 20, 0))
        armed = True
        ledger.run(lambda: failures[0] > 5 and books.totals(store) == books.truth(rows))
