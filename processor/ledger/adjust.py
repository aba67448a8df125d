"""Corrections by hand: entries of the ledger, never of the stream, that the next statement of their customer reports.

    credit      an amount with its sign, for a user or a label's value
    correction  tokens with their sign, of a moment; priced by the list in force when the usage happened
    void        takes back one of these: the same, with the other sign

Promises: a key is one entry. The same key with the same content is the entry that is there already, so whoever does not
know whether an answer came asks again; the same key with other content is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from tokenometer.processor.ledger import labels, labelsets, statements, times
from tokenometer.processor.ledger.database import COUNTS, Database
from tokenometer.processor.ledger.periods import EVERYBODY, Customer, scope_of
from tokenometer.processor.ledger.prices import from_text, parse_amount, text
from tokenometer.processor.ledger.store import set_key
from tokenometer.processor.ledger.values import BadArgument, BadRequest, LedgerError
from tokenometer.schemas.usage import COUNTERS, FURTHER, FURTHER_PARENTS, PARENTS, TOKENS

_FIELDS = ("key", "reason", "amount", "currency", "user", "model", "chip", "labels", "at", "tokens", "void")
_TEXT_MAX = 1_024  # characters of a key or a reason
_COUNT_MAX = 1 << 64
_TABLE = (
    "id", "key", "kind", "reason", "given", "made_at", "window_start", "user_id", "model_id", "chip_id", "labels_id",
    "label_id", "value_id", "voids", *COUNTS, "currency", "amount",
)  # fmt: skip


class Conflict(LedgerError):
    """The key is another entry's."""


@dataclass(frozen=True)
class _Entry:
    kind: str
    window: int | None
    user_id: int | None
    model_id: int | None
    chip_id: int | None
    labels_id: int
    counts: Mapping[str, int]
    currency: str | None
    amount: str | None
    label_id: int | None = None
    value_id: int | None = None
    voids: int | None = None


def adjust(database: Database, given: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The entry, as JSON. given: of _FIELDS, plain values. Raises BadRequest, Conflict."""
    check(given)
    content = json.dumps({name: given[name] for name in _FIELDS if given.get(name) is not None}, sort_keys=True)
    with database.transaction():
        database.rows("UPDATE book SET closed_until = closed_until")  # one at a time
        held = database.rows("SELECT id, given FROM adjustments WHERE key = ?", [given["key"]])
        if held and held[0][1] != content:
            raise Conflict(f"the key {given['key']} is another entry's already: {held[0][1]}")
        if not held:
            entry = _void(database, given["void"]) if "void" in given else _entry(database, given)
            if "void" not in given:
                _check_currency(database, entry.currency)
            [(last,)] = database.rows("SELECT coalesce(max(id), 0) FROM adjustments")
            values = [
                int(last) + 1, given["key"], entry.kind, given["reason"], content, now_ms, entry.window, entry.user_id,
                entry.model_id, entry.chip_id, entry.labels_id, entry.label_id, entry.value_id, entry.voids,
                *(entry.counts.get(name, 0) for name in COUNTS), entry.currency, entry.amount,
            ]  # fmt: skip
            database.rows(
                f"INSERT INTO adjustments ({', '.join(_TABLE)}) VALUES ({', '.join('?' * len(_TABLE))})", values
            )
    return shown(database, given["key"])


def shown(database: Database, key: str) -> dict[str, Any]:
    [row] = database.rows(f"SELECT {statements.CORRECTION} FROM {statements.CORRECTIONS} WHERE key = ?", [key])
    return statements.correction_json(row, labelsets.sets(database, [int(row[7])]))


def check(given: Mapping[str, Any]) -> None:
    """What is wrong with an entry, whatever the ledger holds. Raises BadArgument."""
    if unknown := given.keys() - set(_FIELDS):
        raise BadArgument(f"no such setting: {min(unknown)}; expected {', '.join(_FIELDS)}")
    for name in ("key", "reason"):
        value = given.get(name)
        if not isinstance(value, str) or not 0 < len(value.strip()) <= len(value) <= _TEXT_MAX or "\0" in value:
            raise BadArgument(f"{name}: expected a text of 1 to {_TEXT_MAX:,} characters")
        if not _is_utf8(value):
            raise BadArgument(f"{name} is not a text in UTF-8")
    kinds = [name for name in ("amount", "tokens", "void") if name in given]
    if len(kinds) != 1:
        raise BadArgument("expected an amount, or tokens, or the key of what is void")
    if "currency" in given and kinds != ["amount"]:
        raise BadArgument("currency goes with amount")
    if kinds == ["void"]:
        if extra := given.keys() - {"key", "reason", "void"}:
            raise BadArgument(f"void takes back all of an entry: {min(extra)} is the entry's own")
        if not isinstance(given["void"], str) or not _is_utf8(given["void"]) or "\0" in given["void"]:
            raise BadArgument("void: expected the key of an entry")
    else:
        _check_entry(given)


def _check_entry(given: Mapping[str, Any]) -> None:
    for name in ("user", "model", "chip", "currency", "at", "amount"):
        if name in given and (not isinstance(given[name], str) or not _is_utf8(given[name])):
            raise BadArgument(f"{name}: expected a text")
    held = given.get("labels", {})
    if wrong := labels.fault(held):
        raise BadArgument(wrong)
    if "at" in given:
        times.moment(given["at"], UTC)
    if "amount" in given:
        _amount(given["amount"])
        currency = given.get("currency")
        if currency is not None and not (len(currency) == 3 and currency.isascii() and currency.isupper()):
            raise BadArgument('currency: expected three capital letters, such as "USD"')
        if ("user" in given) == bool(held) or len(held) > 1:
            raise BadArgument("an amount is of a user, or of one label's value")
        return
    _counts(given["tokens"])
    if missing := [name for name in ("user", "model", "chip", "at") if name not in given]:
        raise BadArgument(
            "a correction of tokens is of a user, a model, a chip, and the time (at) of the usage; there is no "
            f"{', no '.join(missing)}"
        )


def _check_currency(database: Database, currency: str | None) -> None:
    """One that no statement has would keep the next one from being closed."""
    known = sorted(name for (name,) in database.rows("SELECT DISTINCT currency FROM price_lists"))
    if currency is not None and known and currency not in known:
        raise BadRequest(f"currency {currency}: the statements of this ledger are in {' and '.join(known)}")


def _is_utf8(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _entry(database: Database, given: Mapping[str, Any]) -> _Entry:
    """given: checked."""
    ids = {name: _id(database, name, given[name]) for name in labels.DIMENSIONS if name in given}
    held = given.get("labels", {})
    window = times.moment(given["at"], UTC) if "at" in given else None
    if "amount" in given:
        scope = EVERYBODY
        for name, value in held.items():
            scope = scope_of(database, Customer(name, value))
        user, model, chip = (ids.get(name) for name in labels.DIMENSIONS)
        amount, currency = _amount(given["amount"]), given.get("currency")
        return _Entry("credit", window, user, model, chip, 0, {}, currency, amount, scope.label_id, scope.value_id)
    labels_id = _labels_id(database, held)
    counts = _counts(given["tokens"])
    return _Entry("correction", window, ids["user"], ids["model"], ids["chip"], labels_id, counts, None, None)


def _void(database: Database, key: str) -> _Entry:
    """The opposite of an entry. Where that has its amount, of that very amount."""
    names = "id, kind, window_start, user_id, model_id, chip_id, labels_id, label_id, value_id, currency, amount"
    names = ", ".join([names, *COUNTS])
    held = database.rows(f"SELECT {names} FROM adjustments WHERE key = ?", [key])
    if not held:
        raise BadRequest(f"there is no entry {key}")
    id, kind, window, user, model, chip, labels_id, label_id, value_id, currency, amount, *counts = held[0]
    if kind == "void" or database.rows("SELECT 1 FROM adjustments WHERE voids = ?", [id]):
        raise BadRequest(f"{key} is void already, or takes another entry back")
    opposite = {name: -int(count) for name, count in zip(COUNTS, counts, strict=True)}
    taken = None if amount is None else text(-from_text(amount))
    return _Entry("void", window, user, model, chip, labels_id, opposite, currency, taken, label_id, value_id, id)


def _amount(given: str) -> str:
    try:
        amount = parse_amount(given)
    except ValueError:
        raise BadArgument(f'amount {given!r}: expected a decimal such as "-12.50"') from None
    if amount == 0:
        raise BadArgument("amount: 0 corrects nothing")
    return text(amount)


def _counts(given: Any) -> dict[str, int]:
    """With signs. What is a part of a count is no more than it, and of the same sign."""
    known = ("requests", *TOKENS, *FURTHER)
    if not isinstance(given, dict) or not given or given.keys() - set(known):
        raise BadArgument(f"tokens: expected counters, of {', '.join(known)}")
    for name, count in given.items():
        if type(count) is not int or not -_COUNT_MAX < count < _COUNT_MAX:
            raise BadArgument(f"tokens: {name} is not a whole number of 64 bits")
    counts = {name: given.get(name, 0) for name in COUNTS}
    if len({count > 0 for count in counts.values() if count}) != 1:
        raise BadArgument("tokens: all are taken away, or all are added")
    sizes = {name: abs(count) for name, count in counts.items()}
    parts = dict.fromkeys(COUNTERS, 0)
    for name, parent in PARENTS.items():
        parts[parent] += sizes[name]
    if any(parts[name] > sizes[name] for name in COUNTERS) or any(
        sizes[name] > sizes[parent] for name, parent in FURTHER_PARENTS.items()
    ):
        raise BadArgument("tokens: what is a part of a counter is no more than it")
    return counts


def _id(database: Database, name: str, value: str) -> int:
    if (id := database.ids("names", [value.encode()]).get(value.encode())) is None:
        raise BadRequest(f"the ledger has no usage of {name} {value}")
    if name == "user":
        scope_of(database, Customer(None, value))
    return id


def _labels_id(database: Database, given: Mapping[str, str]) -> int:
    if not given:
        return 0
    texts = [text for pair in labels.set_of(given) for text in pair]
    numbers = database.ids("names", texts)
    key = set_key(labels.set_of(given), numbers) if len(numbers) == len(set(texts)) else b"-"
    if (id := database.ids("label_sets", [key]).get(key)) is None:
        shown_labels = ", ".join(f"{name}={value}" for name, value in given.items())
        raise BadRequest(f"no row has exactly the labels {shown_labels}")
    return id
