"""What is closed: statements' lines, adjustments and corrections, page by page; and the proof that they add up.

At any moment, for every window that is closed: its statement's lines + adjustments of later statements + those that
wait for the next one = the rows. And every amount is its counters times the rates of the list that the ledger keeps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Any

from tokenometer.processor.ledger import labelsets, times
from tokenometer.processor.ledger.billing import lists
from tokenometer.processor.ledger.database import COUNTS, KEY, Database
from tokenometer.processor.ledger.periods import EVERYBODY, Statement, customer_of, region, statement, statements
from tokenometer.processor.ledger.prices import Prices, from_text, maybe_text, text
from tokenometer.processor.ledger.usage import LIMIT, decode_cursor, encode_cursor
from tokenometer.schemas.usage import COUNTERS, FURTHER, Usage

KINDS = ("lines", "adjustments", "corrections")
_IDS = KEY[1:]
_SUMS = ", ".join(f"sum({name})" for name in COUNTS)
_ALL = ", ".join(COUNTS)
_ZEROS = (0,) * len(FURTHER)


@dataclass(frozen=True)
class Charge:
    """line: of the entry in the price list; None: unpriced. begin, end: where the entry holds in the period."""

    line: int | None
    amount: int | None
    list_id: int
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Line:
    """window_start: None in a statement's own lines, which are the period's sums. charge: None without a price list."""

    window_start: int | None
    user: str
    model: str
    chip: str
    counters: Usage
    labels: Mapping[str, str] = field(default_factory=dict)
    further: tuple[int, ...] = _ZEROS
    charge: Charge | None = None


@dataclass(frozen=True)
class Page:
    lines: Sequence[Line]
    following: str | None


def lines(database: Database, id: int, limit: int = LIMIT, after: str | None = None) -> Page:
    """Of the statement's own period, by user, model, chip, labels and price."""
    list_id = statement(database, id).list_id
    return _page(database, "statement_lines", f"statement_id = {int(id)}", list_id, limit, after)


def adjustments(database: Database, id: int | None, limit: int = LIMIT, after: str | None = None) -> Page:
    """Usage of closed windows that a statement reports, by window; None: what the next ones will report."""
    condition = "statement_id IS NULL" if id is None else f"statement_id = {int(id)}"
    return _page(database, "late", condition, None, limit, after)


def _page(database: Database, table: str, condition: str, list_id: int | None, limit: int, after: str | None) -> Page:
    late = table == "late"
    place = "window_start" if late else "coalesce(span_begin, 0)"
    own = "list_id" if late else f"CAST({'NULL' if list_id is None else list_id} AS INTEGER)"
    # The key of a line, numbers first as a cursor has them; and in the order in which lines come.
    numbers = [place, "labels_id", "coalesce(price_line, 0)", f"coalesce({own}, 0)"]
    names = ["u.name", "m.name", "c.name"]
    order = [place, *names, *numbers[1:]] if late else [*names, *numbers]
    parameters: list[Any] = []
    if after is not None:
        key = dict(zip([*numbers, *names], decode_cursor(after, len(numbers), len(names)), strict=True))
        condition += f" AND ({', '.join(order)}) > ({', '.join('?' * len(order))})"
        parameters = [key[each] for each in order]
    span = "min(span_begin), min(span_end)" if not late else "NULL, NULL"
    rows = database.rows(
        f"SELECT {', '.join([*numbers, *names])}, price_line, {own}, {span}, min(amount), count(*), {_SUMS} "
        f"FROM {table} JOIN names AS u ON u.id = user_id JOIN names AS m ON m.id = model_id "
        "JOIN names AS c ON c.id = chip_id "
        f"WHERE {condition} GROUP BY {', '.join([*numbers, *names])}, price_line, {own} ORDER BY {', '.join(order)} "
        f"LIMIT {int(limit) + 1}",
        parameters,
    )
    sets = labelsets.sets(database, {int(row[1]) for row in rows})
    found = [_line(row, sets, late) for row in rows[:limit]]
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = encode_cursor([*map(int, last[:4]), *map(bytes, last[4:7])])
    return Page(found, following)


def _line(row: Sequence[Any], sets: labelsets.LabelsOf, late: bool) -> Line:
    user, model, chip = (bytes(name).decode() for name in row[4:7])
    price_line, list_id, begin, end, amount, count = row[7:13]
    counts = list(map(int, row[13:]))
    charge = None
    if list_id is not None:
        assert count == 1, "late usage that has an amount is one row"
        charge = Charge(price_line, None if amount is None else from_text(amount), int(list_id), begin, end)
    counters, further = Usage(*counts[: len(COUNTERS)]), tuple(counts[len(COUNTERS) :])
    return Line(int(row[0]) if late else None, user, model, chip, counters, sets[int(row[1])], further, charge)


# --- The proof ---


def reconcile(database: Database) -> list[tuple[int, Sequence[Any]]]:
    """Statements whose lines and adjustments are not what the rows say, or whose amounts are not those of their lists,
    with what differs; none, unless a table was changed by somebody else."""
    found: list[tuple[int, Sequence[Any]]] = []
    ids = ", ".join(_IDS)
    minus = ", ".join(f"-{name}" for name in COUNTS)
    for each in statements(database):
        joins, condition, parameters = region(database, each)
        rows = database.rows(
            f"""
            SELECT {ids}, {_SUMS} FROM (
                SELECT {ids}, {_ALL} FROM usage {joins} WHERE {condition}
                UNION ALL SELECT {ids}, {minus} FROM statement_lines WHERE statement_id = {each.id}
                UNION ALL SELECT {ids}, {minus} FROM late WHERE closed_by = {each.id}
            ) AS both_sides GROUP BY {ids} HAVING {" OR ".join(f"sum({name}) <> 0" for name in COUNTS)}
            """,
            parameters,
        )
        found += [(each.id, row) for row in rows]
        found += [(each.id, row) for row in _wrong_amounts(database, each, lists(database))]
    return found


def check_json(database: Database) -> dict[str, Any]:
    return {"statements": len(statements(database)), "differences": len(reconcile(database))}


def _wrong_amounts(database: Database, each: Statement, of_lists: Mapping[int, Prices]) -> list[Sequence[Any]]:
    wrong: list[Sequence[Any]] = []
    total: int | None = None
    for table, own in (("statement_lines", str(each.list_id)), ("late", "list_id"), ("adjustments", "list_id")):
        if table == "statement_lines" and each.list_id is None:
            continue
        for list_id, line, amount, *counts in database.rows(
            f"SELECT {own}, price_line, amount, {_ALL} FROM {table} WHERE statement_id = {each.id}"
        ):
            if amount is None:
                continue
            total = (total or 0) + from_text(amount)
            if line is not None and of_lists[list_id].of_line(line).amount(list(map(int, counts))) != from_text(amount):
                wrong.append((table, line, amount))
    if total != each.amount:
        wrong.append(("sum", maybe_text(total), maybe_text(each.amount)))
    return wrong


# --- As JSON ---


def statement_json(database: Database, each: Statement, where: tzinfo = UTC) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "statement": each.id,
        "begin": None if each.begin is None else times.text(each.begin, where),
        "end": times.text(each.end, where),
        "closed_at": times.text(each.closed_at, where),
        "complete": each.complete,
        "complete_up_to": None if each.watermark is None else times.text(each.watermark, where),
    }
    if each.scope != EVERYBODY:
        customer = customer_of(database, each.scope)
        assert customer is not None
        shown["customer"] = {"user" if customer.label is None else customer.label: customer.value}
    if each.time_zone is not None:
        shown["time_zone"] = each.time_zone
    if each.amount is not None or each.list_id is not None:
        shown["amount"] = maybe_text(each.amount)
    if each.amount is not None:
        shown["subtotals"] = _subtotals(database, each.id, each.amount)
    if each.list_id is not None:
        [(digest, currency)] = database.rows(f"SELECT digest, currency FROM price_lists WHERE id = {each.list_id}")
        shown |= {"currency": currency, "price_list": digest}
    return shown


def _subtotals(database: Database, id: int, amount: int) -> dict[str, str]:
    """What the amount is the sum of, by kind."""
    late, corrections = (
        sum(
            from_text(each)
            for (each,) in database.rows(f"SELECT amount FROM {table} WHERE statement_id = {id}")
            if each
        )
        for table in ("late", "adjustments")
    )
    sums = (amount - late - corrections, late, corrections)
    return {kind: text(each) for kind, each in zip(KINDS, sums, strict=True)}


def page_json(database: Database, id: int | None, kind: str, limit: int, after: str | None) -> dict[str, Any]:
    """One of KINDS of a statement; None: of the one to come, which has no lines."""
    if kind == "corrections":
        return corrections_json(database, id, limit, after)
    if kind == "adjustments":
        page = adjustments(database, id, limit, after)
    else:
        assert id is not None
        page = lines(database, id, limit, after)
    return {"rows": [line_json(line) for line in page.lines], "next": page.following}


def line_json(line: Line, where: tzinfo = UTC) -> dict[str, Any]:
    window = {} if line.window_start is None else {"window_start": times.text(line.window_start, where)}
    names = {"user": line.user, "model": line.model, "chip": line.chip}
    labels = {"labels": dict(line.labels)} if line.labels else {}
    further = {name: count for name, count in zip(FURTHER, line.further, strict=True) if count}
    return {**window, **names, **labels, **line.counters.with_total(), **further, **_charge_json(line.charge, where)}


def _charge_json(charge: Charge | None, where: tzinfo) -> dict[str, Any]:
    if charge is None:
        return {}
    span = {"begin": charge.begin, "end": charge.end} if charge.end is not None else {}
    shown = {name: None if moment is None else times.text(moment, where) for name, moment in span.items()}
    return {**shown, "price_line": charge.line, "amount": maybe_text(charge.amount)}


def corrections_json(database: Database, id: int | None, limit: int, after: str | None) -> dict[str, Any]:
    condition = "statement_id IS NULL" if id is None else f"statement_id = {id}"
    if after is not None:
        condition += f" AND a.id > {decode_cursor(after, 1, 0)[0]}"
    rows = database.rows(
        f"SELECT a.id, {CORRECTION} FROM {CORRECTIONS} WHERE {condition} ORDER BY a.id LIMIT {int(limit) + 1}"
    )
    sets = labelsets.sets(database, {int(row[8]) for row in rows})
    following = encode_cursor([int(rows[limit - 1][0])]) if len(rows) > limit else None
    return {"rows": [correction_json(row[1:], sets) for row in rows[:limit]], "next": following}


CORRECTION = (
    "key, kind, reason, made_at, window_start, u.name, m.name, labels_id, currency, statement_id, amount, "
    f"c.name, (SELECT key FROM adjustments AS v WHERE v.id = a.voids), l.name, w.name, {_ALL}"
)
CORRECTIONS = (
    "adjustments AS a LEFT JOIN names AS u ON u.id = user_id LEFT JOIN names AS m ON m.id = model_id "
    "LEFT JOIN names AS c ON c.id = chip_id LEFT JOIN names AS l ON l.id = label_id "
    "LEFT JOIN names AS w ON w.id = value_id"
)


def correction_json(row: Sequence[Any], sets: labelsets.LabelsOf) -> dict[str, Any]:
    """Of the columns CORRECTION."""
    (
        key,
        kind,
        reason,
        made_at,
        window,
        user,
        model,
        labels_id,
        currency,
        statement_id,
        amount,
        chip,
        voids,
        label,
        value,
    ) = row[:15]
    counts = {name: int(count) for name, count in zip(COUNTS, row[15:], strict=True) if count}
    decoded = {
        name: None if value is None else bytes(value).decode()
        for name, value in (("user", user), ("model", model), ("chip", chip))
    }
    shown: dict[str, Any] = {"key": key, "kind": kind, "reason": reason, "made_at": times.text(made_at, UTC)}
    optional = {
        "voids": voids,
        "at": None if window is None else times.text(window, UTC),
        **decoded,
        "labels": dict(sets[int(labels_id)])
        or ({} if label is None else {bytes(label).decode(): bytes(value).decode()})
        or None,
        **counts,
        "currency": currency,
    }
    shown |= {name: value for name, value in optional.items() if value is not None}
    return {**shown, "amount": amount, "statement": statement_id}
