"""What a person who watches `tokenometer top` has asked for, by keys.

It is pure: keys go in, and what is wanted comes out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

WORDS_MAX = 40  # characters of a filter
_ESCAPE, _ENTER, _ERASE = "\x1b", "\r\n", "\x7f\b"

HELP = (
    ("?", "show or hide these keys"),
    ("s", "sort by tokens, requests, output tokens or name, in turn"),
    ("/", "show only the models, chips, users and meters whose name has what you type next"),
    ("Enter", "end typing; the filter stays"),
    ("Esc", "remove the filter"),
    ("q", "quit, as Ctrl-C does"),
)


class Order(StrEnum):
    """The value of each is the counter that is shown."""

    TOKENS = "total_tokens"
    REQUESTS = "requests"
    OUTPUT = "output_tokens"
    NAME = "name"

    @property
    def next(self) -> "Order":
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


@dataclass(frozen=True)
class Wanted:
    """words: only names with these are shown. typing: keys go on with the words. done: the person has had enough."""

    order: Order = Order.TOKENS
    words: str = ""
    typing: bool = False
    help: bool = False
    done: bool = False

    def press(self, keys: str) -> "Wanted":
        """After these keys, as a terminal sends them at once."""
        if len(keys) > 1 and keys.startswith(_ESCAPE):
            return self  # an arrow or another key without a meaning here
        wanted = self
        for key in keys:
            wanted = wanted._type(key) if wanted.typing else wanted._command(key)
        return wanted

    def _type(self, key: str) -> "Wanted":
        if key in _ENTER:
            return replace(self, typing=False)
        if key == _ESCAPE:
            return replace(self, typing=False, words="")
        if key in _ERASE:
            return replace(self, words=self.words[:-1])
        return replace(self, words=(self.words + key)[:WORDS_MAX]) if key.isprintable() else self

    def _command(self, key: str) -> "Wanted":
        changes: dict[str, dict[str, Any]] = {
            "q": {"done": True}, "s": {"order": self.order.next}, "/": {"typing": True, "words": ""},
            "?": {"help": not self.help}, "h": {"help": not self.help}, _ESCAPE: {"words": "", "help": False},
        }  # fmt: skip
        return replace(self, **changes.get(key, {}))

    def of(self, entries: Iterable[dict[str, Any]], key: str) -> list[dict[str, Any]]:
        """Those whose name (under `key`) has the words, whatever their case."""
        words = self.words.casefold()
        return [entry for entry in entries if words in entry[key].casefold()]

    def ranked(self, entries: Iterable[dict[str, Any]], key: str) -> tuple[str, list[tuple[str, int]]]:
        """The counter that is shown, and names with it in the order that is wanted. Entries that lack a counter have
        their tokens."""
        found = self.of(entries, key)
        counter = str(self.order)
        if self.order is Order.NAME or not all(counter in entry for entry in found):
            counter = str(Order.TOKENS)
        pairs = [(entry[key], entry[counter]) for entry in found]
        if self.order is Order.NAME:
            return counter, sorted(pairs, key=lambda pair: pair[0].casefold())
        return counter, sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


AS_IT_COMES = Wanted()
