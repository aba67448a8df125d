"""How fast values become lines: decoders of `processor/intake` on one core, each beside the obvious library in one run.

Timed: from a column of values in memory to lines in memory, in seconds of processor time of the one thread that works,
so that what else runs on the machine disturbs less. A contender makes the same records of the same messages:
orjson's loads and dumps in a loop over spans, opentelemetry-proto's FromString, fastavro's schemaless_reader, and lines
by orjson.dumps. Messages are as a gateway's Collector exports them: 50 spans of a chat call each, with their resource;
arrays of 200 native records; Avro data of eight fields in Confluent frames. Columns have about 4 MiB, as a meter's.
Median of the passes. The digest is of the records that both make.

The engine's whole way (decode, pack, load, count) on the same records, with new request ids in each pass, in turns: as
`arrays` beside `lines`, what an array costs more; and with one record a message, as `openers` beside `plain`, what it
costs to look whether an opener claims a value, which plain values do not need.

    python -m bench.bench_intake --size large --json bench/results/intake.json
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import orjson
from rich.console import Console
from rich.table import Table

from bench import common
from tokenometer.kernels.engine import Engine, Limits
from tokenometer.kernels.target import HostTarget
from tokenometer.processor.broker import Column
from tokenometer.processor.intake import DecodedLines as Decoded
from tokenometer.processor.intake import Decoder
from tokenometer.processor.load.profile import START_MS
from tokenometer.processor.meter import heap
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.value import Value

MODULE = "bench.bench_intake"
CASES = ("otlp json", "otlp protobuf", "avro", "arrays")
GOALS = {"otlp json": ("bytes_per_s", 1e9), "otlp protobuf": ("records_per_s", 2e6), "avro": ("records_per_s", 3e6)}
GOAL_RATIO, GOAL_ARRAYS, GOAL_OPENERS = 10, 0.85, 0.98
SPANS, RECORDS = 50, 200  # of a message
COLUMN_BYTES = {"small": 1 << 18, "large": 1 << 22}
PASSES = {"small": 2, "large": 75}

Lines = list[bytes]


def column(values: Sequence[bytes]) -> Column:
    """As the broker gives them."""
    ends = np.cumsum([len(value) + 1 for value in values], dtype=np.int64)
    lengths = np.array([len(value) for value in values], np.int64)
    data = np.frombuffer(b"".join([part for value in values for part in (value, b"\n")]), np.uint8)
    return Column(data, ends - lengths - 1, lengths, ends)


# --- Messages ---


def traces(seed: int) -> Any:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    rng = np.random.default_rng(seed)
    data = TracesData()
    resource = data.resource_spans.add()
    for key, text in (("service.name", "gateway"), ("hw.model", "H100"), ("k8s.pod.name", f"gateway-{seed}")):
        resource.resource.attributes.add(key=key).value.string_value = text
    scope = resource.scope_spans.add()
    scope.scope.name, scope.scope.version = "opentelemetry.instrumentation.openai_v2", "2.4b0"
    for number in range(SPANS):
        span = scope.spans.add(trace_id=rng.bytes(16), span_id=rng.bytes(8), parent_span_id=rng.bytes(8), kind=3)
        span.name, span.flags = "chat gpt-4o", 256
        span.start_time_unix_nano = 1_795_922_916_155_419_936 + number * 1_000_003
        span.end_time_unix_nano = span.start_time_unix_nano + 1_250_000_000
        texts = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.response.model": "gpt-4o-2024-08-06",
            "gen_ai.response.id": f"chatcmpl-{seed}-{number}",
            "user.id": f"user-{rng.integers(1000)}",
            "server.address": "api.openai.com",
        }
        for key, text in texts.items():
            span.attributes.add(key=key).value.string_value = text
        for key in ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"):
            span.attributes.add(key=key).value.int_value = int(rng.integers(10_000))
        span.status.SetInParent()
    return data


def otlp_json(data: Any) -> bytes:
    """As the Collector's marshaler writes it: ids are hexadecimal, enumerations numbers."""
    from google.protobuf import json_format

    found = json_format.MessageToDict(data, use_integers_for_enums=True)
    spans = found["resourceSpans"][0]["scopeSpans"][0]["spans"]
    for span, made in zip(spans, data.resource_spans[0].scope_spans[0].spans, strict=True):
        span |= {
            "traceId": made.trace_id.hex(),
            "spanId": made.span_id.hex(),
            "parentSpanId": made.parent_span_id.hex(),
        }
    return orjson.dumps(found)


AVRO = {
    "type": "record",
    "name": "Call",
    "fields": [
        *({"name": name, "type": "string"} for name in ("request_id", "user", "model", "chip")),
        *({"name": name, "type": "long"} for name in ("timestamp", "input_tokens", "cached_input_tokens")),
        {"name": "output_tokens", "type": "long"},
    ],
}


def native(seed: int, number: int) -> dict[str, Any]:
    return {
        "request_id": f"req-{seed:06}-{number:06}-4f2a9c",
        "timestamp": START_MS + number,
        "user": f"user-{number % 997}",
        "model": "deepseek-v3-0324",
        "chip": "H100",
        "prefill_chip": None,
        "input_tokens": 2006 + number % 4000,
        "cached_input_tokens": 1920,
        "cache_write_tokens": 0,
        "output_tokens": 300 + number % 100,
        "reasoning_tokens": 64,
        "path": "/v1/chat/completions",
        "latency_ms": 1234,
    }


def filled(size: int, make: Callable[[int], bytes]) -> list[bytes]:
    """So many messages as give about `size` bytes; sixteen different ones."""
    different = [make(seed) for seed in range(16)]
    count = max(1, size // max(1, sum(map(len, different)) // 16))
    return [different[number % 16] for number in range(count)]


def array(seed: int) -> bytes:
    return b"[" + b",".join(orjson.dumps(native(seed, number)) for number in range(RECORDS)) + b"]"


def datum(seed: int) -> bytes:
    import fastavro

    stream = io.BytesIO()
    record = native(seed, seed)
    fastavro.schemaless_writer(
        stream, fastavro.parse_schema(AVRO), {f["name"]: record[f["name"]] for f in AVRO["fields"]}
    )
    return b"\0\0\0\0\1" + stream.getvalue()


MESSAGES: dict[str, Callable[[int], bytes]] = {
    "otlp json": lambda seed: otlp_json(traces(seed)),
    "otlp protobuf": lambda seed: traces(seed).SerializeToString(),
    "avro": datum,
    "arrays": array,
}
VALUES = {
    "otlp json": Value("otlp"),
    "otlp protobuf": Value("otlp"),
    "avro": Value("avro", schema="call.avsc"),
    "arrays": Value(),
}


# --- Contenders: what one would write with the library ---


def plain(value: dict[str, Any]) -> Any:
    """Of an attribute's value in OTLP/JSON"""
    if "intValue" in value:
        return int(value["intValue"])
    if "arrayValue" in value:
        return [plain(item) for item in value["arrayValue"].get("values", ())]
    return next(iter(value.values()), None)


def by_orjson(messages: Sequence[bytes]) -> Lines:
    lines = []
    for message in messages:
        for resource in orjson.loads(message)["resourceSpans"]:
            around = {f"resource.{a['key']}": plain(a["value"]) for a in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    record = {
                        "trace_id": span["traceId"],
                        "span_id": span["spanId"],
                        "parent_span_id": span["parentSpanId"],
                        "name": span["name"],
                        "start_time": span["startTimeUnixNano"],
                        "scope.name": scope["scope"]["name"],
                    }
                    record |= {a["key"]: plain(a["value"]) for a in span["attributes"]}
                    lines.append(orjson.dumps(record | around))
    return lines


def by_opentelemetry_proto(messages: Sequence[bytes]) -> Lines:
    from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

    lines = []
    for message in messages:
        for resource in TracesData.FromString(message).resource_spans:
            around = {
                f"resource.{a.key}": getattr(a.value, a.value.WhichOneof("value")) for a in resource.resource.attributes
            }
            for scope in resource.scope_spans:
                for span in scope.spans:
                    record = {
                        "trace_id": span.trace_id.hex(),
                        "span_id": span.span_id.hex(),
                        "parent_span_id": span.parent_span_id.hex(),
                        "name": span.name,
                        "start_time": str(span.start_time_unix_nano),
                        "scope.name": scope.scope.name,
                    }
                    record |= {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}
                    lines.append(orjson.dumps(record | around))
    return lines


def by_fastavro(messages: Sequence[bytes]) -> Lines:
    import fastavro

    schema = fastavro.parse_schema(AVRO)
    return [orjson.dumps(fastavro.schemaless_reader(io.BytesIO(message[5:]), schema, None)) for message in messages]


def arrays_by_orjson(messages: Sequence[bytes]) -> Lines:
    return [orjson.dumps(record) for message in messages for record in orjson.loads(message)]


CONTENDERS: dict[str, tuple[str, Callable[[Sequence[bytes]], Lines]]] = {
    "otlp json": ("orjson", by_orjson),
    "otlp protobuf": ("opentelemetry-proto", by_opentelemetry_proto),
    "avro": ("fastavro", by_fastavro),
    "arrays": ("orjson", arrays_by_orjson),
}
COUNTS = ("gen_ai.response.id", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "user.id")
NATIVE_COUNTS = ("request_id", "input_tokens", "output_tokens", "user")


def digest(lines: Lines) -> str:
    records = [orjson.loads(line) for line in lines]
    return common.digest([[record.get(name) for name in (*COUNTS, *NATIVE_COUNTS)] for record in records])


# --- Measuring, in the child ---


def timed(passes: int, work: Callable[[], Any]) -> float:
    work()
    seconds = []
    for _ in range(passes):
        start = time.thread_time()
        work()
        seconds.append(time.thread_time() - start)
    return median(seconds)


def measure_decoder(name: str, size: str) -> dict[str, Any]:
    messages = filled(COLUMN_BYTES[size], MESSAGES[name])
    values = column(messages)
    decode = Decoder(VALUES[name], schema=json.dumps(AVRO).encode() if name == "avro" else None)
    lines = decode(values).data.tobytes().splitlines()
    library, contender = CONTENDERS[name]
    few = messages[: max(1, len(messages) // 8)]
    theirs = contender(few)
    seconds = timed(PASSES[size], lambda: decode(values))
    their_seconds = timed(max(1, PASSES[size] // 4), lambda: contender(few))
    total = sum(map(len, messages))
    records_per_s, their_records_per_s = len(lines) / seconds, len(theirs) / their_seconds
    return {
        "name": name,
        "message_bytes": total / len(messages),
        "records": len(lines),
        "records_per_s": records_per_s,
        "bytes_per_s": total / seconds,
        "library": library,
        "library_records_per_s": their_records_per_s,
        "ratio": records_per_s / their_records_per_s,
        "digests": [digest(lines[: len(theirs)]), digest(theirs)],
    }


def measure_arrays(size: str) -> dict[str, Any]:
    """The engine's way from a column to counters, for lines and for arrays, in turns."""
    engine = Engine(HostTarget(), Referee(), secret=range(1, 9), limits=Limits(batch_bytes=1 << 23))
    mapping = mappings.resolve("native")
    decode = Decoder()
    seconds: dict[str, list[float]] = {"lines": [], "arrays": [], "plain": [], "openers": []}
    count = max(1, COLUMN_BYTES[size] // len(array(0)))
    for number in range(PASSES[size] + 2):
        for turn, kind in enumerate(seconds):
            pieces = [array(len(seconds) * (number * count + k) + turn) for k in range(count)]
            values = column([message for piece in pieces for message in as_messages(piece, kind)])
            times = [START_MS] * len(values)
            start = time.thread_time()
            lines = Decoded(values.data, values.lines) if kind == "plain" else decode(values)
            batch = engine.pack_lines([lines.data], lines.ends, times)
            progress = engine.count(engine.load(batch, mapping))
            seconds[kind].append(time.thread_time() - start)
            assert progress.next_message == len(values) and not progress.dead_letters
    ns = {kind: median(found[2:]) / (count * RECORDS) * 1e9 for kind, found in seconds.items()}
    openers = median(a / b for a, b in zip(seconds["plain"][2:], seconds["openers"][2:], strict=True))
    return {"name": "engine", "ns": ns, "ratio": ns["lines"] / ns["arrays"], "openers_ratio": openers}


def as_messages(piece: bytes, kind: str) -> list[bytes]:
    """An array, its records as the lines of one message, or each as a message."""
    if kind == "arrays":
        return [piece]
    lines = piece[1:-1].replace(b"},{", b"}\n{")
    return [lines] if kind == "lines" else lines.split(b"\n")


def child() -> None:
    request = json.loads(sys.stdin.readline())
    heap.keep_freed_memory()  # as a meter does
    name, size = request["name"], request["size"]
    print(json.dumps(measure_arrays(size) if name == "engine" else measure_decoder(name, size)))


def show(console: Console, cases: Sequence[dict[str, Any]]) -> None:
    table = Table("case", "records/s", "GB/s", "library", "its records/s", "times")
    for case in cases:
        if case["name"] == "engine":
            console.print(
                f"engine: {case['ns']['lines']:.0f} ns a record in lines, {case['ns']['arrays']:.0f} ns in arrays: "
                f"{case['ratio']:.2f} of the speed; one record a message: {case['ns']['plain']:.0f} ns, with openers "
                f"{case['ns']['openers']:.0f} ns: {case['openers_ratio']:.3f} of the speed"
            )
            continue
        table.add_row(
            case["name"],
            f"{case['records_per_s'] / 1e6:.2f} M",
            f"{case['bytes_per_s'] / 1e9:.2f}",
            case["library"],
            f"{case['library_records_per_s'] / 1e6:.3f} M",
            f"{case['ratio']:.1f} x",
        )
    console.print(table)


def main(arguments: Sequence[str]) -> int:
    options = common.parser(__doc__).parse_args(arguments)
    if options.child:
        child()
        return 0
    cases = [common.run_child(MODULE, {"name": name, "size": options.size}, 1) for name in (*CASES, "engine")]
    show(Console(width=120 if not sys.stdout.isatty() else None), cases)
    common.save(options.json, common.facts(MODULE, arguments) | {"kind": "intake", "cases": cases})
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONHASHSEED", "0")
    sys.exit(main(sys.argv[1:]))
