"""From topics to a table: rows of parts that have ended, each once, whatever happens to the writers."""

import contextlib
import pathlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, StringType

from tests import books, streams
from tests.lake import lakes
from tests.lake.lakes import Stream
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.lake import table as tables
from tokenometer.processor.lake.held import I64_END
from tokenometer.processor.lake.state import Topics, check_topics
from tokenometer.processor.lake.table import LakeTable, embedded
from tokenometer.processor.lake.values import (
    CatalogAway,
    LakeError,
    OtherTable,
    OtherTopics,
    TooLarge,
    TooManyConflicts,
)
from tokenometer.processor.lake.writer import LakeWriter
from tokenometer.processor.ledger.parts import PartGoesOn

DAY_MS = 86_400_000


@pytest.fixture
def broker() -> MemoryBroker:
    return lakes.make_broker()


@pytest.fixture
def stream(broker: MemoryBroker) -> Stream:
    return Stream(broker)


def row(part: str, counters: list[int], user: str = "alice", window: int = 0) -> tuple[books.Identity, list[int]]:
    return (books.START_MS + window * books.WINDOW_MS, user, "llama", "H100", part), counters


def some_rows(part: str, count: int, seed: int = 1) -> list[tuple[books.Identity, list[int]]]:
    draw = random.Random(seed)
    return [row(part, books.counters(draw), f"user-{number}", number % 5) for number in range(count)]


# --- What is final ---


def test_rows_of_a_part_are_appended_when_its_meter_has_a_later_one(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    """And not before; absolute counters are there as they were last."""
    stream.publish("a", "a.r.1", [row("a.r.1", [1, 10, 5, 0, 3, 1])])
    stream.publish("a", "a.r.1", [row("a.r.1", [2, 30, 5, 0, 6, 1]), row("a.r.1", [1, 1, 0, 0, 1, 0], "bob", 1)])
    lakes.write_once(broker, tmp_path)
    table = lakes.make_table(tmp_path)
    assert lakes.rows_of(table) == []
    stream.publish("a", "a.r.2", [row("a.r.2", [1, 7, 0, 0, 7, 0])])
    lakes.write_once(broker, tmp_path)
    assert lakes.sums_of(lakes.rows_of(table)) == stream.truth(["a.r.1"])
    assert lakes.write_once(broker, tmp_path).progress.commits == 0, "a second time there is nothing to say"


def test_the_last_part_of_a_meter_is_over_once_it_has_left_its_group(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    """Of a group that has not committed the part's input, nobody knows."""
    stream.publish("a", "a.r.1", some_rows("a.r.1", 5))
    lakes.write_once(broker, tmp_path, group="another")
    assert lakes.rows_of(lakes.make_table(tmp_path)) == []
    streams.make_topics(broker)
    broker.append(streams.INPUT, [b""])
    meter = streams.make_meter(broker, "b")
    meter.open()
    for _ in range(3):
        meter.step()
    meter._commit_now()
    stream.publish("b", "b.r.1", some_rows("b.r.1", 5))
    writer = lakes.write_once(broker, tmp_path, group=streams.GROUP)
    assert writer.progress.commits == 1
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == stream.truth(["a.r.1"]), "b is in the group"
    meter.close()


def test_rows_whose_summaries_are_deleted_are_final(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    values = [books.usage_row(*each) for each in some_rows("gone.r.1", 10)]
    broker.append(streams.USAGE, values, list(map(lakes.key_of, values)))
    lakes.write_once(broker, tmp_path)
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == books.truth(some_rows("gone.r.1", 10))


def test_a_row_has_every_column_of_its_schema(stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path) -> None:
    labels = {"service_tier": "batch", "team": "Blau \u0000 \u00fc"}
    more = {"labels": labels, "audio_output_tokens": 2, "cache_write_1h_tokens": 4, "schema": 2}
    stream.publish("a", "a.r.1", [row("a.r.1", [1, 30, 5, 5, 6, 1])], **more)
    stream.publish("a", "a.r.1", [row("a.r.1", [1, 30, 5, 5, 6, 1])])
    stream.summary("a", "a.r.2", [0] * 6)
    writer = lakes.write_once(broker, tmp_path)
    table = lakes.make_table(tmp_path)
    plain, labelled = sorted(lakes.rows_of(table), key=lambda found: len(found["labels"]))
    assert dict(labelled["labels"]) == labels and plain["labels"] == []
    assert (labelled["audio_output_tokens"], labelled["cache_write_1h_tokens"], plain["audio_output_tokens"]) == (
        2,
        4,
        0,
    )
    assert (plain["window_ms"], plain["total_tokens"], plain["part"]) == (books.WINDOW_MS, 36, "a.r.1")
    assert [dispute.part for dispute in writer.progress.disputes] == ["a.r.1"], "the summary counts the row once"


def test_files_are_partitioned_by_the_day_of_the_window(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    minutes = DAY_MS // books.WINDOW_MS
    rows = [row("a.r.1", [1, 2, 0, 0, 3, 0], f"user-{n}", n * minutes // 2) for n in range(4)]
    stream.publish("a", "a.r.1", rows)
    stream.summary("a", "a.r.2", [0] * 6)
    lakes.write_once(broker, tmp_path)
    days = lakes.make_table(tmp_path).load().inspect.partitions().to_pylist()
    assert sorted((str(day["partition"]["window_day"]), day["record_count"]) for day in days) == [
        ("2026-11-23", 2),
        ("2026-11-24", 2),
    ]


def test_a_row_that_a_later_one_replaces_is_not_read(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    """Only where each value begins with its key: otherwise a key may be of several rows."""
    for count in range(1, 4):
        stream.publish("a", "a.r.1", [row("a.r.1", [count, count, 0, 0, 0, 0], name) for name in ("alice", "bob")])
    values = [books.usage_row(*row("b.r.1", [1, number, 0, 0, 0, 0], f"user-{number}")) for number in range(5)]
    broker.append(streams.USAGE, values, [b"{a key of many}"] * 5)
    stream.summary("a", "a.r.2", [0] * 6)
    writer = lakes.write_once(broker, tmp_path)
    assert writer.progress.read == 2 + 5
    assert len(lakes.rows_of(lakes.make_table(tmp_path))) == 2 + 5


# --- Crashes ---


@contextlib.contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, point: str) -> Iterator[None]:
    """The writer dies at this step of its next commit."""

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    written, append = tables._written, tables._append

    def written_and_die(*arguments: Any) -> None:
        written(*arguments)
        raise Killed

    def append_and_die(*arguments: Any) -> None:
        append(*arguments)
        raise Killed

    with monkeypatch.context() as patch:
        if point == "before the files":
            patch.setattr(tables, "_written", die)
        elif point == "between files and commit":
            patch.setattr(tables, "_written", written_and_die)
        else:
            patch.setattr(tables, "_append", append_and_die)
        with pytest.raises(Killed):
            yield


def test_a_writer_that_is_killed_at_any_step_loses_nothing_and_doubles_nothing(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [f"a.r.{number}" for number in range(4)]
    table = lakes.make_table(tmp_path)
    for number, point in enumerate(("before the files", "between files and commit", "after the commit")):
        stream.publish("a", parts[number], some_rows(parts[number], 20, number))
        stream.summary("a", parts[number + 1], [0] * 6)
        with killed(monkeypatch, point):
            lakes.write_once(broker, tmp_path)
        lakes.write_once(broker, tmp_path)
        assert lakes.sums_of(lakes.rows_of(table)) == stream.truth(parts[: number + 1]), point
    kept = table.load().inspect.all_files()["file_path"].to_pylist()
    there = [path for path in tmp_path.rglob("*.parquet")]
    assert len(there) == len(kept) + 1, "one writer has left a file"
    now_ms = round(max(path.stat().st_mtime for path in there) * 1000) + 2
    assert table.clean(60_000, now_ms) == [], "it may belong to a commit that is on its way"
    assert len(table.clean(1, now_ms)) == 1
    assert lakes.sums_of(lakes.rows_of(table)) == stream.truth(parts[:3])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_writers_that_come_and_go_append_each_row_once(
    seed: int, stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three meters whose parts overlap; up to three writers of one group that are killed and started at random."""
    draw, writers, numbers = random.Random(seed), list[LakeWriter](), dict.fromkeys("abc", 1)
    append = tables._append

    def sometimes(*arguments: Any) -> None:
        if draw.random() < 0.2:
            raise CommitFailedException("another one came first")
        append(*arguments)
        if draw.random() < 0.2:
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(tables, "_append", sometimes)
    monkeypatch.setattr(tables.time, "sleep", lambda seconds: None)
    held: dict[books.Identity, list[int]] = {}
    for _ in range(120):
        action = draw.random()
        if action < 0.3:
            meter = draw.choice("abc")
            numbers[meter] += draw.random() < 0.3
            part = f"{meter}.r.{numbers[meter]}"
            keys = [row(part, [], f"user-{draw.randrange(6)}", draw.randrange(3))[0] for _ in range(4)]
            for key in keys:
                held[key] = books.add(held.get(key, [0] * 6), books.counters(draw))
            stream.publish(meter, part, [(key, held[key]) for key in dict.fromkeys(keys)])
        elif action < 0.4 and len(writers) < 3:
            writers.append(lakes.make_writer(broker, tmp_path, writers="lake"))
        elif action < 0.45 and writers:
            lakes.drop(writers.pop(draw.randrange(len(writers))))
        elif writers:
            writer = draw.choice(writers)
            try:
                if writer._reader is None or writer._share.changed:
                    writer.open(join_seconds=0)
                writer.step(at_once=True, timeout_seconds=0)
            except (CatalogAway, tables.Taken):
                writers.remove(writer)
                lakes.drop(writer)
    for writer in writers:
        lakes.drop(writer)
    monkeypatch.setattr(tables, "_append", append)
    last = lakes.write_once(broker, tmp_path)
    ended = [f"{meter}.r.{number}" for meter, count in numbers.items() for number in range(1, count)]
    table = lakes.make_table(tmp_path)
    assert lakes.sums_of(lakes.rows_of(table)) == stream.truth(ended)
    state = table.state()
    assert last.progress.disputes == [] and (state is None or state.sums == {})


# --- Other commits ---


def test_after_twenty_conflicts_the_error_says_so_and_nothing_is_written(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.publish("a", "a.r.1", some_rows("a.r.1", 3))
    stream.summary("a", "a.r.2", [0] * 6)
    attempts, append = [], tables._append

    def conflicts(count: int) -> Callable[..., None]:
        def attempt(*arguments: Any) -> None:
            attempts.append(1)
            if len(attempts) <= count:
                raise CommitFailedException("another one came first")
            append(*arguments)

        return attempt

    monkeypatch.setattr(tables.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(tables, "_append", conflicts(tables.CONFLICTS_MAX))
    with pytest.raises(TooManyConflicts, match="20 commits of others came first"):
        lakes.write_once(broker, tmp_path)
    assert len(attempts) == tables.CONFLICTS_MAX and list(tmp_path.rglob("*.parquet")) == []
    attempts.clear()
    monkeypatch.setattr(tables, "_append", conflicts(tables.CONFLICTS_MAX - 1))
    lakes.write_once(broker, tmp_path)
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == stream.truth(["a.r.1"])


def test_a_commit_that_came_between_is_read_before_ours_is_tried_again(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same part by two writers of all partitions: the second finds it in the table and appends nothing."""
    stream.publish("a", "a.r.1", some_rows("a.r.1", 30))
    stream.summary("a", "a.r.2", [0] * 6)
    append = tables._append
    others: list[LakeWriter] = []

    def other_first(*arguments: Any) -> None:
        monkeypatch.setattr(tables, "_append", append)
        others.append(lakes.write_once(broker, tmp_path))
        append(*arguments)

    monkeypatch.setattr(tables, "_append", other_first)
    late = lakes.write_once(broker, tmp_path)
    assert others[0].progress.rows == 30 and late.progress.rows == 0
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == stream.truth(["a.r.1"])
    assert len(list(tmp_path.rglob("*.parquet"))) == len(lakes.make_table(tmp_path).load().inspect.files())


def test_small_files_are_compacted_and_the_state_goes_on(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a writer commits in the middle of it, and where another program's snapshot says nothing of Kafka."""
    table = lakes.make_table(tmp_path)
    for number in range(1, 5):
        stream.publish("a", f"a.r.{number}", some_rows(f"a.r.{number}", 10, number))
        if number < 4:
            lakes.write_once(broker, tmp_path)
    before, replace = lakes.sums_of(lakes.rows_of(table)), tables._replace
    assert len(table.load().inspect.files()) == 2

    def writer_first(*arguments: Any) -> None:
        monkeypatch.setattr(tables, "_replace", replace)
        lakes.write_once(broker, tmp_path)
        replace(*arguments)

    monkeypatch.setattr(tables, "_replace", writer_first)
    assert table.compact() == (2, 1)
    assert before != lakes.sums_of(lakes.rows_of(table)) == stream.truth([f"a.r.{n}" for n in (1, 2, 3)])
    assert len(table.load().inspect.files()) == 2
    monkeypatch.setattr(tables, "_summary", lambda state, table: {})
    assert table.compact() == (2, 1)
    monkeypatch.undo()
    state = table.state()
    assert state is not None and len(state.marks) == lakes.PARTITIONS
    assert lakes.write_once(broker, tmp_path).progress.rows == 0


def test_a_table_that_is_rolled_back_is_filled_again(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    table = lakes.make_table(tmp_path)
    for number in range(1, 4):
        stream.publish("a", f"a.r.{number}", some_rows(f"a.r.{number}", 10, number))
        lakes.write_once(broker, tmp_path)
    first = table.load().history()[0].snapshot_id
    table.load().manage_snapshots().rollback_to_snapshot(first).commit()
    assert lakes.sums_of(lakes.rows_of(table)) == stream.truth(["a.r.1"])
    lakes.write_once(broker, tmp_path)
    assert lakes.sums_of(lakes.rows_of(table)) == stream.truth(["a.r.1", "a.r.2"])


# --- Bad input ---


def test_a_part_that_does_not_add_up_is_in_the_table_and_is_reported(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    stream.publish("a", "a.r.1", some_rows("a.r.1", 5))
    stream.summary("a", "a.r.1", [9, 9, 0, 0, 9, 0])
    stream.summary("a", "a.r.2", [0] * 6)
    [dispute] = lakes.write_once(broker, tmp_path).progress.disputes
    assert (dispute.part, tuple(dispute.said)) == ("a.r.1", (9, 9, 0, 0, 9, 0))
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == stream.truth(["a.r.1"])


def test_a_part_that_goes_on_after_its_end_stops_the_writer(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    stream.publish("a", "a.r.1", some_rows("a.r.1", 5))
    stream.publish("a", "a.r.2", some_rows("a.r.2", 5))
    lakes.write_once(broker, tmp_path)
    stream.publish("a", "a.r.1", some_rows("a.r.1", 5))
    with pytest.raises(PartGoesOn, match="do two meters run under one name"):
        lakes.write_once(broker, tmp_path)


def test_a_counter_that_iceberg_cannot_hold_stops_the_writer(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    """Its numbers are signed: the greatest that fits goes in, one more is refused."""
    stream.publish("a", "a.r.1", [row("a.r.1", [1, I64_END - 1, 0, 0, 0, 0])])
    stream.summary("a", "a.r.2", [0] * 6)
    lakes.write_once(broker, tmp_path)
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == stream.truth(["a.r.1"])
    stream.publish("a", "a.r.2", [row("a.r.2", [1, I64_END - 1, 0, 0, 1, 0])])
    stream.summary("a", "a.r.3", [0] * 6)
    with pytest.raises(TooLarge, match="total_tokens is 9223372036854775808"):
        lakes.write_once(broker, tmp_path)


def test_rows_that_memory_should_not_hold_stop_the_writer(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    stream.publish("a", "a.r.1", some_rows("a.r.1", 50))
    lakes.write_once(broker, tmp_path, rows_max=50)
    with pytest.raises(TooLarge, match="start more writers, or raise --rows-max"):
        lakes.write_once(broker, tmp_path, rows_max=49)


def test_a_table_of_another_schema_is_refused(tmp_path: pathlib.Path) -> None:
    catalog = embedded(str(tmp_path))
    catalog.create_namespace("tokens")
    schema = Schema(NestedField(1, "user", StringType()), NestedField(2, "input_tokens", LongType()))
    catalog.create_table("tokens.other", schema)
    with pytest.raises(OtherTable, match="another schema: column audio_cached_input_tokens is not there"):
        LakeTable(catalog, "tokens.other")
    catalog.create_table("tokens.whole", tables.iceberg_schema(), partition_spec=PartitionSpec())
    with pytest.raises(OtherTable, match="not partitioned by the day of window_start"):
        LakeTable(catalog, "tokens.whole")
    with pytest.raises(OtherTable, match="no table tokens.none"):
        LakeTable(catalog, "tokens.none", create=False)


def test_rows_without_a_state_are_not_taken_for_an_empty_table(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.publish("a", "a.r.1", some_rows("a.r.1", 5))
    stream.summary("a", "a.r.2", [0] * 6)
    monkeypatch.setattr(tables, "_summary", lambda state, table: {})
    lakes.write_once(broker, tmp_path)
    with pytest.raises(OtherTable, match="none of its snapshots says how far"):
        lakes.write_once(broker, tmp_path)


def test_a_commit_that_was_repeated_on_another_snapshot_is_found(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.publish("a", "a.r.1", some_rows("a.r.1", 5))
    stream.summary("a", "a.r.2", [0] * 6)
    summary = tables._summary
    monkeypatch.setattr(tables, "_summary", lambda state, table: summary(state, table) | {tables.PARENT: "7"})
    lakes.write_once(broker, tmp_path)
    with pytest.raises(OtherTable, match="some program has repeated a commit"):
        lakes.write_once(broker, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"usage": "other"}, "has the rows of u and l, not of other and l"),
        ({"live_id": "3"}, "deleted and made anew"),
        ({"partitions": 4}, "has 4 partitions now, and had 3: .* one writer"),
    ],
)
def test_topics_that_are_others_than_the_table_s_are_refused(changes: dict[str, Any], words: str) -> None:
    held = Topics("u", "1", "l", "2", 3)
    with pytest.raises(OtherTopics, match=words):
        check_topics("t", held, replace(held, **changes))


def test_a_catalog_that_is_away_or_is_not_configured_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LakeError, match="the catalog nowhere: URI missing.*docs/LAKE.md"):
        tables.configured("nowhere")
    load = tables.load_catalog
    monkeypatch.setattr(tables, "load_catalog", lambda name: load(name, type="rest", uri="http://127.0.0.1:1"))
    with pytest.raises(CatalogAway, match="Nothing is lost: start again once it answers"):
        tables.configured("away")


# --- The command ---


def test_check_against_a_ledger_ends_with_1_where_a_part_differs(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 4):
        stream.publish("a", f"a.r.{number}", some_rows(f"a.r.{number}", 10, number))
    lakes.write_once(broker, tmp_path)
    database = str(tmp_path / "ledger.duckdb")
    with books.opened(database) as store:
        books.drain(books.make_ledger(broker, store))
    arguments = ["lake", "--warehouse", str(tmp_path), "--table", lakes.TABLE, "--check", "--against", database]
    assert cli.run(arguments) == 0
    assert f"{lakes.TABLE}: 2 parts say the same" in capsys.readouterr().out
    with books.opened(database) as store:
        store.database.rows("UPDATE parts SET output_tokens = output_tokens + 1 WHERE name = 'a.r.2'")
    assert cli.run(arguments) == 1
    assert "part a.r.2: the table has" in capsys.readouterr().out


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--table", "usage"], "expected NAMESPACE.TABLE"),
        (["--once", "--check"], "give one of them"),
        (["--against", "ledger.duckdb"], "--against needs --check"),
    ):
        assert cli.run(["lake", *arguments]) == 2
        assert words in capsys.readouterr().err


def test_a_full_disk_ends_the_writer_and_loses_nothing(
    stream: Stream, broker: MemoryBroker, tmp_path: pathlib.Path
) -> None:
    """A limit of the size of files stands for it: the system's own error, while a data file is written."""
    stream.publish("a", "a.r.1", some_rows("a.r.1", 2000))
    stream.summary("a", "a.r.2", [0] * 6)
    lakes.make_table(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24_576, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            lakes.write_once(broker, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    lakes.write_once(broker, tmp_path)
    assert lakes.sums_of(lakes.rows_of(lakes.make_table(tmp_path))) == stream.truth(["a.r.1"])
