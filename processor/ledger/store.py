"""What the ledger writes: every change of its tables is one transaction here.

A batch, in one transaction:

    1. nobody else has moved the offsets since they were read
    2. names to numbers, new ones added
    3. rows of merged parts fall out, identities that occur twice become one
    4. what is new of windows in closed periods is noted as late
    5. upsert
    6. parts, watermarks, offsets

Promises: after a crash the database has a batch as a whole or not at all. Counters of an identity only grow, so a
batch that comes again, or comes late, changes nothing. After any failure the store is of no more use: open it again.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.ledger.database import COLUMNS, COUNTS, IDENTITY, KEY, WIDE, Database
from tokenometer.processor.ledger.parts import DISPUTED, ENDED, MERGED, LedgerPart, LedgerParts
from tokenometer.processor.ledger.values import (
    Coded,
    CodedLabels,
    DatabaseError,
    LabelSet,
    LedgerBatch,
    LedgerError,
    LedgerRows,
)
from tokenometer.schemas.usage import COUNTERS, FURTHER, Usage

NAMES_CACHED_MAX = 2_000_000  # about 300 MB of bytes and numbers; then the cache begins anew
_SUMS = ", ".join(f"sum({name})" for name in COUNTERS)
# Columns are named wherever they are written: a later version of the tables has more of them.
_NUMBER, _PAIR_BYTES = np.dtype(">u4"), 8  # a label is the numbers of its name and its value
_PLACE = "topic, partition, topic_id, next"
_MARK = "topic, partition, seen, complete"
_PART = ", ".join(("id", "name", "window_ms", "state", "meter", "sequence", "live_partition", *COUNTERS))


def _late(counters: Sequence[str]) -> str:
    """What `incoming` adds to windows that a statement closed, with the first such statement. A place (window, user,
    labels) is in one period of each kind of statement: of everybody, of its user, of each of its labels."""
    return f"""
        INSERT INTO late ({", ".join((*KEY, *counters))}, closed_by)
        WITH places AS (
            SELECT DISTINCT window_start, user_id, labels_id FROM incoming WHERE window_start < ?
        ), covered AS (
            {" UNION ALL ".join(periods_of("places.window_start", "places.user_id", "places.labels_id", "places"))}
        ), closing AS (
            SELECT window_start, user_id, labels_id, min(id) AS closed_by FROM covered
            GROUP BY window_start, user_id, labels_id
        )
        SELECT {", ".join(KEY)}, {", ".join(f"later.{name} - held_{name}" for name in counters)}, closed_by FROM (
            SELECT {", ".join(f"incoming.{name}" for name in KEY)}, closing.closed_by,
                {", ".join(f"coalesce(held.{name}, 0) AS held_{name}" for name in counters)},
                {", ".join(f"greatest(incoming.{name}, coalesce(held.{name}, 0)) AS {name}" for name in counters)}
            FROM incoming JOIN closing USING (window_start, user_id, labels_id)
                LEFT JOIN open_rows AS held ON {" AND ".join(f"held.{name} = incoming.{name}" for name in IDENTITY)}
        ) AS later WHERE {" OR ".join(f"later.{name} > held_{name}" for name in counters)}
    """


def periods_of(window: str, user: str, labels: str, table: str) -> Sequence[str]:
    """Selections of the rows of a table with the `id` of a statement that closed their windows, by kind."""
    within = f"(s.begin_ms IS NULL OR s.begin_ms <= {window}) AND {window} < s.end_ms"
    everybody = f"SELECT {table}.*, s.id FROM {table} JOIN statements AS s ON {within} AND s.user_id IS NULL AND "
    return (
        f"{everybody} s.label_id IS NULL",
        f"SELECT {table}.*, s.id FROM {table} JOIN statements AS s ON s.user_id = {user} AND {within}",
        f"SELECT {table}.*, s.id FROM {table} JOIN set_labels AS l ON l.set_id = {labels} "
        f"JOIN statements AS s ON s.label_id = l.name_id AND s.value_id = l.value_id AND {within}",
    )


_LATE, _LATE_WIDE = _late(COUNTERS), _late(COUNTS)


@dataclass(frozen=True)
class Stand:
    """The next offset to read of a topic's partition. topic_id: the topic for which this is true."""

    topic_id: str
    next: Offset


@dataclass(frozen=True)
class Dispute:
    """An ended part whose rows do not add up to its last summary."""

    part: str
    said: Usage
    found: Usage


class OtherRows(LedgerError):
    """The ledger has a part already, of other rows."""


class Store:
    """The one writer. `parts` is what the database knows of parts."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ignored_rows = 0  # of merged parts: read before
        [(highest,)] = database.rows("SELECT coalesce(max(id), 0) FROM parts")
        self.parts = LedgerParts(_parts(database, "state <> ?", MERGED), highest + 1, self._merged_part)
        self._positions = {
            Place(topic, partition): Stand(topic_id, Offset(following))
            for topic, partition, topic_id, following in database.rows(f"SELECT {_PLACE} FROM positions")
        }
        self._watermarks: dict[Place, tuple[int | None, int | None]] = {
            Place(topic, partition): (seen, complete)
            for topic, partition, seen, complete in database.rows(f"SELECT {_MARK} FROM watermarks")
        }
        self._names, self._sets = Numbers(database, "names"), Numbers(database, "label_sets")
        [(self._further,)] = database.rows("SELECT further FROM book")

    # --- Offsets ---

    @property
    def positions(self) -> Mapping[Place, Stand]:
        return self._positions

    def bind(self, usage_topic: str, live_topic: str) -> None:
        """These are the topics whose rows are in here; others would be another ledger's."""
        [(usage, live)] = self.database.rows("SELECT usage_topic, live_topic FROM book")
        if usage is None:
            self.database.rows("UPDATE book SET usage_topic = ?, live_topic = ?", [usage_topic, live_topic])
        elif (usage, live) != (usage_topic, live_topic):
            raise LedgerError(
                f"this database is the ledger of {usage} and {live}, not of {usage_topic} and {live_topic}: use "
                f"another database"
            )

    def place(self, stands: Mapping[Place, Stand]) -> None:
        """Partitions that were not read before."""
        with self.database.transaction():
            for place, stand in stands.items():
                self.database.rows(_insert("positions", _PLACE), [*place, stand.topic_id, stand.next])
        self._positions.update(stands)

    def skip(self, place: Place, following: Offset) -> None:
        """Go on after summaries that retention has deleted."""
        self.parts.doubt_all()
        self.take(LedgerBatch(None, (), {place: following}))

    # --- Batches ---

    def take(self, intake: LedgerBatch) -> None:
        for summary in intake.summaries:
            self.parts.take(summary)
        seen = self._seen(intake)
        with self.database.transaction():
            self._advance(intake.reached)
            if intake.rows is not None:
                self._take_rows(intake.rows)
            self._write_parts()
            self._write_watermarks(seen)
        self._watermarks.update(seen)

    def _advance(self, reached: Mapping[Place, Offset]) -> None:
        for place, following in reached.items():
            stand = self._positions[place]
            if following == stand.next:
                continue
            changed = self.database.rows(
                "UPDATE positions SET next = ? WHERE topic = ? AND partition = ? AND next = ? RETURNING next",
                [following, *place, stand.next],
            )
            if not changed:
                raise DatabaseError(f"another process has moved {place.topic}, partition {place.partition}: stop it")
            self._positions[place] = Stand(stand.topic_id, following)

    def _take_rows(self, rows: LedgerRows) -> None:
        batch = self._batch(rows)
        if not len(batch):
            return
        further = len(batch.column_names) > len(COLUMNS)
        self.database.stage(batch)
        # This locks it: a close by another process comes before this batch, and is heeded, or after it.
        [(closed_until,)] = self.database.rows("UPDATE book SET closed_until = closed_until RETURNING closed_until")
        if closed_until is not None and pc.min(batch["window_start"]).as_py() < closed_until:
            self.database.rows(_LATE_WIDE if further else _LATE, [closed_until])
        self.database.upsert(further)
        if further and not self._further:
            self.database.rows("UPDATE book SET further = TRUE")

    def check_parts(self, batches: Iterable[LedgerRows], source: str) -> None:
        """Raises OtherRows unless what the ledger has of the parts of these batches is in them, with the same counters.
        It holds about 150 bytes for each row of such a part. source: what the message calls the batches."""
        last = self.parts.last_id
        with self.database.transaction():
            known = [table.filter(pc.field("part_id") <= last) for table in map(self._batch, batches)]
            if not (known := [table for table in known if len(table)]):
                return
            again = pa.concat_tables(known, promote_options="default")
            held = [name for name in COUNTS if name in again.column_names]
            again = again.group_by([*IDENTITY]).aggregate([(name, "max") for name in held])
            again = again.rename_columns([name.removesuffix("_max") for name in again.column_names])
            columns = {name: pc.fill_null(again[name], 0) for name in again.column_names}
            columns |= {name: np.zeros(len(again), np.uint64) for name in COUNTS if name not in columns}
            self.database.stage(pa.table(columns).select(WIDE))
            ids = ", ".join(str(id) for id in sorted(pc.unique(again["part_id"]).to_pylist()))
            same = " AND ".join(f"incoming.{name} = held.{name}" for name in WIDE)
            found = self.database.rows(
                f"SELECT min(parts.name) FROM open_rows AS held JOIN parts ON parts.id = held.part_id "
                f"WHERE held.part_id IN ({ids}) AND NOT EXISTS (SELECT 1 FROM incoming WHERE {same})"
            )
            if (name := found[0][0]) is not None:
                raise OtherRows(
                    f"{source}: the ledger has the part {name} already, of other rows: another log was replayed under "
                    f"this name, or the same one with another mapping. Nothing of the file was taken in. Replay it "
                    f"with another --run, or load it into a ledger of its own"
                )

    def _batch(self, rows: LedgerRows) -> Any:
        """An Arrow table of COLUMNS, or WIDE: numbers for names, each identity once, its highest counters."""
        of_codes = [self.parts.of(n.decode(), ms) for n, ms in zip(rows.part.names, rows.window_ms, strict=True)]
        of_labels = [rows.labels.names, *rows.labels.values] if rows.labels is not None else []
        texts = itertools.chain(rows.user.names, rows.model.names, rows.chip.names, *of_labels)
        numbers = self._names.of(texts)
        columns = {
            "window_start": rows.window_starts,
            "user_id": _numbered(rows.user, numbers),
            "model_id": _numbered(rows.model, numbers),
            "chip_id": _numbered(rows.chip, numbers),
            "labels_id": self._label_numbers(rows, numbers),
            "part_id": np.array([part.id for part in of_codes], np.int32)[rows.part.codes],
            **dict(zip(COUNTERS, rows.counters, strict=True)),
        }
        if rows.further:
            columns |= dict(zip(FURTHER, rows.further, strict=True))
        merged = np.array([part.state == MERGED for part in of_codes])[rows.part.codes]
        table = pa.table(columns)
        if merged.any():
            self.ignored_rows += int(merged.sum())
            table = table.filter(pa.array(~merged))
        counters = COUNTS if rows.further else COUNTERS
        grouped = table.group_by([*IDENTITY]).aggregate([(name, "max") for name in counters])
        named = grouped.rename_columns([name.removesuffix("_max") for name in grouped.column_names])
        return named.select(WIDE if rows.further else COLUMNS)

    def _label_numbers(self, rows: LedgerRows, numbers: Mapping[bytes, int]) -> Any:
        if rows.labels is None:
            return np.zeros(len(rows), np.int32)
        keys = set_keys(rows.labels, numbers)
        return _looked_up(keys, self._sets.of(keys, self._add_sets))[rows.labels.codes]

    def _add_sets(self, new: Mapping[bytes, int]) -> None:
        """What the new sets have."""
        pairs = np.frombuffer(b"".join(new), _NUMBER).astype(np.int32).reshape(-1, 2)
        sizes = [len(key) // _PAIR_BYTES for key in new]
        of_sets = np.repeat(np.fromiter(new.values(), np.int32, len(new)), sizes)
        columns = {"set_id": of_sets, "name_id": pairs[:, 0], "value_id": pairs[:, 1]}
        self.database.append("set_labels", pa.table(columns))

    # --- Parts and watermarks ---

    def _merged_part(self, name: str) -> LedgerPart | None:
        return next(iter(_parts(self.database, "name = ?", name)), None)

    def _write_parts(self) -> None:
        for part in self.parts.changed.values():
            self.database.rows("DELETE FROM parts WHERE id = ?", [part.id])
            tokens = part.tokens or [None] * len(COUNTERS)
            values = [part.id, part.name, part.window_ms, part.state, part.meter, part.sequence, part.live_partition]
            self.database.rows(_insert("parts", _PART), [*values, *tokens])
        self.parts.changed.clear()

    def _seen(self, intake: LedgerBatch) -> dict[Place, tuple[int | None, int | None]]:
        found: dict[Place, tuple[int | None, int | None]] = {}
        for summary in intake.summaries:
            for place, watermark in summary.watermarks.items():
                seen, complete = found.get(place) or self._watermarks.get(place, (None, None))
                higher = [each for each in (seen, watermark) if each is not None]
                found[place] = max(higher, default=None), complete
        return {place: both for place, both in found.items() if both != self._watermarks.get(place)}

    def _write_watermarks(self, changed: Mapping[Place, tuple[int | None, int | None]]) -> None:
        for place, both in changed.items():
            self.database.rows("DELETE FROM watermarks WHERE topic = ? AND partition = ?", place)
            self.database.rows(_insert("watermarks", _MARK), [*place, *both])

    def horizon(self) -> tuple[dict[Place, int | None], list[LedgerPart]]:
        """What will be true of the rows once all is in that token-usage holds now: watermarks, and ended parts."""
        return {place: seen for place, (seen, _) in self._watermarks.items()}, self.parts.in_state(ENDED)

    def reach(self, watermarks: Mapping[Place, int | None], ended: Sequence[LedgerPart]) -> list[Dispute]:
        """All that is in by now: rows are complete up to these watermarks, and these parts can be merged."""
        passed = {place: (self._watermarks[place][0], mark) for place, mark in watermarks.items()}
        passed = {place: both for place, both in passed.items() if both != self._watermarks[place]}
        disputes = []
        with self.database.transaction():
            self._write_watermarks(passed)
            for part in ended:
                if part.state != ENDED:
                    continue
                found = self._sum(part)
                if found == part.tokens:
                    self.database.merge_part(part.id)
                    self.parts.move(part, MERGED)
                else:
                    assert part.tokens is not None
                    self.parts.move(part, DISPUTED)
                    disputes.append(Dispute(part.name, part.tokens, found))
            self._write_parts()
        self._watermarks.update(passed)
        return disputes

    def _sum(self, part: LedgerPart) -> Usage:
        [found] = self.database.rows(f"SELECT {_SUMS} FROM open_rows WHERE part_id = ?", [part.id])
        return _counters(found)

    def close(self) -> None:
        self.database.close()


class Numbers:
    """A table of texts and their numbers, which only grows."""

    def __init__(self, database: Database, table: str) -> None:
        self._database, self._table = database, table
        self._ids: dict[bytes, int] = {}
        [(highest,)] = database.rows(f"SELECT coalesce(max(id), 0) FROM {table}")
        self._next = int(highest) + 1

    def of(
        self, texts: Iterable[bytes], added: Callable[[Mapping[bytes, int]], None] | None = None
    ) -> Mapping[bytes, int]:
        """New ones are added. added: told of those."""
        if len(self._ids) > NAMES_CACHED_MAX:
            self._ids.clear()
        if unknown := list(dict.fromkeys(itertools.filterfalse(self._ids.__contains__, texts))):
            self._ids.update(self._database.ids(self._table, unknown))
        if new := [text for text in unknown if text not in self._ids]:
            ids = dict(zip(new, range(self._next, self._next + len(new)), strict=True))
            arrays = {"id": pa.array(list(ids.values()), pa.int32()), "name": pa.array(new, pa.binary())}
            self._database.append(self._table, pa.table(arrays))
            self._ids.update(ids)
            self._next += len(new)
            if added is not None:
                added(ids)
        return self._ids


def set_key(labels: LabelSet, numbers: Mapping[bytes, int]) -> bytes:
    """How `label_sets` names a set."""
    pairs = sorted((numbers[name], numbers[value]) for name, value in labels)
    return np.array(pairs, _NUMBER).tobytes()


def set_keys(labels: CodedLabels, numbers: Mapping[bytes, int]) -> list[bytes]:
    """The same of all sets. A name is once in a set, so the numbers of the names are the order of its pairs."""
    names = _looked_up(labels.names, numbers)
    order = np.argsort(names)
    pairs = np.zeros((*labels.held.shape, 2), _NUMBER)
    pairs[:, :, 0] = names[order, np.newaxis]
    for of_sets, place in zip(pairs, order, strict=True):
        of_sets[:, 1] = _looked_up(labels.values[place], numbers)[labels.held[place]]  # of -1 it is any, and not taken
    taken = pairs.swapaxes(0, 1)[labels.held[order].T >= 0]
    ends = np.concatenate([[0], np.cumsum(labels.sizes() * _PAIR_BYTES)])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(taken.tobytes())]
    keys: list[bytes] = pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers).to_pylist()
    return keys


def _insert(table: str, columns: str) -> str:
    return f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * (columns.count(',') + 1))})"


def _parts(database: Database, condition: str, parameter: str) -> list[LedgerPart]:
    return [
        LedgerPart(
            id, name, window_ms, state, meter, sequence, _counters(tokens) if sequence is not None else None, place
        )
        for id, name, window_ms, state, meter, sequence, place, *tokens in database.rows(
            f"SELECT {_PART} FROM parts WHERE {condition}", [parameter]
        )
    ]


def _counters(row: Sequence[Any]) -> Usage:
    return Usage(*(int(value or 0) for value in row))


def _numbered(column: Coded, numbers: Mapping[bytes, int]) -> Any:
    return _looked_up(column.names, numbers)[column.codes]


def _looked_up(texts: Sequence[bytes], numbers: Mapping[bytes, int]) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.fromiter(map(numbers.__getitem__, texts), np.int32, len(texts))
