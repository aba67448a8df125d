"""What a statement says: its lines, late usage and corrections, each with its amount, in the close's transaction.

    usage of the period ──> lines        priced by the list that the close was given
    late, not reported  ──> late         by the list of the statement that closed its window; if that had none, as above
    corrections         ──> corrections  of tokens: as late usage, or as above where their window was open

Lines are by user, model, chip, labels and price entry. They are made for some users at a time, so that a statement of
millions of lines needs no more memory than one of a hundred thousand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tokenometer.processor.ledger import labelsets, pricefile
from tokenometer.processor.ledger.database import COUNTS, KEY, Database
from tokenometer.processor.ledger.prices import Entry, PriceError, Prices, from_text, text
from tokenometer.processor.ledger.values import LedgerError

_IDS = KEY[1:]
_ALL = ", ".join(COUNTS)
_SUMS = ", ".join(f"sum({name})" for name in COUNTS)
_USERS_AT_A_TIME = 100_000
_UNPRICED_SHOWN = 20


class Unpriced(LedgerError):
    """Some usage has no price; the message lists it."""


def lists(database: Database) -> dict[int, Prices]:
    """All lists that statements were made with."""
    return {
        int(id): pricefile.parse(bytes(content).decode(), f"price list {digest[:12]}")
        for id, digest, content in database.rows("SELECT id, digest, content FROM price_lists")
    }


@dataclass
class Bill:
    """amount: the sum of all that has one; None: nothing has. unpriced: tokens by model and labels."""

    database: Database
    statement_id: int
    prices: Prices | None
    amount: int | None = None
    unpriced: dict[tuple[str, str], int] = field(default_factory=dict)
    list_id: int | None = None
    currency: str | None = None  # of the list, or else of the first amount that has one
    _first: str = ""  # what that is, for a message
    _lists: dict[int, Prices] = field(default_factory=dict)
    _names: dict[int, str] = field(default_factory=dict)
    _sets: dict[int, Mapping[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._lists = lists(self.database)
        if self.prices is not None:
            self.list_id = self._keep(self.prices)
            self.currency, self._first = self.prices.currency, self.prices.source
            self._lists[self.list_id] = self.prices

    def _keep(self, prices: Prices) -> int:
        """The list's number; a list is kept once."""
        for id, digest in self.database.rows("SELECT id, digest FROM price_lists WHERE digest = ?", [prices.digest]):
            assert digest == prices.digest
            return int(id)
        [(last,)] = self.database.rows("SELECT coalesce(max(id), 0) FROM price_lists")
        self.database.rows(
            "INSERT INTO price_lists (id, digest, currency, content) VALUES (?, ?, ?, ?)",
            [int(last) + 1, prices.digest, prices.currency, prices.text.encode()],
        )
        return int(last) + 1

    # --- Lines ---

    def lines(self, source: str, parameters: Sequence[Any], begin: int | None, end: int) -> None:
        """source: what stands after FROM, with a condition."""
        if self.prices is None:
            self.database.rows(
                f"INSERT INTO statement_lines (statement_id, {', '.join(_IDS)}, {_ALL}) "
                f"SELECT CAST(? AS INTEGER), {', '.join(_IDS)}, {_SUMS} FROM {source} GROUP BY {', '.join(_IDS)}",
                [self.statement_id, *parameters],
            )
            return
        [(first, lowest, highest)] = self.database.rows(
            f"SELECT min(window_start), min(user_id), max(user_id) FROM {source}", parameters
        )
        if first is None:
            return
        segment = self.database.buckets(self.prices.bounds(int(first), end))
        keys = ", ".join(["segment", *_IDS])
        for users in range(int(lowest), int(highest) + 1, _USERS_AT_A_TIME):
            rows = self.database.rows(
                f"SELECT {keys}, {_SUMS} FROM (SELECT {segment} AS segment, {', '.join(_IDS)}, {_ALL} FROM {source} "
                f"AND user_id >= ? AND user_id < ?) AS placed GROUP BY {keys}",
                [*parameters, users, users + _USERS_AT_A_TIME],
            )
            self._write_lines(rows, self.prices, begin, end)

    def _write_lines(self, rows: Sequence[Sequence[Any]], prices: Prices, begin: int | None, end: int) -> None:
        self._learn(rows, 1, prices)
        sums: dict[tuple[Any, ...], list[int]] = {}
        entries: dict[int | None, Entry | None] = {}
        for segment, *ids in rows:
            key, counts = ids[:4], list(map(int, ids[4:]))
            entry = self._entry(prices, key, int(segment))
            line = None if entry is None else entry.line
            entries[line] = entry
            held = sums.setdefault((*key, line), [0] * len(COUNTS))
            for number, count in enumerate(counts):
                held[number] += count
        made = []
        for (*key, line), counts in sums.items():
            entry = entries[line]
            amount = self._charge(entry, key, counts)
            spans = _span(entry, begin, end)
            made.append((self.statement_id, *key, *counts, line, *spans, amount))
        names = ("statement_id", *_IDS, *COUNTS, "price_line", "span_begin", "span_end", "amount")
        self._append("statement_lines", names, made)

    def _charge(self, entry: Entry | None, ids: Sequence[Any], counts: Sequence[int]) -> str | None:
        """ids: of user, model, chip, labels."""
        if entry is None:
            tokens = counts[COUNTS.index("input_tokens")] + counts[COUNTS.index("output_tokens")]
            if any(counts[1:]):
                labels = ", ".join(f"{name}={value}" for name, value in self._sets[ids[3]].items())
                place = self._names[ids[1]], labels
                self.unpriced[place] = self.unpriced.get(place, 0) + tokens
            return None
        amount = entry.amount(counts)
        self.amount = (self.amount or 0) + amount
        return text(amount)

    def _entry(self, prices: Prices, ids: Sequence[Any], at: int) -> Entry | None:
        user, model, _, labels = ids
        return prices.entry(self._names[model], self._names[user] if prices.by_user else "", self._sets[labels], at)

    def _learn(self, rows: Sequence[Sequence[Any]], first: int, prices: Prices) -> None:
        """The names and labels of rows whose ids begin at column `first`."""
        wanted = {row[first + 1] for row in rows}
        wanted |= {row[first] for row in rows} if prices.by_user else set()
        if new := wanted - self._names.keys() - {None}:
            found = self.database.rows(f"SELECT id, name FROM names WHERE id IN ({', '.join(map(str, sorted(new)))})")
            self._names.update({int(id): bytes(name).decode() for id, name in found})
        if unknown := {row[first + 3] for row in rows} - self._sets.keys():
            self._sets.update(labelsets.sets(self.database, unknown))

    # --- What came late, and what was corrected ---

    def late(self, same_customer: str) -> None:
        """Late usage of windows that a statement of the same customers closed."""
        waiting = f"statement_id IS NULL AND closed_by IN (SELECT id FROM statements WHERE {same_customer})"
        keys = ", ".join((*KEY, "closed_by"))
        rows = self.database.rows(f"SELECT {keys}, {_SUMS} FROM late WHERE {waiting} GROUP BY {keys}")
        if not rows:
            return
        self.database.rows(f"DELETE FROM late WHERE {waiting}")
        of_statements: dict[int, int] = dict(
            self.database.rows("SELECT id, list_id FROM statements WHERE list_id IS NOT NULL")
        )
        made = []
        for row in rows:
            window, *ids, closed_by = row[: len(KEY) + 1]
            counts = list(map(int, row[len(KEY) + 1 :]))
            list_id = of_statements.get(closed_by, self.list_id)
            line, amount = self._price(list_id, ids, window, counts)
            made.append((window, *ids, *counts, self.statement_id, closed_by, list_id, line, amount))
        self._append("late", (*KEY, *COUNTS, "statement_id", "closed_by", "list_id", "price_line", "amount"), made)

    def corrections(self, condition: str) -> None:
        """Of customers that fit the condition."""
        waiting = f"statement_id IS NULL AND {condition}"
        held = self.database.rows(
            f"SELECT id, key, kind, voids, currency, amount, list_id, window_start, {', '.join(_IDS)}, {_ALL} "
            f"FROM adjustments WHERE {waiting} ORDER BY id"
        )
        voided = {row[3] for row in held} & {row[0] for row in held}  # with its void it is 0 in any currency
        for id, key, kind, voids, currency, amount, list_id, window, *rest in held:
            ids, counts = rest[:4], list(map(int, rest[4:]))
            line = None
            if amount is not None:
                if not {id, voids} & voided:
                    self._check_currency(currency, f"{kind} {key}")
                self.amount = (self.amount or 0) + from_text(amount)
            else:
                list_id = self._list_of(window, ids) or self.list_id
                line, amount = self._price(list_id, ids, window, counts)
            self.database.rows(
                "UPDATE adjustments SET statement_id = ?, list_id = ?, price_line = ?, amount = ? WHERE id = ?",
                [self.statement_id, list_id, line, amount, id],
            )

    def _list_of(self, window: int, ids: Sequence[Any]) -> int | None:
        """Of the statement that closed the window; None: it is of this one, or has no list."""
        found = self.database.rows(
            f"SELECT s.list_id FROM statements AS s WHERE s.id = ({closing(window, ids[0], ids[3])})"
        )
        return None if not found or found[0][0] is None else int(found[0][0])

    def _price(
        self, list_id: int | None, ids: Sequence[Any], window: int, counts: Sequence[int]
    ) -> tuple[int | None, str | None]:
        if list_id is None:
            return None, None
        prices = self._lists[list_id]
        self._check_currency(prices.currency, "late usage")
        self._learn([(window, *ids)], 1, prices)
        entry = self._entry(prices, ids, window)
        return (None if entry is None else entry.line), self._charge(entry, ids, counts)

    def _check_currency(self, currency: str | None, what: str) -> None:
        if currency is not None and self.currency is None:
            self.currency, self._first = currency, what
        if currency not in (None, self.currency):
            raise PriceError(
                f"{self._first} is in {self.currency}, and {what} of this statement in {currency}: close with a list "
                f"in the currency of all that waits, or void the entry that is wrong (tokenometer adjust --void KEY)"
            )

    def _append(self, table: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            columns = zip(*rows, strict=True)
            arrays = [_array(name, list(values)) for name, values in zip(names, columns, strict=True)]
            self.database.append(table, pa.table(dict(zip(names, arrays, strict=True))))

    def complaint(self) -> str:
        """What has no price."""
        places = sorted(self.unpriced.items(), key=lambda item: -item[1])
        shown = [
            f"{model}{f' ({labels})' if labels else ''}: {tokens:,} tokens"
            for (model, labels), tokens in places[:_UNPRICED_SHOWN]
        ]
        more = [f"and {len(places) - len(shown):,} more"] if len(places) > len(shown) else []
        return "\n".join([
            "some usage has no price; add it to the list, or allow it (--allow-unpriced): its amount is then null",
            *shown, *more,
        ])  # fmt: skip


def closing(window: int, user_id: int | None, labels_id: int) -> str:
    """A question: the first statement that has a window's rows of this user and labels."""
    of_set = (
        f"SELECT 1 FROM set_labels AS l WHERE l.set_id = {int(labels_id)} AND l.name_id = statements.label_id "
        "AND l.value_id = statements.value_id"
    )
    return (
        f"SELECT min(id) FROM statements WHERE end_ms > {int(window)} AND ((user_id IS NULL AND label_id IS NULL) "
        f"OR user_id = {-1 if user_id is None else int(user_id)} OR EXISTS ({of_set}))"
    )


def _span(entry: Entry | None, begin: int | None, end: int) -> tuple[int | None, int]:
    """Where the entry holds, in the period."""
    if entry is None:
        return begin, end
    begins = [each for each in (begin, entry.begin) if each is not None]
    return max(begins, default=None), end if entry.end is None else min(end, entry.end)


def _array(name: str, values: list[Any]) -> Any:
    """Sums may have more than 64 bits."""
    if name == "amount":
        return pa.array(values, pa.string())
    if name in COUNTS:
        small = all(-(1 << 63) <= value < 1 << 63 for value in values)
        return pa.array(values, pa.int64()) if small else pa.array(values, pa.decimal128(38, 0))
    return pa.array(values, pa.int64())
