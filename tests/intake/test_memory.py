"""Decoders read nothing beyond a message and write nothing beyond their buffers: AddressSanitizer and UBSan watch."""

import os
import pathlib
import shutil
import struct
import subprocess

import pytest

from tests import sanitized
from tests.intake import harness
from tokenometer.processor.intake import avro, native
from tokenometer.schemas.value import Value

SOURCE = pathlib.Path(__file__).parent / "native" / "fuzz_intake.cpp"
FLAGS = ("-std=c++17", "-g1", "-O0", "-march=native", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")
INCLUDES = ("-I", str(pathlib.Path(native.__file__).resolve().parent))
SANITIZERS = "address,undefined"
MUTANTS = 30_000  # a few seconds
LIBFUZZER_SECONDS = 5

RECIPES = {  # how it is read, and samples of it
    Value(): ["framing-array.json", "framing-debezium.json"],
    Value("otlp"): ["otel.otlp_json", "otel.otlp_proto", "traceloop.otlp_proto"],
    Value("zipkin"): ["otel.zipkin_json"],
    Value("jaeger"): ["traceloop.jaeger_json"],
    Value("cloudevents"): ["framing-cloudevents-structured.bin"],
    Value("debezium", json_in=(("other",),), outer=(("^", "op"), ("^", "^", "schema"))): ["newapi-debezium.jsonl"],
    Value(records=("a", "*", "b", "*"), outer=(("^", "x"), ("^", "^", "y"))): [],
    Value(json_in=(("ai_log",), ("ai_log", "x")), whole=True): ["higress-ai-log.jsonl"],
    Value(prefix="[...] "): ["sglang-request-log.txt"],
}
NESTED = b'{"y":[1],"a":[{"x":{"z":1},"b":[{"c":1},{}]},{"b":null}]}'
LIMIT = 1 << 16


def parts(*texts):
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    tables = avro.compile_schema(harness.AVRO)
    schema = [part.tobytes() for part in (tables.nodes, tables.children, tables.texts)]
    (folder / "setup").write_bytes(parts(*schema, *(native.recipe(value, LIMIT) for value in RECIPES)))
    seeds = []
    for number, names in enumerate(RECIPES.values()):
        messages = [message for name in names for message in harness.sample(name)] or [NESTED]
        seeds += [bytes([number]) + message for message in messages]
        seeds += [bytes([number | 0x80]) + message for message in messages]
    framed = harness.sample("framing-confluent-avro.bin")[0]
    singles = (framed[5:], framed, b"\xc3\x01" + bytes(8) + framed[5:])
    seeds += [bytes([len(RECIPES) + number]) + message for number, message in enumerate(singles)]
    (folder / "seeds").write_bytes(parts(*seeds))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    return folder


def compiled(sanitizers, *flags, compiler=None):
    return sanitized.program(SOURCE, sanitizers, [*FLAGS, *flags, *INCLUDES], compiler)


def ran(command, **environment):
    everything = os.environ | {"ASAN_OPTIONS": "detect_leaks=1", "UBSAN_OPTIONS": "print_stacktrace=1"} | environment
    done = subprocess.run(command, capture_output=True, env=everything, check=False, timeout=200)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[:6000]
    return done.stdout.decode()


@pytest.mark.slow
def test_decoders_stay_within_their_memory(setup):
    binary = compiled(SANITIZERS)
    said = ran([str(binary), str(setup / "setup"), str(setup / "seeds"), str(MUTANTS)])
    assert int(said.split()[0]) > MUTANTS


@pytest.mark.slow
def test_portable_decoders_stay_within_their_memory(setup):
    """The code for processors without AVX2."""
    flags = ("-mno-avx", "-mno-avx2", "-mno-avx512f")
    binary = compiled(SANITIZERS, *flags)
    ran([str(binary), str(setup / "setup"), str(setup / "seeds"), str(MUTANTS // 4)])


def test_libfuzzer_finds_nothing(setup):
    compiler = shutil.which("clang++")
    if compiler is None:
        pytest.skip("libFuzzer comes with clang")
    binary = compiled(f"fuzzer,{SANITIZERS}", "-DLIBFUZZER", compiler=compiler)
    # Its own limit is of the highest use of memory, which a process takes over from the one that started it.
    limits = ("-max_len=4096", "-rss_limit_mb=0", "-malloc_limit_mb=1024")
    command = [str(binary), f"-max_total_time={LIBFUZZER_SECONDS}", *limits, str(setup / "corpus")]
    ran(command, INTAKE_SETUP=str(setup / "setup"))
