"""The errors of a mapping that cannot be used. They name the place, what was expected and what was found."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from tokenometer.schemas.errors import TokenometerError


class MappingError(TokenometerError, ValueError):
    """A mapping cannot be used. The message is one line for the person who wrote it."""


@dataclass(frozen=True)
class MappingPlace:
    """A place in a mapping, such as `fields.user.path`, to be named in an error."""

    source: str
    where: str = ""

    def __truediv__(self, key: str) -> "MappingPlace":
        if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
            key = json.dumps(key, ensure_ascii=False)
        return MappingPlace(self.source, f"{self.where}.{key}" if self.where else key)

    def __getitem__(self, index: int) -> "MappingPlace":
        return MappingPlace(self.source, f"{self.where}[{index}]")

    def error(self, message: str) -> NoReturn:
        raise MappingError(f"{self.source}: {self.where}: {message}")

    def fail(self, expected: str, found: Any) -> NoReturn:
        self.error(f"expected {expected}, found {show(found)}")


def show(value: Any) -> str:
    """A value as a person who wrote TOML knows it, cut to a readable length."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case dict():
            return "a table"
        case list():
            return "an empty list" if not value else f"a list of {len(value)}"
        case str():
            shown = json.dumps(value, ensure_ascii=False)
        case int():  # str() of an int with thousands of digits raises, hex() does not
            shown = str(value) if value.bit_length() <= 128 else hex(value)
        case _:
            shown = str(value)
    return shown if len(shown) <= 80 else f"{shown[:70]}... ({len(shown)} characters)"


def show_path(path: tuple[str, ...]) -> str:
    return json.dumps(path[0] if len(path) == 1 else path, ensure_ascii=False)


def did_you_mean(word: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1) if isinstance(word, str) else []
    return f"; did you mean {close[0]}?" if close else ""


def toml_error(error: Exception, text: str) -> str:
    """A message such as `line 3, column 5: not valid TOML: ...`, from tomllib's, which puts the place at its end."""
    if isinstance(error, RecursionError):
        return "not valid TOML: nested too deeply"
    message = str(error)
    if place := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message, re.DOTALL):
        return f"line {place[2]}, column {place[3]}: not valid TOML: {place[1]}"
    if message.endswith(" (at end of document)"):
        return f"line {text.count(chr(10)) + 1}: not valid TOML: {message}"
    return f"not valid TOML: {message}"
