"""Which path holds the time, and in which format: the one that gives dates of our time."""

import re
from collections import Counter
from typing import Any

from tokenometer.processor.records import plausible
from tokenometer.processor.records.count_names import place_of, words
from tokenometer.processor.records.guess.plan import GuessPlan, Table, of_records, paths_text
from tokenometer.processor.records.sample import Leaf, Sample
from tokenometer.schemas.mapping_errors import show_path

ALIASES_MAX = 2
_DATE_TIME = r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d"
_RFC3339 = re.compile(_DATE_TIME + r"(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_ISO8601 = re.compile(_DATE_TIME + r"(?:[.,]\d{1,9})?(?:[Zz]|[+-]\d\d(?::?\d\d)?)", re.ASCII)
_LOCAL = re.compile(_DATE_TIME + r"(?:[.,]\d{1,9})?", re.ASCII)
_DIGITS = re.compile(r"0|[1-9][0-9]*", re.ASCII)
_DECIMAL = re.compile(r"(?:0|[1-9][0-9]*)\.[0-9]+", re.ASCII)
_UNITS = {"ms", "us", "ns", "s", "sec", "seconds", "millis", "nano", "unix", "epoch", "utc", "iso", "iso8601"}
# Of the last key, without its unit; the best first.
_NAMES = (
    "timestamp time event_time ts datetime date_time log_time logged_at end_time ended_at end finished_at finish_time "
    "completed_at completion_time request_finished_ts request_finished finished response_time_stamp created_at created "
    "create_time creation_time request_time requested_at start_time started_at start request_received_ts "
    "request_received received_at date"
).split()
_HINTS = {"timestamp", "time", "ts", "at", "date", "datetime", "created", "started", "finished", "ended"}
_NO = {
    "expires",
    "expiry",
    "expire",
    "expiration",
    "reset",
    "ttl",
    "timeout",
    "duration",
    "latency",
    "updated",
    "birth",
}
_CONTENT = {"messages", "choices", "candidates", "content", "parts", "tools", "headers"}


def _kind(value: Any) -> tuple[str, bool] | None:
    """The format of one value, and whether it is an epoch written as a string; None: no time of ours."""
    if isinstance(value, str):
        if _RFC3339.fullmatch(value):
            return "rfc3339", False
        if _ISO8601.fullmatch(value):
            return "iso8601", False
        if _LOCAL.fullmatch(value):
            return "local", False
        if _DIGITS.fullmatch(value) and len(value) < 20:
            unit = plausible.unit_of(int(value))
            return (unit, True) if unit else None
        if _DECIMAL.fullmatch(value) and plausible.unit_of(float(value)) == "epoch_s":
            return "epoch_s_decimal", True
        return None
    unit = plausible.unit_of(value)
    if isinstance(value, float):
        return ("epoch_s_decimal", False) if unit == "epoch_s" else None
    return (unit, False) if unit else None


def kinds_of(leaf: Leaf) -> Counter[tuple[str, bool] | None]:
    return Counter(_kind(value) for value in leaf.values.values())


def guess_time(sample: Sample, read: set[int], plan: GuessPlan) -> None:
    leaves = _ranked(sample, read)
    if not leaves:
        plan.tables["timestamp"] = Table(
            "timestamp", [("timestamp",)], {"formats": ["epoch_ms", "rfc3339"], "fallback": "message_time"},
            ["No path looks like a time, so the time of the Kafka message is taken."],
        )  # fmt: skip
        plan.doubt(
            "timestamp", "no path looks like a time: in a file, which has no message time, every record is rejected."
        )
        return
    table = plan.tables["timestamp"] = Table("timestamp", [leaves[0].path])
    kinds = kinds_of(leaves[0])
    _formats(table, kinds, plan)
    known = set(leaves[0].values)
    for leaf in leaves[1:]:
        if (
            len(table.paths) <= ALIASES_MAX
            and leaf.values.keys() & read - known
            and kinds_of(leaf).keys() <= kinds.keys()
        ):
            table.paths.append(leaf.path)
            known |= leaf.values.keys()
    missing = len(read - known)
    if missing:
        table.settings["fallback"] = "message_time"
        plan.doubt("timestamp", f"{of_records(missing, len(read))} have no time: the Kafka message's is taken, and in "
                                "a file they are rejected.")  # fmt: skip
    if len(table.paths) > 1:
        plan.doubt("timestamp", f"where the first has no value, {paths_text(table.paths[1:])} is read instead.")
    others = [leaf.path for leaf in leaves[1:] if leaf.path not in table.paths]
    if others:
        table.why.append(f"Other times of the log: {paths_text(others)}.")


def _ranked(sample: Sample, read: set[int]) -> list[Leaf]:
    """Leaves with times in records that are counted; the best first."""
    found = []
    for leaf in sample.leaves.values():
        if not leaf.values.keys() & read or any(key.lower() in _CONTENT for key in leaf.path[:-1]):
            continue
        own = [word for word in words(leaf.path[-1]) if word not in _UNITS]
        kinds = kinds_of(leaf)
        fits = sum(count for kind, count in kinds.items() if kind)
        if set(own) & _NO or fits * 2 <= len(leaf.values):
            continue
        last = "_".join(own) or "ts"
        place = place_of(last, _NAMES)
        if place is None and not (set(own) & _HINTS):
            continue
        tenths = round(10 * len(leaf.values.keys() & read) / len(read))
        rank = len(_NAMES) if place is None else place
        found.append(((-tenths, rank, len(leaf.path), leaf.path), leaf))
    return [leaf for _, leaf in sorted(found, key=lambda each: each[0])]


def _formats(table: Table, kinds: Counter[tuple[str, bool] | None], plan: GuessPlan) -> None:
    """One epoch format, the one that most values have, and one text format."""
    total = sum(kinds.values())
    epochs: Counter[str] = Counter()
    for kind, count in kinds.items():
        if kind and kind[0].startswith("epoch"):
            epochs[kind[0]] += count
    if "epoch_s_decimal" in epochs and "epoch_s" in epochs:  # a decimal may well be whole
        epochs["epoch_s_decimal"] += epochs.pop("epoch_s")
    texts = {kind[0] for kind in kinds if kind and not kind[0].startswith("epoch")}
    epoch = epochs.most_common(1)[0][0] if epochs else None
    text = "iso8601" if texts - {"rfc3339"} else "rfc3339" if texts else None
    table.settings["formats"] = [name for name in (epoch, text) if name]
    if any(kind and kind[1] and (kind[0] == epoch or epoch == "epoch_s_decimal") for kind in kinds):
        table.settings["digits"] = True
    if "local" in texts:
        table.settings["zone"] = "UTC"
        plan.doubt("timestamp", f"{show_path(table.paths[0])} names no zone: UTC is only assumed.")
    if len(epochs) > 1:
        others = ", ".join(f"{plausible.NAMES[unit]} in {count:,}" for unit, count in epochs.items() if unit != epoch)
        most = f"most are {plausible.NAMES[epoch or '']}, but {others} record(s)"
        plan.doubt("timestamp", f"{show_path(table.paths[0])} has several units; {most}. A mapping reads one of them.")
    if kinds[None]:
        plan.doubt("timestamp", f"{of_records(kinds[None], total)} have a value at {show_path(table.paths[0])} that is "
                                "no time of the years 2001 to 2099.")  # fmt: skip
    unit = f": {plausible.NAMES[epoch]} give dates of our time" if epoch else ""
    table.why.append(f"By its name and {total:,} values{unit}.")
