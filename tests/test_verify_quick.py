"""What the audit does for many lines at once is what it does for each: the judge is asked about every one of them.

Lines that are judged together are those that look alike, so the lines here are: each stands beside others of its shape,
with other values, and beside itself with one byte changed. `_WORTH` is set so that a second line is worth a template.
"""

import io
import json
import os
import pathlib
import random
import re
from collections.abc import Iterator, Sequence

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import bad_input, harness, mutate
from tests.test_respelled import HABITS, HOSTILE, is_json, respelled, spelt
from tests.test_verify import GROUP, LOG, MAPPINGS, ODD, SETTINGS, make_stream
from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.verify import _in_chunks, ids, live, native, quick, tally, templates, usage, verify
from tokenometer.processor.verify.judge import Judge, Judged, SkippedRecord
from tokenometer.processor.verify.native import Expected, Found, Records, joined
from tokenometer.processor.verify.native import Messages as Together
from tokenometer.processor.verify.quick import QuickJudge
from tokenometer.processor.verify.times import time_reader
from tokenometer.processor.verify.values import RefusedRecord
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.compiled import BuildError

SEED = int(os.environ.get("TOKENOMETER_FUZZ_SEED", "1"))
SKEW_MS, PAST_MS = mutate.FUTURE_SKEW_MS, mutate.PAST_MS
NOW_MS = mutate.NOW_MS
ELIGIBLE = [name for name in harness.SHIPPED if quick.is_eligible(harness.shipped(name).engine)]
BYTES = [*b'"\\{}[]:, 09-.eEtnTZ+', 0x00, 0x09, 0x0D, 0x1F, 0x7F, 0x80, 0xC3, 0xFF]


@pytest.fixture(autouse=True)
def alike_from_the_second_line_on(monkeypatch):
    monkeypatch.setattr(templates, "WORTH", 2)
    monkeypatch.setattr(templates, "_TRIES", 1000)


def said(judge: Judge, line: bytes, time: int) -> tuple:
    try:
        record = judge(line, time)
    except RefusedRecord as why:
        return ("refused", why.reason, why.field)
    except SkippedRecord:
        return ("skipped",)
    return ("empty",) if record is None else ("counted", record)


WINDOW_MS = 1  # so that a row's window is its records' time


def added(records: Records, expected: Expected) -> dict[int, Judged]:
    """Every record that was added, by its message's offset, as the judge would say it. Those without an id are not in
    the log of records."""
    numbers = expected.add(records)
    ends, marks = records.write_log(file := io.BytesIO())
    found = native.logged(np.frombuffer(file.getvalue(), np.uint8), ends, np.arange(len(marks)))
    rows = {name: column.to_pylist() for name, column in zip(*_columns(expected), strict=True)}
    texts = {name: found[name].to_pylist() for name in ("request_id", "scope")}
    judged = {}
    for at, offset in enumerate(found["log_offset"].tolist()):
        row, prefill = numbers[at].tolist()
        counts = [int(found[name][at]) for name in native.NUMBERS]
        names = [rows[name][row] for name in ("user", "model", "chip")]
        prefill_chip = rows["chip"][prefill] if prefill != native.NO_ROW else None
        six = texts["request_id"][at], texts["scope"][at], *names, prefill_chip, rows["labels"][row]
        request_id, scope, *others, labels = (None if text is None else text.decode() for text in six)
        time = rows["window_start"][row]
        judged[offset] = (request_id, scope, time, *others, *counts[:6], labels, *counts[6:])
    return judged


def _columns(expected: Expected):
    table = expected.table(np.arange(len(expected)))
    return table.column_names, table.columns


def assert_judged_alike(
    mapping: mappings.Mapping, lines: Sequence[bytes], times: Sequence[int] | None = None, past_ms: int | None = PAST_MS
) -> int:
    """All that the quick judge decides is what the judge says. Returns how many lines it decides."""
    judge = Judge(mapping, SKEW_MS, past_ms)
    together = QuickJudge(mapping, judge, SKEW_MS, past_ms)
    message_times = np.array(times or [NOW_MS] * len(lines), np.int64)
    numbers = np.arange(len(lines))
    for _ in range(2):  # with templates that it has just learned, and with those that it knows
        expected, adding = Expected(), Records(WINDOW_MS, SEED)
        messages = Together(joined([lines]), message_times, numbers, numbers, np.ones(len(lines), bool))
        answer = together(adding, messages)
        left = {each.message for each in answer.left}
        assert all(lines[each.message] == each.line for each in answer.left)
        decided = [line for line in range(len(lines)) if line not in left]
        wanted = {line: said(judge, lines[line], int(message_times[line])) for line in decided}
        assert {kind for kind, *_ in wanted.values()} <= {"counted", "skipped"}, f"seed {SEED}"
        records = {line: verdict[1] for line, verdict in wanted.items() if verdict[0] == "counted"}
        assert (answer.counted, answer.skipped) == (len(records), len(decided) - len(records))
        found, table = added(adding, expected), expected.table()
        for line, record in records.items():
            if record[0] is not None:
                assert found[line] == record, f"seed {SEED}: {lines[line]!r}"
        assert len(found) == sum(record[0] is not None for record in records.values())
        assert sums_of(table) == sums_of_judged(list(records.values())), f"seed {SEED}"
    return len(decided)


def sums_of(table) -> dict[tuple, list[int]]:
    rows = table.to_pylist()
    names = ("window_start", "user", "model", "chip", "labels")
    return {tuple(row[name] for name in names): [row["records"], *(row[name] for name in native.NUMBERS)]
            for row in rows}  # fmt: skip


def sums_of_judged(records: Sequence[Judged]) -> dict[tuple, list[int]]:
    """By row; what is not generated goes to the chip that read the prompt."""
    sums: dict[tuple, list[int]] = {}
    for _, _, time, user, model, chip, prefill_chip, *numbers in records:
        labels = numbers.pop(6)
        output = [name in ("requests", "output_tokens", "reasoning_tokens", "audio_output_tokens")
                  for name in native.NUMBERS]  # fmt: skip
        halves = [(chip, output), (prefill_chip, [not one for one in output])]
        for where, takes in halves if prefill_chip is not None else [(chip, [True] * len(output))]:
            key = time, *(None if text is None else text.encode() for text in (user, model, where, labels))
            row = sums.setdefault(key, [0] * (1 + len(output)))
            row[0] += 1
            for at, (number, taken) in enumerate(zip(numbers, takes, strict=True)):
                row[1 + at] += number * taken
    return sums


_VALUE = re.compile(rb'(?<=[:,\[ ])("[^"\\]*"(?!\s*:)|\d+(?=[,}\]]))')


def with_another_value(rng: random.Random, line: bytes) -> bytes:
    """A number of other digits, or a text of other letters."""
    values = list(_VALUE.finditer(line))
    if not values:
        return line
    match = rng.choice(values)
    if match[0][:1] == b'"':
        text = b'"' + bytes(rng.choices(b"abc-_/0123 ", k=rng.choice([0, 1, 7, 12, 13, 16, 17, 40]))) + b'"'
    else:
        text = b"%d" % rng.choice([0, 1, 12, 10**11, 10**12 - 1, 10**12, 2**40 - 1, 2**40, 10**16 - 1, 10**16])
    return line[: match.start()] + text + line[match.end() :]


@pytest.mark.slow
@pytest.mark.parametrize("name", ELIGIBLE)
def test_mutated_lines_are_judged_alike(name):
    rng = random.Random(f"{SEED} quick {name}")
    mapping = harness.shipped(name)
    lines = [line for line in mutate.lines(rng, name, mapping.oracle, 100 * harness.TIMES) if line]
    lines += [with_another_value(rng, line) for line in lines for _ in range(6)]
    lines += [respelled(rng, line) for line in lines if is_json(line)]
    times = [NOW_MS if rng.random() < 0.95 else NOW_MS + rng.choice([-SKEW_MS, PAST_MS]) for _ in lines]
    assert_judged_alike(mapping.engine, lines, times)


EXAMPLES = pathlib.Path(mappings.__file__).parent / "mappings" / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", ELIGIBLE)
def test_lines_of_real_producers_are_judged_together(name):
    """The examples of the shipped mappings, each beside itself with other values."""
    rng = random.Random(f"{SEED} examples {name}")
    mapping = harness.shipped(name).engine
    good = (EXAMPLES / f"{name}.ndjson").read_bytes().splitlines()
    lines = [line for line in good for _ in range(3)]
    lines += [with_another_value(rng, line) for line in good for _ in range(100 * harness.TIMES)]
    decided = assert_judged_alike(mapping, lines, [2 * NOW_MS] * len(lines), past_ms=None)
    assert decided > len(lines) / 6 or name in LEFT_TO_THE_JUDGE, decided / len(lines)


# Whose times are fractions of a second as numbers: of their lines at most the skipped ones are taken.
LEFT_TO_THE_JUDGE = {"litellm", "litellm-cache-hits", "sglang-metrics"}


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["epoch_ms", "epoch_s", "epoch_us", "epoch_ns", "epoch_s_decimal"])
def test_lines_of_an_odd_mapping_are_judged_alike(unit):
    mapping = harness.Mapping.parse(ODD.replace("TIME", MAPPINGS["every unit"].format(unit=unit)), "odd")
    rng = random.Random(f"{SEED} quick {unit}")
    lines = [line for line in mutate.lines(rng, "odd", mapping.oracle, 400) if line]
    lines += [with_another_value(rng, line) for line in lines for _ in range(6)]
    assert_judged_alike(mapping.engine, lines)


SPOKEN = {"request_id": 60, "user": 30, "model": 20, "prompt": 200, "region": 8}  # and of how many characters at most


def spoken(rng: random.Random, must: str) -> bytes:
    """A record whose texts are of any characters, those of `must` only in the prompt."""
    drawn = {name: "".join(rng.choices("abc/<&=é中😀", k=rng.randint(1, most))) for name, most in SPOKEN.items()}
    drawn["prompt"] += "".join(rng.choices(must, k=9))
    record = {**orjson.loads(bad_input.GOOD), **drawn, "input_tokens": rng.randrange(100)}
    habit = rng.choice(list(HABITS.values()))
    return b"{" + b",".join(
        b'"%s":%s' % (name.encode(), spelt(value, habit) if isinstance(value, str) else b"%d" % value)
        for name, value in record.items()
    ) + b"}"  # fmt: skip


def test_lines_with_escapes_are_judged_together():
    """Names as PHP, Python and Gson write them, prompts of several lines with quotes."""
    rng = random.Random(SEED)
    lines = [spoken(rng, '"\\\n\t\x00') for _ in range(400)]
    assert sum(b"\\" in line for line in lines) == 400
    assert assert_judged_alike(mappings.resolve("native"), lines) == 400


@pytest.mark.parametrize("text", HOSTILE)
def test_an_escape_is_what_json_says(text):
    """In a name, and in a text that nobody reads."""
    good = [bad_input.changed(user=b'"u%d"' % n, prompt=b'"p\\n%d"' % n) for n in range(70)]
    odd = [bad_input.changed(user=b'"%s"' % text), bad_input.changed(prompt=b'"%s"' % text, user=b'"u1"')]
    assert assert_judged_alike(mappings.resolve("native"), [*good, *odd, *good]) >= len(good)


def with_one_change(line: bytes) -> Iterator[bytes]:
    for at in range(len(line)):
        yield line[:at] + line[at + 1 :]
        yield line[:at] + line[at : at + 1] + line[at:]
        for byte in BYTES:
            yield line[:at] + bytes([byte]) + line[at + 1 :]


GOOD = {
    "native": b'{"request_id":"r-1","timestamp":1794999999000,"user":"ada","model":"m","chip":"H100","region":"e",'
    b'"input_tokens":17,"cached_input_tokens":5,"output_tokens":300,"ms":12.5,"ok":true,"n":null,"l":[1,"x",{}]}',
    "with blanks": b'{"timestamp": "2026-11-18T00:26:39.5Z", "user": "ada", "model": "m", "chip": "c", '
    b'"input_tokens": 0, "output_tokens": 3, "status": 200, "nothing": {}}',
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GOOD)
def test_no_changed_byte_is_overlooked(name):
    """Every byte of a line left out, doubled, and replaced, beside lines that are as they should be."""
    line = GOOD[name]
    changed = [each for each in with_one_change(line) if each and b"\n" not in each]
    decided = assert_judged_alike(mappings.resolve("native"), [line] * 3 + changed)
    assert decided > 100, "most digits of a number may be others"


def test_lines_with_other_unicode_are_judged_alike():
    line = GOOD["native"]
    texts = ["é", "世界", "\u2028", "😀", "\x7f", "x" * 256, "x" * 257, "é" * 128, "é" * 129]
    lines = [line] * 3 + [line.replace(b"ada", text.encode()) for text in texts]
    assert assert_judged_alike(mappings.resolve("native"), lines) == len(lines) - 2
    broken = [
        line.replace(b'"e"', b'"' + text + b'"') for text in (b"\x80", b"\xed\xa0\x80", b"\xc3", b"\xf5\x80\x80\x80")
    ]
    assert assert_judged_alike(mappings.resolve("native"), lines + broken) == len(lines) - 2


def test_a_key_that_occurs_twice_makes_no_template():
    line = (
        b'{"user":"a","user":"b","timestamp":1794999999000,"model":"m","chip":"c","input_tokens":1,"output_tokens":1}'
    )
    assert assert_judged_alike(mappings.resolve("native"), [line] * 10) == 0
    unread = line.replace(b'"user":"a"', b'"other":"a","other":"b"').replace(b'"user":"b",', b"") + b""
    assert assert_judged_alike(mappings.resolve("native"), [unread] * 10) == 0


@pytest.mark.parametrize("size", [0, 1])
def test_a_line_at_the_limit_and_beyond_it(size):
    """1 MiB: the judge refuses a longer one, so it must not be taken by its template."""
    line = bad_input.changed(request_id=None)
    padded = line[:-1] + b',"more":"' + b"x" * ((1 << 20) - len(line) - 10 + size) + b'"}'
    assert len(padded) == (1 << 20) + size
    decided = assert_judged_alike(mappings.resolve("native"), [padded] * 3, [bad_time(line)] * 3)
    assert decided == (0 if size else 3)


def bad_time(line: bytes) -> int:
    value = orjson.loads(line)["timestamp"]
    return value if isinstance(value, int) else NOW_MS


def test_a_log_with_very_many_shapes_goes_to_the_judge(monkeypatch):
    monkeypatch.setattr(quick, "PLANS_MAX", 3)
    line = GOOD["native"]
    lines = [line.replace(b'"region"', b'"region%d"' % n) for n in range(8) for _ in range(5)]
    assert assert_judged_alike(mappings.resolve("native"), lines) == 3 * 5


# --- What stands between fixed texts ---


def alike(template: bytes, values: Sequence[bytes], name: bytes) -> list[bool]:
    """Which of these values the plan of a line takes in the place of its own."""
    judge = Judge(mappings.resolve("native"), SKEW_MS, None)
    together = QuickJudge(mappings.resolve("native"), judge, SKEW_MS, None)
    plan = together.learn(template, NOW_MS)
    assert plan is not None
    head, tail = template.split(name)
    return [together.judged(plan, head + value + tail, NOW_MS) is not None for value in values]


SCALARS = st.lists(st.text("0123456789-+.eEtrufalsn", min_size=1, max_size=20).map(str.encode), min_size=1, max_size=30)


@settings(max_examples=300, deadline=None)
@given(SCALARS)
def test_what_is_surely_a_scalar_or_a_count_is_json(texts):
    line = GOOD["native"]
    for text, sure in zip(texts, alike(line, texts, b"12.5"), strict=True):
        assert not sure or type(json.loads(text)) in (int, float, bool, type(None))
    for text, sure in zip(texts, alike(line.replace(b"300", b"12345"), texts, b"12345"), strict=True):
        assert bool(sure) == (bool(re.fullmatch(rb"0|[1-9][0-9]{0,15}", text)) and int(text) < 1 << 40)


@pytest.mark.parametrize(
    "text", [b"0", b"-0", b"200", b"12.50", b"-1.5", b"true", b"false", b"null", b"0.1234567890123"]
)
def test_plain_scalars_are_sure(text):
    assert alike(GOOD["native"], [text], b"12.5") == [True]


DIGITS = st.text("0123456789", min_size=1, max_size=10)
TIME = st.one_of(
    st.datetimes().map(lambda time: time.isoformat() + "Z"),
    st.builds(
        lambda time, mark, fraction, zone: f"{time:%Y-%m-%d}{mark}{time:%H:%M:%S}{fraction}{zone}",
        st.datetimes(),
        st.sampled_from("Tt _"),
        st.one_of(st.just(""), st.just("."), DIGITS.map(lambda text: "." + text), st.just(",5")),
        st.sampled_from(["Z", "z", "+05:30", "-00:00", "+24:00", "+05:60", "+0530", "", "Y"]),
    ),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(Z|\+[0-9]{2}:[0-9]{2})", fullmatch=True),
)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(st.lists(TIME, min_size=1, max_size=20))
def test_what_is_surely_a_time_is_the_judges_time(texts):
    mapping = mappings.resolve("native")
    read = time_reader(mapping.field("timestamp"), lambda top: top["t"], 1 << 62, None, 0)
    together = QuickJudge(mapping, Judge(mapping, 1 << 62, None), 1 << 62, None)
    line = GOOD["with blanks"]
    plan = together.learn(line, NOW_MS)
    for text in texts:
        changed = line.replace(b"2026-11-18T00:26:39.5Z", text.encode())
        answer = together.judged(plan, changed, NOW_MS)
        try:
            wanted = read({"t": text}, None)
        except RefusedRecord:
            wanted = None
        assert answer is None or answer[2] == wanted, text
        assert answer is not None or wanted is None or ":60" in text, text


# --- Ids ---


def test_marks_that_occur_twice_are_found_in_several_passes(tmp_path, monkeypatch):
    monkeypatch.setattr(ids, "_MARKS_AT_ONCE", 7)
    monkeypatch.setattr(ids, "_SIEVE_BITS", 3)
    rng = np.random.default_rng(SEED)
    files, marks = [], []
    for number in range(5):
        some = rng.integers(0, 60, 9).astype(np.uint64)
        np.save(file := f"{tmp_path}/marks-{number}.npy", some)
        files.append(file)
        marks += some.tolist()
    wanted = sorted({mark for mark in marks if marks.count(mark) > 1})
    repeated = ids.Repeated(files)
    assert repeated.marks.tolist() == wanted
    asked = [*range(60), 10**6]
    assert repeated.holds(np.array(asked, np.uint64)).tolist() == [mark in wanted for mark in asked]
    assert len(ids.Repeated([])) == 0


IDS = st.lists(st.tuples(st.one_of(st.none(), st.text("ab", max_size=70)), st.sampled_from(["", "s", "t" * 40])))


@settings(max_examples=200, deadline=None)
@given(IDS)
def test_equal_ids_have_equal_marks(records):
    """And different ones have others, as far as these tests reach; no id has none."""
    adding, count = Records(1, SEED), len(records)
    names = [None if name is None else name.encode() for name, _ in records]
    scopes = [scope.encode() for _, scope in records]
    columns = [joined([column]) for column in (names, scopes, *[[b"x"] * count] * 5)]
    numbers = np.arange(count)
    adding.add(columns, numbers, np.zeros((count, len(native.NUMBERS))), numbers, numbers, numbers)
    _, marks = adding.write_log(io.BytesIO())
    known = {}
    for record, mark in zip([each for each in records if each[0] is not None], marks.tolist(), strict=True):
        assert known.setdefault(record, mark) == mark
    assert len(set(known.values())) == len(known)


SIZES = [(1 << bits) + off for bits in range(7, 64, 7) for off in (-1, 0)][:-1]  # where a spelling becomes longer
NUMBER = st.one_of(st.integers(0, 300), st.sampled_from(SIZES))
TEXT = st.binary(max_size=300)
ADDED = st.tuples(st.one_of(st.none(), TEXT), TEXT, TEXT, st.one_of(st.none(), TEXT), st.lists(
    NUMBER, min_size=len(native.NUMBERS) + 3, max_size=len(native.NUMBERS) + 3))  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(ADDED, min_size=1, max_size=30), st.booleans())
def test_the_log_of_records_says_what_was_added(records, is_context):
    """Of each with an id: numbers of any size, texts of any bytes, and its rows; more than are on their way at once."""
    adding, expected = Records(1, SEED), Expected()
    ids, scopes, users, chips, numbers = zip(*records, strict=True)
    same, none = [b"m"] * len(records), np.zeros(len(records), np.int64)
    columns = [joined([column]) for column in (ids, scopes, users, same, same, chips, [b""] * len(records))]
    counts = np.array(numbers, np.int64)
    offsets, generations, lines = (counts[:, at] >> (31 if at == 2 else 0) for at in range(3))
    adding.add(columns, none, counts[:, 3:], offsets, generations, lines)
    assert len(adding) == len(records)
    rows, table = expected.add(adding, is_context), expected.table(np.arange(len(expected))).to_pylist()
    ends, _ = adding.write_log(file := io.BytesIO())
    found = native.logged(np.frombuffer(file.getvalue(), np.uint8), ends, np.arange(len(ends)))
    logged = [number for number in range(len(records)) if ids[number] is not None]
    assert found["request_id"].to_pylist() == [ids[number] for number in logged]
    assert found["scope"].to_pylist() == [scopes[number] for number in logged]
    named = zip(("log_offset", "generation", "line", *native.NUMBERS), range(counts.shape[1]), strict=True)
    for name, at in named:
        assert found[name].tolist() == [int(counts[number, at]) >> (31 if at == 2 else 0) for number in logged]
    for number, (row, prefill) in zip(logged, rows.tolist(), strict=True):
        assert table[row]["user"] == users[number] and table[row]["chip"] == b"m"
        chip = None if prefill == native.NO_ROW else table[prefill]["chip"]
        assert chip == chips[number]
    booked = [] if is_context else [1 + (chip is not None) for chip in chips]
    assert sum(row["records"] for row in table) == sum(booked)


# --- Rows of token-usage ---


def rows_one_by_one(keys, values):
    """What each message by itself says."""
    found = []
    for key, value in zip(keys, values, strict=True):
        try:
            found.append(usage._row(key, value, "", SETTINGS.window_ms))
        except (live.MalformedSummary, usage.VerifyError):
            found.append(None)
    return found


def test_no_changed_byte_of_a_row_is_overlooked():
    stream = make_stream()
    texts = [(json.dumps(key).encode(), json.dumps(value).encode()) for key, value in stream.usage]
    keys, values = (list(column) for column in zip(*texts, strict=True))
    key, value = keys[0], values[0]
    wanted = rows_one_by_one(keys, values)
    for changed in with_one_change(value):
        keys.append(key)
        values.append(changed)
    for changed in with_one_change(key):
        keys.append(changed)
        values.append(value)
    wanted = rows_one_by_one(keys, values)
    good = [at for at, row in enumerate(wanted) if row is not None]
    other_schemas = [at for at, each in enumerate(values) if b"\n" in each or not is_known(each)]
    kept = [at for at in range(len(keys)) if at not in set(other_schemas)]
    found, reader = Found(SEED), None
    reader = usage.UsageReader(found, SETTINGS.window_ms)
    rows, problems = {}, []
    columns = joined([[keys[at] for at in kept]]), joined([[values[at] for at in kept]])
    left = reader._rows.read(found, *columns, np.array(kept), 0)
    assert len(left) == len(kept), "nothing is known of rows yet"
    problems = reader.read(*columns, np.array(kept), "token-usage", 0)
    assert reader._learned >= 1
    assert len(problems) == len(kept) - len([at for at in good if at in set(kept)])
    for row in found.table().to_pylist():
        rows[row["log_offset"]] = tuple(row[name] for name in ROW)
    wanted_rows = {at: tuple(as_bytes(cell) for cell in wanted[at]) for at in good if at in set(kept)}
    last = {(*row[:5], row[11]): at for at, row in wanted_rows.items()}
    assert rows == {at: wanted_rows[at] for at in last.values()}
    alone = [at for at in good if at in set(kept) and not len(reader._rows.read(Found(0), *one(keys, values, at)))]
    assert len(alone) > 100, "rows were read together"
    for at in alone:
        table = Found(0)
        assert not len(reader._rows.read(table, *one(keys, values, at)))
        [row] = table.table().to_pylist()
        assert tuple(row[name] for name in ROW) == wanted_rows[at]


def one(keys, values, at):
    return joined([[keys[at]]]), joined([[values[at]]]), np.array([at]), 0


ROW = ("window_start", "user", "model", "chip", "part", *usage.COUNTERS, "labels", *usage.FURTHER)


def as_bytes(cell):
    return cell.encode() if isinstance(cell, str) else cell


def is_known(value: bytes) -> bool:
    """Whether its version and its window are those of this audit; others end it."""
    try:
        live.check_version(live.object_of(value), "", SETTINGS.window_ms, usage.ROW_SCHEMAS)
    except live.MalformedSummary:
        return True
    except usage.VerifyError:
        return False
    return True


# --- The whole audit ---


def test_an_audit_finds_the_same_without_templates(monkeypatch):
    """Labels, scopes, duplicates and conflicts included: the report is that of the judge alone."""
    stream = make_stream()
    stream.row(-1)["requests"] += 1
    together = stream.verify()
    monkeypatch.setattr(usage, "PLANS_MAX", 0)
    monkeypatch.setattr("tokenometer.processor.verify.is_eligible", lambda mapping: False)
    alone = verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    assert together.differing_rows == 1
    assert {**vars(together), "seconds": 0} == {**vars(alone), "seconds": 0}


def test_two_readings_that_differ_end_the_audit(monkeypatch):
    """A judge that changes its mind after it was asked for a template."""
    mapping = mappings.resolve("native")
    judge = Judge(mapping, SKEW_MS, PAST_MS)
    together = QuickJudge(mapping, judge, SKEW_MS, PAST_MS)
    five, numbers = joined([[GOOD["native"]] * 5]), np.arange(5)
    messages = Together(five, np.full(5, NOW_MS), numbers, numbers, np.ones(5, bool))
    assert together(Records(1, 0), messages).counted == 5
    answer = judge(GOOD["native"], NOW_MS)
    monkeypatch.setattr(Judge, "__call__", lambda self, line, time: (*answer[:-1], 1))
    with pytest.raises(quick.VerifyError, match="two readings of one line differ"):
        together(Records(1, 0), messages)


def test_a_shape_that_is_rare_in_each_chunk_is_learned_in_the_end(monkeypatch):
    monkeypatch.setattr(templates, "WORTH", 5)
    mapping = mappings.resolve("native")
    together = QuickJudge(mapping, Judge(mapping, SKEW_MS, PAST_MS), SKEW_MS, PAST_MS)
    messages = Together(joined([[GOOD["native"]]]), np.full(1, NOW_MS), np.zeros(1, np.int64), np.zeros(1, np.int64),
                        np.ones(1, bool))  # fmt: skip
    counted = [together(Records(1, 0), messages).counted for _ in range(7)]
    assert counted == [0] * 4 + [1] * 3 and together.learned == 1


def test_large_messages_that_come_at_once_are_judged_in_pieces(monkeypatch):
    """A poll may bring 2,000 messages of 64 KB: as one page they would fill no cache, and much memory."""
    monkeypatch.setattr("tokenometer.processor.verify._CHUNK_BYTES", 10_000)
    values = [b"x" * size for size in [0, 1000, 3000] * 40] + [None]
    count = len(values)
    messages = Messages(Place("t", 0), values, np.arange(count, dtype=np.uint64), np.arange(count) + 7, values, None)
    chunks = list(_in_chunks([messages, messages]))
    assert len(chunks) > 10
    for chunk in chunks:
        assert sum(len(value or b"") for some in chunk for value in some.values) <= 30_000
        assert all(list(some.keys or ()) == list(some.values) for some in chunk)
    together = [some for chunk in chunks for some in chunk]
    assert [value for some in together for value in some.values] == values * 2
    assert np.concatenate([some.offsets for some in together]).tolist() == [*range(7, 7 + count)] * 2
    assert np.concatenate([some.times for some in together]).tolist() == [*range(count)] * 2


# --- Tables ---


def test_tables_that_are_too_large_change_nothing(monkeypatch):
    """Each chunk's sums and rows go to DuckDB at once, with labels, prefill chips, duplicates and a fault."""
    stream = make_stream()
    stream.row(-1)["requests"] += 1
    monkeypatch.setattr("tokenometer.processor.verify._CHUNK_MESSAGES", 20)
    together = stream.verify()
    written = []
    monkeypatch.setattr("tokenometer.processor.verify.Tables", lambda folder, window, memory: small(folder, window))
    kept = tally.Tables._write_expected
    monkeypatch.setattr(tally.Tables, "_write_expected", lambda self: (written.append(1), kept(self))[1])
    alone = verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    assert len(written) >= 2, "a chunk of each partition"
    assert together.differing_rows == 1
    assert {**vars(together), "seconds": 0} == {**vars(alone), "seconds": 0}


def small(folder: str, window_ms: int) -> tally.Tables:
    return tally.Tables(folder, window_ms, memory_bytes=1)


KEYS = st.sampled_from([(b"a", b"m"), (b"b", b"m"), (b"", b"m"), (b"a", b"mm"), (b"am", b"")])
COUNTS = st.sampled_from([0, 1, 2, 3, 1 << 39, (1 << 40) - 1])
PUBLISHED = st.tuples(KEYS, st.sampled_from([b"p", b"q", b"r"]), st.sampled_from([0, 1]), COUNTS, st.integers(0, 9))


def add_record(expected: Expected, user: bytes, model: bytes, count: int) -> None:
    texts = [joined([[text]]) for text in (b"id", b"", user, model, b"chip", None, b"")]
    numbers = np.array([[1, count, *[0] * (len(native.NUMBERS) - 2)]])
    records = Records(60_000, SEED)
    records.add(texts, np.zeros(1), numbers, *[np.zeros(1, np.int64)] * 3)
    expected.add(records)


def add_row(found: Found, user: bytes, model: bytes, part: bytes, numbers: Sequence[int], place=0, offset=0) -> None:
    padded = [*numbers, *[0] * (len(native.NUMBERS) - len(numbers))]
    found.add(0, offset, place, (user, model, b"chip", b"", part), padded)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(KEYS, COUNTS), max_size=12), st.lists(PUBLISHED, max_size=12), st.data())
def test_what_agrees_is_what_adds_up(records, published, data):
    """By dictionaries: rows whose last published rows add up to their records. The others are all there still."""
    expected, found = Expected(), Found(SEED)
    log: dict[tuple, list[int]] = {}
    for key, count in records:
        add_record(expected, *key, count)
        row = log.setdefault(key, [0, 0])
        row[0] += 1
        row[1] += count
    rows = [
        (key, part, place, [1, count], 100 * order + number)  # in any order; no offset occurs twice
        for number, (key, part, place, count, order) in enumerate(published)
    ]
    some = data.draw(st.sampled_from([*log, None])) if log else None
    if some is not None:  # a row that does agree, unless others of its key are there, too
        rows.append((some, b"s", 0, log[some], 0))
    last: dict[tuple, list[int]] = {}
    offsets: dict[tuple, int] = {}
    for key, part, place, numbers, offset in rows:
        add_row(found, *key, part, numbers, place, offset)
        if offset > offsets.get((key, part, place), -1):
            last[key, part, place], offsets[key, part, place] = numbers, offset
    agreed = set()
    for key in log:
        of_key = {(part, place): numbers for (other, part, place), numbers in last.items() if other == key}
        parts = [part for part, _ in of_key]
        sums = [sum(column) for column in zip(*of_key.values(), strict=True)]
        if of_key and len(set(parts)) == len(parts) and sums == log[key]:
            agreed.add(key)
    count, by_part = found.agree(expected)
    assert count == len(agreed)
    left = {(row["user"], row["model"]): [row["requests"], row["input_tokens"]] for row in expected.table().to_pylist()}
    assert left == {key: numbers for key, numbers in log.items() if key not in agreed}
    for part, sums in by_part.items():
        some = [numbers for (key, other, _), numbers in last.items() if key in agreed and other == part]
        assert sums[:2] == [sum(column) for column in zip([0, 0], *some, strict=True)]
    rest: dict[tuple, list[int]] = {}
    for row in sorted(found.table().to_pylist(), key=lambda row: row["log_offset"]):
        rest[(row["user"], row["model"]), row["part"], row["place"]] = [row["requests"], row["input_tokens"]]
    assert rest == {key: numbers for key, numbers in last.items() if key[0] not in agreed}


@pytest.mark.parametrize("count", [(1 << 48) - 1, 1 << 48, (1 << 64) - 1])
def test_counters_that_could_wrap_are_left_to_duckdb(count):
    """2^48 is the first. Two rows of 2^63 would add up to nothing in 64 bits."""
    expected, found = Expected(), Found(SEED)
    records = -(-count // ((1 << 40) - 1)) if count < 1 << 49 else 1
    rest = count
    for _ in range(records):
        add_record(expected, b"a", b"m", min(rest, (1 << 40) - 1))
        rest -= min(rest, (1 << 40) - 1)
    add_row(found, b"a", b"m", b"p", [records, count])
    rows, _ = found.agree(expected)
    assert rows == (count < 1 << 48)
    if count >= 1 << 49:
        add_row(found, b"a", b"m", b"q", [0, 1 << 40])
        assert found.agree(expected)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1 << 13, (1 << 13) + 1])
def test_a_row_of_very_many_parts_is_left_to_duckdb(parts):
    expected, found = Expected(), Found(SEED)
    for _ in range(parts):
        add_record(expected, b"a", b"m", 1)
    for part in range(parts):
        add_row(found, b"a", b"m", b"p%d" % part, [1, 1])
    assert found.agree(expected)[0] == (parts == 1 << 13)


def test_a_sum_that_comes_near_its_end_is_written_out():
    """2^62 is the first; a chunk of records adds less than is left."""
    expected, records = Expected(), Records(60_000, SEED)
    texts = [joined([[text]]) for text in (None, b"", b"a", b"m", b"c", None, b"")]
    for size, full in (((1 << 62) - 1, False), (1, True)):
        numbers = np.array([[0, size, *[0] * (len(native.NUMBERS) - 2)]])
        records.clear()
        records.add(texts, np.zeros(1), numbers, *[np.zeros(1, np.int64)] * 3)
        expected.add(records)
        assert expected.is_full == full
    expected.clear()
    assert not expected.is_full and len(expected) == 0


def test_without_a_compiler_the_audit_says_so(monkeypatch, tmp_path):
    stream = make_stream()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    native._library.cache_clear()
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
        verify(stream.broker, GROUP, {LOG: stream.mapping.engine}, SETTINGS)
    monkeypatch.undo()
    native._library.cache_clear()
