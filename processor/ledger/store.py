"""What the ledger writes: every change of its tables is one transaction here.

A batch, in one transaction:

    1. nobody else has moved the offsets since they were read
    2. names to numbers, new ones added
    3. rows of merged parts fall out, identities that occur twice become one
    4. what is new of windows in closed periods is noted as late
    5. upsert
    6. parts, watermarks, offsets

Promises: after a crash the database is before or behind a batch, never inside. Counters of an identity only grow, so a
batch that comes again, or comes late, changes nothing. Whatever fails, the store is of no more use: open it again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.ledger.database import COLUMNS, KEY, Database
from tokenometer.processor.ledger.parts import DISPUTED, ENDED, MERGED, LedgerPart, LedgerParts
from tokenometer.processor.ledger.values import Coded, DatabaseError, LedgerBatch, LedgerError, UsageRows
from tokenometer.schemas.usage import COUNTERS, Usage

NAMES_CACHED_MAX = 2_000_000  # about 300 MB of bytes and numbers; then the cache begins anew
_SUMS = ", ".join(f"sum({name})" for name in COUNTERS)
# Columns are named wherever they are written: a later version of the tables has more of them.
_PLACE = "topic, partition, topic_id, next"
_MARK = "topic, partition, seen, complete"
_PART = ", ".join(("id", "name", "window_ms", "state", "meter", "sequence", "live_partition", *COUNTERS))
_LATE = f"""
    INSERT INTO late ({", ".join((*KEY, *COUNTERS))})
    SELECT {", ".join(KEY)}, {", ".join(f"later.{name} - held_{name}" for name in COUNTERS)} FROM (
        SELECT {", ".join(f"incoming.{name}" for name in KEY)},
            {", ".join(f"coalesce(held.{name}, 0) AS held_{name}" for name in COUNTERS)},
            {", ".join(f"greatest(incoming.{name}, coalesce(held.{name}, 0)) AS {name}" for name in COUNTERS)}
        FROM incoming LEFT JOIN open_rows AS held ON {" AND ".join(
            f"held.{name} = incoming.{name}" for name in (*KEY, "part_id")
        )} WHERE incoming.window_start < ?
    ) AS later WHERE {" OR ".join(f"later.{name} > held_{name}" for name in COUNTERS)}
"""  # fmt: skip


@dataclass(frozen=True)
class Stand:
    """Where a topic's partition is to be read on. topic_id: of the topic that this is true of."""

    topic_id: str
    next: Offset


@dataclass(frozen=True)
class Dispute:
    """An ended part whose rows do not add up to its last summary."""

    part: str
    said: Usage
    found: Usage


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
        self._ids: dict[bytes, int] = {}
        [(highest,)] = database.rows("SELECT coalesce(max(id), 0) FROM names")
        self._next_name = highest + 1

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
        """Go on behind summaries that retention has deleted."""
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

    def _take_rows(self, rows: UsageRows) -> None:
        batch = self._batch(rows)
        if not len(batch):
            return
        self.database.stage(batch)
        # Locks it: a close by another process comes before this batch, and is heeded, or behind it.
        [(closed_until,)] = self.database.rows("UPDATE book SET closed_until = closed_until RETURNING closed_until")
        if closed_until is not None and pc.min(batch["window_start"]).as_py() < closed_until:
            self.database.rows(_LATE, [closed_until])
        self.database.upsert()

    def _batch(self, rows: UsageRows) -> Any:
        """An Arrow table of COLUMNS: numbers for names, each identity once, its highest counters."""
        of_codes = [self.parts.of(n.decode(), ms) for n, ms in zip(rows.part.names, rows.window_ms, strict=True)]
        numbers = self._numbers([*rows.user.names, *rows.model.names, *rows.chip.names])
        columns = {
            "window_start": rows.window_starts,
            "user_id": _numbered(rows.user, numbers),
            "model_id": _numbered(rows.model, numbers),
            "chip_id": _numbered(rows.chip, numbers),
            "part_id": np.array([part.id for part in of_codes], np.int32)[rows.part.codes],
            **dict(zip(COUNTERS, rows.counters, strict=True)),
        }
        merged = np.array([part.state == MERGED for part in of_codes])[rows.part.codes]
        table = pa.table(columns)
        if merged.any():
            self.ignored_rows += int(merged.sum())
            table = table.filter(pa.array(~merged))
        grouped = table.group_by([*KEY, "part_id"]).aggregate([(name, "max") for name in COUNTERS])
        return grouped.rename_columns([name.removesuffix("_max") for name in grouped.column_names]).select(COLUMNS)

    def _numbers(self, names: Sequence[bytes]) -> dict[bytes, int]:
        if len(self._ids) > NAMES_CACHED_MAX:
            self._ids.clear()
        if unknown := list({name for name in names if name not in self._ids}):
            self._ids.update(self.database.name_ids(unknown))
        if new := [name for name in unknown if name not in self._ids]:
            ids = range(self._next_name, self._next_name + len(new))
            self.database.add_names(ids, new)
            self._ids.update(zip(new, ids, strict=True))
            self._next_name += len(new)
        return self._ids

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
    return np.array([numbers[name] for name in column.names], np.int32)[column.codes]
