"""Real engines read the table, and one of them rewrites it while writers go on: the sums equal the oracle's."""

import importlib.util
import pathlib
import random

import pytest

from tests import books
from tests.kafka import stream as kafka_stream
from tests.lake import engines, lakes
from tests.lake.lakes import Stream
from tests.lake.test_lake_kafka import run_and_kill

NEEDED = ("duckdb_extension_avro", "duckdb_extension_iceberg", "pyspark")
lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(bool(lacking), reason=f"make test-engines: no {', '.join(lacking)}"),
]

HOSTILE = [
    "'",
    '"',
    "\\",
    "\t",
    "\n",
    "NULL",
    "a\u0000b",
    "A",
    "a",
    "a ",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "\u0416" * 128,
]


@pytest.mark.kafka
def test_after_kills_spark_and_duckdb_say_what_the_oracle_says(
    stream: kafka_stream.Stream, tmp_path: pathlib.Path
) -> None:
    wanted = run_and_kill(stream, tmp_path)
    assert engines.by_duckdb(lakes.make_table(tmp_path)) == wanted
    assert engines.by_spark(tmp_path) == wanted


def test_labels_and_hostile_names_are_the_same_to_all_and_spark_may_compact(tmp_path: pathlib.Path) -> None:
    """After Spark's compaction the last snapshot says nothing of Kafka; a writer goes on from the one before."""
    draw, broker = random.Random(5), lakes.make_broker()
    stream, table = Stream(broker), lakes.make_table(tmp_path)
    for number in range(1, 6):
        part = f"a.r.{number}"
        for name in HOSTILE:
            window = books.START_MS + books.WINDOW_MS * draw.randrange(3000)
            counters = books.counters(draw)
            labels = {"team": name, "tier": "batch"} if draw.random() < 0.5 else {"tier": name}
            audio = {"audio_output_tokens": counters[4]} if counters[4] and draw.random() < 0.3 else {}
            stream.publish("a", part, [((window, name, "m", "c", part), counters)], labels=labels, schema=2, **audio)
        lakes.write_once(broker, tmp_path)
    first = lakes.sums_of(lakes.rows_of(table))
    assert len(first) > 50
    assert engines.by_spark(tmp_path) == engines.by_duckdb(table) == first
    engines.compacted_by_spark(tmp_path)
    assert "tokenometer.state" not in str(table.load().current_snapshot().summary)
    stream.summary("a", "a.r.6", [0] * 6)
    assert lakes.write_once(broker, tmp_path).progress.commits == 1
    whole = lakes.sums_of(lakes.rows_of(table))
    assert len(whole) > len(first) and whole.items() >= first.items()
    assert engines.by_spark(tmp_path) == engines.by_duckdb(table) == whole
