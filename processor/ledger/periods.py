"""Periods: when one is complete, and closing it. `statements` reads what is closed.

    ──────────────┬───────────────────┬──────────── event time
     statement 1  │    statement 2    │    open
                  └ closed until      └ closed until, later
    Usage of a window left of "closed until" that comes later is written twice: into the rows, as any usage, and into
    `late`, with its window and the statement that closed it. The next statement reports it, as an adjustment.

A period is of everybody, or of one customer: a user, or a label's value. It has what began before its end and is in no
statement yet, of everybody or of any customer. So no window of a row is in two statements, whatever is closed in which
order; and what comes late is reported by the next statement of the same customer.

With prices, a statement keeps an amount for each line, and the list itself: the amounts never change, and late usage is
priced by the list of the statement that closed its window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any

from tokenometer.processor.ledger import labelsets, times
from tokenometer.processor.ledger.billing import Bill, Unpriced
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.prices import Prices, from_text, text
from tokenometer.processor.ledger.usage import is_complete, watermark, window_end
from tokenometer.processor.ledger.values import BadRequest, LedgerError

STATEMENT = (
    "id, begin_ms, end_ms, closed_at, complete, watermark, user_id, label_id, value_id, time_zone, list_id, amount"
)
_HELD_UP_SHOWN = 3


class NotComplete(LedgerError):
    """Usage of the period may still be on its way."""


@dataclass(frozen=True)
class Customer:
    """label: None: the value is a user's name."""

    label: str | None
    value: str

    def __str__(self) -> str:
        return f"user {self.value}" if self.label is None else f"{self.label} {self.value}"


@dataclass(frozen=True)
class Scope:
    """Whose rows a statement has, as numbers: a user's, or a label's value's; none of them: everybody's."""

    user_id: int | None = None
    label_id: int | None = None
    value_id: int | None = None

    def rows(self) -> str:
        """A condition on rows."""
        if self.user_id is not None:
            return f"user_id = {self.user_id}"
        if self.label_id is None:
            return "1 = 1"
        held = f"SELECT set_id FROM set_labels WHERE name_id = {self.label_id} AND value_id = {self.value_id}"
        return f"labels_id IN ({held})"

    def corrections(self) -> str:
        """A condition on corrections. Everybody's statement has those of nobody who has statements of their own."""
        if self.user_id is not None:
            return self.rows()
        if self.label_id is not None:
            return f"({self.rows()} OR label_id = {self.label_id} AND value_id = {self.value_id})"
        of_labels = "statements.label_id = {label} AND statements.value_id = {value}"
        return (
            "NOT EXISTS (SELECT 1 FROM statements WHERE statements.user_id = adjustments.user_id "
            f"OR {of_labels.format(label='adjustments.label_id', value='adjustments.value_id')}) "
            "AND labels_id NOT IN (SELECT set_id FROM set_labels JOIN statements "
            f"ON {of_labels.format(label='set_labels.name_id', value='set_labels.value_id')})"
        )

    def same(self) -> str:
        """A condition on statements."""
        numbers = {"user_id": self.user_id, "label_id": self.label_id, "value_id": self.value_id}
        conditions = (f"{name} IS NULL" if id is None else f"{name} = {id}" for name, id in numbers.items())
        return f"({' AND '.join(conditions)})"


EVERYBODY = Scope()


@dataclass(frozen=True)
class Statement:
    """begin: None for the first, which has all that is older too. complete: as it was judged when it was closed.
    amount: None where nothing has a price."""

    id: int
    begin: int | None
    end: int
    closed_at: int
    complete: bool
    watermark: int | None
    scope: Scope = EVERYBODY
    time_zone: str | None = None
    list_id: int | None = None
    amount: int | None = None


@dataclass(frozen=True)
class Terms:
    """How a period is closed. anyway: also if it is not complete. allow_unpriced: also if a price is missing.
    without_prices: also if there is no list, although earlier statements had one."""

    customer: Customer | None = None
    time_zone: str = "UTC"
    anyway: bool = False
    prices: Prices | None = None
    allow_unpriced: bool = False
    without_prices: bool = False


def close(
    database: Database, end: int, grace_ms: int, now_ms: int, anyway: bool = False, terms: Terms | None = None
) -> Statement:
    """Make the statement of all that began before `end` and is in no statement. Raises NotComplete, unless `anyway`;
    Unpriced, unless the terms allow it; BadRequest for no prices where an earlier statement had some, unless the terms
    say so."""
    terms = terms or Terms(anyway=anyway)
    with database.transaction():
        # A batch of usage takes the same lock: it is in the statement as a whole, or late as a whole.
        database.rows("UPDATE book SET closed_until = closed_until RETURNING closed_until")
        scope = scope_of(database, terms.customer)
        begin = _closed_until(database, scope)
        if begin is not None and end <= begin:
            raise BadRequest(f"everything up to {times.text(begin, UTC)} is closed already")
        reached, complete = watermark(database), is_complete(database, end, grace_ms)
        if not complete and not terms.anyway:
            raise NotComplete(_why_not(database, end, grace_ms, reached))
        if terms.prices is None and not terms.without_prices:
            _check_unpriced(database)
        [(last,)] = database.rows("SELECT coalesce(max(id), 0) FROM statements")
        zone = None if terms.time_zone == "UTC" else terms.time_zone
        made = Statement(int(last) + 1, begin, end, now_ms, complete, reached, scope, zone)
        bill = Bill(database, made.id, terms.prices)
        joins, condition, parameters = region(database, made)
        bill.lines(f"usage {joins} WHERE {condition}", parameters, made.begin, made.end)
        bill.late(scope.same())
        bill.corrections(scope.corrections())
        if bill.unpriced and not terms.allow_unpriced:
            raise Unpriced(bill.complaint())
        amount = None if bill.amount is None else text(bill.amount)
        found = (*_numbers(made), bill.list_id, amount)
        database.rows(f"INSERT INTO statements ({STATEMENT}) VALUES ({', '.join('?' * len(found))})", found)
        # The latest end of all: batches that begin after it need no look at the statements.
        database.rows("UPDATE book SET closed_until = greatest(coalesce(closed_until, ?), ?)", [end, end])
    return _statement(found)


def _check_unpriced(database: Database) -> None:
    """A statement is final: one that has no amounts because a list was forgotten could not be mended."""
    [(last,)] = database.rows("SELECT max(id) FROM statements WHERE list_id IS NOT NULL")
    if last is not None:
        raise BadRequest(
            f"statement {last} has prices, and this one would have no amounts: give --prices FILE, or --without-prices"
        )


def _numbers(made: Statement) -> tuple[Any, ...]:
    scope = made.scope
    return (
        made.id, made.begin, made.end, made.closed_at, made.complete, made.watermark, scope.user_id, scope.label_id,
        scope.value_id, made.time_zone,
    )  # fmt: skip


def _statement(row: Sequence[Any]) -> Statement:
    id, begin, end, closed_at, complete, mark, user_id, label_id, value_id, zone, list_id, amount = row
    scope, exact = Scope(user_id, label_id, value_id), None if amount is None else from_text(amount)
    return Statement(id, begin, end, closed_at, complete, mark, scope, zone, list_id, exact)


def statements(database: Database) -> list[Statement]:
    return [_statement(row) for row in database.rows(f"SELECT {STATEMENT} FROM statements ORDER BY id")]


def statement(database: Database, id: int) -> Statement:
    for row in database.rows(f"SELECT {STATEMENT} FROM statements WHERE id = ?", [id]):
        return _statement(row)
    raise BadRequest(f"there is no statement {id}")


def scope_of(database: Database, customer: Customer | None) -> Scope:
    """Raises BadRequest for somebody of whom there is no usage."""
    if customer is None:
        return EVERYBODY
    try:
        wanted = customer.value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{customer.value!r} is not a text in UTF-8") from None
    id = database.ids("names", [wanted]).get(wanted)
    if customer.label is not None:
        label_id = labelsets.checked(database, [customer.label])[customer.label]
        used = id is not None and database.rows(
            "SELECT 1 FROM set_labels WHERE name_id = ? AND value_id = ? LIMIT 1", [label_id, id]
        )
        scope = Scope(label_id=label_id, value_id=id)
    else:
        used = id is not None and database.rows("SELECT 1 FROM usage WHERE user_id = ? LIMIT 1", [id])
        scope = Scope(user_id=id)
    if not used:
        raise BadRequest(f"the ledger has no usage of {customer}")
    return scope


def customer_of(database: Database, scope: Scope) -> Customer | None:
    if scope == EVERYBODY:
        return None
    ids = [id for id in (scope.user_id, scope.label_id, scope.value_id) if id is not None]
    names: dict[int, Any] = dict(database.rows(f"SELECT id, name FROM names WHERE id IN ({', '.join(map(str, ids))})"))
    *label, value = (bytes(names[id]).decode() for id in ids)
    return Customer(label[0] if label else None, value)


# --- Which rows are a statement's ---


def _closed_until(database: Database, scope: Scope) -> int | None:
    """Everything of these customers is in a statement up to here; None: nothing is."""
    [(until,)] = database.rows(f"SELECT max(end_ms) FROM statements WHERE {scope.same()} OR {EVERYBODY.same()}")
    return None if until is None else int(until)


def region(database: Database, made: Statement) -> tuple[str, str, list[Any]]:
    """Joins to `usage`, a condition, and its parameters: the rows of the statement's customers between its times that
    no earlier statement has."""
    conditions, parameters, joins = [made.scope.rows(), "window_start < ?"], [made.end], ""
    if made.begin is not None:
        conditions.append("window_start >= ?")
        parameters.append(made.begin)
    earlier = f"statements.id < {made.id}"
    [(users, labels)] = database.rows(f"SELECT count(user_id), count(label_id) FROM statements WHERE {earlier}")
    if users:
        joins += (
            f" LEFT JOIN (SELECT user_id AS closed_user, max(end_ms) AS user_until FROM statements WHERE {earlier} "
            "GROUP BY user_id) AS of_users ON closed_user = user_id"
        )
        conditions.append("(user_until IS NULL OR window_start >= user_until)")
    if labels:
        joins += (
            " LEFT JOIN (SELECT set_id AS closed_set, max(end_ms) AS set_until FROM set_labels JOIN statements "
            "ON statements.label_id = set_labels.name_id AND statements.value_id = set_labels.value_id "
            f"WHERE {earlier} GROUP BY set_id) AS of_sets ON closed_set = labels_id"
        )
        conditions.append("(set_until IS NULL OR window_start >= set_until)")
    return joins, " AND ".join(conditions), parameters


# --- When a period is complete ---


def _why_not(database: Database, end: int, grace_ms: int, reached: int | None) -> str:
    needed = window_end(database, end) + grace_ms
    so_far = "nothing is known to be complete" if reached is None else f"it is at {times.text(reached, UTC)}"
    behind = database.rows(
        "SELECT topic, partition, complete FROM watermarks WHERE seen IS NOT NULL "
        "AND (complete IS NULL OR complete < ?) ORDER BY coalesce(complete, -1), topic, partition",
        [needed],
    )
    places = [
        f"{topic}, partition {partition} ({'nothing yet' if mark is None else times.text(mark, UTC)})"
        for topic, partition, mark in behind[:_HELD_UP_SHOWN]
    ]
    more = f" and {len(behind) - len(places):,} more" if len(behind) > len(places) else ""
    held_up = f" (held up by {'; '.join(places)}{more})" if places else ""
    return (
        f"the period is not complete before every partition's watermark is at {times.text(needed, UTC)}, and "
        f"{so_far}{held_up}; wait, or close it anyway: what comes later is an adjustment of the next statement"
    )
