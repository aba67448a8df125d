"""The core: usage rows in, crossings of thresholds out. Pure, without a clock: what time it is comes with the rows.

    rows ── of some rule ──> identities ── greatest counters ──> what each has grown by ──> sums ──> crossings

A row has the sums of its identity so far, so the last one of each identity is kept until its part has ended. Then none
comes any more. Sums are kept until LATE_MS after their period's end.

Promises: whatever the cut into batches and the order of partitions, each threshold of each budget and period is crossed
once, and the sums are those of the ledger's rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from tokenometer.processor.alerts import measures
from tokenometer.processor.alerts.measures import Unpriced, Usages
from tokenometer.processor.alerts.rules import Crossing, Rule
from tokenometer.processor.alerts.table import Keys, Table, Wide
from tokenometer.processor.ledger import times
from tokenometer.processor.ledger.values import Coded, LedgerRows
from tokenometer.schemas.usage import COUNTERS, DAY_MS, FURTHER

LATE_MS = 2 * DAY_MS  # a period's sum is kept so long after its end, for usage that comes late
PART_MS = 7 * DAY_MS  # a part without news for so long has ended: a meter closes one after ten minutes
ENDED_MAX = 100_000  # names of ended parts that are remembered
_BACK_MS = {"hour": 3 * 3_600_000, "day": 3 * DAY_MS, "month": 63 * DAY_MS}  # more than one, less than many
_MINUTE_MS = 60_000  # periods begin at full minutes; 32 bits of them reach to the year 10136
_NAMES_SPARE = 10_000
_CODES_END = 1 << 62


class Cell(NamedTuple):
    """An identity without its user."""

    window: int
    model: bytes
    chip: bytes
    labels: tuple[tuple[bytes, bytes], ...]
    part: bytes


class _Sums:
    """The sums of a rule, by subject and period. Columns: the sum in two, and a bit for each threshold announced."""

    TOLD = 2

    def __init__(self, rule: Rule, column: int) -> None:
        self.rule, self.column = rule, column
        self.table = Table(3)
        self.since = 0  # periods that had ended by then are not announced
        self._periods: dict[int, int] = {}  # a window -> its period's beginning
        self._ends: dict[int, int] = {}

    def period(self, window: int) -> int:
        if (begin := self._periods.get(window)) is None:
            zone = self.rule.zone
            assert zone is not None
            begin = times.bounds(max(0, window - _BACK_MS[self.rule.per]), window + 1, self.rule.per, zone)[-1]
            if len(self._periods) > _NAMES_SPARE:
                self._periods.clear()
            self._periods[window] = begin
        return begin

    def end(self, begin: int) -> int:
        if (end := self._ends.get(begin)) is None:
            zone = self.rule.zone
            assert zone is not None
            end = times.bounds(begin, begin + _BACK_MS[self.rule.per], self.rule.per, zone)[1]
            self._ends[begin] = end
        return end

    def expire(self, now: int) -> None:
        begins = (self.table.keys & np.uint64(0xFFFFFFFF)).astype(np.int64) * _MINUTE_MS
        kept = [begin for begin in np.unique(begins).tolist() if self.end(begin) + LATE_MS > now]
        self.table.keep(np.isin(begins, kept))
        self._ends = {begin: end for begin, end in self._ends.items() if begin in kept}


class Budgets:
    """All rules' sums. After an error it is of no more use."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        lists = {rule.prices.digest: rule.prices for rule in rules if rule.prices is not None}
        self._measured: list[tuple[str, Any]] = sorted({(r.measure, None) for r in rules if r.prices is None})
        self._measured += [("money", lists[digest]) for digest in sorted(lists)]
        keys = [(name, None if prices is None else prices.digest) for name, prices in self._measured]
        self._sums = [
            _Sums(rule, 2 * keys.index((rule.measure, None if rule.prices is None else rule.prices.digest)))
            for rule in rules
        ]
        self._counters = measures.needed(name for name, _ in self._measured)
        self._rows = Table(2 * len(keys))
        self._names: dict[bytes, int] = {b"": 0}  # 0 is the subject of a rule without `each`
        self._cells: dict[Cell, int] = {}
        self._next_cell = 0
        self._open: dict[tuple[int, bytes], bytes] = {}  # (partition, meter) -> the part seen there last
        self._heard: dict[bytes, int] = {}  # when rows of each open part came
        self._ended: dict[bytes, None] = {}
        self.ending: set[bytes] = set()  # parts that have a successor: `end` them once all partitions are read so far
        self.now = 0
        self.late_rows = self.stray_rows = 0  # of periods that are not kept any more; of parts that have ended
        self.unpriced = Unpriced()

    @property
    def rules(self) -> list[Rule]:
        return [sums.rule for sums in self._sums]

    def since(self, moments: Mapping[str, int]) -> None:
        """From when each rule, by `whole`, announces."""
        for sums in self._sums:
            sums.since = moments[sums.rule.whole]

    # --- Rows ---

    def take(self, rows: LedgerRows, origins: Sequence[tuple[int, int]], now: int) -> list[Crossing]:
        """origins: partition and number of rows, in the rows' order, which is that of the offsets in each partition.
        now: ms, of the newest message."""
        self.now = max(self.now, now)
        self._follow_parts(rows.part, origins)
        users = {name: code for code, name in enumerate(rows.user.names)}
        matching = [_matches(sums.rule, rows, users) for sums in self._sums]
        wanted = np.flatnonzero(np.logical_or.reduce(matching) & self._not_ended(rows.part))
        if not len(wanted):
            return []
        keys = self._identities(rows, wanted)
        order = np.argsort(keys, kind="stable")
        keys, wanted = keys[order], wanted[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        counts = _greatest(rows, wanted, starts, self._counters)
        usages = Usages(rows, wanted[starts], keys[starts] >> np.uint64(32), counts)
        grown = self._growth(keys[starts], usages)
        found: list[Crossing] = []
        for sums, matches in zip(self._sums, matching, strict=True):
            found += self._add(sums, usages, np.flatnonzero(matches[usages.at]), grown[sums.column // 2])
        return found

    def _growth(self, keys: Keys, usages: Usages) -> list[Wide]:
        """By measure, what each identity has more than before. A row that says less is an older one."""
        at, grown = self._rows.places(keys), []
        for number, (name, prices) in enumerate(self._measured):
            now = (
                measures.of_counter(usages, name)
                if prices is None
                else measures.of_money(usages, prices, self.unpriced)
            )
            before = self._rows.wide(2 * number, at)
            more = now.exceeds(before)
            now = Wide(np.where(more, now.hi, before.hi), np.where(more, now.lo, before.lo))
            self._rows.put(2 * number, at, now)
            grown.append(now - before)
        return grown

    def _add(self, sums: _Sums, usages: Usages, chosen: Any, grown: Wide) -> list[Crossing]:
        windows, window = np.unique(usages.rows.window_starts[usages.at[chosen]], return_inverse=True)
        begins = np.array([sums.period(each) for each in windows.tolist()], np.int64)
        kept = np.array([sums.end(each) + LATE_MS > self.now for each in begins.tolist()], bool)
        if not kept.all():
            self.late_rows += int((~kept[window]).sum())
            chosen, window = chosen[kept[window]], window[kept[window]]
        if not len(chosen):
            return []
        keys = self._subjects(sums.rule, usages, chosen) << np.uint64(32)
        keys |= (begins[window] // _MINUTE_MS).astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
        at = sums.table.places(keys[starts])
        total = sums.table.wide(0, at) + grown[chosen[order]].summed(starts)
        sums.table.put(0, at, total)
        return self._crossed(sums, keys[starts], at, total)

    def mark(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        """These messages of token-alerts are not to be announced again. Those of other rules are left alone."""
        for sums in self._sums:
            bits: dict[int, int] = {}
            for alert in alerts:
                if alert["rule"] == sums.rule.name and alert["threshold"] in sums.rule.thresholds:
                    begin = round(datetime.fromisoformat(alert["begin"]).timestamp() * 1000)
                    crossing = Crossing(sums.rule, alert["subject"], begin, 0, alert["threshold"], 0)
                    if crossing.id == alert["id"]:
                        key = self._number((alert["subject"] or "").encode()) << 32 | begin // _MINUTE_MS
                        bit = 1 << list(sums.rule.thresholds).index(alert["threshold"])
                        bits[key] = bits.get(key, 0) | bit
            at = sums.table.places(np.array(sorted(bits), np.uint64))
            sums.table.columns[_Sums.TOLD][at] |= np.array([bits[key] for key in sorted(bits)], np.int64)

    def review(self) -> list[Crossing]:
        """What is reached without new rows, because a rule says something else than before."""
        found: list[Crossing] = []
        for sums in self._sums:
            at = np.arange(len(sums.table))
            found += self._crossed(sums, sums.table.keys, at, sums.table.wide(0, at))
        return found

    def _crossed(self, sums: _Sums, keys: Keys, at: Any, total: Wide) -> list[Crossing]:
        told = sums.table.columns[_Sums.TOLD]
        reached = np.zeros(len(at), np.int64)
        for bit, level in enumerate(sums.rule.levels):
            reached |= total.reaches(level).astype(np.int64) << bit
        new = np.flatnonzero(reached & ~told[at])
        if not len(new):
            return []
        names = list(self._names)
        found = []
        for place, used in zip(new.tolist(), total[new].ints(), strict=True):
            begin = int(keys[place] & np.uint64(0xFFFFFFFF)) * _MINUTE_MS
            subject = None if sums.rule.each is None else names[int(keys[place] >> np.uint64(32))].decode()
            end, bits = sums.end(begin), int(reached[place] & ~told[at[place]])
            for bit, threshold in enumerate(sums.rule.thresholds):
                if bits >> bit & 1 and end > sums.since:
                    found.append(Crossing(sums.rule, subject, begin, end, threshold, used))
        told[at] |= reached
        return found

    # --- Names as numbers ---

    def _number(self, name: bytes) -> int:
        return self._names.setdefault(name, len(self._names))

    def _numbers(self, column: Coded, codes: Any) -> Any:
        """Of those names that these codes need, which no other name gets a number for."""
        numbers = np.zeros(len(column.names), np.uint64)
        for code in np.unique(codes).tolist():
            numbers[code] = self._number(column.names[code])
        return numbers[codes]

    def _identities(self, rows: LedgerRows, wanted: Any) -> Any:
        """A key for each: 32 bits of the user, 32 of the cell."""
        users = self._numbers(rows.user, rows.user.codes[wanted])
        columns = [
            np.unique(rows.window_starts[wanted], return_inverse=True)[1],
            *(coded.codes[wanted] for coded in (rows.model, rows.chip, rows.part)),
        ]
        if rows.labels is not None:
            columns.append(rows.labels.codes[wanted])
        _, first, codes = np.unique(_mixed(columns), return_index=True, return_inverse=True)
        cells = np.array([self._cell(rows, at) for at in wanted[first].tolist()], np.uint64)
        return users << np.uint64(32) | cells[codes]

    def _cell(self, rows: LedgerRows, at: int) -> int:
        labels = () if rows.labels is None else rows.labels.sets[rows.labels.codes[at]]
        model, chip, part = (coded.names[coded.codes[at]] for coded in (rows.model, rows.chip, rows.part))
        cell = Cell(int(rows.window_starts[at]), model, chip, labels, part)
        if (number := self._cells.get(cell)) is None:
            number = self._cells[cell] = self._next_cell
            self._next_cell += 1
        return number

    def _subjects(self, rule: Rule, usages: Usages, chosen: Any) -> Any:
        rows, at = usages.rows, usages.at[chosen]
        if rule.each is None:
            return np.zeros(len(at), np.uint64)
        if rule.each == "user":
            return usages.users[chosen]
        if rule.each == "model":
            return self._numbers(rows.model, rows.model.codes[at])
        assert rows.labels is not None, "only usage with this label fits the rule"
        each = rule.each.encode()
        values = [dict(labels).get(each, b"") for labels in rows.labels.sets]
        return self._numbers(Coded(rows.labels.codes, values), rows.labels.codes[at])

    # --- Parts end, periods pass ---

    def _follow_parts(self, part: Coded, origins: Sequence[tuple[int, int]]) -> None:
        """In a partition, a meter's parts follow one another."""
        begin = 0
        for partition, count in origins:
            codes = part.codes[begin : begin + count]
            begin += count
            for code in codes[np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])].tolist() if count else ():
                name = part.names[code]
                place = partition, _meter(name)
                before = self._open.get(place)
                if before not in (None, name):
                    assert before is not None
                    self.ending.add(before)
                self._open[place] = name
        assert begin == len(part.codes)
        for name in part.names:
            self._heard[name] = self.now

    def _not_ended(self, part: Coded) -> Any:
        gone = np.array([name in self._ended for name in part.names], bool)[part.codes]
        self.stray_rows += int(gone.sum())
        return ~gone

    def end(self, parts: Iterable[bytes]) -> None:
        """No rows of these come any more."""
        gone = set(parts)
        self.ending -= gone
        self._ended.update(dict.fromkeys(gone))
        for name in list(self._ended)[: max(0, len(self._ended) - ENDED_MAX)]:
            del self._ended[name]
        for name in gone:
            self._heard.pop(name, None)
        self._open = {place: name for place, name in self._open.items() if name not in gone}
        numbers = [number for cell, number in self._cells.items() if cell.part in gone]
        self._cells = {cell: number for cell, number in self._cells.items() if cell.part not in gone}
        cells = self._rows.keys & np.uint64(0xFFFFFFFF)
        self._rows.keep(~np.isin(cells, np.array(numbers, np.uint64)))

    def tidy(self) -> None:
        """Forget what is over: sums of old periods, parts of meters that are gone, names that nothing has."""
        for sums in self._sums:
            sums.expire(self.now)
        self.end([name for name, heard in self._heard.items() if heard + PART_MS < self.now])
        held = [self._rows.keys >> np.uint64(32), *(sums.table.keys >> np.uint64(32) for sums in self._sums)]
        used = np.unique(np.concatenate([np.zeros(1, np.uint64), *held]))
        if len(self._names) > 2 * len(used) + _NAMES_SPARE:
            self._renumber(used)

    def _renumber(self, used: Keys) -> None:
        """In the same order, so that keys stay sorted."""
        names = list(self._names)
        self._names = {names[number]: new for new, number in enumerate(used.tolist())}
        for table in (self._rows, *(sums.table for sums in self._sums)):
            numbers = np.searchsorted(used, table.keys >> np.uint64(32)).astype(np.uint64)
            table.keys = numbers << np.uint64(32) | table.keys & np.uint64(0xFFFFFFFF)

    # --- All of it, to be kept ---

    def header(self) -> dict[str, Any]:
        """What is not in `arrays`, as JSON."""
        return {
            "cells": [
                [c.window, c.model.decode(), c.chip.decode(), [[k.decode(), v.decode()] for k, v in c.labels],
                 c.part.decode(), number]
                for c, number in self._cells.items()
            ],
            "next_cell": self._next_cell,
            "open": [[partition, meter.decode(), part.decode()] for (partition, meter), part in self._open.items()],
            "heard": {name.decode(): heard for name, heard in self._heard.items()},
            "ended": [name.decode() for name in self._ended],
            "ending": sorted(name.decode() for name in self.ending),
            "now": self.now,
            "late_rows": self.late_rows,
            "stray_rows": self.stray_rows,
            "measured": [[name, prices and prices.digest] for name, prices in self._measured],
            "sums": [sums.rule.sums for sums in self._sums],
            "since": {sums.rule.whole: sums.since for sums in self._sums},
        }  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """They change with the next rows: copy what is to be kept."""
        names = list(self._names)
        tables = {"rows": self._rows, **{sums.rule.sums: sums.table for sums in self._sums}}
        found = {
            f"{name}.{number}": array for name, table in tables.items() for number, array in enumerate(table.arrays())
        }
        found["names"] = np.frombuffer(b"".join(names), np.uint8)
        found["lengths"] = np.fromiter(map(len, names), np.int64, len(names))
        return found

    def fits(self, header: Mapping[str, Any]) -> bool:
        """Whether a state has all sums of these rules."""
        measured = [[name, prices and prices.digest] for name, prices in self._measured]
        same = all(each in header["measured"] for each in measured)
        return same and set(header["sums"]) >= {sums.rule.sums for sums in self._sums}

    def restore(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Of a state that `fits`. Thresholds of a rule that says something else than before are not announced yet."""
        data, ends = arrays["names"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
        self._names = {
            data[begin:end]: number for number, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
        }
        self._cells = {}
        for window, model, chip, given, part, number in header["cells"]:
            labels = tuple((name.encode(), value.encode()) for name, value in given)
            self._cells[Cell(window, model.encode(), chip.encode(), labels, part.encode())] = number
        self._next_cell, self.now = header["next_cell"], header["now"]
        self._open = {(place, meter.encode()): part.encode() for place, meter, part in header["open"]}
        self._heard = {name.encode(): heard for name, heard in header["heard"].items()}
        self._ended = {name.encode(): None for name in header["ended"]}
        self.ending = {name.encode() for name in header["ending"]}
        self.late_rows, self.stray_rows = header["late_rows"], header["stray_rows"]
        columns = [0]
        for name, prices in self._measured:
            at = header["measured"].index([name, prices and prices.digest])
            columns += [2 * at + 1, 2 * at + 2]
        self._rows.restore([arrays[f"rows.{number}"] for number in columns])
        for sums in self._sums:
            sums.table.restore([arrays[f"{sums.rule.sums}.{number}"] for number in range(4)])
            if sums.rule.whole not in header["since"]:
                sums.table.columns[_Sums.TOLD][:] = 0


# --- Columns ---


def _matches(rule: Rule, rows: LedgerRows, users: Mapping[bytes, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = np.ones(len(rows), bool)
    if rule.user is not None:
        found &= rows.user.codes == users.get(rule.user.encode(), -1)
    if rule.model is not None:
        found &= np.array([rule.fits_model(name.decode()) for name in rows.model.names], bool)[rows.model.codes]
    if rule.labels or rule.each not in (None, "user", "model"):
        if rows.labels is None:
            return np.zeros(len(rows), bool)
        sets = [{name.decode(): value.decode() for name, value in labels} for labels in rows.labels.sets]
        found &= np.array([rule.fits_labels(labels) for labels in sets], bool)[rows.labels.codes]
    return found


def _greatest(rows: LedgerRows, order: Any, starts: Any, names: Sequence[str]) -> dict[str, Any]:
    """By counter, the greatest of each group of rows."""
    columns = dict(zip(COUNTERS, rows.counters, strict=True))
    if rows.further:
        columns |= dict(zip(FURTHER, rows.further, strict=True))
    return {name: np.maximum.reduceat(columns[name][order], starts) for name in names if name in columns}


def _mixed(columns: Sequence[Any]) -> Any:
    """One number for each combination of the columns' values."""
    codes, so_far = np.zeros(len(columns[0]), np.int64), 1
    for column in columns:
        values, dense = np.unique(column, return_inverse=True)
        if so_far * len(values) >= _CODES_END:
            distinct, codes = np.unique(codes, return_inverse=True)
            so_far = len(distinct)
        codes, so_far = codes * len(values) + dense, so_far * len(values)
    return codes


def _meter(part: bytes) -> bytes:
    """METER.RUN.NUMBER; a name of another form is a meter of its own."""
    return part.rsplit(b".", 2)[0]
