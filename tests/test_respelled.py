"""Escapes that could be written out are read as if they were, and the referee is not asked about them."""

import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import format2, harness, mutate
from tests.bad_input import TIME_MS, changed, padded
from tests.harness import Piece, shipped
from tokenometer.kernels.engine import Engine
from tokenometer.kernels.layout import RECORD_BYTES_MAX

NATIVE = shipped()
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
PIECE = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|.")
MUST = '"\\' + "".join(map(chr, range(0x20)))  # be escaped
Spell = Callable[[str], str]


@functools.cache
def escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


# What producers escape though they need not: PHP's json_encode, Python's and Ruby's ASCII, Gson for HTML.
HABITS: dict[str, Spell] = {
    "php": lambda each: r"\/" if each == "/" else escape(each) if each > "~" else each,
    "python": lambda each: escape(each) if each > "~" else each,
    "gson": lambda each: escape(each) if each in "<>&='" else each,
    "everything": escape,
    "upper case": lambda each: r"\u" + escape(each)[2:].upper().replace("\\U", r"\u"),
}


def spelt(text: str, habit: Spell) -> bytes:
    return ('"' + "".join(escape(each) if each in MUST else habit(each) for each in text) + '"').encode()


class Asked:
    """A referee that keeps what it is asked about."""

    def __init__(self, engine: Engine) -> None:
        self._referee, self.lines = engine._referee, []
        engine._referee = self  # type: ignore[assignment]

    def __call__(self, record: bytes, *more: Any) -> Any:
        self.lines.append(record)
        return self._referee(record, *more)


def asked_about(engine: Engine, mapping: harness.Mapping, lines: Sequence[bytes]) -> list[bytes]:
    """Counts them as the oracle does. What the referee was asked."""
    asked = Asked(engine)
    harness.check(engine, mapping, [Piece(batch) for batch in harness.batches(lines)])
    return asked.lines


names = st.text(st.characters(codec="utf-8", exclude_characters=MUST), min_size=1, max_size=60)


@pytest.mark.parametrize("habit", HABITS)
@settings(max_examples=10 * harness.TIMES, deadline=None)
@given(texts=st.lists(st.tuples(names, names, names), min_size=1, max_size=12))
def test_names_that_a_producer_escapes_are_not_the_referees(make_engine, habit, texts):
    """Whatever bytes they have; those that no string may hold as they are stay escaped, and are."""
    lines, must = [], []
    for number, (user, model, request_id) in enumerate(texts):
        fields = {"user": user, "model": f"vendor/{model}"[:60], "request_id": request_id}
        spelled = {name: spelt(text, HABITS[habit]) for name, text in fields.items()}
        lines.append(changed(**spelled, prompt=spelt(f'{user}\n"{model}"', HABITS[habit])))
        if number % 3 == 0:
            must.append(changed(**(spelled | {"user": spelt(f'{user[:50]}"\n', HABITS[habit])})))
    assert asked_about(make_engine(), NATIVE, lines) == []
    assert asked_about(make_engine(), NATIVE, [*lines, *must]) == must


def respelled(rng: random.Random, line: bytes) -> bytes:
    """The same record: characters of its strings, keys too, escaped here and there."""

    def anew(match: re.Match[bytes]) -> bytes:
        share = rng.choice([0, 0.05, 1])
        if share == 0:
            return match.group()
        pieces = PIECE.findall(match.group()[1:-1].decode())
        spelled = [escape(p) if len(p) == 1 and (share == 1 or rng.random() < share) else p for p in pieces]
        return f'"{"".join(spelled)}"'.encode()

    return STRING.sub(anew, line)


def is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
        return True
    except orjson.JSONDecodeError:
        return False


def mapping_of(name: str) -> harness.Mapping:
    if name in harness.SHIPPED:
        return shipped(name)
    return harness.Mapping.parse(format2.text(format2.MAPPINGS[name]), f"{name}.toml")


@pytest.mark.slow
@pytest.mark.parametrize("name", [*harness.SHIPPED, *format2.MAPPINGS])
def test_a_record_means_the_same_however_it_is_spelled(make_engine, name, monkeypatch):
    """Of each mapping's lines: the referee is asked about the same ones, if nothing is learned from either."""
    monkeypatch.setattr("tokenometer.kernels.loaded.sample", lambda data: [])
    rng, mapping = random.Random(name), mapping_of(name)
    made = [line for line in mutate.lines(rng, name, mapping.oracle, 40 * harness.TIMES) if len(line) < 1 << 12]
    lines = list({line: None for line in made if is_json(line)})
    spelled = {respelled(rng, line): line for line in lines}
    plain = set(asked_about(make_engine(), mapping, list(spelled.values())))
    asked = asked_about(make_engine(), mapping, list(spelled))
    assert {spelled[line] for line in asked} == plain


HOSTILE = [
    rb"\u0022", rb"\u005c", rb"\\u0041", rb"\\/", rb"\\\/", rb"\/", rb"a\/", rb"\u002f\/", rb"\u0000", rb"\u001F",
    rb"\u0020", rb"\u007f", rb"\u0080", rb"\u07ff", rb"\u0800", rb"\uffff", rb"\ud83d\ude00", rb"\uD800\uDC00",
    rb"\udbff\udfff", rb"\ud83d", rb"\ude00", rb"\ude00\ud83d", rb"\ud83d\u0041", rb"\ud83d\/", rb"\u00", rb"\u00g0",
    rb"\u06E\u0065", rb"\ud83\u0064\ude00", rb"\ud83d\\ude00", rb"\x41", rb"\'", rb"\U0041", rb"\/\n", rb"\n", rb"\"\/",
    rb"\b\f\r\t\/", b"\\u00e9\xe9", b"\xc3\\u00a9", b"\\u00c3\xa9", b"\xe4\\u4e2d", b"\\/\x01",
]  # fmt: skip


def test_escapes_of_every_kind(make_engine):
    """In a name, in a key, in a string that nobody reads, outside of a string and at a line's end."""
    lines = []
    for number, text in enumerate(HOSTILE):
        own = b'"r%d"' % number
        lines += [
            changed(user=b'"%s"' % text, request_id=own),
            changed(user=b'"%s"' % (text * 10), request_id=own + b" "),
            changed(request_id=b'"k%d"' % number)[:-1] + b',"%s":"x"}' % text,
            changed(prompt=b'"%s"' % text, model=rb'"a\/b"'),
            changed(user=text),
            changed(model=rb'"a\/b"')[:-1] + text,
            changed(user=b'"' + text)[:-2],
        ]
    lines += [changed(model=rb'"a\/b"').replace(b'"user"', rb'"us\u0065r"'), b"\\", rb'{"user":"\u', rb'"\/"', rb"\/"]
    lines += [changed(us=b"1").replace(b'"us"', rb'"us\u0065r"')]  # a key twice
    harness.check(make_engine(), NATIVE, [Piece(lines)])
    for line in lines:
        harness.check(make_engine(), NATIVE, [Piece([line])])


def test_a_names_limit_is_of_what_it_says(make_engine):
    fits, long = rb"\u00e9" * 128, rb"\u00e9" * 128 + b"x"
    lines = [changed(user=b'"%s"' % fits), changed(user=b'"%s"' % long)]
    asked = asked_about(make_engine(), NATIVE, lines)
    assert asked == [lines[1]]


def test_a_records_limit_is_of_its_bytes(make_engine):
    """As they came: what is too long does not become shorter by another spelling."""
    engine = make_engine(**harness.LARGE)
    asked = Asked(engine)
    line = changed(model=rb'"a\/b"', prompt=b'"%s"')
    fits, long = (line % (b"x" * (size - len(line) + 2)) for size in (RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1))
    assert len(fits) == RECORD_BYTES_MAX and len(padded(RECORD_BYTES_MAX)) == len(fits)
    run = harness.check(engine, NATIVE, [Piece([fits]), Piece([long])])
    assert asked.lines == [long] and [letter[3] for letter in run.letters] == ["too_long"]


def test_a_line_has_the_time_of_its_message(make_engine):
    """Messages of several lines, whose times decide."""
    line = changed(model=rb'"a\/b"')
    times = [TIME_MS, TIME_MS - 7_200_000, TIME_MS, TIME_MS - 7_200_000]
    values = [b"\n".join([line] * lines) for lines in (1, 2, 3, 1)]
    run = harness.check(make_engine(), NATIVE, [Piece(values, times)])
    assert [letter[1:4] for letter in run.letters] == [(m, n, "future_timestamp") for m, n in [(1, 0), (1, 1), (3, 0)]]


def test_respelled_lines_and_the_referees_strings_fill_a_batch(make_engine):
    """Each line needs the more room; half of them are for the referee all the same."""
    lines = [changed(user=b'"%d%s"' % (n, rb"\u4e2d" * 40 + (rb"\n" if n % 2 else b""))) for n in range(400)]
    size = sum(len(line) + 1 for line in lines)
    for tile in (1, 7, 4096):
        harness.check(make_engine(batch_bytes=size, tile_records=tile), NATIVE, [Piece(lines), Piece(lines)])


def test_spelled_lines_of_a_tile_follow_one_another(make_engine):
    """From the room's beginning on, wherever they stood: few pages are touched, and each tile writes the same ones."""
    odd, plain = changed(model=rb'"a\/b"'), changed()
    engine = make_engine(tile_records=64)
    harness.check(engine, NATIVE, [Piece([odd if n % 30 == 7 else plain for n in range(256)])])
    space = engine._slots[0].buffer.respelled
    touched = engine.target.fetch(space)[: 256 * len(odd)].tobytes().rstrip(b"\0")
    assert touched.count(b"\n") <= 3 and len(touched) <= 3 * (len(odd) + 1) and odd.replace(rb"\/", b"/") in touched
