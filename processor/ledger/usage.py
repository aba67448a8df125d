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
from typing import Any

from tokenometer.processor.ledger import labels, labelsets, times
from tokenometer.processor.ledger.database import COUNTS, KEY, Database
from tokenometer.processor.ledger.prices import Prices, maybe_text
from tokenometer.processor.ledger.values import BadArgument
from tokenometer.schemas.usage import COUNTERS, FURTHER, PARENTS, TOKENS, Usage

DIMENSIONS = labels.DIMENSIONS
Given = Mapping[str, Any]  # the parameters of a question: texts by name; of `label`, which may come again, a sequence
LIMIT, LIMIT_MAX = 1_000, 100_000  # groups of one answer
_MS_END = 1 << 53  # of milliseconds, in a cursor: far beyond the calendar, and within any database's integers
_TOTAL = " + ".join(name for name in TOKENS if name not in PARENTS)
_PARAMETERS = (
    "from", "to", "time_zone", "window", "group_by", *DIMENSIONS, "label", "top", "limit", "after", "priced", "further",
)  # fmt: skip
_MONEY = ("revenue", "unpriced_tokens", "chip_cost", "uncosted_tokens")
_OWN = frozenset(("begin", "end", *_MONEY))  # columns of an answer that a label may be called like


@dataclass(frozen=True)
class Query:
    begin: int
    end: int
    where: tzinfo = UTC
    window: str = "total"
    group_by: tuple[str, ...] = ()  # dimensions in their order, then labels
    only: Mapping[str, str] = field(default_factory=dict)  # by dimension
    only_labels: Mapping[str, str] = field(default_factory=dict)  # an empty value: what has none
    top: int | None = None
    limit: int = LIMIT
    after: tuple[Any, ...] | None = None
    priced: bool = False
    further: bool = False  # further counters in each row, also where they are 0

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(name for name in self.group_by if name not in DIMENSIONS)


@dataclass
class UsageGroup:
    """A row of the answer. names: None is a label that the rows have not. unpriced, uncosted: tokens that no price, no
    cost was found for. Money is in the unit of prices.py."""

    begin: int
    end: int
    names: Mapping[str, str | None]
    counters: Usage = Usage()
    further: tuple[int, ...] = (0,) * len(FURTHER)
    revenue: int | None = None
    unpriced: int = 0
    cost: int | None = None
    uncosted: int = 0


@dataclass(frozen=True)
class Answer:
    """watermark: the rows are complete up to this moment of event time; None: nobody can say yet."""

    query: Query
    groups: Sequence[UsageGroup]
    following: str | None
    watermark: int | None
    complete: bool
    currency: str | None = None


# --- The question ---


def parse(given: Given) -> Query:
    """Of the parameters of a request. Raises BadArgument."""
    if unknown := given.keys() - set(_PARAMETERS):
        raise BadArgument(f"no such parameter: {min(unknown)}; expected {', '.join(_PARAMETERS)}")
    where = times.zone(given.get("time_zone", "UTC"))
    for name in ("from", "to"):
        if name not in given:
            raise BadArgument(f"{name} is missing: a date (2026-11-01), or a time with its offset")
    begin, end = times.moment(given["from"], where), times.moment(given["to"], where)
    if begin >= end:
        raise BadArgument(f"from {given['from']} to {given['to']} is no time: to is the first moment that is not in it")
    query = Query(
        begin,
        end,
        where,
        _one_of("window", given.get("window", "total"), times.UNITS),
        _group_by(given.get("group_by", "")),
        {name: given[name] for name in DIMENSIONS if name in given},
        _labels(given.get("label", ())),
        number("top", given["top"]) if "top" in given else None,
        limit(given.get("limit")),
        priced=_one_of("priced", given.get("priced", "false"), ("true", "false")) == "true",
        further=_one_of("further", given.get("further", "false"), ("true", "false")) == "true",
    )
    if query.top is not None and (query.window != "total" or not query.group_by or "after" in given):
        raise BadArgument("top wants something to group by, the window total, and no after")
    return dataclasses.replace(query, after=_cursor(given["after"], query)) if "after" in given else query


def _one_of(name: str, value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise BadArgument(f"{name} {value!r}: expected {', '.join(known)}")
    return value


def _group_by(text: str) -> tuple[str, ...]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in DIMENSIONS and not labels.is_name(name):
            raise BadArgument(f"group_by {name!r}: expected {', '.join(DIMENSIONS)} or the name of a label")
    known = [name for name in DIMENSIONS if name in names]
    return (*known, *(name for name in names if name not in DIMENSIONS))


def _labels(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not labels.is_name(name):
            raise BadArgument(f"label {text!r}: expected NAME=VALUE, or NAME= for what has no such label")
        if name in found:
            raise BadArgument(f"label {name} is given twice")
        found[name] = value
    return found


def limit(text: str | None) -> int:
    return LIMIT if text is None else number("limit", text)


def number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= LIMIT_MAX and len(text) < 9):
        raise BadArgument(f"{name} {text!r}: expected a number from 1 to {LIMIT_MAX:,}")
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
        raise BadArgument("after is not the next of an answer to the same question") from None


def _cursor(text: str, query: Query) -> tuple[Any, ...]:
    key = decode_cursor(text, 1, len(query.group_by))
    if not query.begin <= key[0] < query.end:
        raise BadArgument("after is not the next of an answer to the same question")
    return key


# --- The answer ---


def answer(database: Database, query: Query, prices: Prices | None = None) -> Answer:
    """`database`: a snapshot."""
    if query.priced and prices is None:
        raise BadArgument("priced: there is no price list; start the ledger, or ask, with --prices FILE")
    found = watermark(database)
    buckets = times.bounds(query.begin, query.end, query.window, query.where)
    ends = dict(zip(buckets, [*buckets[1:], query.end], strict=True))
    question = _Question(database, query, buckets, prices if query.priced else None)
    groups, keys = question.groups(ends)
    following = None
    if query.top is None and len(groups) > query.limit:
        groups, following = groups[: query.limit], encode_cursor(keys[query.limit - 1])
    complete = is_complete(database, query.end, 0)
    return Answer(query, groups, following, found, complete, prices.currency if prices and query.priced else None)


class _Question:
    """One question's statement, and its rows as groups. Only names of columns and numbers are put into the statement;
    all that is anybody's text is a parameter."""

    def __init__(self, database: Database, query: Query, buckets: Sequence[int], prices: Prices | None) -> None:
        self._database, self._query, self._buckets, self._prices = database, query, buckets, prices
        wanted = (*query.labels, *query.only_labels)
        numbers = labelsets.checked(database, wanted) if wanted else {}
        self._label_ids = numbers
        # The column of each thing to group by.
        self._ids = [f"{name}_id" if name in DIMENSIONS else f"label_{numbers[name]}_id" for name in query.group_by]
        money = ["model_id", "chip_id"] if prices else []
        money += ["user_id"] if prices and prices.by_user else []
        money += ["labels_id"] if prices and prices.by_labels else []
        self._fine_ids = [*self._ids, *(name for name in money if name not in self._ids)]
        [(further,)] = database.rows("SELECT further FROM book")
        self._counts = COUNTS if further else COUNTERS

    # --- The statement ---

    def _statement(self) -> tuple[str, list[Any]]:
        query = self._query
        segments = self._prices.bounds(query.begin, query.end) if self._prices else [query.begin]
        asked, parameters = self._asked()
        keys = ["bucket", *(_name_of(id) for id in self._ids)]
        chosen, after, source = "", "", asked
        if query.top is not None:
            chosen, source = (
                f"chosen AS ({self._chosen(asked)}),",
                f"{asked} JOIN chosen USING ({', '.join(self._ids)})",
            )
            parameters = [*parameters, *parameters]
        if query.after is not None:
            after = f"WHERE ({', '.join(keys)}) > ({', '.join('?' * len(query.after))})"
            parameters = [*parameters, *query.after]
        build = self._priced if self._prices else self._plain
        return f"WITH {chosen} fine AS ({self._fine(segments, source)}) {build(keys, after)}", parameters

    def _asked(self) -> tuple[str, list[Any]]:
        """The rows that are meant; with a column for each label that is grouped by, 0 where a row has it not."""
        query, parameters = self._query, list[Any]()
        columns, joins = list((*KEY, *self._counts)), ""
        for name in query.labels:
            number = self._label_ids[name]
            columns.append(f"coalesce(label_{number}.value_id, 0) AS label_{number}_id")
            joins += (
                f" LEFT JOIN set_labels AS label_{number} "
                f"ON label_{number}.set_id = labels_id AND label_{number}.name_id = {number}"
            )
        conditions, parameters = ["window_start >= ?", "window_start < ?"], [query.begin, query.end]
        for name, value in query.only.items():
            conditions.append(f"{name}_id = ?")
            parameters.append(self._number(value))
        for name, value in query.only_labels.items():
            held = f"SELECT set_id FROM set_labels WHERE name_id = {self._label_ids[name]}"
            conditions.append(f"labels_id IN ({held} AND value_id = ?)" if value else f"labels_id NOT IN ({held})")
            parameters += [self._number(value)] if value else []
        text = f"(SELECT {', '.join(columns)} FROM usage{joins} WHERE {' AND '.join(conditions)}) AS asked"
        return text, parameters

    def _number(self, name: str) -> int:
        return self._database.ids("names", [_encoded(name)]).get(name.encode(), -1)

    def _chosen(self, asked: str) -> str:
        """The groups of the most tokens, and all that have as many as the last. Among equals the names decide, and
        are looked up for no others. By one sum, since six sums of every group took PostgreSQL twice as long."""
        ids = ", ".join(self._ids)
        return f"""
            WITH every AS (
                SELECT {ids}, sum({_TOTAL}) AS total FROM {asked} GROUP BY {ids}
            ) SELECT {ids} FROM every WHERE total >= (
                SELECT min(total) FROM (SELECT total FROM every ORDER BY total DESC LIMIT {self._query.top}) AS largest
            )
        """

    def _fine(self, segments: Sequence[int], source: str) -> str:
        """Added up as far as the answer, and its money, allow."""
        places = ", ".join(["bucket", "segment", *self._fine_ids])
        sums = ", ".join(f"sum({name}) AS {name}" for name in self._counts)
        return f"""
            SELECT {places}, {sums} FROM (
                SELECT {self._database.buckets(self._buckets)} AS bucket, {self._database.buckets(segments)} AS segment,
                    {", ".join([*self._fine_ids, *self._counts])} FROM {source}
            ) AS placed GROUP BY {places}
        """

    def _plain(self, keys: Sequence[str], after: str) -> str:
        """A fine row is a group."""
        query = self._query
        order = [f"{_TOTAL} DESC", *keys] if query.top else keys
        return f"""
            SELECT {", ".join(keys)}, {", ".join(self._counts)} FROM fine {_joins(self._ids, "fine")}
            {after} ORDER BY {", ".join(order)} LIMIT {query.top or query.limit + 1}
        """

    def _priced(self, keys: Sequence[str], after: str) -> str:
        """Groups are chosen first, and then come all of their fine rows."""
        query, ids = self._query, ["bucket", *self._ids]
        order = ["total DESC", *keys] if query.top else keys
        named = "".join(f"{_name_of(id)} AS name_{id}, " for id in self._ids)
        user = "priced_user.name" if "user_id" in self._fine_ids else "NULL"
        joined = "JOIN names AS priced_user ON priced_user.id = fine.user_id" if "user_id" in self._fine_ids else ""
        return f"""
            , groups AS (
                SELECT {", ".join(ids)}, sum({_TOTAL}) AS total FROM fine GROUP BY {", ".join(ids)}
            ), page AS (
                SELECT {", ".join(f"groups.{name}" for name in ids)}, {named}
                    row_number() OVER (ORDER BY {", ".join(order)}) AS place
                FROM groups {_joins(self._ids, "groups")} {after}
                ORDER BY {", ".join(order)} LIMIT {query.top or query.limit + 1}
            )
            SELECT page.bucket, {"".join(f"page.name_{id}, " for id in self._ids)}
                fine.segment, priced_model.name, priced_chip.name, {user},
                {"fine.labels_id" if "labels_id" in self._fine_ids else "0"},
                {", ".join(f"fine.{name}" for name in self._counts)}
            FROM page JOIN fine ON {" AND ".join(f"fine.{name} = page.{name}" for name in ids)}
                JOIN names AS priced_model ON priced_model.id = fine.model_id
                JOIN names AS priced_chip ON priced_chip.id = fine.chip_id {joined}
            ORDER BY page.place
        """

    # --- Its rows ---

    def groups(self, ends: Mapping[int, int]) -> tuple[list[UsageGroup], list[tuple[Any, ...]]]:
        """And their keys, for a cursor."""
        rows, count = self._database.rows(*self._statement()), 1 + len(self._ids)
        held = {int(row[count + 4]) for row in rows} if self._prices else set[int]()
        label_sets = labelsets.sets(self._database, held)
        keyed: dict[tuple[Any, ...], UsageGroup] = {}
        for row in rows:
            begin, encoded = int(row[0]), [bytes(name) for name in row[1:count]]
            key = (begin, *encoded)
            if (group := keyed.get(key)) is None:
                names = zip(self._query.group_by, (name.decode() or None for name in encoded), strict=True)
                group = keyed[key] = UsageGroup(begin, ends[begin], dict(names))
            values = row[count + 5 :] if self._prices else row[count:]
            counts = [*map(int, values), *([0] * (len(COUNTS) - len(values)))]
            _add(group, counts)
            if self._prices:
                segment, model, chip, user, labels_id = row[count : count + 5]
                names_of = bytes(model).decode(), bytes(user or b"").decode(), label_sets[int(labels_id)]
                _charge(group, self._prices, int(segment), names_of, bytes(chip).decode(), counts)
        return list(keyed.values()), list(keyed)


def _name_of(id: str) -> str:
    """An expression: what a label's absence is called is the empty text, which no label is."""
    return f"coalesce(key_{id}.name, '')" if id.startswith("label_") else f"key_{id}.name"


def _joins(ids: Sequence[str], table: str) -> str:
    return " ".join(
        f"{'LEFT ' if id.startswith('label_') else ''}JOIN names AS key_{id} ON key_{id}.id = {table}.{id}"
        for id in ids
    )


def _add(group: UsageGroup, counts: Sequence[int]) -> None:
    group.counters = group.counters.plus(counts[: len(COUNTERS)])
    group.further = tuple(a + b for a, b in zip(group.further, counts[len(COUNTERS) :], strict=True))


def _charge(
    group: UsageGroup,
    prices: Prices,
    at: int,
    names: tuple[str, str, Mapping[str, str]],
    chip: str,
    counts: Sequence[int],
) -> None:
    """names: model, user, labels. What has no price is counted, and is never a price of zero."""
    tokens = Usage(*counts[: len(COUNTERS)]).total_tokens
    if (entry := prices.entry(*names, at)) is None:
        group.unpriced += tokens
    else:
        group.revenue = (group.revenue or 0) + entry.amount(counts)
    if (cost := prices.cost(chip, at, tokens)) is None:
        group.uncosted += tokens
    else:
        group.cost = (group.cost or 0) + cost


def _encoded(value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise BadArgument(f"{value!r} is not a text in UTF-8") from None


# --- How far the rows are complete ---


def watermark(database: Database) -> int | None:
    """The lowest of all partitions. One that has never had a request with a time of its own holds nobody up."""
    marks = database.rows("SELECT complete FROM watermarks WHERE seen IS NOT NULL")
    if not marks or any(mark is None for (mark,) in marks):
        return None
    return min(int(mark) for (mark,) in marks)


def is_complete(database: Database, moment: int, grace_ms: int) -> bool:
    """Is all usage before the moment in? Of a ledger that reads no topic but was given files: it has what it has."""
    reached = watermark(database)
    if reached is None:
        [(topics, parts)] = database.rows("SELECT (SELECT count(*) FROM positions), (SELECT count(*) FROM parts)")
        return not topics and bool(parts) and not database.rows("SELECT 1 FROM watermarks LIMIT 1")
    return reached >= window_end(database, moment) + grace_ms


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
        "group_by": [column_of(name) for name in query.group_by],
        "complete": found.complete,
        "complete_up_to": None if found.watermark is None else times.text(found.watermark, query.where),
        "rows": [row_json(group, query) for group in found.groups],
        "next": found.following,
    }
    return {**shown, "currency": found.currency} if query.priced else shown


def row_json(group: UsageGroup, query: Query) -> dict[str, Any]:
    further = dict(zip(FURTHER, group.further, strict=True))
    row: dict[str, Any] = {
        "begin": times.text(group.begin, query.where),
        "end": times.text(group.end, query.where),
        **{column_of(name): value for name, value in group.names.items()},
        **group.counters.with_total(),
        **{name: count for name, count in further.items() if count or query.further},
    }
    if query.priced:
        amounts = maybe_text(group.revenue), group.unpriced, maybe_text(group.cost), group.uncosted
        row |= dict(zip(_MONEY, amounts, strict=True))
    return row


def column_of(name: str) -> str:
    """A label that is called like a column of ours has another one."""
    return f"label.{name}" if name in _OWN else name
