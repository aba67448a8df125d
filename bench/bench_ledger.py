"""The ledger's pace and its answers, on DuckDB and on a real PostgreSQL that waits for the disk at each commit.

    intake   usage rows as a meter publishes them, from the bytes of the messages to the committed transaction: batches
             of a commit each, most rows of identities that are there already. The broker is not in it.
    user     usage of one user for a month, by day, model and chip, in a ledger of `rows` rows
    top      the 100 users of the most tokens of a day, in the same ledger
    labels   the same intake with four labels of 10,000 values in all; a user's month by team, and the 100 teams of the
             most tokens of a day, in a ledger of as many rows that have labels

Each database in a fresh process. The ledger of a month is written by SQL, nine tenths of it merged; what is timed of a
question is all but HTTP: a snapshot, the statement, the answer. Checked: the sums of the intake against those of the
rows that were made, and the answers of the two databases against each other.
"""

import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from bench import common
from tokenometer.processor.broker import Messages, Offset, Place
from tokenometer.processor.ledger import decode, usage
from tokenometer.processor.ledger.database import KEY, Database
from tokenometer.processor.ledger.duck import DuckDatabase
from tokenometer.processor.ledger.opening import open_database
from tokenometer.processor.ledger.parts import ENDED, OPEN
from tokenometer.processor.ledger.store import Stand, Store
from tokenometer.processor.ledger.values import LedgerBatch
from tokenometer.schemas.usage import COUNTERS

SIZES = {
    "small": {"batches": 3, "batch_rows": 2_000, "users": 1_000, "rows": 20_000, "questions": 3},
    "large": {"batches": 40, "batch_rows": 200_000, "users": 300_000, "rows": 10_000_000, "questions": 21},
}
POSTGRES_BATCHES = 10  # are enough to see its pace
MODELS, CHIPS, DAYS = 8, 6, 30
START_MS = 1_793_491_200_000  # 2026-11-01T00:00:00Z
DAY_MS, MINUTE_MS = 86_400_000, 60_000
COMMITS_OF_A_WINDOW = 20
PART_ROWS = 1_500_000  # merged together: what a meter's default tables hold
TEAMS, KEYS, TIERS = 2_000, 7_990, ("standard", "batch")
SETS = 16_000  # label sets of the month
_PLACE = Place("token-usage", 0)
_PARTS = ("intake", "questions", "intake labels", "questions labels")


def main(arguments: Sequence[str]) -> int:
    parser = common.parser(__doc__)
    parser.add_argument("--only", choices=("duckdb", "postgres"), help="one database")
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(_child(json.loads(sys.stdin.readline()))))
        return 0
    facts, cases, skipped = common.facts("bench.bench_ledger", arguments), {}, {}
    for kind in ("duckdb", "postgres"):
        if options.only in (None, kind):
            try:
                cases[kind] = _measure(kind, SIZES[options.size])
            except RuntimeError as error:
                skipped[kind] = str(error)
    for kind, case in cases.items():
        print(
            f"{kind:9} {case['rows_per_second']:10,.0f} rows/s, one user {case['user_ms']:.1f} ms, "
            f"top 100 {case['top_ms']:.1f} ms, {case['bytes'] / case['rows']:.0f} bytes a row; with labels "
            f"{case['labels_rows_per_second']:,.0f} rows/s, one user by team {case['labels_user_ms']:.1f} ms, "
            f"top 100 teams {case['labels_top_ms']:.1f} ms"
        )
    digests = {case["digest"] + case["labels_digest"] for case in cases.values()}
    print(f"answers {' '.join(sorted(digests))}: {'equal' if len(digests) == 1 else 'DIFFERENT'}")
    result = {"kind": "ledger", **facts, "size": SIZES[options.size], "cases": cases, "skipped": skipped}
    common.save(options.json, result)
    return int(len(digests) != 1)


def _measure(kind: str, size: dict[str, int]) -> dict[str, Any]:
    """In databases of its own for the two parts."""
    with contextlib.ExitStack() as stack:
        if kind == "duckdb":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenometer-bench-"))
            names = [f"{folder}/{part}.duckdb" for part in _PARTS]
        else:
            from tests.postgres_server import PostgresMissing, PostgresServer

            try:
                server = stack.enter_context(contextlib.closing(PostgresServer(durable=True)))
            except PostgresMissing as error:
                raise RuntimeError(str(error)) from None
            names = [stack.enter_context(server.database()) for _ in _PARTS]
            size = {**size, "batches": min(size["batches"], POSTGRES_BATCHES)}
        answer: dict[str, Any] = {}
        for part, name in zip(_PARTS, names, strict=True):
            request = {"part": part, "database": name, **size}
            answer |= common.run_child("bench.bench_ledger", request, len(common.cores()))
            print(kind, part, json.dumps(answer), file=sys.stderr, flush=True)
    return answer


def _child(request: dict[str, Any]) -> dict[str, Any]:
    with contextlib.closing(Store(open_database(request["database"], writer=True))) as store:
        if request["part"].startswith("intake"):
            found = _intake(store, request)
        else:
            found = _questions(store.database, request)
    labelled = request["part"].endswith("labels")
    return {f"labels_{name}": value for name, value in found.items()} if labelled else found


# --- Intake ---


def _intake(store: Store, request: dict[str, Any]) -> dict[str, Any]:
    draw, truth = np.random.default_rng(1), np.zeros(len(COUNTERS), np.int64)
    held: dict[int, np.ndarray[Any, Any]] = {}
    seconds, rows, decoding = [], 0, 0.0
    store.place({_PLACE: Stand("bench", Offset(0))})
    for number in range(request["batches"]):
        values, sums = _batch(draw, number, request, held)
        truth += sums
        offsets = np.arange(rows, rows + len(values), dtype=np.int64)
        messages = [Messages(_PLACE, values, np.zeros(len(values), np.uint64), offsets)]
        began = time.perf_counter()
        decoded = decode.usage_rows(messages)
        decoding += time.perf_counter() - began
        store.take(LedgerBatch(decoded, [], {_PLACE: messages[0].next_offset}))
        seconds.append(time.perf_counter() - began)
        rows += len(values)
    sums_of = ", ".join(f"sum({name})" for name in COUNTERS)
    merging = _merge(store, truth.tolist())
    [(count, *found)] = store.database.rows(f"SELECT count(*), {sums_of} FROM usage")
    assert [int(value) for value in found] == truth.tolist(), "the ledger's sums are not those of the rows"
    half = len(seconds) // 2
    return {
        "messages": rows,
        "identities": int(count),
        "rows_per_second": rows / sum(seconds),
        "sustained": (rows - rows * half // len(seconds)) / sum(seconds[half:]),
        "decoding_share": decoding / sum(seconds),
        "batch_ms_max": max(seconds) * 1000,
        "merged_per_second": int(count) / merging,
    }


def _merge(store: Store, tokens: list[int]) -> float:
    """The part ends and adds up; how long it takes."""
    [part] = store.parts.in_state(OPEN)
    part.sequence, part.tokens = 0, tuple(tokens)  # type: ignore[assignment]
    store.parts.move(part, ENDED)
    began = time.perf_counter()
    assert store.reach({}, [part]) == [], "the part's rows do not add up"
    return time.perf_counter() - began


def _batch(
    draw: np.random.Generator, number: int, request: dict[str, Any], held: dict[int, np.ndarray[Any, Any]]
) -> tuple[list[bytes], Any]:
    """What a commit of a meter changes: users of all kinds of activity; and by how much all counters grow."""
    users = (draw.random(request["batch_rows"]) ** 2 * request["users"]).astype(np.int64)
    models = (users * 5 + draw.integers(0, 2, len(users))) % MODELS  # a user has two
    keys = np.unique(users * MODELS + models)
    window = number // COMMITS_OF_A_WINDOW
    if window not in held:
        held.clear()
        held[window] = np.zeros((request["users"] * MODELS, len(COUNTERS)), np.int64)
    tokens = [draw.integers(1, high, len(keys)) for high in (4000, 900, 90, 800, 90)]
    growth = np.stack([np.ones(len(keys), np.int64), *tokens], 1)
    growth[:, 1] += growth[:, 2] + growth[:, 3]
    growth[:, 4] += growth[:, 5]
    counters = held[window]
    counters[keys] += growth
    start = f"2026-11-23T10:{window:02d}:00Z"
    names = dict.fromkeys(("window_start", "user", "model", "chip", "part"))
    values = [
        orjson.dumps(
            names
            | {"window_start": start, "user": f"user-{key // MODELS:06d}", "model": f"model-{key % MODELS}"}
            | {"chip": f"H{key % CHIPS}00-SXM5-80GB", "part": "meter-0.20261123T100000Z-5f3a.1", "window_ms": 60_000}
            | dict(zip(COUNTERS, row, strict=True))
            | {"total_tokens": row[1] + row[4], "schema": 2}
            | ({"labels": _labels(key)} if request["part"].endswith("labels") else {})
        )
        for key, row in zip(keys.tolist(), counters[keys].tolist(), strict=True)
    ]
    return values, growth.sum(0)


def _labels(key: int) -> dict[str, str]:
    """A user has one API key, and that is of one team."""
    api_key = key // MODELS % KEYS
    return {
        "api_key": f"key-{api_key:05d}",
        "context": "0-32000" if key % 3 else "32001-128000",
        "service_tier": TIERS[key % 5 == 0],
        "team": f"team-{api_key % TEAMS:04d}",
    }


# --- Questions ---


def _questions(database: Database, request: dict[str, Any]) -> dict[str, Any]:
    labelled = request["part"].endswith("labels")
    _fill_month(database, request["rows"], request["users"], labelled)
    by_user, by_top = ("team", "team") if labelled else ("model,chip", "user")
    draw, answers, took = np.random.default_rng(2), [], {"user": list[float](), "top": list[float]()}
    month = {"from": "2026-11-01", "to": "2026-12-01"}
    for _ in range(request["questions"]):
        user = f"user-{int(draw.integers(0, request['users'])):06d}"
        day = int(draw.integers(1, DAYS))
        day_only = {"from": f"2026-11-{day:02d}", "to": f"2026-11-{day + 1:02d}"}
        for kind, given in (
            ("user", {**month, "user": user, "group_by": by_user, "window": "day"}),
            ("top", {**day_only, "group_by": by_top, "top": "100"}),
        ):
            began = time.perf_counter()
            with database.snapshot() as moment:
                found = usage.answer(moment, usage.parse(given))
            took[kind].append((time.perf_counter() - began) * 1000)
            answers.append([(group.begin, group.names, group.counters) for group in found.groups])
    return {
        "rows": request["rows"],
        "bytes": _bytes(database, request["database"]),
        "digest": common.digest(answers),
        **{f"{kind}_ms": statistics.median(times) for kind, times in took.items()},
        **{f"{kind}_ms_max": max(times) for kind, times in took.items()},
    }


def _fill_month(database: Database, rows: int, users: int, labelled: bool) -> None:
    """Row n is of minute n * minutes / rows; users and models follow from n by multiplication with large primes."""
    duck = isinstance(database, DuckDatabase)
    series, divide = ("range(%d) AS g(n)", "//") if duck else ("generate_series(0::bigint, %d) AS g(n)", "/")
    user = f"((n * 7919 % {users}) * (n * 104729 % {users}) {divide} {users})"
    columns = f"""
        {START_MS} + (n * {DAYS * DAY_MS // MINUTE_MS} {divide} {rows}) * {MINUTE_MS}, 1 + {user},
        {users} + 1 + n % {MODELS}, {users} + {MODELS} + 1 + n * 31 % {CHIPS},
        {f"1 + n * 6151 % {SETS}" if labelled else "0"}
    """
    counts = "1, 2000 + n % 3000, n % 900, n % 90, 300 + n % 500, n % 90"
    with database.transaction():
        names = [f"user-{number:06d}" for number in range(users)]
        names += [f"model-{number}" for number in range(MODELS)] + [f"chip-{number}" for number in range(CHIPS)]
        if labelled:
            names += ["team", "service_tier", *TIERS] + [f"team-{number:04d}" for number in range(TEAMS)]
        _append(database, "names", names)
        if labelled:
            _fill_sets(database, len(names) - TEAMS)
        # As merged parts lie there.
        order = f"w // {DAYS * DAY_MS * PART_ROWS // rows}, u, w" if duck else "w"
        old, numbers = rows - rows // 10, series % (rows if duck else rows - 1)
        for table, part, some in (("merged_rows", "", f"n < {old}"), ("open_rows", "1, ", f"n >= {old}")):
            places = [*KEY, *(["part_id"] if part else []), *COUNTERS]
            database.rows(f"""
                INSERT INTO {table} ({", ".join(places)})
                SELECT w, u, m, c, l, {part} sum(a), sum(b), sum(d), sum(e), sum(f), sum(g)
                FROM (SELECT {columns}, {counts} FROM {numbers} WHERE {some}) AS made(w, u, m, c, l, a, b, d, e, f, g)
                GROUP BY w, u, m, c, l ORDER BY {order}
            """)
    database.rows("CHECKPOINT" if duck else "VACUUM ANALYZE")


def _append(database: Database, table: str, names: Sequence[str]) -> None:
    encoded = pa.array([name.encode() for name in names], pa.binary())
    database.append(table, pa.table({"id": pa.array(range(1, len(names) + 1), pa.int32()), "name": encoded}))


def _fill_sets(database: Database, before_teams: int) -> None:
    """A team and a tier each. before_teams: how many names there are before the teams'; the four before those are the
    labels' names and the tiers."""
    team, tier = before_teams - 3, before_teams - 2
    ids = np.arange(1, SETS + 1, dtype=np.int32)
    teams, tiers = before_teams + 1 + ids % TEAMS, before_teams - 1 + (ids % 5 == 0)
    _append(database, "label_sets", [f"set-{id}" for id in ids.tolist()])
    pairs = {
        "set_id": np.concatenate([ids, ids]),
        "name_id": np.repeat(np.array([team, tier], np.int32), SETS),
        "value_id": np.concatenate([teams, tiers]).astype(np.int32),
    }
    database.append("set_labels", pa.table(pairs))


def _bytes(database: Database, name: str) -> int:
    if isinstance(database, DuckDatabase):
        return pathlib.Path(name).stat().st_size
    return int(database.rows("SELECT pg_database_size(current_database())")[0][0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
