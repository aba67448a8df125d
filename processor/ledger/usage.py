"""What was used, by whom, of what, when: a question out of texts, its statement, and its answer.

    usage (a view: rows of open parts, and merged ones) ── of the time and names asked for
        └─> fine: added up by bucket and names, for money also by model, chip and the time of a price
              └─> page: the groups of one answer, in order of bucket and names, or of tokens
                    └─> their fine rows, folded into a row for each group

Everything is read at one moment of the database, completeness as well.
"""

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import Any

from tokenometer.processor.ledger import times
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.prices import Prices, money
from tokenometer.processor.ledger.values import BadRequest
from tokenometer.schemas.usage import COUNTERS, PARENTS, TOKENS, Usage

DIMENSIONS = ("user", "model", "chip")
LIMIT, LIMIT_MAX = 1_000, 100_000  # groups of one answer
_MS_END = 1 << 53  # of milliseconds, in a cursor: far beyond the calendar, and within any database's integers
_TOTAL = " + ".join(name for name in TOKENS if name not in PARENTS)
_PARAMETERS = ("from", "to", "time_zone", "window", "group_by", *DIMENSIONS, "top", "limit", "after", "priced")


@dataclass(frozen=True)
class Query:
    begin: int
    end: int
    where: tzinfo = UTC
    window: str = "total"
    group_by: tuple[str, ...] = ()
    only: Mapping[str, str] = field(default_factory=dict)  # by dimension
    top: int | None = None
    limit: int = LIMIT
    after: tuple[Any, ...] | None = None
    priced: bool = False

    @property
    def dimensions(self) -> tuple[str, ...]:
        """What must be known of each fine row."""
        money = ("model", "chip") if self.priced else ()
        return tuple(name for name in DIMENSIONS if name in self.group_by or name in money)


@dataclass
class Group:
    """A row of the answer. unpriced, uncosted: tokens that no price, no cost was found for."""

    begin: int
    end: int
    names: Mapping[str, str]
    counters: Usage = Usage()
    revenue: Decimal | None = None
    unpriced: int = 0
    cost: Decimal | None = None
    uncosted: int = 0


@dataclass(frozen=True)
class Answer:
    """watermark: the rows are complete up to this moment of event time; None: nobody can say yet."""

    query: Query
    groups: Sequence[Group]
    following: str | None
    watermark: int | None
    complete: bool
    currency: str | None = None


# --- The question ---


def parse(given: Mapping[str, str]) -> Query:
    """Of the parameters of a request. Raises BadRequest."""
    if unknown := given.keys() - set(_PARAMETERS):
        raise BadRequest(f"no such parameter: {min(unknown)}; expected {', '.join(_PARAMETERS)}")
    where = times.zone(given.get("time_zone", "UTC"))
    for name in ("from", "to"):
        if name not in given:
            raise BadRequest(f"{name} is missing: a date (2026-11-01), or a time with its offset")
    begin, end = times.moment(given["from"], where), times.moment(given["to"], where)
    if begin >= end:
        raise BadRequest(f"from {given['from']} to {given['to']} is no time: to is the first moment that is not in it")
    query = Query(
        begin,
        end,
        where,
        _one_of("window", given.get("window", "total"), times.UNITS),
        _group_by(given.get("group_by", "")),
        {name: given[name] for name in DIMENSIONS if name in given},
        number("top", given["top"]) if "top" in given else None,
        limit(given.get("limit")),
        priced=_one_of("priced", given.get("priced", "false"), ("true", "false")) == "true",
    )
    if query.top is not None and (query.window != "total" or not query.group_by or "after" in given):
        raise BadRequest("top wants something to group by, the window total, and no after")
    return dataclasses.replace(query, after=_cursor(given["after"], query)) if "after" in given else query


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise BadRequest(f"{name} {value!r}: expected {', '.join(known)}")
    return value


def _group_by(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        _one_of("group_by", name, DIMENSIONS)
    return tuple(name for name in DIMENSIONS if name in names)


def limit(text: str | None) -> int:
    return LIMIT if text is None else number("limit", text)


def number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= LIMIT_MAX and len(text) < 9):
        raise BadRequest(f"{name} {text!r}: expected a number from 1 to {LIMIT_MAX:,}")
    return int(text)


def encode_cursor(key: Sequence[Any]) -> str:
    """A group's key, as a text that a URL takes."""
    plain = [each.hex() if isinstance(each, bytes) else each for each in key]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode_cursor(text: str, numbers: int, names: int) -> tuple[Any, ...]:
    """A key of so many numbers and names."""
    try:
        plain = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        moments, hex_names = plain[:numbers], plain[numbers:]
        if len(plain) != numbers + names or not all(type(each) is int and abs(each) < _MS_END for each in moments):
            raise ValueError
        return (*moments, *map(bytes.fromhex, hex_names))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise BadRequest("after is not the next of an answer to the same question") from None


def _cursor(text: str, query: Query) -> tuple[Any, ...]:
    key = decode_cursor(text, 1, len(query.group_by))
    if not query.begin <= key[0] < query.end:
        raise BadRequest("after is not the next of an answer to the same question")
    return key


# --- The answer ---


def answer(database: Database, query: Query, prices: Prices | None = None) -> Answer:
    """`database`: a snapshot."""
    if query.priced and prices is None:
        raise BadRequest("priced: there is no price list; start the ledger, or ask, with --prices FILE")
    found = watermark(database)
    buckets = times.bounds(query.begin, query.end, query.window, query.where)
    ends = dict(zip(buckets, [*buckets[1:], query.end], strict=True))
    statement, parameters = _statement(database, query, buckets, prices)
    keyed: dict[tuple[Any, ...], Group] = {}
    for row in database.rows(statement, parameters):
        _fold(keyed, row, query, ends, prices)
    groups, following = list(keyed.values()), None
    if query.top is None and len(groups) > query.limit:
        groups = groups[: query.limit]
        following = encode_cursor(list(keyed)[query.limit - 1])
    complete = found is not None and found >= window_end(database, query.end)
    return Answer(query, groups, following, found, complete, prices.currency if prices and query.priced else None)


def _statement(
    database: Database, query: Query, buckets: Sequence[int], prices: Prices | None
) -> tuple[str, list[Any]]:
    """Only names of columns and numbers are put into it; all that is anybody's text is a parameter."""
    segments = prices.bounds(query.begin, query.end) if query.priced and prices else [query.begin]
    asked, parameters = _asked(database, query)
    keys = ["bucket", *(f"key_{name}.name" for name in query.group_by)]
    chosen, after = "", ""
    if query.top is not None:
        chosen, asked = f"chosen AS ({_chosen(query, asked)}),", f"JOIN chosen USING ({_ids(query)}) {asked}"
        parameters = [*parameters, *parameters]
    if query.after is not None:
        after = f"WHERE ({', '.join(keys)}) > ({', '.join('?' * len(query.after))})"
        parameters = [*parameters, *query.after]
    build = _priced if query.priced else _plain
    fine = _fine(database, query, buckets, segments, asked)
    return f"WITH {chosen} fine AS ({fine}) {build(query, keys, after)}", parameters


def _asked(database: Database, query: Query) -> tuple[str, list[Any]]:
    """Which rows are meant."""
    conditions, parameters = ["window_start >= ?", "window_start < ?"], [query.begin, query.end]
    for name, value in query.only.items():
        conditions.append(f"{name}_id = ?")
        parameters.append(database.name_ids([_encoded(value)]).get(value.encode(), -1))
    return f"WHERE {' AND '.join(conditions)}", parameters


def _ids(query: Query) -> str:
    return ", ".join(f"{name}_id" for name in query.group_by)


def _chosen(query: Query, asked: str) -> str:
    """The groups of the most tokens, and all that have as many as the last of them: of these the names decide, and are
    looked up for no others. By one sum, since six sums of every group took PostgreSQL twice as long."""
    return f"""
        WITH every AS (
            SELECT {_ids(query)}, sum({_TOTAL}) AS total FROM usage {asked} GROUP BY {_ids(query)}
        ) SELECT {_ids(query)} FROM every WHERE total >= (
            SELECT min(total) FROM (SELECT total FROM every ORDER BY total DESC LIMIT {query.top}) AS largest
        )
    """


def _fine(database: Database, query: Query, buckets: Sequence[int], segments: Sequence[int], asked: str) -> str:
    """Added up as far as the answer, and its money, allow."""
    ids = [f"{name}_id" for name in query.dimensions]
    places = ", ".join(["bucket", "segment", *ids])
    sums = ", ".join(f"sum({name}) AS {name}" for name in COUNTERS)
    return f"""
        SELECT {places}, {sums} FROM (
            SELECT {database.buckets(buckets)} AS bucket, {database.buckets(segments)} AS segment,
                {", ".join([*ids, *COUNTERS])} FROM usage {asked}
        ) AS asked GROUP BY {places}
    """


def _plain(query: Query, keys: Sequence[str], after: str) -> str:
    """A fine row is a group."""
    order = [f"{_TOTAL} DESC", *keys] if query.top else keys
    return f"""
        SELECT {", ".join(keys)}, segment, NULL, NULL, {", ".join(COUNTERS)} FROM fine {_joins(query, "fine")}
        {after} ORDER BY {", ".join(order)} LIMIT {query.top or query.limit + 1}
    """


def _priced(query: Query, keys: Sequence[str], after: str) -> str:
    """Groups are chosen first, and then come all of their fine rows."""
    ids = ["bucket", *(f"{name}_id" for name in query.group_by)]
    order = ["total DESC", *keys] if query.top else keys
    named = "".join(f'key_{name}.name AS "{name}", ' for name in query.group_by)
    return f"""
        , groups AS (
            SELECT {", ".join(ids)}, sum({_TOTAL}) AS total FROM fine GROUP BY {", ".join(ids)}
        ), page AS (
            SELECT {", ".join(f"groups.{name}" for name in ids)}, {named}
                row_number() OVER (ORDER BY {", ".join(order)}) AS place
            FROM groups {_joins(query, "groups")} {after}
            ORDER BY {", ".join(order)} LIMIT {query.top or query.limit + 1}
        )
        SELECT page.bucket, {"".join(f'page."{name}", ' for name in query.group_by)} fine.segment,
            priced_model.name, priced_chip.name, {", ".join(f"fine.{name}" for name in COUNTERS)}
        FROM page JOIN fine ON {" AND ".join(f"fine.{name} = page.{name}" for name in ids)}
            JOIN names AS priced_model ON priced_model.id = fine.model_id
            JOIN names AS priced_chip ON priced_chip.id = fine.chip_id
        ORDER BY page.place
    """


def _joins(query: Query, table: str) -> str:
    return " ".join(f"JOIN names AS key_{name} ON key_{name}.id = {table}.{name}_id" for name in query.group_by)


def _encoded(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"{value!r} is not a text in UTF-8") from None


def _fold(
    keyed: dict[tuple[Any, ...], Group],
    row: Sequence[Any],
    query: Query,
    ends: Mapping[int, int],
    prices: Prices | None,
) -> None:
    count = 1 + len(query.group_by)
    bucket, names = int(row[0]), [bytes(name) for name in row[1:count]]
    key = (bucket, *names)
    segment, model, chip, *values = row[count:]
    counters = _as_counters(values)
    if key not in keyed:
        shown = dict(zip(query.group_by, (name.decode() for name in names), strict=True))
        keyed[key] = Group(bucket, ends[bucket], shown)
    group = keyed[key]
    group.counters = group.counters.plus(counters)
    if query.priced and prices is not None:
        tokens = counters.total_tokens
        revenue = prices.revenue(bytes(model).decode(), int(segment), counters)
        cost = prices.cost(bytes(chip).decode(), int(segment), tokens)
        group.revenue, group.unpriced = _added(group.revenue, group.unpriced, revenue, tokens)
        group.cost, group.uncosted = _added(group.cost, group.uncosted, cost, tokens)


def _added(total: Decimal | None, without: int, more: Decimal | None, tokens: int) -> tuple[Decimal | None, int]:
    """What has no price is counted, and is never a price of zero."""
    if more is None:
        return total, without + tokens
    return more if total is None else money(total, more), without


def _as_counters(values: Sequence[Any]) -> Usage:
    return Usage(*map(int, values))


# --- How far the rows are complete ---


def watermark(database: Database) -> int | None:
    """The lowest of all partitions. One that has never had a request with a time of its own holds nobody up."""
    marks = database.rows("SELECT complete FROM watermarks WHERE seen IS NOT NULL")
    if not marks or any(mark is None for (mark,) in marks):
        return None
    return min(int(mark) for (mark,) in marks)


def window_end(database: Database, moment: int) -> int:
    """Where the last window ends that begins before this moment."""
    [(window_ms,)] = database.rows("SELECT coalesce(max(window_ms), 1) FROM parts")
    return -(-moment // int(window_ms)) * int(window_ms)


# --- As JSON ---


def as_json(found: Answer) -> dict[str, Any]:
    query = found.query
    shown = {
        "from": times.text(query.begin, query.where),
        "to": times.text(query.end, query.where),
        "time_zone": getattr(query.where, "key", "UTC"),
        "window": query.window,
        "group_by": list(query.group_by),
        "complete": found.complete,
        "complete_up_to": None if found.watermark is None else times.text(found.watermark, query.where),
        "rows": [row_json(group, query) for group in found.groups],
        "next": found.following,
    }
    return {**shown, "currency": found.currency} if query.priced else shown


def row_json(group: Group, query: Query) -> dict[str, Any]:
    row: dict[str, Any] = {
        "begin": times.text(group.begin, query.where),
        "end": times.text(group.end, query.where),
        **group.names,
        **group.counters.with_total(),
    }
    if query.priced:
        row |= {
            "revenue": shown_money(group.revenue),
            "unpriced_tokens": group.unpriced,
            "chip_cost": shown_money(group.cost),
            "uncosted_tokens": group.uncosted,
        }
    return row


def shown_money(amount: Decimal | None) -> str | None:
    """All of its digits, and no exponent."""
    if amount is None:
        return None
    text = format(amount, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
