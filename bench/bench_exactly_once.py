"""The meter beside stream processors that commit exactly once too: each takes one log from a topic of one real broker
and puts the same rows into another topic, in transactions.

    meter            the real meter, as in bench_pipeline
    streams          Kafka Streams as its users write it: DSL, its own stores (RocksDB and changelog topics)
    streams-by-hand  Kafka Streams with hash maps in place of its stores, sent out at each commit
    flink            Flink's DataStream: state on the heap, keyed by request id and then by row

The question is that of bench_peers: requests and the five token counters by (minute of event time, user, model, chip),
counting of all records with one request id the first, or (`plain`) all. The log is that of bench_peers too: no
malformed records and no `prefill_chip`. A record is a message, keyed by its user, so that a record that is sent again
meets the first one in its partition. What each has put into its topic must add up to the rows that DuckDB makes of the
log's file; bench_exactly_once fails where one does not.

All settings are in HOW and in bench/peers/. In favour of the peers: each reads only so many records of the log that it
has half a minute to do, so that the slower ones hold less state; they read JSON with Jackson's streaming parser; the
one made by hand could not go on after a restart; Flink makes a checkpoint every ten seconds and sends a row only when
its minute is over. The meter and Kafka Streams commit each second.

Each runs in a fresh process with the broker beside it on the same machine. Timed: from the first record until all is
committed. `sustained` is the rate of the second half, until the last record is counted: a JVM compiles during the
first. For the meter both are as in bench_pipeline.
"""

import json
import pathlib
import resource
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bench import bench_peers, bench_pipeline, common
from bench.bench_peers import ANSWER, COUNTERS, KEYS
from bench.bench_pipeline import PARTITIONS, RATE
from bench.logs import make_all, path_of
from tests.kafka_server import KafkaServer, find_java, resolve
from tokenometer.processor.broker import Place
from tokenometer.processor.broker.kafka import KafkaBroker
from tokenometer.processor.load import synth
from tokenometer.processor.load.blocks import ahead, send_blocks
from tokenometer.processor.load.produce import Pacing
from tokenometer.processor.load.profile import Profile

MODULE = "bench.bench_exactly_once"
PEERS = pathlib.Path(__file__).parent / "peers"
STREAMS_VERSION, FLINK_VERSION, JACKSON_VERSION = "4.4.0", "2.2.1", "2.20.1"
JACKSON = f"com.fasterxml.jackson.core:jackson-core:{JACKSON_VERSION}"
LOGGING = "org.slf4j:slf4j-simple:1.7.36"  # errors, to stderr
JARS = {
    f"peer-streams-{STREAMS_VERSION}": (f"org.apache.kafka:kafka-streams:{STREAMS_VERSION}", JACKSON, LOGGING),
    f"peer-flink-{FLINK_VERSION}": (
        f"org.apache.flink:flink-streaming-java:{FLINK_VERSION}",
        f"org.apache.flink:flink-clients:{FLINK_VERSION}",
        f"org.apache.flink:flink-connector-base:{FLINK_VERSION}",
        "org.apache.flink:flink-connector-kafka:5.0.0-2.2",
        JACKSON,
        LOGGING,
    ),
}
SOURCES = {
    "StreamsPeer": ("Usage", "Progress", "StreamsPeer", "ByHand"),
    "FlinkPeer": ("Usage", "Progress", "FlinkPeer"),
}
# Flink's own list for Java 17, as far as it is needed here.
FLINK_OPENS = [f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "util", "time", "nio")]
HEAP = "8g"  # for each peer; the meter has no limit and takes 2 GiB
# Records of the log for each: about half a minute of work. A longer log begins with the shorter one.
SIZES = {
    "small": {"meter": 20_000, "streams": 20_000, "streams-by-hand": 20_000, "flink": 20_000},
    "large": {"meter": 60_000_000, "streams": 2_000_000, "streams-by-hand": 20_000_000, "flink": 6_000_000},
}
_STREAMS = (
    f"exactly_once_v2, 2 threads, a commit each second, 2,000 records a poll, lz4, batches of 256 KiB, heap {HEAP}"
)
HOW = {
    "meter": "a commit each second; request ids of 7 s of the log; each commit sends the rows that changed",
    "streams": f"{_STREAMS}; DSL with a window store of request ids, groupByKey (a topic of its own in between, as the "
    "rows' key is not the log's), a windowed aggregate; RocksDB with changelog topics, 512 MiB of cache (10 by "
    "default); request ids of a minute of the log, as RocksDB's windows are no shorter; each commit sends the rows "
    "that changed",
    "streams-by-hand": f"{_STREAMS}; a processor with hash maps, which are sent and cleared at each commit through "
    "CachedStateStore, a class that Streams keeps for itself; no changelog, nothing in between; request ids of 7 s of "
    "the log, which a restart would lose",
    "flink": f"DataStream, parallelism 2, object reuse, state on the heap ({HEAP}), exactly-once checkpoints to a "
    "local disk every 10 s; keyed by request id (a state with a minute to live), then by row; event-time windows with "
    "four days of lateness; a transactional Kafka sink, lz4; rows go out when their window is over, and for each late "
    "record again",
}
CHECKPOINT_MS = {"small": 1_000, "large": 10_000}
JVM = {"small": ["-XX:TieredStopAtLevel=1"], "large": []}  # a short run ends before the better compiler would pay
# Whose rows say what was added since the last commit. The others' say the sum: it is the last row of a key that counts,
# for the meter of a key and part.
ADDED_UP = {"streams-by-hand"}
MODES = {"dedup": True, "plain": False}


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--bootstrap", help="a broker to use; its topics bench-rows-N may be filled already")
    parser.add_argument("--only", nargs="*", help="cases such as meter:dedup")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_child(json.loads(sys.stdin.readline()))))
        return 0
    facts = common.facts(MODULE, arguments)
    facts["versions"] |= {"kafka-streams": STREAMS_VERSION, "flink": FLINK_VERSION, "jackson": JACKSON_VERSION}
    if options.bootstrap:
        result = _run(options, options.bootstrap)
    else:
        with KafkaServer(heap="1g") as kafka:
            result = _run(options, kafka.bootstrap)
    wrong = [f"{case}: {found['answer']}, not {found['expected']}" for case, runs in result["runs"].items()
             for found in runs if found["answer"] != found["expected"]]  # fmt: skip
    if wrong:
        print("\n".join(["answers differ from DuckDB's:", *wrong]), file=sys.stderr)
        return 1  # and nothing is written: figures for different answers compare nothing
    common.save(options.json, {"kind": "exactly_once", **facts, **result})
    return 0


def _run(options: Any, bootstrap: str) -> dict[str, Any]:
    sizes = SIZES[options.size]
    cases = [(name, mode) for mode in MODES for name in sizes if not options.only or f"{name}:{mode}" in options.only]
    logs = {records: _file(records, options.data) for records in {sizes[name] for name, _ in cases}}
    expected = {
        (sizes[name], mode): common.run_child(
            MODULE, {"contender": "duckdb", "log": str(logs[sizes[name]]), "dedup": MODES[mode]}, 2
        )
        for name, mode in cases
    }
    for records in logs:  # after DuckDB, which has other files read into memory
        _fill(bootstrap, records)
    runs: dict[str, list[dict[str, Any]]] = {f"{name}:{mode}": [] for name, mode in cases}
    with tempfile.TemporaryDirectory(prefix="tokenometer-peers-") as folder:
        for _ in range(options.turns):
            for name, mode in cases:
                records = sizes[name]
                wanted = expected[records, mode]
                request = {"contender": name, "dedup": MODES[mode], "bootstrap": bootstrap, "topic": _topic(records)}
                request |= {"records": records, "counted": wanted["requests"], "folder": folder, "kafka": {}}
                request |= {"checkpoint_ms": CHECKPOINT_MS[options.size], "jvm": JVM[options.size]}
                found = common.run_child(MODULE, request, len(common.cores()))
                request = {"contender": "answer", "name": name, "bootstrap": bootstrap, "output": found["output"]}
                found["answer"], found["expected"] = common.run_child(MODULE, request, len(common.cores())), wanted
                runs[f"{name}:{mode}"].append(found)
                print(f"{name}:{mode}", json.dumps(found), file=sys.stderr, flush=True)
    return {"medians": {case: bench_pipeline.median_of(found) for case, found in runs.items()}, "runs": runs}


def _topic(records: int) -> str:
    return f"bench-rows-{records}"


def _profile(records: int) -> Profile:
    return Profile(records=records, seed=20, rate=RATE, malformed=0.0, duplicates=0.01, prefill=0.0)


def _file(records: int, directory: pathlib.Path) -> pathlib.Path:
    """The log as a file."""
    make_all([_profile(records)], directory)
    return path_of(_profile(records), directory).absolute()


def _fill(bootstrap: str, records: int) -> None:
    """The log's topic."""
    topic, broker = _topic(records), KafkaBroker(bootstrap, {"compression.type": "lz4"})
    broker.create_topic(topic, PARTITIONS, {})
    held = sum(extent.end - extent.begin for extent in broker.extents([topic]).values())
    if held != records:
        assert held == 0, f"{topic} holds {held} messages, not {records}: use another broker"
        blocks = ahead(synth.blocks(_profile(records)))
        send_blocks(broker, topic, blocks, Pacing(None, lambda: 0, lambda seconds: None))
    broker.close()


# --- In a process of its own ---


def _child(request: dict[str, Any]) -> dict[str, Any]:
    contender = request["contender"]
    if contender == "duckdb":
        return _summary(bench_peers.duckdb(request["log"], request["dedup"], 2))
    if contender == "answer":
        return _summary(_rows(request))
    if contender == "meter":
        return bench_pipeline.meter(request)
    return _jvm(request)


def _summary(table: Any) -> dict[str, Any]:
    """Of an answer: equal ones have equal digests."""
    requests = pc.sum(table["requests"]).as_py()
    return {"requests": requests, "rows": len(table), "digest": bench_peers.digest_of(table)}


def _jvm(request: dict[str, Any]) -> dict[str, Any]:
    """A peer's process. Its output topic is made here, its classes are compiled here; neither is timed."""
    name, output = request["contender"], f"{request['contender']}-{secrets.token_hex(4)}"
    broker = KafkaBroker(request["bootstrap"], {})
    broker.create_topic(output, PARTITIONS, {})
    broker.close()
    flink = name == "flink"
    main_class, jars = ("FlinkPeer", list(JARS)[1]) if flink else ("StreamsPeer", list(JARS)[0])
    own = pathlib.Path(tempfile.mkdtemp(dir=request["folder"]))
    places = [request["bootstrap"], request["topic"], output, str(request["dedup"]).lower(), str(request["counted"])]
    arguments = [*places, str(own / "state"), str(request["checkpoint_ms"])] if flink else [
        {"streams": "own", "streams-by-hand": "by-hand"}[name], *places, str(own / "state")]  # fmt: skip
    classpath = f"{_compiled(main_class, resolve(jars, JARS[jars]), own)}:{resolve(jars, JARS[jars])}/*"
    java = [find_java(), f"-Xmx{HEAP}", "-XX:+UseParallelGC", "-XX:+ExitOnOutOfMemoryError", f"-Djava.io.tmpdir={own}"]
    java += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=error", *request["jvm"], *FLINK_OPENS]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run(
        [*java, "-cp", classpath, main_class, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(own)
    if run.returncode:
        raise common.ChildFailed(f"{name} ended with status {run.returncode}")
    found = json.loads(run.stdout.splitlines()[-1])
    read = request["records"] / request["counted"]  # for each record that counts
    ticks = [(moment, round(count * read)) for moment, count in found["ticks"]]
    return bench_pipeline.answer_of(
        [(ticks[0][0], 0), *ticks[1:]], (found["end"], request["records"]),
        cpu_seconds=used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        peak_bytes=found["peak_kib"] << 10, output=output,
    )  # fmt: skip


def _compiled(main_class: str, jars: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """The folder of the classes."""
    javac = pathlib.Path(find_java()).resolve().with_name("javac")
    sources = [str(PEERS / f"{name}.java") for name in SOURCES[main_class]]
    classes = folder / "classes"
    options = "-J-XX:TieredStopAtLevel=1", "-Xlint:all,-serial", "-Werror", "-cp", f"{jars}/*", "-d", classes
    subprocess.run([javac, *options, *sources], check=True)
    return classes


# --- What came out ---


def _rows(request: dict[str, Any]) -> Any:
    """The rows of an output topic, added up to one for each key: a table with ANSWER's columns."""
    import duckdb
    from pyarrow import json as pa_json

    kind = pa.string() if request["name"] == "meter" else pa.int64()
    fields = [("window_start", kind), *((key, pa.string()) for key in KEYS[1:]), ("part", pa.string())]
    schema = pa.schema([*fields, *((name, pa.int64()) for name in COUNTERS)])
    parsing = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    broker, parts = KafkaBroker(request["bootstrap"], {}), []
    for place, extent in broker.extents([request["output"]]).items():
        for values in _in_blocks(broker, place, extent):
            buffer = pa.BufferReader(b"\n".join(values))
            parts.append(pa_json.read_json(buffer, parse_options=parsing).select(schema.names))
    broker.close()
    rows = pa.concat_tables(parts)
    rows = rows.append_column("line", pa.array(np.arange(len(rows))))
    window = "epoch_ms(window_start::TIMESTAMPTZ)" if request["name"] == "meter" else "window_start"
    names, sums = ('"user", model, chip', ", ".join(f"sum({name})::BIGINT AS {name}" for name in COUNTERS))
    last = f"WHERE line IN (SELECT max(line) FROM rows GROUP BY window_start, {names}, part)"
    chosen = "" if request["name"] in ADDED_UP else last
    with duckdb.connect() as connection:
        connection.register("rows", rows)
        query = f"SELECT {window} AS window_start, {names}, {sums} FROM rows {chosen} GROUP BY ALL"
        return connection.sql(query).to_arrow_table().select(ANSWER.names)


def _in_blocks(broker: KafkaBroker, place: Place, extent: Any, size: int = 100_000) -> Any:
    held: list[bytes] = []
    for messages in broker.read(place, extent.begin, extent.end):
        held += messages.values  # type: ignore[arg-type]  # no tombstones
        if len(held) >= size:
            yield held
            held = []
    if held:
        yield held


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
