"""Rolling totals from the rollup's entries (entries.py): what an operator wants to know now.

    entry ─> this window's usage by cell ─> the window's sums ─> every span that holds the window
                    difference to what the entry said before

Owns: usage by window and cell since yesterday, sums of the spans shown, the latest word of each meter.
Promises: it is pure; `now_ms` is an argument. An entry counts once, however often it is told, and an older one of the
same key changes nothing. Memory is bounded by windows (two days), cells (CELLS_MAX) and meters.

A span of event time begins at the start of a window, and ends a day ahead: records ahead of the clock are in it. So all
sums are integers of whole windows, equal to those of the usage rows.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tokenometer.kernels.values import Bytes
from tokenometer.processor.records import hyperloglog
from tokenometer.processor.rollup.entries import AHEAD_MS, USERS_AGE_MS, Key, decode_registers, kept_from, read_usage
from tokenometer.processor.rollup.meters import HOUR_MS, MINUTE_MS, MeterState, largest, merged
from tokenometer.processor.rollup.rates import Rates
from tokenometer.processor.rollup.summaries import FATES, RECORDS, CoveredPartition, PartSums
from tokenometer.processor.rollup.tables import (
    EVERYTHING,
    OTHERS_NUMBER,
    CellNumbers,
    Mask,
    Only,
    Said,
    Span,
    Table,
    Window,
    add_window,
    rows_of,
)
from tokenometer.schemas.usage import COUNTERS, DAY_MS, TARGET_TOKENS_PER_DAY, Usage, total_of

SCHEMA = 1
CELLS_MAX = 4096  # model x chip: 64 x 32 twice; what a log names beyond that is counted as `others`
NAMES_MAX, MATRIX_MODELS_MAX, MATRIX_CHIPS_MAX, TOP_USERS, SERIES_MAX = 100, 64, 32, 20, 12
LATE_COMMITS, STALE_COMMITS = 2, 3  # a meter that missed so many is late, and is taken for dead
INTERVAL_MS = 1000  # of commits: none is expected more often
STALE_MS = 12_000  # nor is any meter taken for dead before this: one that recovers from an error is late
GONE_MS = DAY_MS  # a meter silent for so long is not shown any more; what it counted stays
CellUsage = tuple[str | None, str | None, tuple[int, ...]]  # model, chip, counters as COUNTERS


class Totals:
    """`apply` takes entries as they are written; `rolling` gives totals and is asked once a second."""

    def __init__(self, target_tokens_per_day: int = TARGET_TOKENS_PER_DAY) -> None:
        self._target = target_tokens_per_day
        self._cells = CellNumbers(CELLS_MAX)
        self._windows: dict[int, Window] = {}
        self._spans = {name: Span() for name in ("last_1m", "last_5m", "last_1h", "last_24h", "today", "yesterday")}
        self._meters: dict[tuple[int, str], MeterState] = {}
        self._unheard: set[tuple[int, str]] = set()  # meters of which something came since `rolling` was asked
        self._slow_ms: dict[tuple[int, str], int] = {}  # how far a meter's clock is back, where that is much
        self._told = False  # `rolling` was asked before
        self._users: dict[int, Bytes] = {}
        self._hours: dict[int, Bytes] = {}
        self._kept_from = 0
        self._window_ms = MINUTE_MS  # the longest of all meters
        self._forgot = False  # windows, since unused cells were looked for
        self._rates = Rates()

    # --- Entries in ---

    def apply(self, key: bytes, value: bytes | None) -> bool:
        """Takes an entry as it was written; None means that it was deleted. Returns False for an older entry than is
        known, which an overtaken writer wrote."""
        name = Key.decode(key)
        if value is None:
            return True  # replaced by what was written before, or too old; `rolling` forgets by time
        match name.kind:
            case "meter":
                return self._apply_meter(name, MeterState.decode(value))
            case "users":
                self._merge(self._users, name.time_ms, decode_registers(value))
            case "hour":
                self._merge(self._hours, name.time_ms, decode_registers(value))
            case _:
                return name.time_ms < self._kept_from or self._apply_usage(name, value)
        return True

    def _apply_meter(self, name: Key, meter: MeterState) -> bool:
        known = self._meters.get((name.partition, name.meter))
        if known is not None and meter.offset < known.offset:
            return False
        self._rates.learn((name.partition, name.meter), known, meter)
        self._meters[name.partition, name.meter] = meter
        self._unheard.add((name.partition, name.meter))
        return True

    def _merge(self, table: dict[int, Bytes], start: int, registers: Bytes) -> None:
        known = table.get(start)
        table[start] = registers if known is None else np.maximum(known, registers)

    def _apply_usage(self, name: Key, value: bytes) -> bool:
        offset, names, values = read_usage(name, value)
        window = self._windows.setdefault(name.time_ms, Window())
        if name.meter and (name.partition, "") in window.said:
            return True  # a `window` has it
        known = window.said.get((name.partition, name.meter))
        if known is not None and offset < known.offset:
            return False
        of_partition = [place for place in window.said if place[0] == name.partition and place[1]]
        if not name.meter and any(window.said[place].offset > offset for place in of_partition):
            return False  # they were not folded by who is ahead
        if known is not None:
            self._add(name.time_ms, window, known.cells, -known.counters)
        if not name.meter:
            for place in of_partition:
                gone = window.said.pop(place)
                self._add(name.time_ms, window, gone.cells, -gone.counters)
        cells, counters = self._table_of(names, values)
        held = counters if name.meter else zlib.compress(counters.tobytes(), 1)
        window.said[name.partition, name.meter] = Said(offset, cells, held)
        self._add(name.time_ms, window, cells, counters)
        return True

    def _table_of(self, names: list[str], counters: list[int]) -> tuple[np.ndarray[Any, np.dtype[np.uint16]], Table]:
        """One row for each cell. The counters that several parts have of it are added up."""
        if self._cells.full and self._forgot:
            self._reuse_cells()
        numbers = self._cells.numbers(list(zip(names[::2], names[1::2], strict=True)))
        rows = np.array(counters, np.int64).reshape(len(numbers), len(COUNTERS))
        cells, places = np.unique(numbers, return_inverse=True)
        if len(cells) == len(numbers):
            return numbers, rows
        sums = np.zeros((len(cells), len(COUNTERS)), np.int64)
        np.add.at(sums, places, rows)
        return cells, sums

    def _add(self, start: int, window: Window, cells: np.ndarray[Any, Any], counters: Table) -> None:
        window.table = self._added(window.table, cells, counters)
        for span in self._spans.values():
            if span.holds(start):
                span.table = self._added(span.table, cells, counters)

    def _added(self, table: Table, cells: np.ndarray[Any, Any], counters: Table) -> Table:
        rows = int(cells.max(initial=OTHERS_NUMBER)) + 1
        if len(table) < rows:
            table, small = np.zeros((rows, len(COUNTERS)), np.int64), table
            table[: len(small)] = small
        table[cells] += counters  # each cell comes once
        return table

    def _reuse_cells(self) -> None:
        used = np.zeros(len(self._cells), bool)
        for window in self._windows.values():
            for said in window.said.values():
                used[said.cells] = True
        self._cells.keep(used)
        self._forgot = False

    # --- Time goes on ---

    def _forget(self, now_ms: int, window_ms: int) -> None:
        self._kept_from = kept_from(now_ms)
        users_since = now_ms - window_ms - USERS_AGE_MS - HOUR_MS  # an hour longer than they are entries
        tables: list[tuple[dict[int, Any], int]] = [
            (self._windows, self._kept_from), (self._hours, self._kept_from), (self._users, users_since),
        ]  # fmt: skip
        for table, since in tables:
            for start in [start for start in table if start < since]:
                del table[start]
                self._forgot = True

    def _move_spans(self, now_ms: int, window_ms: int) -> None:
        day = now_ms // DAY_MS * DAY_MS
        begins = {
            "last_1m": MINUTE_MS, "last_5m": 5 * MINUTE_MS, "last_1h": HOUR_MS, "last_24h": DAY_MS,
        }  # fmt: skip
        end = now_ms // window_ms * window_ms + AHEAD_MS + window_ms
        wanted = {name: ((now_ms - span) // window_ms * window_ms, end) for name, span in begins.items()}
        wanted |= {"today": (day, day + DAY_MS), "yesterday": (day - DAY_MS, day)}
        for name, (begin_ms, end_ms) in wanted.items():
            before = self._spans[name]
            if (before.begin_ms, before.end_ms) != (begin_ms, end_ms):
                self._spans[name] = self._sum(begin_ms, end_ms)

    def _sum(self, begin_ms: int, end_ms: int) -> Span:
        span = Span(begin_ms, end_ms, np.zeros((len(self._cells), len(COUNTERS)), np.int64))
        for start, window in self._windows.items():
            if span.holds(start):
                span.table[: len(window.table)] += window.table
        return span

    # --- Totals out ---

    def rolling(self, now_ms: int) -> dict[str, Any]:
        """The totals of schemas/totals.schema.json."""
        shown = {place: meter for place, meter in self._meters.items() if now_ms - meter.committed_at_ms < GONE_MS}
        window_ms = max((meter.window_ms for meter in shown.values()), default=None)
        self._window_ms = window_ms or MINUTE_MS
        self._forget(now_ms, self._window_ms)
        self._move_spans(now_ms, self._window_ms)
        since_start = _sum_of(meter.total() for meter in self._meters.values())
        covered = list(_latest(shown.values()).values())
        self._hear(now_ms)
        states = {place: self._state(place, meter, now_ms) for place, meter in shown.items()}
        live = [shown[place] for place, state in states.items() if state in ("live", "late")]
        watermarks = [one.watermark_ms for one in covered if one.watermark_ms is not None]
        return {
            "schema": SCHEMA,
            "at": _instant(now_ms),
            "window_ms": window_ms,
            "rate": self._rate(now_ms),
            "windows": {
                **{name: self._rolling(name, now_ms) for name in self._spans},
                "since_start": {
                    "from": None, "to": _instant(now_ms), "tokens": _counters(since_start.tokens),
                    "tokens_per_second": None, "active_users": None, "tokens_per_active_user": None,
                },
            },
            "matrix": self._matrix(self._spans["last_1h"].table),
            "top_users": self.top_users(now_ms),
            "records": _records(since_start),
            "rejects": {reason: count for reason, count in since_start.rejects.items() if count},
            "lag_messages": _total(_lag(one) for one in covered),
            "freshness_ms": _worst(one.freshness_ms for meter in live for one in meter.covered),
            "complete_up_to": _instant_or_none(min(watermarks, default=None)),
            "misfits": _misfits(live),
            "meters": [
                _meter(place[1], meter, states[place], now_ms)
                for place, meter in sorted(shown.items(), key=lambda item: item[0][::-1])
            ],
            "stale": not live,
        }  # fmt: skip

    def _hear(self, now_ms: int) -> None:
        """What is there before the first answer was kept, and says nothing of when its meter spoke."""
        if self._told:
            for place in self._unheard:
                committed_at_ms = self._meters[place].committed_at_ms
                delay_ms = now_ms - committed_at_ms
                self._slow_ms[place] = delay_ms if delay_ms > LATE_COMMITS * INTERVAL_MS else 0
                self._rates.hear(place, committed_at_ms, now_ms)
        self._unheard.clear()
        self._told = True

    def _state(self, place: tuple[int, str], meter: MeterState, now_ms: int) -> str:
        """live, late, stale (it died or hangs) or stopped (it said so)."""
        if meter.leaving:
            return "stopped"
        interval_ms = max(meter.interval_ms, INTERVAL_MS)
        silent_ms = now_ms - meter.committed_at_ms - self._slow_ms.get(place, 0)
        if silent_ms < LATE_COMMITS * interval_ms:
            return "live"
        return "late" if silent_ms < max(STALE_MS, STALE_COMMITS * interval_ms) else "stale"

    def _rate(self, now_ms: int) -> dict[str, Any]:
        """The rate by commits, because tokens become known with a commit. None: not enough of them is known."""
        span = self._rates.look(now_ms)
        speed = requests = None
        if span is not None:
            added, seconds = self._rates.sum_of(span), span.end_s - span.begin_s
            speed, requests = added.tokens / seconds, added.requests / seconds
        return {
            "tokens_per_second": speed,
            "requests_per_second": requests,
            "tokens_per_day": None if speed is None else speed * 86_400,
            "target_tokens_per_day": self._target,
            "share_of_target": None if speed is None else speed * 86_400 / self._target,
        }

    def learned(self) -> dict[int, int]:
        """The last offset of each partition of the live topic of which an entry is known."""
        found: dict[int, int] = {}
        for (partition, _), meter in self._meters.items():
            found[partition] = max(found.get(partition, -1), meter.offset)
        return found

    def rate_history(self) -> dict[str, list[Any]]:
        """Tokens committed per second, one sample for each second, each over the five seconds before it."""
        times, speeds = self._rates.history()
        return {"times": times, "tokens_per_second": speeds}

    def _rolling(self, name: str, now_ms: int) -> dict[str, Any]:
        span = self._spans[name]
        tokens = span.table.sum(axis=0)
        users = None if name == "yesterday" else self._active_users(span, with_hours=name in ("last_24h", "today"))
        answer = self._sums(span, tokens, users, now_ms)
        if name == "yesterday":
            return answer
        models, model_others = self._named(span.table, 0)
        chips, _ = self._named(span.table, 1)
        return answer | {
            "by_model": [{"model": model} | counters for model, counters in models[:NAMES_MAX]],
            "by_chip": [{"chip": chip} | counters for chip, counters in chips[:NAMES_MAX]],
            "others": model_others,
        }

    def _sums(self, span: Span, tokens: Table, users: float | None, now_ms: int) -> dict[str, Any]:
        to_ms, total = min(now_ms, span.end_ms), int(total_of(list(tokens)))
        return {
            "from": _instant(span.begin_ms),
            "to": _instant(to_ms),
            "tokens": _counters(tokens.tolist()),
            "tokens_per_second": total * 1000 / (to_ms - span.begin_ms) if to_ms > span.begin_ms else 0.0,
            "active_users": users,
            "tokens_per_active_user": total / users if users else None,
        }

    def _named(self, table: Table, column: int) -> tuple[list[tuple[str, dict[str, int]]], dict[str, int]]:
        """Counters by model (column 0) or chip (1), most tokens first, and those of the others."""
        names, sums = self._by_name(table, column)
        found = [(name, _counters(row)) for name, row in zip(names, sums.tolist(), strict=True) if name is not None]
        others = _counters(table[OTHERS_NUMBER].tolist() if len(table) else [0] * len(COUNTERS))
        used = [(name, counters) for name, counters in found if any(counters.values())]
        return sorted(used, key=lambda item: (-item[1]["total_tokens"], item[0])), others

    def _by_name(self, table: Table, column: int) -> tuple[list[str | None], Table]:
        names: dict[str | None, int] = {}
        index = [names.setdefault(cell[column], len(names)) for cell in self._cells.names[: len(table)]]
        sums = np.zeros((len(names), len(COUNTERS)), np.int64)
        np.add.at(sums, index, table)
        return list(names), sums

    def _matrix(self, table: Table) -> dict[str, Any]:
        models = [name for name, _ in self._named(table, 0)[0][:MATRIX_MODELS_MAX]]
        chips = [name for name, _ in self._named(table, 1)[0][:MATRIX_CHIPS_MAX]]
        rows, columns = ({name: place for place, name in enumerate(names)} for names in (models, chips))
        tokens = np.zeros((len(models), len(chips)), np.int64)
        for (model, chip), counters in zip(self._cells.names, _tokens(table), strict=False):
            if model in rows and chip in columns:
                tokens[rows[model], columns[chip]] += counters
        return {"models": models, "chips": chips, "total_tokens": tokens.tolist()}

    def _active_users(self, span: Span, with_hours: bool) -> float | None:
        """The users of a span. Hours are whole, so a day's users may be those of up to an hour more."""
        sketches = [registers for start, registers in self._users.items() if span.holds(start)]
        if with_hours:
            first = span.begin_ms // HOUR_MS * HOUR_MS
            sketches += [registers for start, registers in self._hours.items() if first <= start < span.end_ms]
        return round(hyperloglog.estimate(hyperloglog.merge(sketches)), 1) if sketches else None

    def top_users(self, now_ms: int, only: str | None = None) -> list[dict[str, Any]]:
        """The largest users of about the last hour; only: of this meter."""
        meters = [meter for (_, name), meter in self._meters.items() if only in (None, name)]
        tables = [table for meter in meters for table in meter.top_users(now_ms - HOUR_MS)]
        return [{"user": user, "total_tokens": tokens} for user, tokens in largest(merged(tables), TOP_USERS)]

    def view(self, now_ms: int, only: Only, span_ms: int = HOUR_MS, until_ms: int | None = None) -> dict[str, Any]:
        """The parts of `rolling` that are known of a model, a chip or a meter, by event time, and sums of the time that
        is asked for. The rate is that of the window last_1m. Of a meter the latest windows are known alone."""
        names = ("last_1m", "last_5m") if only.meter else tuple(self._spans)
        windows = {name: self._sums_of(self._spans[name], only, now_ms) for name in names}
        minute, asked = windows["last_1m"], self._asked_span(now_ms, span_ms, until_ms)
        speed = minute["tokens_per_second"]
        seconds = (min(now_ms, self._spans["last_1m"].end_ms) - self._spans["last_1m"].begin_ms) / 1000
        return {
            "windows": windows,
            "rate": {
                "tokens_per_second": speed,
                "requests_per_second": minute["tokens"]["requests"] / seconds if seconds > 0 else 0.0,
                "tokens_per_day": speed * 86_400,
                "target_tokens_per_day": self._target,
                "share_of_target": speed * 86_400 / self._target,
            },
            "range": self._sums_of(asked, only, now_ms),
            "matrix": self._matrix(self._only(asked, only)),
        }  # fmt: skip

    def _asked_span(self, now_ms: int, span_ms: int, until_ms: int | None) -> Span:
        """until_ms: None is now, and then the span begins as those of `rolling` do."""
        if until_ms is not None:
            return self._sum(until_ms - span_ms, until_ms)
        begin_ms = (now_ms - span_ms) // self._window_ms * self._window_ms
        end_ms = now_ms // self._window_ms * self._window_ms + AHEAD_MS + self._window_ms
        known = [span for span in self._spans.values() if (span.begin_ms, span.end_ms) == (begin_ms, end_ms)]
        return known[0] if known else self._sum(begin_ms, end_ms)

    def _only(self, span: Span, only: Only) -> Table:
        """The span's usage by those that are meant."""
        table = span.table
        if only.meter is not None:
            table = np.zeros((len(self._cells), len(COUNTERS)), np.int64)
            for start, window in self._windows.items():
                if span.holds(start):
                    add_window(table, window, only.meter)
        return rows_of(table, self._mask(only))

    def _sums_of(self, span: Span, only: Only, now_ms: int) -> dict[str, Any]:
        return self._sums(span, self._only(span, only).sum(axis=0), None, now_ms)

    def _mask(self, only: Only) -> Mask:
        return np.array([only.model in (None, cell[0]) and only.chip in (None, cell[1]) for cell in self._cells.names])

    def cells_of(self, begin_ms: int, end_ms: int, only: Only) -> list[CellUsage]:
        """None: the models and chips that are not kept apart."""
        table = self._only(self._sum(begin_ms, end_ms), only)
        used = np.flatnonzero(table.any(axis=1)).tolist()
        return [(*self._cells.names[n], tuple(table[n].tolist())) for n in used]

    def range_of(self, now_ms: int, span_ms: int, until_ms: int | None) -> tuple[int, int]:
        """Where the windows of a view begin and end."""
        span = self._asked_span(now_ms, span_ms, until_ms)
        return span.begin_ms, span.end_ms

    def top_user(self, now_ms: int, user: str) -> int | None:
        """A user's tokens in the lists of largest users; None: it is in none of them. It may have used more."""
        tables = [table for meter in self._meters.values() for table in meter.top_users(now_ms - HOUR_MS)]
        found = [table[user] for table in tables if user in table]
        return sum(found) if found else None

    def history(
        self, now_ms: int, span_ms: int, step_ms: int, by: str, until_ms: int | None = None, only: Only = EVERYTHING
    ) -> dict[str, Any]:
        """Tokens by steps of event time. by: total, model, chip or category. The name None means all others. `to` is
        now, where the last step is not over. until_ms: the end, in place of now."""
        end = -(-until_ms // step_ms) * step_ms if until_ms is not None else now_ms // step_ms * step_ms + step_ms
        begin = end - span_ms
        times = list(range(begin, end, step_ms))
        tables: list[Table] = [np.zeros((len(self._cells), len(COUNTERS)), np.int64) for _ in times]
        for start, window in self._windows.items():
            if begin <= start < end:
                add_window(tables[(start - begin) // step_ms], window, only.meter)
        if only != EVERYTHING:
            mask = self._mask(only)
            tables = [rows_of(table, mask) for table in tables]
        series = _SERIES[by](self, tables)
        to = min(end, max(now_ms, begin))
        return {"from": _instant(begin), "to": _instant(to), "step_ms": step_ms, "times": times, "series": series}

    def _total_series(self, tables: list[Table]) -> list[dict[str, Any]]:
        return [{"name": "total", "tokens": [int(_tokens(table).sum()) for table in tables]}]

    def _category_series(self, tables: list[Table]) -> list[dict[str, Any]]:
        sums = np.array([table.sum(axis=0) for table in tables])
        held = dict(zip(COUNTERS, sums.T, strict=True))
        columns = {
            "uncached_input": held["input_tokens"] - held["cached_input_tokens"] - held["cache_write_tokens"],
            "cached_input": held["cached_input_tokens"],
            "cache_write": held["cache_write_tokens"],
            "output": held["output_tokens"] - held["reasoning_tokens"],
            "reasoning": held["reasoning_tokens"],
        }
        return [{"name": name, "tokens": column.tolist()} for name, column in columns.items()]

    def _named_series(self, tables: list[Table], column: int) -> list[dict[str, Any]]:
        rows = []
        for table in tables:
            names, sums = self._by_name(table, column)
            rows.append(_tokens(sums))
        steps = np.array(rows)
        order = sorted((n for n, name in enumerate(names) if name is not None), key=lambda n: (-steps[:, n].sum(), n))
        shown = [n for n in order[:SERIES_MAX] if steps[:, n].any()]
        rest = steps.sum(axis=1) - steps[:, shown].sum(axis=1)
        series = [{"name": names[n], "tokens": steps[:, n].tolist()} for n in shown]
        return series + ([{"name": None, "tokens": rest.tolist()}] if rest.any() else [])


_SERIES: Mapping[str, Callable[[Totals, list[Table]], list[dict[str, Any]]]] = {
    "total": Totals._total_series,
    "category": Totals._category_series,
    "model": lambda totals, tables: totals._named_series(tables, 0),
    "chip": lambda totals, tables: totals._named_series(tables, 1),
}
HISTORIES = tuple(_SERIES)


# --- Small ones ---


def _tokens(table: Table) -> Any:
    return total_of(list(table.T))


def _counters(counters: Iterable[int]) -> dict[str, int]:
    return Usage(*counters).with_total()


def _records(sums: PartSums) -> dict[str, int]:
    records = dict(zip(RECORDS, sums.records, strict=True))
    return {"read": sum(records[name] for name in FATES)} | records


def _sum_of(sums: Iterable[PartSums]) -> PartSums:
    total = PartSums()
    for one in sums:
        total = total + one
    return total


def _latest(meters: Iterable[MeterState]) -> dict[tuple[str, int], CoveredPartition]:
    """The meter that has come furthest in a partition is the one that reads it."""
    found: dict[tuple[str, int], CoveredPartition] = {}
    for meter in sorted(meters, key=lambda meter: meter.committed_at_ms):
        for one in meter.covered:
            known = found.get((one.topic, one.partition))
            if known is None or one.next >= known.next:
                found[one.topic, one.partition] = one
    return found


def _misfits(live: Iterable[MeterState]) -> list[dict[str, Any]]:
    """For each topic, what the meter says that rejects most of its records."""
    found: dict[str, dict[str, Any]] = {}
    for misfit in sorted((one for meter in live for one in meter.misfits), key=lambda one: one["rejected"]):
        found[misfit["topic"]] = misfit
    return [misfit for _, misfit in sorted(found.items())]


def _lag(one: CoveredPartition) -> int | None:
    return None if one.end is None else one.end - one.next


def _total(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _worst(numbers: Iterable[int | None]) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


def _meter(name: str, meter: MeterState, state: str, now_ms: int) -> dict[str, Any]:
    total, age_ms = meter.total(), max(0, now_ms - meter.committed_at_ms)
    return {
        "meter": name,
        "device": meter.device,
        "part": meter.part,
        "parts": meter.parts,
        "committed_at": _instant(meter.committed_at_ms),
        "age_ms": age_ms,
        "state": state,
        "records": _records(total),
        "rejects": {reason: count for reason, count in total.rejects.items() if count},
        "total_tokens": total_of(total.tokens),
        "lag_messages": _total(map(_lag, meter.covered)),
        "freshness_ms": _worst(one.freshness_ms for one in meter.covered),
        "partitions": [
            {
                "topic": one.topic, "partition": one.partition, "next": one.next, "end": one.end, "lag": _lag(one),
                "watermark": _instant_or_none(one.watermark_ms), "freshness_ms": one.freshness_ms,
            }
            for one in meter.covered
        ],
    }  # fmt: skip


def _instant(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def _instant_or_none(ms: int | None) -> str | None:
    return None if ms is None else _instant(ms)
