"""What format 2 says, read by the kernels: the oracle's answers, and hardly a record for the referee.

The fuzz (test_fuzz.py) sends hostile lines, of which the kernels leave nearly all to the referee. These records are
what a decent producer writes: no escapes, no broken JSON, but every type, absence and spelling that the features are
about.
"""

import functools
import json
import random
from typing import Any

import pytest

from tests import format2, harness, oracle
from tests.harness import Mapping, Piece, Run
from tokenometer.kernels.engine import Engine, Limits
from tokenometer.kernels.plan import compile_mapping
from tokenometer.kernels.target import Target
from tokenometer.kernels.values import Canonical, Rejection, Skipped
from tokenometer.processor.records.referee import Referee

TEXTS = ("request_id", "user", "model", "chip", "prefill_chip")
NOW_MS = 1_795_000_000_000
BOUNDS = {"max_past_ms": 400 * 86_400_000, "not_before_ms": 1_420_070_400_000}
RECORDS = 1500 * harness.TIMES
LIMITS = Limits(**harness.MIDDLE | {"identity_bytes": 1 << 30, "tile_records": 256})
NEEDED_SHARE_MAX = 0.02  # of what is counted or skipped: escapes aside, numbers that only the referee reads

STRINGS = ["a", "bb", "gpt-x", "qwen3", "openai", "anthropic", "chat", "x" * 256]
ODD_TEXTS = ["", "", None, 7, 12345, 0, 1.5, True, "i" * 300]
ODD_COUNTS = [None, None, 1 << 40, 1e3, 1.2e3, 0.5, "07", "12"]
EPOCHS = {
    "epoch_ms": [NOW_MS, NOW_MS - 1000], "epoch_ns": [NOW_MS * 10**6, NOW_MS * 10**6 - 1],
    "epoch_s_decimal": [NOW_MS // 1000, NOW_MS / 1000, 1_794_999_999.25],
}  # fmt: skip
TEXT_TIMES = ["2026-11-18T11:06:40Z", "2026-11-18T11:06:40.123+08:00"]
ISO_TIMES = [
    *TEXT_TIMES, "2026-11-18 11:06:40,5+0800", "2026-11-18T11:06:40-03", "2026-11-18T11:06:40", "2026-11-18 11:06:40.25"
]  # fmt: skip
ODD_TIMES = ["1795000000000", "1795000000.5", "1795000000000000000", "0", 5, None, NOW_MS * 2, *ISO_TIMES]


def at(record: dict[str, Any], path: Any, value: Any) -> None:
    """Puts a value at a path; an object on the way is made where there is none."""
    keys = [path] if isinstance(path, str) else path
    for key in keys[:-1]:
        below = record.setdefault(key, {})
        if not isinstance(below, dict):
            return
        record = below
    record[keys[-1]] = value


def text_value(rng: random.Random) -> Any:
    return rng.choice(STRINGS if rng.random() < 0.93 else ODD_TEXTS)


def count_value(rng: random.Random, is_total: bool, whole: bool) -> Any:
    if rng.random() < 0.05:
        return rng.choice(ODD_COUNTS)
    number = rng.randrange(100, 300) if is_total else rng.randrange(20)
    return float(number) if whole and rng.random() < 0.3 else number


def time_value(rng: random.Random, spec: dict[str, Any]) -> Any:
    if rng.random() < 0.05:
        return rng.choice(ODD_TIMES)
    made = rng.choice(spec["formats"])
    if made not in EPOCHS:
        return rng.choice(ISO_TIMES if "zone" in spec else TEXT_TIMES)
    value = rng.choice(EPOCHS[made])
    return str(value) if spec.get("digits") and rng.random() < 0.5 else value


def condition_value(rng: random.Random, condition: dict[str, Any]) -> Any:
    if "present" in condition or ("absent" in condition and len(condition) == 2):
        return rng.choice([{}, None])
    listed = condition.get("in", condition.get("not_in", ["x"]))
    listed = [format2.spelt(rng, value) for value in listed]
    return rng.choice([*listed, "other", 1, True, None]) if rng.random() < 0.95 else rng.choice([{}, [], 1.5])


def read(record: dict[str, Any], path: Any) -> int:
    """A whole number's value, 0 for anything else."""
    value: Any = record
    for key in [path] if isinstance(path, str) else path:
        value = value.get(key) if isinstance(value, dict) else None
    return int(value) if isinstance(value, int | float) else 0


def add_total(rng: random.Random, record: dict[str, Any], fields: dict[str, Any]) -> None:
    """The total that the counts make, if not always, as a producer counts that has a part inside or beside them."""
    if "total_tokens" not in fields or rng.random() < 0.2:
        return
    sums = {
        name: sum(read(record, path) for path in (fields[name]["path"], *fields[name].get("plus", [])))
        for name in ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens")
    }
    total = sums["input_tokens"] + sums["output_tokens"]
    total += rng.choice([0, 0, 0, 0, 1, sums["cached_input_tokens"], sums["reasoning_tokens"]])
    total -= sum(read(record, path) for path in fields["total_tokens"].get("plus", []))
    at(record, fields["total_tokens"]["path"], max(total, 0))


def record_of(rng: random.Random, spec: dict[str, Any]) -> bytes:
    record: dict[str, Any] = {"service": "s"}
    for name, field in spec["fields"].items():
        paths = [field.get("path"), field.get("scope"), *field.get("aliases", []), *field.get("plus", [])]
        for path in filter(None, paths):
            if rng.random() > 0.9:
                continue
            if name == "timestamp":
                value = time_value(rng, field)
            elif name in TEXTS:
                value = text_value(rng)
            else:
                value = count_value(rng, name in ("input_tokens", "output_tokens"), field.get("whole_numbers", False))
            at(record, path, value)
    for label in spec.get("labels", {}).values():
        for path in filter(None, [label.get("path"), *label.get("aliases", [])]):
            if rng.random() < 0.9:
                at(record, path, text_value(rng))
    for entry in [*spec.get("skip", []), *spec.get("refuse", [])]:
        for condition in [entry, *entry.get("and", [])]:
            if rng.random() < 0.3:
                at(record, condition["path"], condition_value(rng, condition))
    for key, stated in spec.items():
        if key.endswith("_are") and isinstance(stated, dict) and "path" in stated and rng.random() < 0.9:
            listed = [*stated.get("inclusive", []), *stated.get("additive", [])]
            listed = [format2.spelt(rng, value) for value in listed]
            at(record, stated["path"], rng.choice([*listed * 3, "other", "", True]))
    add_total(rng, record, spec["fields"])
    keys = list(record)
    if rng.random() < 0.2:
        rng.shuffle(keys)
    separators = (",", ":") if rng.random() < 0.7 else (", ", ": ")
    return json.dumps({key: record[key] for key in keys}, separators=separators, ensure_ascii=False).encode()


@functools.cache
def log_of(name: str) -> tuple[Mapping, list[Piece], oracle.Meter]:
    """The same for every engine, with what the oracle makes of it. Half of the batches come with message times."""
    rng, mapping = random.Random(name), Mapping.parse(format2.text(format2.MAPPINGS[name]), f"{name}.toml")
    log = [record_of(rng, format2.MAPPINGS[name]) for _ in range(RECORDS)]
    pieces = []
    for begin in range(0, len(log), 500):
        batch = log[begin : begin + 500]
        pieces.append(Piece(batch, [NOW_MS] * len(batch), "topic") if begin % 1000 else Piece(batch, None, "file"))
    wanted = oracle.Meter(1000, **BOUNDS)
    for piece in pieces:
        for line in piece.values:
            wanted.feed(mapping.oracle, line, NOW_MS if piece.times else None, piece.partition)
    return mapping, pieces, wanted


class CountingReferee:
    """The real one, and how often it was asked for something that it then accepted or skipped."""

    def __init__(self) -> None:
        self.needed = 0
        self._judge = Referee(3_600_000, **BOUNDS)

    def __call__(self, record: bytes, mapping: Any, time: int | None) -> Canonical | Rejection | Skipped:
        ruling = self._judge(record, mapping, time)
        self.needed += not isinstance(ruling, Rejection)
        return ruling


@pytest.mark.slow
@pytest.mark.parametrize("name", format2.MAPPINGS)
def test_the_kernels_read_what_format_2_says(target: Target, name: str) -> None:
    """Verdicts, reasons and rows are the oracle's, and the kernels decide nearly all that is counted or skipped."""
    mapping, pieces, wanted = log_of(name)
    assert not compile_mapping(mapping.engine).table["undecided"]
    referee = CountingReferee()
    engine = Engine(target, referee, secret=harness.secret(), limits=LIMITS, window_ms=1000, **BOUNDS)
    harness.assert_same(harness.meter(engine, mapping, pieces), wanted)
    certain = wanted.counted + wanted.duplicates + wanted.skipped
    assert certain > RECORDS // 40, "the records are decent"
    assert referee.needed <= NEEDED_SHARE_MAX * certain


# --- Single rules ---

FIELDS = """
[fields.timestamp]
path = "time"
formats = ["epoch_ms"]
[fields.model]
path = "model"
[fields.chip]
constant = "c"
[fields.output_tokens]
path = "out"
default = 0
"""


def mapping_of(head: str, fields: str, file_format: int = 2) -> Mapping:
    top = f'format = {file_format}\nname = "rules"\ndescription = "d"\n'
    conventions = 'input_tokens_are = "inclusive"\noutput_tokens_are = "inclusive"\n'
    return Mapping.parse(top + conventions + head + FIELDS + fields, "rules.toml")


def counted(target: Target, mapping: Mapping, log: list[bytes]) -> tuple[Run, int]:
    """The run, equal to the oracle's, and how often the referee was needed."""
    referee = CountingReferee()
    engine = Engine(target, referee, secret=harness.secret(), limits=LIMITS, **BOUNDS)
    run, wanted = Run(engine, mapping), oracle.Meter(**BOUNDS)
    run.feed(log, None, "file")
    for line in log:
        wanted.feed(mapping.oracle, line, None, "file")
    harness.assert_same(run, wanted)
    return run, referee.needed


def line(**values: Any) -> bytes:
    return json.dumps({"time": NOW_MS, "model": "m", "user": "u", "in": 5} | values, separators=(",", ":")).encode()


@pytest.mark.parametrize("file_format", [1, 2])
def test_two_alternatives_that_have_values_need_no_referee(target: Target, file_format: int) -> None:
    """The first listed counts, whichever comes first; what the other is does not matter."""
    fields = (
        '[fields.user]\npath = "user"\naliases = ["name"]\n[fields.input_tokens]\npath = "in"\naliases = ["prompt"]\n'
    )
    log = [line(name="n", prompt=7), line(name=[1], prompt="x"), line(user=None, name="n", prompt=None)]
    log += [b'{"prompt":7,"name":"n",' + one[1:] for one in (line(), line(user=None), line(**{"in": None}))]
    run, needed = counted(target, mapping_of("", fields, file_format), log * 20)
    assert needed == 0
    assert {(user, counters[1]) for (_, user, *_), counters in run.rows().items()} == {
        ("u", 5 * 60 + 7 * 20),
        ("n", 5 * 40),
    }


@pytest.mark.parametrize(("size", "fate"), [(1, 1), (256, 1), (257, 1), (1024, 1), (1025, 0)])
@pytest.mark.parametrize("scope", ["", 'scope = "scope"'])
def test_an_id_has_1_to_1024_bytes(target: Target, size: int, fate: int, scope: str) -> None:
    fields = (
        f'[fields.user]\npath = "user"\n[fields.input_tokens]\npath = "in"\n[fields.request_id]\npath = "id"\n{scope}\n'
    )
    log = [line(id="i" * size, scope="s" * size), line(id="i" * size + "j", scope="s")] + [line(id="j", scope="s")]
    run, needed = counted(target, mapping_of("", fields), log)
    assert run.engine.tally().counted >= fate and needed == 0


@pytest.mark.parametrize(
    ("before_ms", "reason"), [(1000, None), (1001, "past_timestamp"), (-2000, None), (-2001, "future_timestamp")]
)
def test_a_time_is_near_its_messages_and_not_before_the_bound(
    target: Target, before_ms: int, reason: str | None
) -> None:
    """Under both formats: the native mapping is of format 1. A file has no message time."""
    bounds = {"max_future_skew_ms": 2000, "max_past_ms": 1000, "not_before_ms": NOW_MS - 5000}
    found = []
    for message_time, time in ((NOW_MS, NOW_MS - before_ms), (None, NOW_MS - 5000), (None, NOW_MS - 5001)):
        value = line(timestamp=time, chip="c", input_tokens=1, output_tokens=1)
        pieces = [Piece([value], None if message_time is None else [message_time])]
        run = harness.check(harness.make_engine(target, **bounds), harness.shipped("native"), pieces, **bounds)
        found.append(run.letters[0][3] if run.letters else None)
    assert found == [reason, None, "past_timestamp"]


def test_an_identity_is_the_tuple_of_its_strings(target: Target) -> None:
    """Strings that are split elsewhere, an absent one, and the same strings in other places are all different."""
    fields = (
        '[fields.user]\npath = "user"\n[fields.input_tokens]\npath = "in"\n[fields.prefill_chip]\npath = "prefill"\n'
        '[fields.request_id]\npath = "id"\nscope = "scope"\nwith = ["user", "model", "prefill_chip"]\n'
    )
    distinct = [
        {"id": "1", "user": "a", "model": "bc"},
        {"id": "1", "user": "ab", "model": "c"},
        {"id": "1", "user": "bc", "model": "a"},
        {"id": "1", "user": "a", "model": "bc", "prefill": "p"},
        {"id": "1", "user": "a", "model": "bc", "prefill": "bc"},
        {"id": "1", "user": "a", "model": "bc", "scope": "s"},
        {"id": "2", "user": "a", "model": "bc"},
    ]
    run, needed = counted(target, mapping_of("", fields), [line(**one) for one in distinct * 2])
    assert (run.engine.tally().counted, run.engine.tally().duplicates, needed) == (len(distinct), len(distinct), 0)


@pytest.mark.parametrize("entries", [5, 8])
def test_as_many_values_as_a_mapping_can_name_are_deferred(target: Target, entries: int) -> None:
    """Five sums of five are 25 deferred values; the hashes of a record hold 30 of them, and what follows them more."""
    sums = ("input_tokens", "cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "total_tokens")
    fields = '[fields.user]\npath = "user"\n' + "".join(
        f'[fields.{name}]\npath = "{name}"\nplus = {json.dumps([f"{name}{k}" for k in range(4)])}\n' for name in sums
    )
    skip = "".join(
        f'[[skip]]\npath = "kind{k}"\nin = ["x", 1, true]\nand = [{{ path = "more{k}", in = ["y"], absent = true }}]\n'
        for k in range(entries)
    )
    mapping = mapping_of(skip, fields)
    plan = compile_mapping(mapping.engine)
    assert (plan.table["spot_count"], plan.table["undecided"]) == (25 + 2 * entries, False)
    last = entries - 1
    log = [line(input_tokens=3, input_tokens1=4), line(kind0="x"), line(kind4=1), line(input_tokens=1, total_tokens=9)]
    log += [
        line(**{f"kind{last}": True, f"more{last}": "y"}),
        line(input_tokens=3, **{f"kind{last}": True, f"more{last}": "z"}),
    ]
    run, needed = counted(target, mapping, log)
    assert (run.engine.tally().counted, run.engine.tally().skipped) == (2, 3)
    assert needed == 0


SIXTY = mapping_of(
    "".join(
        f'[[skip]]\npath = "k{n}"\nin = ["x"]\nand = [\n'
        + "".join(f'{{ path = "k{k}", absent = true }},\n' for k in range(n + 1, n + 7))
        + "]\n"
        for n in range(0, 42, 7)
    ),
    '[fields.user]\npath = ["a", "b", "c", "d", "e", "user"]\naliases = [["f", "g", "h", "user"]]\n'
    '[fields.request_id]\npath = "id"\n[fields.input_tokens]\npath = "in"\n'
    '[fields.cached_input_tokens]\npath = "cached"\n[fields.cache_write_tokens]\npath = "written"\n'
    '[fields.reasoning_tokens]\npath = "reasoning"\n',
)


def test_the_last_of_sixty_keys_are_read_compared_and_found_twice_like_the_first(target: Target) -> None:
    """Only 50 of them have marks."""
    assert len({path[:end] for path in SIXTY.engine.paths for end in range(1, len(path) + 1)}) == 60
    plan = compile_mapping(SIXTY.engine)
    assert not plan.table["undecided"]
    assert sum(bool(key["mark"]) for key in plan.table["keys"]) == 50
    ada, eve = {"e": {"user": "ada"}}, {"g": {"h": {"user": "eve"}}}
    named = {"a": {"b": {"c": {"d": ada}}}}
    counted_lines = [
        line(**named, **{"in": 1}),
        line(f=eve, **{"in": 2}, k41="x"),
        line(**named, **{"in": 4}, k35="x", k41=1),  # the last condition asks that it is absent
        line(**named, **{"in": 8}, k35="y"),
        line(**named, **{"in": 16}, k0="x", k1={}),
    ]
    log = [*counted_lines, line(**named, k35="x"), line(**named, k35="x", k41=None), line(**named, k0="x")]
    run, needed = counted(target, SIXTY, log)
    assert {key[1]: row[1] for key, row in run.rows().items()} == {"ada": 29, "eve": 2}
    assert (run.engine.tally().counted, run.engine.tally().skipped, needed) == (5, 3, 0)


@pytest.mark.parametrize("key", ["k0", "k34", "k41", "id", "in", "k35"])
@pytest.mark.parametrize("values", ["null, null", '"x", "y"', '"y", null'], ids=["nulls", "strings", "one null"])
def test_a_key_twice_is_refused_whether_it_has_a_mark_or_not(target: Target, key: str, values: str) -> None:
    first, second = values.split(", ")
    record = line(f={"g": {"h": {"user": "eve"}}})[:-1] + f',"{key}":{first},"z":0,"{key}":{second}}}'.encode()
    run, _ = counted(target, SIXTY, [line(f={"g": {"h": {"user": "eve"}}}, **{"in": 1})] * 3 + [record] * 2)
    assert run.engine.tally().counted == 3
    assert [letter[3] for letter in run.letters] == ["repeated_field"] * 2


def test_a_mapping_of_format_1_may_have_sixty_keys(target: Target) -> None:
    aliases = [f"u{n}" for n in range(53)]
    text = (
        'format = 1\nname = "m"\ndescription = "d"\ninput_tokens_are = "inclusive"\noutput_tokens_are = "inclusive"\n'
        f'[fields.user]\npath = "u"\naliases = {json.dumps(aliases)}\n'
        '[fields.timestamp]\npath = "time"\nformats = ["epoch_ms"]\n[fields.model]\npath = "model"\n'
        '[fields.chip]\nconstant = "c"\n[fields.input_tokens]\npath = ["usage", "in"]\n'
        '[fields.output_tokens]\npath = ["usage", "out"]\n'
    )
    mapping = Mapping.parse(text, "m.toml")
    record = {"time": NOW_MS, "model": "m", "usage": {"in": 5, "out": 2}}
    log = [json.dumps(record | {name: "ada"}).encode() for name in ("u", *aliases)] + [
        json.dumps(record | {"u52": "eve", "u": None, "u0": None, "u51": "bob"}).encode(),
        json.dumps(record).encode(),
    ]
    run, needed = counted(target, mapping, log)
    assert {key[1]: row[:2] for key, row in run.rows().items()} == {"ada": [54, 270], "bob": [1, 5]}
    assert ([letter[3] for letter in run.letters], needed) == (["missing_field"], 0)


BY_SCOPE = """reasoning_tokens_are = "by_total"
cached_input_tokens_are = { path = "scope", additive = ["bedrock"], inclusive = ["openai*"], otherwise = "by_total" }
cache_write_tokens_are = { path = "scope", additive = ["bedrock"], inclusive = ["openai*"], otherwise = "by_total" }
"""


@pytest.mark.parametrize(
    ("record", "tokens"),  # input and output, or the reason
    [
        ({"scope": "strands", "total": 13112}, (13062, 50)),
        ({"scope": "strands", "total": 13012}, (12962, 50)),  # reads beside the input, writes inside it
        ({"scope": "strands", "total": 9050}, (9000, 50)),
        ({"total": 13112}, (13062, 50)),
        ({"scope": "strands"}, (9000, 50)),
        ({"scope": "strands", "total": 13113}, "inconsistent_counts"),
        ({"scope": "strands", "total": 13119, "reasoning": 7}, (13062, 57)),
        # A value that tells counts more than a total, and then reasoning is read as without one.
        ({"scope": "bedrock", "total": 9050}, (13062, 50)),
        ({"scope": "bedrock", "total": 9057, "reasoning": 7}, (13062, 50)),
        ({"scope": "bedrock"}, (13062, 50)),
        ({"scope": "openai-v2", "total": 13112}, (9000, 50)),
        ({"scope": "openai-v2", "total": 1 << 40}, "bad_count"),
        ({"scope": 7, "total": 13112}, "wrong_type"),
    ],
)
def test_the_total_tells_where_no_value_does(target: Target, record: dict[str, Any], tokens: Any) -> None:
    fields = '[fields.user]\npath = "user"\n' + "".join(
        f'[fields.{name}]\npath = "{path}"\n'
        for name, path in (("input_tokens", "in"), ("cached_input_tokens", "read"), ("cache_write_tokens", "written"),
                           ("reasoning_tokens", "reasoning"), ("total_tokens", "total"))
    )  # fmt: skip
    log = [line(**{"in": 9000}, read=3962, written=100, out=50, **record)]
    run, needed = counted(target, mapping_of(BY_SCOPE, fields), log)
    found = [(row[1], row[4]) for row in run.rows().values()] or [run.letters[0][3]]
    assert (found, needed) == ([tokens], 0)


def test_a_mapping_that_says_more_than_a_plan_holds_is_left_to_the_referee(target: Target) -> None:
    """An escape in the record could spell a whole value, so its beginning alone does not tell."""
    head = '[cached_input_tokens_are]\npath = "provider"\nadditive = ["a*"]\ninclusive = [\'a"b\', \'b\\\\\']\n'
    fields = '[fields.user]\npath = "user"\n' + "".join(
        f'[fields.{name}]\npath = "{name}"\n' for name in ("input_tokens", "cached_input_tokens")
    )
    mapping = mapping_of(head, fields)
    assert compile_mapping(mapping.engine).table["undecided"]
    log = [line(input_tokens=3, cached_input_tokens=1, provider=p) for p in ('a"b', "a", "b\\", "abc", 'a"')]
    run, needed = counted(target, mapping, log)
    assert (needed, [sum(row[1] for row in run.rows().values())]) == (5, [5 * 3 + 3])


@pytest.mark.parametrize(
    ("value", "beside"),
    [("claude-4", 1), ("claude-4-x", 0), ("claude-3", 0), ("claud", 0), ("claude", 1), ("x*", 1), ("xy", 0)],
)
def test_a_whole_value_counts_before_a_beginning_and_of_two_the_longer_one(target: Target, value, beside) -> None:
    head = (
        "[cached_input_tokens_are]\npath = 'p'\nadditive = ['claude*', 'x\\*']\n"
        "inclusive = ['claude-4-*', 'claude-3']\notherwise = 'inclusive'\n"
    )
    fields = '[fields.user]\npath = "user"\n' + "".join(
        f'[fields.{name}]\npath = "{name}"\n' for name in ("input_tokens", "cached_input_tokens")
    )
    run, needed = counted(target, mapping_of(head, fields), [line(input_tokens=3, cached_input_tokens=1, p=value)])
    assert [row[1] for row in run.rows().values()] == [3 + beside]
    assert needed == 0
