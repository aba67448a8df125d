"""Rolling totals as the rollup makes them, of any size, without a rollup; and a source of them for a dashboard.

Everything follows from the arguments: the same ones give the same totals.
"""

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from tokenometer.processor.dashboard import Ledger, Question, Source, metrics
from tokenometer.processor.ledger.list_money import ListMoney
from tokenometer.schemas.usage import COUNTERS

AT_MS = 1_795_453_513_204
TARGET = 120 * 10**12
NAMES = (*COUNTERS, "total_tokens")
_MODELS = (
    "gpt-4o-mini", "claude-sonnet-4-5", "llama-3.3-70b-instruct", "deepseek-v3.1", "qwen3-235b-a22b", "gpt-oss-120b",
    "gemini-2.5-flash", "mistral-large-2",
)  # fmt: skip
_CHIPS = (
    "H100-SXM5-80GB",
    "H200-SXM-141GB",
    "B200-180GB",
    "MI300X-192GB",
    "TPU-v6e",
    "Trainium2",
    "GB200-NVL72",
    "L40S",
)
_WINDOW_MS = 60_000
_ROLLING = ("last_1m", "last_5m", "last_1h", "last_24h", "today", "yesterday")
_SECONDS = {"last_1m": 60, "last_5m": 300, "last_1h": 3600, "last_24h": 86_400}


@dataclass(frozen=True)
class Shape:
    models: int = 8
    chips: int = 6
    users: int = 20
    meters: int = 3
    tokens_per_second: float = 1.389e9
    seed: int = 1


def names(known: tuple[str, ...], count: int) -> list[str]:
    return [known[k % len(known)] + (f"-v{k // len(known)}" if k >= len(known) else "") for k in range(count)]


def instant(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def second(ms: int) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).isoformat().replace("+00:00", "Z")


def counters(total: int) -> dict[str, int]:
    """Of which every category has its usual share."""
    output = total * 17 // 100
    given = total - output
    values = (total // 6400, given, given * 41 // 100, given * 6 // 100, output, output * 38 // 100, total)
    return dict(zip(NAMES, values, strict=True))


def weights(count: int, rng: random.Random) -> list[float]:
    raw = [rng.uniform(0.7, 1.3) / (k + 1) ** 0.8 for k in range(count)]
    return sorted((weight / sum(raw) for weight in raw), reverse=True)


def split(total: int, shares: list[float]) -> list[int]:
    """Integers that add up to the total."""
    parts = [int(total * share) for share in shares]
    parts[0] += total - sum(parts)
    return parts


def add(rows: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in NAMES}


def make(shape: Shape = Shape(), at_ms: int = AT_MS, stale: bool = False) -> dict[str, Any]:
    rng = random.Random(shape.seed)
    models, chips = names(_MODELS, shape.models), names(_CHIPS, shape.chips)
    model_shares, chip_shares = weights(shape.models, rng), weights(shape.chips, rng)
    per_second = shape.tokens_per_second * (1 + 0.05 * random.Random(at_ms // 1000).uniform(-1, 1))
    windows: dict[str, Any] = {}
    for name, span in _SECONDS.items():
        windows[name] = _window(
            at_ms - span * 1000, at_ms, round(shape.tokens_per_second * span), models, model_shares, chips, chip_shares
        )
    day = at_ms // 86_400_000 * 86_400_000
    today = round(shape.tokens_per_second * (at_ms - day) / 1000)
    windows["today"] = _window(day, at_ms, today, models, model_shares, chips, chip_shares)
    windows["yesterday"] = _bare(day - 86_400_000, day, round(shape.tokens_per_second * 86_400 * 0.973))
    since = windows["today"]["tokens"]["total_tokens"] + windows["yesterday"]["tokens"]["total_tokens"]
    windows["since_start"] = _bare(None, at_ms, since)
    hour = windows["last_1h"]
    matrix = [split(row["total_tokens"], chip_shares) for row in hour["by_model"]]
    meters = _meters(shape, at_ms, since, stale)
    records = {
        name: sum(meter["records"][name] for meter in meters)
        for name in ("read", "counted", "duplicates", "rejected", "empty", "skipped", "conflicts")
    }
    live = [meter for meter in meters if meter["state"] == "live"]
    tops = sorted(
        (int(hour["tokens"]["total_tokens"] * 0.01 / (k + 1) ** 0.6) for k in range(shape.users)), reverse=True
    )
    return {
        "schema": 1,
        "at": instant(at_ms),
        "window_ms": _WINDOW_MS,
        "rate": {
            "tokens_per_second": 0.0 if stale else per_second,
            "requests_per_second": 0.0 if stale else per_second / 6400,
            "tokens_per_day": 0.0 if stale else per_second * 86_400,
            "target_tokens_per_day": TARGET,
            "share_of_target": 0.0 if stale else per_second * 86_400 / TARGET,
        },
        "windows": windows,
        "matrix": {"models": models, "chips": chips, "total_tokens": matrix},
        "top_users": [
            {"user": f"user-{(k * 7919 + 13) % 100_000:05d}", "total_tokens": tokens} for k, tokens in enumerate(tops)
        ],
        "records": records,
        "rejects": _sum_rejects(meters),
        "lag_messages": sum(meter["lag_messages"] for meter in meters) if meters else None,
        "freshness_ms": max((meter["freshness_ms"] for meter in live), default=None),
        "complete_up_to": instant(at_ms - 2300) if meters else None,
        "misfits": [],
        "meters": meters,
        "stale": stale or not meters,
    }  # fmt: skip


def nothing(at_ms: int = AT_MS) -> dict[str, Any]:
    """Before the first summary."""
    totals = make(Shape(models=0, chips=0, users=0, meters=0, tokens_per_second=0), at_ms)
    totals["window_ms"] = None
    totals["rate"] |= dict.fromkeys(("tokens_per_second", "requests_per_second", "tokens_per_day", "share_of_target"))
    return totals


def old(at_ms: int, newest_ms: int) -> dict[str, Any]:
    """A log of another day, that was metered within the last hour: its users are known, and no window has anything."""
    totals = make(Shape(models=0, chips=0, tokens_per_second=0), at_ms)
    totals["top_users"] = make(at_ms=at_ms)["top_users"]
    for meter in totals["meters"]:
        meter["partitions"][0]["watermark"] = instant(newest_ms)
    totals["complete_up_to"] = instant(newest_ms)
    return totals


def _bare(begin_ms: int | None, end_ms: int, total: int) -> dict[str, Any]:
    per_second = None if begin_ms is None else total * 1000 / (end_ms - begin_ms)
    return {
        "from": None if begin_ms is None else second(begin_ms),
        "to": instant(end_ms),
        "tokens": counters(total),
        "tokens_per_second": per_second,
        "active_users": None,
        "tokens_per_active_user": None,
    }


def _window(begin_ms: int, end_ms: int, total: int, models: list[str], model_shares: list[float], chips: list[str],
            chip_shares: list[float]) -> dict[str, Any]:  # fmt: skip
    by_model = [{"model": name, **counters(n)} for name, n in zip(models, _split(total, model_shares), strict=True)]
    by_chip = [{"chip": name, **counters(n)} for name, n in zip(chips, _split(total, chip_shares), strict=True)]
    begin_ms -= begin_ms % _WINDOW_MS
    users = float(round(min(total / 40_000, 4.1e6 * ((end_ms - begin_ms) / 86_400_000) ** 0.35))) if total else 0.0
    return {
        **_bare(begin_ms, end_ms, total),
        "tokens": add(by_model),
        "active_users": users,
        "tokens_per_active_user": total / users if users else None,
        "by_model": by_model[:100],
        "by_chip": by_chip[:100],
        "others": dict.fromkeys(NAMES, 0),
    }


def _split(total: int, shares: list[float]) -> list[int]:
    return split(total, shares) if shares else []


def _meters(shape: Shape, at_ms: int, since: int, stale: bool) -> list[dict[str, Any]]:
    return [_meter(shape, at_ms, since // shape.meters, number, stale) for number in range(shape.meters)]


def _meter(shape: Shape, at_ms: int, tokens: int, number: int, stale: bool) -> dict[str, Any]:
    rng = random.Random(shape.seed * 1000 + number)
    age_ms = 42_000 + number * 300 if stale else rng.randrange(100, 950)
    counted, rejects = (
        tokens // 6400,
        {"invalid_json": 1200 + number, "bad_count": 310, "future_timestamp": 17, "missing_field": 4},
    )
    records = {"counted": counted, "duplicates": counted // 900, "rejected": sum(rejects.values()), "empty": 3,
               "skipped": counted // 500}  # fmt: skip
    lag, fresh = rng.randrange(0, 40), rng.randrange(300, 1400)
    committed_ms = at_ms - age_ms
    place = {"topic": "inference-logs", "partition": number, "next": counted, "end": counted + lag, "lag": lag,
             "watermark": instant(committed_ms - 1500), "freshness_ms": fresh}  # fmt: skip
    return {
        "meter": f"meter-{number}",
        "device": ("NVIDIA H100 80GB HBM3", "host")[number % 2],
        "part": f"meter-{number}.20261123T100000Z-ab12-part-2",
        "parts": 2 + number % 3,
        "committed_at": instant(committed_ms),
        "age_ms": age_ms,
        "state": "stale" if stale else "live",
        "records": {"read": sum(records.values()), **records, "conflicts": records["duplicates"] // 7},
        "rejects": rejects,
        "total_tokens": tokens,
        "lag_messages": lag,
        "freshness_ms": fresh,
        "partitions": [place],
    }


def _sum_rejects(meters: list[dict[str, Any]]) -> dict[str, int]:
    reasons = {reason for meter in meters for reason in meter["rejects"]}
    return {reason: sum(meter["rejects"].get(reason, 0) for meter in meters) for reason in sorted(reasons)}


def _share(hour: dict[str, Any], kind: str, name: str | None) -> float:
    if name is None:
        return 1.0
    rows = hour[f"by_{kind}"]
    whole = sum(row["total_tokens"] for row in rows)
    return sum(row["total_tokens"] for row in rows if row[kind] == name) / whole if whole else 0.0


def _bare_of(window: dict[str, Any], total: int) -> dict[str, Any]:
    return window | {"tokens": counters(total), "active_users": None, "tokens_per_active_user": None}


def history(
    totals: dict[str, Any], span_ms: int, step_ms: int, by: str, seed: int = 1, until_ms: int | None = None
) -> dict[str, Any]:
    """A day with its usual tide."""
    rng = random.Random(seed)
    now_ms = round(datetime.fromisoformat(totals["at"]).timestamp() * 1000)
    at_ms = now_ms if until_ms is None else min(now_ms, until_ms)
    begin_ms = (at_ms - span_ms) // step_ms * step_ms
    times = list(range(begin_ms, at_ms, step_ms))
    series = []
    for name, tokens in _shares(totals, by):
        per_ms, noise = tokens / 3_600_000, rng.uniform(0.4, 1)
        values = [round(per_ms * min(step_ms, at_ms - t) * (1 + 0.1 * noise * rng.uniform(-1, 1))) for t in times]
        series.append({"name": name, "tokens": values})
    return {"from": second(begin_ms), "to": instant(at_ms), "step_ms": step_ms, "times": times, "series": series}


def _shares(totals: dict[str, Any], by: str) -> list[tuple[str | None, int]]:
    hour = totals["windows"]["last_1h"]
    tokens = hour["tokens"]
    if by == "total":
        return [("total", tokens["total_tokens"])]
    if by == "category":
        cached, written = tokens["cached_input_tokens"], tokens["cache_write_tokens"]
        reasoning = tokens["reasoning_tokens"]
        uncached, output = tokens["input_tokens"] - cached - written, tokens["output_tokens"] - reasoning
        categories = ("cached_input", "cache_write", "uncached_input", "reasoning", "output")
        return list(zip(categories, (cached, written, uncached, reasoning, output), strict=True))
    rows = [(row[by], row["total_tokens"]) for row in hour[f"by_{by}"]]
    return rows if len(rows) <= 12 else [*rows[:12], (None, sum(tokens for _, tokens in rows[12:]))]


@dataclass
class Feed:
    """A source whose totals a test sets. `taken` counts how often the server came for them."""

    totals: dict[str, Any] | None = field(default_factory=make)
    healthy: bool = True
    taken: int = 0
    histories: list[tuple[int, int, str]] = field(default_factory=list)
    asked: list[Question] = field(default_factory=list)
    money: ListMoney | None = None
    ledger: Ledger | None = None
    alerts: list[dict[str, Any]] = field(default_factory=list)

    def source(self) -> Source:
        return Source(
            totals=self._take,
            history=self._history,
            view=self._view,
            top_users=self._top_users,
            top_user=self._top_user,
            rate=self._rate,
            healthy=self._health,
            registry=metrics.registry(self._bytes),
            cost=None if self.money is None else self._cost,
            ledger=self.ledger,
            alerts=lambda: {"alerts": self.alerts, "more": len(self.alerts) // 2},
        )

    def _bytes(self) -> bytes | None:
        return None if self.totals is None else orjson.dumps(self.totals)

    def _take(self) -> bytes | None:
        self.taken += 1
        return self._bytes()

    def _history(self, asked: Question) -> dict[str, Any]:
        self.histories.append((asked.span_ms, asked.step_ms, asked.by))
        self.asked.append(asked)
        found = history(self.totals or nothing(), asked.span_ms, asked.step_ms, asked.by, until_ms=asked.until_ms)
        only = {"model": asked.model, "chip": asked.chip}.get(asked.by)
        if only is not None:
            found["series"] = [each for each in found["series"] if each["name"] == only]
        return found

    def _view(self, asked: Question) -> dict[str, Any]:
        """As if every model were used alike on every chip by every meter, and every hour were as the last one."""
        totals, model, chip = self.totals or nothing(), asked.model, asked.chip
        hour, rate = totals["windows"]["last_1h"], dict(totals["rate"])
        part = _share(hour, "model", model) * _share(hour, "chip", chip)
        part /= len(totals["meters"]) if asked.meter else 1
        for name in ("tokens_per_second", "requests_per_second", "tokens_per_day", "share_of_target"):
            rate[name] = (rate[name] or 0) * part
        windows = {
            name: _bare_of(window, round(window["tokens"]["total_tokens"] * part))
            for name, window in totals["windows"].items()
            if name in (("last_1m", "last_5m") if asked.meter else _ROLLING)
        }
        hours = asked.span_ms / 3_600_000
        whole = _bare_of(hour, round(hour["tokens"]["total_tokens"] * part * hours))
        return {"rate": rate, "windows": windows, "range": whole, "matrix": self._matrix(model, chip, hours)}

    def _matrix(self, model: str | None, chip: str | None, hours: float) -> dict[str, Any]:
        matrix = (self.totals or nothing())["matrix"]
        rows = [k for k, name in enumerate(matrix["models"]) if model in (None, name)]
        columns = [k for k, name in enumerate(matrix["chips"]) if chip in (None, name)]
        tokens = [[round(matrix["total_tokens"][row][column] * hours) for column in columns] for row in rows]
        kept = {"models": [matrix["models"][k] for k in rows], "chips": [matrix["chips"][k] for k in columns]}
        return {**kept, "total_tokens": tokens}

    def _top_users(self, meter: str | None) -> list[dict[str, Any]]:
        """Of a meter, the first half of all."""
        users = (self.totals or nothing())["top_users"]
        return users if meter is None else users[: len(users) // 2]

    def _top_user(self, user: str) -> int | None:
        users = (self.totals or nothing())["top_users"]
        return next((row["total_tokens"] for row in users if row["user"] == user), None)

    def _cost(self, asked: Question) -> dict[str, Any]:
        assert self.money is not None
        matrix = self._matrix(asked.model, asked.chip, asked.span_ms / 3_600_000)
        cells = [
            (row, column, tuple(counters(tokens)[name] for name in COUNTERS))
            for row, line in zip(matrix["models"], matrix["total_tokens"], strict=True)
            for column, tokens in zip(matrix["chips"], line, strict=True)
        ]
        begin_ms = (AT_MS if asked.until_ms is None else asked.until_ms) - asked.span_ms
        return {"from_ms": begin_ms, "to_ms": begin_ms + asked.span_ms, **self.money.of([(begin_ms, cells)])}

    def _rate(self) -> dict[str, Any]:
        if self.totals is None:
            return {"times": [], "tokens_per_second": []}
        at_ms = round(datetime.fromisoformat(self.totals["at"]).timestamp() * 1000)
        rate, rng = self.totals["rate"]["tokens_per_second"] or 0.0, random.Random(2)
        times = list(range(at_ms - 600_000, at_ms, 1000))
        return {"times": times, "tokens_per_second": [rate * (1 + 0.04 * rng.uniform(-1, 1)) for _ in times]}

    def _health(self) -> tuple[bool, dict[str, Any]]:
        return self.healthy, {"status": "ok" if self.healthy else "no summary for too long"}
