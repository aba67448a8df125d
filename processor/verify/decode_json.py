"""Pieces of JSON texts, for the audit's decoder: where values end, and what must be read though not all is valid."""

import re
from collections.abc import Iterator, Sequence

import orjson

BAD = b"?"  # the line of a record that nobody can read
BLANK = b" \t\r\n"
_SPACE = re.compile(rb"[ \t\r]*")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_SCALAR = re.compile(rb'[^,\]} \t\r\n"]+')
# What matters to the structure: strings (the last one may be open), a backslash with what it takes along, brackets.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|\\.|[\[\]{},]', re.DOTALL)


class Misread(Exception):
    """A message cannot be read; the argument is the reason."""


def is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def split(text: bytes) -> tuple[list[bytes], bytes]:
    """The elements of the array that opens at text[0], and what follows it; an array that is not closed has a bad one
    more."""
    elements, depth, start = list[bytes](), 0, 1

    def add(end: int) -> None:
        if element := text[start:end].strip(BLANK):
            elements.append(element.replace(b"\n", b"\r"))

    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
        elif token in (b"]", b"}"):
            if depth > 1:
                depth -= 1
            elif token == b"]":
                add(match.start())
                return elements, text[match.end() :]
        elif token == b"," and depth == 1:
            add(match.start())
            start = match.end()
    add(len(text))
    return [*elements, BAD], b""


def end_of_value(text: bytes, at: int) -> int | None:
    if text[at : at + 1] == b'"':
        match = _STRING.match(text, at)
        return match.end() if match else None
    if text[at : at + 1] not in (b"{", b"["):
        match = _SCALAR.match(text, at)
        return match.end() if match else None
    depth = 0
    for match in _TOKEN.finditer(text, at):
        token = match[0]
        if token in (b"[", b"{"):
            depth += 1
        elif token in (b"]", b"}"):
            depth -= 1
            if not depth:
                return match.end()
        elif token[:1] == b'"' and (len(token) == 1 or not _STRING.fullmatch(token)):
            return None
    return None


def member_at(text: bytes, at: int, name: str) -> int | None:
    """Where the value of the last member of that name is, as far as the object at `at` can be read."""
    if text[at : at + 1] != b"{":
        return None
    found, at = None, skipped(text, at + 1)
    while match := _STRING.match(text, at):
        key = match[0][1:-1]
        if b"\\" in key:
            try:
                key = orjson.loads(match[0]).encode()
            except orjson.JSONDecodeError:
                break
        at = skipped(text, match.end())
        if text[at : at + 1] != b":":
            break
        at = skipped(text, at + 1)
        if key == name.encode():
            found = at
        end = end_of_value(text, at)
        if end is None:
            break
        at = skipped(text, end)
        if text[at : at + 1] != b",":
            break
        at = skipped(text, at + 1)
    return found


def skipped(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def member(text: bytes, name: str) -> bytes | None:
    at = member_at(text, 0, name)
    if at is None:
        return None
    end = end_of_value(text, at)
    return text[at:] if end is None else text[at:end]


def opened_string(record: bytes, path: Sequence[str]) -> bytes:
    at: int | None = 0
    for key in path:
        at = member_at(record, at or 0, key)
        if at is None:
            return record
    match = _STRING.match(record, at or 0)
    if match is None:
        return record
    if match[0] in (b'""', b'"-"'):  # what producers, and Envoy, write for no JSON at all
        return record[: match.start()] + b"null" + record[match.end() :]
    try:
        held: bytes = orjson.loads(match[0]).encode().replace(b"\n", b"\r")
    except orjson.JSONDecodeError:
        return record
    if held.lstrip(b" \t\r")[:1] not in (b"{", b"[") or not is_json(held):
        return record
    return record[: match.start()] + held + record[match.end() :]


def documents(text: bytes) -> Iterator[bytes]:
    """JSON texts, one after the other. Raises Misread."""
    text = text.replace(b"\n", b"\r")
    at = skipped(text, 0)
    while at < len(text):
        end = end_of_value(text, at)
        if end is None:
            raise Misread("bad_encoding")
        yield text[at:end]
        at = skipped(text, end)
