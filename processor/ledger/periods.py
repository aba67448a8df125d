"""Periods: when one is complete, closing it, and the statements that are final.

    ──────────────┬───────────────────┬──────────── event time
     statement 1  │    statement 2    │    open
                  └ closed until      └ closed until, later
    Usage of a window left of "closed until" that comes later is written twice: into the rows, as any usage, and into
    `late`, with its window. The next statement reports what is in `late` since the one before, as adjustments.

So at any moment, for every window that is closed: its statement's lines + adjustments of later statements + those that
wait for the next one = the rows. `reconcile` proves it. A period begins where the one before ended, so that no window
is in two of them or in none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any

from tokenometer.processor.ledger import times
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.usage import LIMIT, decode_cursor, encode_cursor, number, watermark, window_end
from tokenometer.processor.ledger.values import BadRequest, LedgerError
from tokenometer.schemas.usage import COUNTERS, Usage

_IDS = ("user_id", "model_id", "chip_id")
_SUMS = ", ".join(f"sum({name})" for name in COUNTERS)
_ALL = ", ".join(COUNTERS)
_STATEMENT = "id, begin_ms, end_ms, closed_at, complete, watermark"


class NotComplete(LedgerError):
    """Usage of the period may still be on its way."""


@dataclass(frozen=True)
class Statement:
    """begin: None for the first, which has all that is older too. complete: as it was judged when it was closed."""

    id: int
    begin: int | None
    end: int
    closed_at: int
    complete: bool
    watermark: int | None


@dataclass(frozen=True)
class Line:
    """window_start: None in a statement's own lines, which are the period's sums."""

    window_start: int | None
    user: str
    model: str
    chip: str
    counters: Usage


@dataclass(frozen=True)
class Page:
    lines: Sequence[Line]
    following: str | None


def close(database: Database, end: int, grace_ms: int, now_ms: int, anyway: bool = False) -> Statement:
    """Make the statement of all that began before `end` and is in no statement. Raises NotComplete, unless `anyway`."""
    with database.transaction():
        # A batch of usage takes the same lock: it is in the statement as a whole, or late as a whole.
        [(begin,)] = database.rows("UPDATE book SET closed_until = closed_until RETURNING closed_until")
        if begin is not None and end <= begin:
            raise BadRequest(f"everything up to {times.text(begin, UTC)} is closed already")
        reached, needed = watermark(database), window_end(database, end) + grace_ms
        complete = reached is not None and reached >= needed
        if not complete and not anyway:
            so_far = "nothing is known to be complete" if reached is None else f"it is at {times.text(reached, UTC)}"
            raise NotComplete(
                f"the period is not complete before every partition's watermark is at {times.text(needed, UTC)}, and "
                f"{so_far}; wait, or close it anyway: what comes later is an adjustment of the next statement"
            )
        [(last,)] = database.rows("SELECT coalesce(max(id), 0) FROM statements")
        statement = Statement(last + 1, begin, end, now_ms, complete, reached)
        _write(database, statement)
    return statement


def _write(database: Database, statement: Statement) -> None:
    begin = statement.begin
    database.rows(
        f"INSERT INTO statements ({_STATEMENT}) VALUES (?, ?, ?, ?, ?, ?)",
        [statement.id, begin, statement.end, statement.closed_at, statement.complete, statement.watermark],
    )
    since, parameters = ("", []) if begin is None else ("window_start >= ? AND", [begin])
    database.rows(
        f"INSERT INTO statement_lines (statement_id, {', '.join(_IDS)}, {_ALL}) "
        f"SELECT CAST(? AS INTEGER), {', '.join(_IDS)}, {_SUMS} FROM usage "
        f"WHERE {since} window_start < ? GROUP BY {', '.join(_IDS)}",
        [statement.id, *parameters, statement.end],
    )
    database.rows("UPDATE late SET statement_id = ? WHERE statement_id IS NULL", [statement.id])
    database.rows("UPDATE book SET closed_until = ?", [statement.end])


# --- What is closed ---


def statements(database: Database) -> list[Statement]:
    return [Statement(*row) for row in database.rows(f"SELECT {_STATEMENT} FROM statements ORDER BY id")]


def statement(database: Database, id: int) -> Statement:
    for found in statements(database):
        if found.id == id:
            return found
    raise BadRequest(f"there is no statement {id}")


def lines(database: Database, id: int, limit: int = LIMIT, after: str | None = None) -> Page:
    """Of the statement's own period, by user, model and chip."""
    return _page(database, "statement_lines", "statement_id = ?", [id], (), limit, after)


def adjustments(database: Database, id: int | None, limit: int = LIMIT, after: str | None = None) -> Page:
    """Usage of closed windows that a statement reports, by window; None: what the next one will report."""
    condition, parameters = ("statement_id IS NULL", []) if id is None else ("statement_id = ?", [id])
    return _page(database, "late", condition, parameters, ("window_start",), limit, after)


def _page(
    database: Database,
    table: str,
    condition: str,
    parameters: Sequence[Any],
    windows: tuple[str, ...],
    limit: int,
    after: str | None,
) -> Page:
    keys = ", ".join([*windows, "u.name", "m.name", "c.name"])
    behind = ""
    if after is not None:
        key = decode_cursor(after, len(windows), 3)
        behind, parameters = f"AND ({keys}) > ({', '.join('?' * len(key))})", [*parameters, *key]
    rows = database.rows(
        f"SELECT {keys}, {_SUMS} FROM {table} JOIN names AS u ON u.id = user_id JOIN names AS m ON m.id = model_id "
        f"JOIN names AS c ON c.id = chip_id WHERE {condition} {behind} GROUP BY {keys} ORDER BY {keys} "
        f"LIMIT {int(limit) + 1}",
        parameters,
    )
    count = len(windows)
    found = [_line(row, count) for row in rows[:limit]]
    following = None
    if len(rows) > limit:
        last = rows[limit - 1]
        following = encode_cursor([*map(int, last[:count]), *map(bytes, last[count : count + 3])])
    return Page(found, following)


def _line(row: Sequence[Any], windows: int) -> Line:
    user, model, chip = (bytes(name).decode() for name in row[windows : windows + 3])
    counters = Usage(*map(int, row[windows + 3 :]))
    return Line(int(row[0]) if windows else None, user, model, chip, counters)


# --- The proof ---


def reconcile(database: Database) -> list[tuple[int, Sequence[Any]]]:
    """Statements whose lines and adjustments are not what the rows say, with what differs; none, unless a table was
    changed by somebody else."""
    found: list[tuple[int, Sequence[Any]]] = []
    for each in statements(database):
        since, begin = ("", []) if each.begin is None else ("window_start >= ? AND", [each.begin])
        rows = database.rows(
            f"""
            SELECT {", ".join(_IDS)}, {_SUMS} FROM (
                SELECT {", ".join(_IDS)}, {_ALL} FROM usage WHERE {since} window_start < ?
                UNION ALL
                SELECT {", ".join(_IDS)}, {", ".join(f"-{name}" for name in COUNTERS)} FROM statement_lines
                WHERE statement_id = ?
                UNION ALL
                SELECT {", ".join(_IDS)}, {", ".join(f"-{name}" for name in COUNTERS)} FROM late
                WHERE {since} window_start < ?
            ) AS both_sides GROUP BY {", ".join(_IDS)}
            HAVING {" OR ".join(f"sum({name}) <> 0" for name in COUNTERS)}
            """,
            [*begin, each.end, each.id, *begin, each.end],
        )
        found += [(each.id, row) for row in rows]
    return found


# --- As JSON ---


def statement_json(each: Statement, where: tzinfo = UTC) -> dict[str, Any]:
    return {
        "statement": each.id,
        "begin": None if each.begin is None else times.text(each.begin, where),
        "end": times.text(each.end, where),
        "closed_at": times.text(each.closed_at, where),
        "complete": each.complete,
        "complete_up_to": None if each.watermark is None else times.text(each.watermark, where),
    }


def page_json(database: Database, name: str, kind: str, limit: int, after: str | None) -> dict[str, Any]:
    """`lines` or `adjustments` of a statement by its number; of `next`, the one to come, there are adjustments only."""
    if kind not in ("lines", "adjustments") or (name, kind) == ("next", "lines"):
        raise BadRequest("a statement has lines and adjustments, and the next one only adjustments so far")
    id = None if name == "next" else statement(database, number("statement", name)).id
    if kind == "adjustments":
        page = adjustments(database, id, limit, after)
    else:
        assert id is not None
        page = lines(database, id, limit, after)
    return {"rows": [line_json(line) for line in page.lines], "next": page.following}


def line_json(line: Line, where: tzinfo = UTC) -> Mapping[str, Any]:
    window = {} if line.window_start is None else {"window_start": times.text(line.window_start, where)}
    names = {"user": line.user, "model": line.model, "chip": line.chip}
    return {**window, **names, **line.counters.with_total()}
