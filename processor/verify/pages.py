"""Many lines of a log in one buffer, and what can be asked of all of them at once: texts, numbers, times.

Nothing here knows a mapping or a record. Each question answers for every line with a value and whether it is sure;
where it is not, the line is judged by itself. Words are of 16 bytes, read at any place:

    buffer   ................ newline  line  newline  line ... newline  PAD zeros
             16, so that a number at the very beginning has a word that ends with it
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.processor.verify.times import TIME_END_MS

Ints = np.ndarray[Any, np.dtype[np.int64]]
Flags = np.ndarray[Any, np.dtype[np.bool_]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_Words = np.ndarray[Any, np.dtype[np.uint64]]
Places = tuple[Ints, Ints]  # of a text in each line: where it begins, and its bytes
Text: TypeAlias = pa.Array | bytes | None  # of many records: a column, or what all of them have

WORD = 16
PAD = 1 << 12
FRONT = WORD + 1
_BLOCK_BYTES = 1 << 17
NEWLINE, QUOTE, BACKSLASH, BLANK = b"\n"[0], b'"'[0], b"\\"[0], b" "[0]


def page_text(values: Sequence[bytes]) -> bytes:
    return b"\n".join([bytes(WORD), *values, bytes(PAD)])


class Page:
    """The lines of some values. Those that `plain` names have no escape and no control character, and are UTF-8.
    text: of `page_text`."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.bytes = np.frombuffer(text, np.uint8)
        self._words = np.ndarray((len(text) - WORD,), f"S{WORD}", text, strides=(1,))
        body = self.bytes[FRONT : len(text) - PAD]
        # Quotes and newlines: the mark after a line's last quote is its end.
        self.marks: Ints = _places_of(body, lambda some: (some == QUOTE) | (some == NEWLINE))
        last_mark = np.flatnonzero(self.bytes[self.marks] == NEWLINE)
        self.first_mark: Ints = np.concatenate(([0], last_mark[:-1] + 1))
        self.quote_count: Ints = last_mark - self.first_mark
        self.ends: Ints = self.marks[last_mark]
        self.begins: Ints = np.concatenate(([FRONT], self.ends[:-1] + 1))
        odd = _rare_places_of(body, lambda some: ((some < BLANK) & (some != NEWLINE)) | (some == BACKSLASH))
        self.plain: Flags = np.ones(len(self.ends), bool)
        self.plain[np.searchsorted(self.ends, odd)] = False
        self._leave_out_bad_unicode(body)

    def _leave_out_bad_unicode(self, body: Bytes) -> None:
        if len(body) == 0 or body.max() < 0x80:
            return
        whole = pa.Array.from_buffers(
            pa.large_string(), 1, [None, pa.py_buffer(np.array([0, len(body)], np.int64)), pa.py_buffer(body)]
        )
        try:
            whole.validate(full=True)
        except pa.ArrowInvalid:
            for line in np.unique(np.searchsorted(self.ends, np.flatnonzero(body >= 0x80) + FRONT)).tolist():
                try:
                    self.line(line).decode()
                except UnicodeDecodeError:
                    self.plain[line] = False

    def __len__(self) -> int:
        return len(self.ends)

    def line(self, number: int) -> bytes:
        return self.text[self.begins[number] : self.ends[number]]

    def words(self, at: Ints) -> _Words:
        """16 bytes from each place on, as two numbers along a last axis, the first byte lowest."""
        return self._words[at].view("<u8").reshape(*at.shape, 2)

    # --- Texts ---

    def texts(self, places: Places) -> pa.Array:
        """As a column of bytes."""
        begins, lengths = places
        views = np.empty((len(begins), 4), np.uint32)
        halves = self.words(begins).view("<u4").reshape(-1, 4)
        short = lengths <= 12
        views[:, 0] = lengths
        views[:, 1] = halves[:, 0] & _KEEP_12[0].take(lengths, mode="clip")
        views[:, 2] = np.where(short, halves[:, 1] & _KEEP_12[1].take(lengths, mode="clip"), 0)
        views[:, 3] = np.where(short, halves[:, 2] & _KEEP_12[2].take(lengths, mode="clip"), begins)
        buffers = [None, pa.py_buffer(views), pa.py_buffer(self.text)]
        return pc.cast(pa.Array.from_buffers(pa.binary_view(), len(begins), buffers), pa.binary())

    def are_equal(self, some: Places, others: Places) -> Flags:
        """Which texts have the same bytes."""
        (begins, lengths), (other_begins, other_lengths) = some, others
        same: Flags = lengths == other_lengths
        for at in range(0, int(lengths.max(initial=0)), WORD):
            kept = (lengths - at).clip(0, WORD)
            words = self.words(begins + at) ^ self.words(np.where(same, other_begins, begins) + at)
            for half in (0, 1):
                same = same & (words[:, half] & _KEEP_FIRST[half][kept] == 0)
        return same

    # --- Numbers ---

    def integers(self, places: Places) -> tuple[Ints, Flags]:
        """JSON's non-negative integers of at most 16 digits."""
        begins, lengths = places
        words = self.words(begins + lengths - WORD)
        kept = lengths.clip(0, WORD)
        high, low = (_ZEROS ^ (words[..., i] ^ _ZEROS) & _KEEP_LAST[i][kept] for i in (0, 1))
        sure = (lengths >= 1) & (lengths <= WORD) & _are_digits(high) & _are_digits(low)
        sure &= (self.bytes[begins] != _ZERO) | (lengths == 1)
        return (_value_of(high) * np.uint64(10**8) + _value_of(low)).astype(np.int64), sure

    def scalars(self, places: Places) -> Flags:
        """Which texts of at most 16 bytes are surely numbers without an exponent, or true, false or null."""
        begins, lengths = places
        words, kept = self.words(begins), lengths.clip(0, WORD)
        low, high = (_ZEROS ^ (words[..., i] ^ _ZEROS) & _KEEP_FIRST[i][kept] for i in (0, 1))
        literal = np.zeros(begins.shape, bool)
        for name in (b"true", b"false", b"null"):
            literal |= (low == int.from_bytes(name.ljust(8, b"0"), "little")) & (lengths == len(name))
        negative = (low & 0xFF) == ord("-")
        first, second = self.bytes[begins + negative], self.bytes[begins + negative + 1]
        low = low ^ (negative * np.uint64(ord("-") ^ ord("0")))
        low_dots, high_dots = _dots(low), _dots(high)
        one_dot = (low_dots & (low_dots - 1) == 0) & (high_dots & (high_dots - 1) == 0)
        one_dot &= (low_dots == 0) | (high_dots == 0)
        low, high = (half ^ ((dots >> 7) * np.uint64(ord(".") ^ ord("0"))) for half, dots in
                     ((low, low_dots), (high, high_dots)))  # fmt: skip
        digits = lengths - negative
        number = one_dot & _are_digits(low) & _are_digits(high) & (digits >= 1)
        number &= (first != ord(".")) & (self.bytes[begins + lengths - 1] != ord("."))
        number &= (first != _ZERO) | (second == ord(".")) | (digits == 1)
        sure: Flags = (literal | number) & (lengths <= WORD)
        return sure

    # --- Times ---

    def rfc3339(self, places: Places) -> tuple[Ints, Flags]:
        """Milliseconds since the epoch. Leap seconds, and what only ISO 8601 allows, are not sure."""
        begins, lengths = places
        head, tail = (self._words[begins + at].view(np.uint8).reshape(-1, WORD) for at in (0, WORD))
        text = np.concatenate((head, tail), axis=1)
        digits = text.take(_DIGITS_AT, axis=1) - np.uint8(_ZERO)  # what is no digit becomes more than 9
        sure = (digits <= 9).all(axis=1)
        tens, ones = digits[:, 0::2].astype(np.int64), digits[:, 1::2]
        century, year, month, day, hour, minute, second = (tens * 10 + ones).T
        year = century * 100 + year
        for at, allowed in _BETWEEN:
            sure &= np.isin(text[:, at], allowed)
        sure &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= _last_day(year, month.clip(1, 12)))
        sure &= (hour <= 23) & (minute <= 59) & (second <= 59)
        ahead, zone_length, zone_sure = self._zone(begins + lengths)
        milliseconds, fraction_sure = _fraction(text[:, 19:29], lengths - 19 - zone_length)
        seconds = (_days(year, month, day) * 1440 + hour * 60 + minute - ahead) * 60 + second
        found = seconds * 1000 + milliseconds
        return found, sure & zone_sure & fraction_sure & (found >= 0) & (found < TIME_END_MS)

    def _zone(self, ends: Ints) -> tuple[Ints, Ints, Flags]:
        """Minutes ahead of UTC, the zone's length."""
        text = self._words[ends - WORD].view(np.uint8).reshape(-1, WORD)[:, -6:]
        utc = (text[:, 5] | 0x20) == ord("z")
        digits = text[:, [1, 2, 4, 5]].astype(np.int64) - _ZERO
        hours, minutes = digits[:, 0] * 10 + digits[:, 1], digits[:, 2] * 10 + digits[:, 3]
        sign = text[:, 0]
        offset = ((sign == ord("+")) | (sign == ord("-"))) & (text[:, 3] == ord(":"))
        offset &= ((digits >= 0) & (digits <= 9)).all(axis=1) & (hours <= 23) & (minutes <= 59)
        ahead = np.where(utc, 0, np.where(sign == ord("-"), -1, 1) * (hours * 60 + minutes))
        return ahead, np.where(utc, 1, 6), utc | offset


def _places_of(body: Bytes, question: Callable[[Bytes], Flags]) -> Ints:
    """Some bytes at a time, so that they are still in a core's cache when the answer is looked at."""
    places = [
        np.flatnonzero(question(body[at : at + _BLOCK_BYTES])) + (at + FRONT)
        for at in range(0, len(body), _BLOCK_BYTES)
    ]
    return np.concatenate([np.zeros(0, np.int64), *places])


def _rare_places_of(body: Bytes, question: Callable[[Bytes], Flags]) -> Ints:
    """The same where most of eight neighbours have no such byte."""
    whole = len(body) // 8 * 8
    places = [np.zeros(0, np.int64)]
    for at in range(0, whole, _BLOCK_BYTES):
        answers = question(body[at : min(at + _BLOCK_BYTES, whole)])
        eights = np.flatnonzero(answers.view(np.uint64))
        row, column = np.nonzero(answers.reshape(-1, 8)[eights])
        places.append(eights[row] * 8 + column + (at + FRONT))
    places.append(np.flatnonzero(question(body[whole:])) + (whole + FRONT))
    return np.concatenate(places)


_ZERO = b"0"[0]
_ZEROS = np.uint64(int.from_bytes(b"0" * 8, "little"))
_FULL = (1 << 64) - 1


def _each_byte(byte: int) -> np.uint64:
    return np.uint64(int.from_bytes(bytes([byte]) * 8, "little"))


# By a length, what is kept of the two halves of a word: its first bytes, or its last ones.
_KEEP_FIRST = tuple(
    np.array([(1 << 8 * min(max(n - at, 0), 8)) - 1 for n in range(WORD + 1)], np.uint64) for at in (0, 8)
)
_KEEP_LAST = tuple(
    np.array([_FULL & ~((1 << 8 * min(max(WORD - n - at, 0), 8)) - 1) for n in range(WORD + 1)], np.uint64)
    for at in (0, 8)
)
# The same of the three quarters that a short text's view holds; longer ones keep all of the first.
_KEEP_12 = tuple(np.array([(1 << 8 * min(max(n - at, 0), 4)) - 1 for n in range(13)], np.uint32) for at in (0, 4, 8))


def _are_digits(words: _Words) -> Flags:
    nibbles = _each_byte(0xF0)
    digits: Flags = (words & nibbles == _ZEROS) & (words + _each_byte(6) & nibbles == _ZEROS)
    return digits


def _dots(words: _Words) -> _Words:
    """The highest bit of each byte that is a dot."""
    differing, low = words ^ _each_byte(ord(".")), _each_byte(0x7F)
    return ~((differing & low) + low | differing | low)


def _value_of(words: _Words) -> _Words:
    """Of eight digits: pairs of neighbours are joined three times."""
    pairs = words - _ZEROS
    pairs = pairs * np.uint64(10) + (pairs >> np.uint64(8))
    wide = np.uint64(0x000000FF000000FF)
    found: _Words = (
        (pairs & wide) * np.uint64(100 + (10**6 << 32)) + (pairs >> np.uint64(16) & wide) * np.uint64(1 + (10**4 << 32))
    ) >> np.uint64(32)
    return found


# YYYY-MM-DDTHH:MM:SS
_DIGITS_AT = [0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18]
_BETWEEN = [(4, [ord("-")]), (7, [ord("-")]), (10, list(b"Tt ")), (13, [ord(":")]), (16, [ord(":")])]
_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])
_DAYS_BEFORE = np.concatenate(([0, 0], np.cumsum(_MONTH_DAYS[1:12])))


def _is_leap(year: Ints) -> Flags:
    leap: Flags = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    return leap


def _last_day(year: Ints, month: Ints) -> Ints:
    last: Ints = _MONTH_DAYS[month] + (_is_leap(year) & (month == 2))
    return last


def _days(year: Ints, month: Ints, day: Ints) -> Ints:
    """Days since the epoch, for a month of 1 to 12."""
    before = year - 1
    days: Ints = before * 365 + before // 4 - before // 100 + before // 400 - 719_162
    days += _DAYS_BEFORE[month.clip(1, 12)] + (_is_leap(year) & (month > 2)) + day - 1
    return days


def _fraction(text: Bytes, lengths: Ints) -> tuple[Ints, Flags]:
    """Milliseconds of `.123456789`, or of nothing. text: ten bytes of each."""
    digits = text[:, 1:].astype(np.int64) - _ZERO
    inside = np.arange(1, 10) < lengths[:, None]
    sure = (lengths == 0) | ((lengths >= 2) & (lengths <= 10) & (text[:, 0] == ord(".")))
    sure &= (((digits >= 0) & (digits <= 9)) | ~inside).all(axis=1)
    digits = np.where(inside, digits, 0)
    return digits[:, 0] * 100 + digits[:, 1] * 10 + digits[:, 2], sure


# --- Texts made of texts ---


def json_object(members: list[tuple[str, Any]]) -> Text:
    if not members:
        return b""
    pieces: list[Any] = []
    for number, (name, value) in enumerate(members):
        pieces += [(b"," if number else b"{") + orjson.dumps(name) + b":", *_json_text(value)]
    return _joined([*pieces, b"}"])


def json_array(values: list[Any]) -> Text:
    pieces: list[Any] = []
    for number, value in enumerate(values):
        pieces += [b"," if number else b"[", *_json_text(value)]
    return _joined([*pieces, b"]"])


def _json_text(value: Text) -> list[Any]:
    """A column's texts have nothing that is escaped in JSON: they come from lines without a backslash."""
    if isinstance(value, pa.Array):
        return [b'"', value, b'"']
    return [orjson.dumps(None if value is None else value.decode())]


def _joined(pieces: list[Any]) -> Text:
    if not any(isinstance(piece, pa.Array) for piece in pieces):
        return b"".join(pieces)
    merged: list[Any] = []
    for piece in pieces:
        if merged and isinstance(piece, bytes) and isinstance(merged[-1], bytes):
            merged[-1] += piece
        else:
            merged.append(piece)
    values = [piece if isinstance(piece, pa.Array) else pa.scalar(piece, pa.binary()) for piece in merged]
    joined: Text = pc.binary_join_element_wise(*values, pa.scalar(b"", pa.binary()))
    return joined
