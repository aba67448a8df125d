"""The synthetic log generator against the rules of docs/RECORDS.md, and public traces against their published sums."""

import hashlib
import math
import os
import random
import tomllib
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard

from tests import harness
from tests.oracle import Verdict, judge
from tokenometer.processor.load import faults, lines, synth
from tokenometer.processor.load.profile import (
    BLOCK_RECORDS,
    FUTURE_MS,
    LATE_MS,
    MODEL_NAMES,
    RESEND_RECORDS_MAX,
    START_MS,
    USERS_MAX,
    Profile,
)
from tokenometer.processor.load.synth import generate, messages
from tokenometer.processor.load.trace import TraceError, from_trace

ROOT = Path(__file__).parent.parent
NATIVE = tomllib.loads((ROOT / "schemas/mappings/native.toml").read_text())
CLEAN = Profile(0, duplicates=0, late=0, future=0, malformed=0, escaped=0)
N = 2 * BLOCK_RECORDS + 1_234  # two whole blocks and a part of a third
EVERY = max(5 // harness.TIMES, 1)  # so many-th record is judged: the oracle takes longer than all else, in each block


def log(profile: Profile) -> bytes:
    return b"".join(generate(profile))


def lines_of(data: bytes) -> list[bytes]:
    assert not data or data.endswith(b"\n")
    return data.split(b"\n")[:-1]


def clean(records: int = N, **settings) -> Profile:
    return replace(CLEAN, records=records, **settings)


def verdict(line: bytes) -> Verdict:
    return judge(line, NATIVE)


def assert_share(hits: int, total: int, share: float) -> None:
    """Within five standard deviations of a binomial draw: one false alarm in a million, and the seed is fixed."""
    assert abs(hits - total * share) <= 5 * math.sqrt(total * share * (1 - share)) + 1, (hits / total, share)


# The same seed gives the same bytes


def test_same_seed_same_bytes_other_seed_other_bytes():
    dirty = Profile(5_000, duplicates=0.1, late=0.1, future=0.1, malformed=0.1, escaped=0.1)
    assert log(dirty) == log(dirty)
    assert log(dirty) != log(replace(dirty, seed=2))


def test_a_longer_log_begins_with_the_shorter_one():
    dirty = Profile(N, duplicates=0.1, late=0.1, future=0.1, malformed=0.1, escaped=0.1)
    whole = log(dirty)
    for records in (0, 1, 1_000, BLOCK_RECORDS, BLOCK_RECORDS + 1):
        assert whole.startswith(log(replace(dirty, records=records)))


@pytest.mark.parametrize("records", [0, 1, BLOCK_RECORDS - 1, BLOCK_RECORDS, BLOCK_RECORDS + 1, N])
def test_chunks_hold_whole_lines_and_all_of_them(records):
    chunks = list(generate(Profile(records, malformed=0.05, duplicates=0.05, escaped=0.05)))
    assert all(chunk.endswith(b"\n") for chunk in chunks)
    assert sum(chunk.count(b"\n") for chunk in chunks) == records


def test_records_without_a_fault_are_those_of_a_clean_log():
    sound = lines_of(log(clean()))
    spoiled = lines_of(log(clean(malformed=0.01, duplicates=0.01, escaped=0.01)))
    changed = sum(a != b for a, b in zip(sound, spoiled, strict=True))
    assert 0.02 * N < changed < 0.04 * N


# Taken on 2026-11-29, of commit cda8ce9. Another numpy may draw other numbers of the same seed.
DIGEST_RECORDS = BLOCK_RECORDS + 3_000
DIGESTS = [
    (dict(), "d5a5214593db6d222a11fc4c532a8eab"),
    (dict(seed=2), "32815e4902a33dd31e6a0db098256c41"),
    (dict(compact=True), "374204217ac6ff2eaef3a362c104b472"),
    (dict(rate=900_000.0, bursts=0.0, malformed=0.001, duplicates=0.02), "7bff0b0838e5347eea3a2faacb074ac7"),
    (dict(duplicates=0.1, late=0.1, future=0.1, malformed=0.1, escaped=0.1), "66be18dfa759c2bf9fd733b17b01db07"),
    (dict(duplicates=0.3, malformed=0.7, escaped=1.0), "74187b7819803c33def0430cb52cba21"),
    (dict(escaped=1.0, malformed=0, duplicates=0), "b9d9bfc4473edbb0ec41016194d87edf"),
    (
        dict(compact=True, duplicates=0.1, late=0.1, future=0.1, malformed=0.1, escaped=0.1),
        "b79000e071114b787f0f970f25f69f1d",
    ),
    (
        dict(prefill=1.0, cached_share=1.0, cache_write_share=1.0, reasoning_share=1.0),
        "7a70af009fa4f28cb4a3dd78c66d5fa1",
    ),
    (
        dict(
            prefill=0,
            cached_share=0,
            cache_write_share=0,
            reasoning_share=0,
            late=0,
            duplicates=0,
            malformed=0,
            escaped=0,
        ),
        "4c87075469fa01611e506672aec2161e",
    ),
    (dict(token_sigma=5.0, input_median=1_000_000, output_median=1), "efc91faa6cc8f94d7883c93084eb8f2d"),
    (dict(token_sigma=0.0, input_median=7, output_median=3), "f4b84d66f15675765477608b67345682"),
    (dict(users=1, models=1, chips=1), "5ce156104ed788861541e744a4a22a15"),
    (dict(users=USERS_MAX, models=100, chips=100), "54e2ea0230fba11c7508342a6e0a49a2"),
    (dict(user_skew=0.0), "e2e31f85d9c38dd367f2b76c8e7b6e74"),
    (dict(day_curve=True, rate=0.5, bursts=0.3, start_ms=1_700_000_000_000), "8eedfabc4e6ad0f7c0bcbe9c23b9b384"),
]


@pytest.mark.parametrize(
    ("settings", "digest"), DIGESTS, ids=[" ".join(settings) or "default" for settings, _ in DIGESTS]
)
def test_a_seed_gives_the_bytes_that_it_always_gave(settings, digest):
    assert hashlib.sha256(log(Profile(DIGEST_RECORDS, **settings))).hexdigest()[:32] == digest


# Sound records


@pytest.mark.slow
@pytest.mark.parametrize(
    "profile",
    [
        clean(),
        clean(compact=True),
        clean(prefill=1.0, cached_share=1.0, cache_write_share=1.0, reasoning_share=1.0),
        clean(token_sigma=5.0, input_median=1_000_000, output_median=1),
        clean(users=1, models=1, chips=1),
        clean(users=USERS_MAX, models=100, chips=100),
        clean(late=0.5, future=0.5, escaped=1.0),
    ],
    ids=["default", "compact", "all parts", "wild tokens", "one of each", "many of each", "late, future, escaped"],
)
def test_every_record_obeys_the_rules(profile):
    for line in lines_of(log(profile))[::EVERY]:
        assert verdict(line).kind == "ok", line


def test_request_ids_are_unique_without_duplicates():
    ids = [orjson.loads(line)["request_id"] for line in lines_of(log(clean()))]
    assert len(set(ids)) == N
    assert {len(request_id) for request_id in ids} == {36}


def test_record_sizes():
    assert 280 < len(log(clean())) / N < 350
    assert 170 < len(log(clean(compact=True))) / N < 220


def test_shares_of_optional_fields():
    lines = lines_of(log(clean(prefill=0.3, cached_share=0.6, cache_write_share=0.0, reasoning_share=0.2)))
    assert_share(sum(b'"prefill_chip"' in line for line in lines), N, 0.3)
    records = [orjson.loads(line) for line in lines]
    assert (
        0.57 * N < sum(record.get("cached_input_tokens", 0) > 0 for record in records) < 0.61 * N
    )  # small ones cut to 0
    assert 0 < sum("cached_input_tokens" not in record for record in records) < N
    assert not any("cache_write_tokens" in record for record in records)


def test_tokens_are_log_normal():
    records = [
        orjson.loads(line) for line in lines_of(log(clean(input_median=5_000, output_median=300, token_sigma=1.0)))
    ]
    for field, median in (("input_tokens", 5_000), ("output_tokens", 300)):
        logs = np.log([record[field] for record in records])
        assert abs(np.median(logs) - math.log(median)) < 0.05
        assert abs(logs.std() - 1.0) < 0.05


def test_names_beyond_the_lists_are_numbered():
    lines = lines_of(log(clean(chips=40, models=45)))
    for field, count in (("chip", 40), ("model", 45)):
        assert len({orjson.loads(line)[field] for line in lines}) == count


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0, 1.1, 2.0])
@pytest.mark.parametrize("n", [1, 7, 1_000, 300_000])
def test_zipf_follows_its_law(n, skew):
    draws = 200_000
    ranks = lines.Zipf(n, skew).draw(np.random.default_rng(5), draws)
    assert ranks.min() >= 0 and ranks.max() < n
    weights = np.arange(1, n + 1, dtype=float) ** -skew
    law = np.cumsum(weights) / weights.sum()
    for rank in {0, min(3, n - 1), n // 10, n // 4, n // 2, n - 1}:
        assert_share(int((ranks <= rank).sum()), draws, min(float(law[rank]), 1.0))


# Event times


def event_times(profile: Profile) -> np.ndarray:
    return np.array([orjson.loads(line)["timestamp"] for line in lines_of(log(profile))])


@pytest.mark.parametrize("rate", [1.0, 1_000.0, 1_000_000.0])
def test_rate_holds_on_average(rate):
    profile = clean(rate=rate, bursts=0.0)
    arrivals = synth._Clock(profile).next(N)
    assert abs((arrivals[-1] - profile.start_ms) / 1_000 * rate / N - 1) < 0.03
    assert (np.diff(arrivals) >= 0).all()


def test_bursts_are_four_times_as_busy():
    clock = synth._Clock(clean(rate=1_000.0, bursts=0.2))
    arrivals = np.concatenate([clock.next(BLOCK_RECORDS) for _ in range(60)])
    per_slot = np.bincount((arrivals - CLEAN.start_ms) // 1_000)[:-1]
    busy = per_slot > 1_200  # quiet slots expect 625, bursts 2,500
    assert_share(int(busy.sum()), len(busy), 0.2)
    assert abs(per_slot[busy].mean() / per_slot[~busy].mean() - 4) < 0.1


def test_day_curve_peaks_in_the_afternoon():
    clock = synth._Clock(clean(rate=1.0, bursts=0.0, day_curve=True))
    arrivals = np.concatenate([clock.next(BLOCK_RECORDS) for _ in range(11)])  # two days
    per_hour = np.bincount((arrivals // 3_600_000 % 24)[arrivals < CLEAN.start_ms + 2 * 86_400_000])
    assert abs(per_hour[14:16].mean() / per_hour[2:4].mean() - 4) < 0.5
    assert abs(per_hour.sum() / 2 / 86_400 - 1) < 0.02


def test_late_and_future_shares():
    profile = clean(late=0.1, future=0.05)
    shift = event_times(profile) - event_times(clean())
    assert_share(int((shift < 0).sum()), N, 0.1)
    assert_share(int((shift > 0).sum()), N, 0.05)
    assert -LATE_MS[1] <= shift[shift < 0].min() and shift[shift < 0].max() <= -LATE_MS[0]
    assert FUTURE_MS[0] <= shift[shift > 0].min() and shift[shift > 0].max() <= FUTURE_MS[1]


# Faults


@pytest.mark.slow
def test_malformed_records_are_rejected_for_every_reason():
    lines = lines_of(log(clean(malformed=0.5)))
    verdicts = [verdict(line) for line in lines]
    assert_share(sum(found.kind == "rejected" for found in verdicts), N, 0.5)
    assert all(found.kind in ("ok", "rejected") for found in verdicts)
    assert set(Counter(found.reason for found in verdicts if found.kind == "rejected")) == {
        "invalid_json", "not_an_object", "repeated_field", "wrong_type", "missing_field", "bad_string", "bad_count",
        "bad_timestamp", "inconsistent_counts",
    }  # fmt: skip


@pytest.mark.parametrize("compact", [False, True])
def test_malform_never_leaves_a_sound_record(compact):
    rng = random.Random(7)
    for line in lines_of(log(clean(1_000, compact=compact))):
        for _ in range(20):
            spoiled = faults.malform(line, rng)
            assert b"\n" not in spoiled
            assert verdict(spoiled).kind == "rejected", spoiled


def test_every_listed_bad_value_is_rejected():
    """Each alone in a record without optional fields, so that nothing else can be the reason."""
    line = lines_of(log(clean(1, compact=True, prefill=0.0)))[0]
    for field, values in faults._BAD_VALUES.items():
        for value in values:
            assert verdict(faults._with(line, field, value)).kind == "rejected", (field, value)
    for name, values in faults._BAD_OPTIONAL.items():
        for value in values:
            spoiled = orjson.dumps(orjson.loads(line) | {name: value})
            assert (verdict(spoiled).kind, verdict(spoiled).field) == ("rejected", name), (name, value)
    for make in (*faults._NOT_JSON, *faults._NOT_AN_OBJECT):
        assert verdict(make(line, random.Random(1))).reason in ("invalid_json", "not_an_object")


def test_duplicates_repeat_a_recent_request_id():
    records = [orjson.loads(line) for line in lines_of(log(clean(duplicates=0.1)))]
    first_at: dict[str, int] = {}
    distances, same = [], 0
    for at, record in enumerate(records):
        first = first_at.setdefault(record["request_id"], at)
        if first != at:
            distances.append(at - first)
            same += record == records[first]
            assert record["user"] == records[first]["user"]  # so that a key by user keeps both in one partition
    assert_share(len(distances), N, 0.1)
    assert_share(same, len(distances), 0.8)
    assert max(distances) < RESEND_RECORDS_MAX + 100  # a step further back where that record is no first one
    assert sum(distance <= 16 for distance in distances) > len(distances) / 5
    assert all(verdict(orjson.dumps(record)).kind == "ok" for record in records[::EVERY])


def test_duplicates_reach_across_blocks():
    ids = [orjson.loads(line)["request_id"] for line in lines_of(log(clean(duplicates=0.3)))]
    assert set(ids[:BLOCK_RECORDS]) & set(ids[BLOCK_RECORDS : 2 * BLOCK_RECORDS])


def test_nothing_to_send_again_leaves_fresh_records():
    ids = [orjson.loads(line)["request_id"] for line in lines_of(log(clean(100, duplicates=1.0)))]
    assert len(set(ids)) == 100


@pytest.mark.slow
@pytest.mark.parametrize("compact", [False, True])
def test_escaped_records_mean_the_same(compact):
    plain = lines_of(log(clean(compact=compact, prefill=0.5)))
    spelled = lines_of(log(clean(compact=compact, prefill=0.5, escaped=0.25)))
    assert_share(sum(b"\\u" in line for line in spelled), N, 0.25)
    for line, escaped in zip(plain, spelled, strict=True):
        assert orjson.loads(line) == orjson.loads(escaped)
    for line, escaped in zip(plain[::EVERY], spelled[::EVERY], strict=True):
        assert verdict(line) == verdict(escaped)


def test_escapes_reach_every_mapped_key_and_string():
    line = (
        b'{"request_id":"r1","timestamp":1,"user":"u1","model":"m1","chip":"c1","prefill_chip":"p1","input_tokens":3,'
        b'"cached_input_tokens":1,"cache_write_tokens":1,"output_tokens":2,"reasoning_tokens":1}'
    )
    rng = random.Random(3)
    spelled = [faults.escape(line, rng) for _ in range(2_000)]
    assert all(orjson.loads(escaped) == orjson.loads(line) for escaped in spelled)
    for text in orjson.loads(line):
        assert any(f'"{text}"'.encode() not in escaped for escaped in spelled), text
    for text in ("r1", "u1", "m1", "c1", "p1"):
        assert any(f'"{text}"'.encode() not in escaped for escaped in spelled), text


def test_a_record_that_is_sent_again_is_never_a_malformed_or_a_repeated_one():
    """Beyond the first block too: its source is a sound record of the same block or of the one before."""
    profile = Profile(N, duplicates=0.6, malformed=0.3, late=0, escaped=0)
    fresh = {orjson.loads(line)["request_id"] for line in lines_of(log(clean()))}
    for line in lines_of(log(profile))[::EVERY]:
        if (judged := verdict(line)).kind == "ok":
            assert judged.record.request_id in fresh


# Spelling


def spelled(record: dict, users: int) -> bytes:
    """A record as this file's author would write it."""
    digits = max(6, len(str(users - 1)))
    wanted = {key: value for key, value in record.items() if value is not None}
    wanted["user"] = f"user-{record['user']:0{digits}d}"
    return orjson.dumps(wanted)


@pytest.mark.parametrize("users", [1, 1_000_000, 1_000_001, USERS_MAX])
@pytest.mark.parametrize("long", [False, True])
def test_columns_are_spelled_as_json(users, long):
    rng = random.Random(users)
    models = ["plain", 'q"uote', "\N{GREEK SMALL LETTER OMEGA}" * 128, "m" * 256, ""]
    chips, places = ["c", "chip" * 60], [("here", "/v1"), ("far" * 90, "/v2")]
    spelling = lines.Format([orjson.dumps(model).decode() for model in models], chips, users, places)
    table, wanted = np.zeros(500, lines.RECORD), []
    for row in table:
        user, model, chip = rng.randrange(users), rng.randrange(len(models)), rng.randrange(2)
        counts = [rng.choice((-1, 0, 9, 10, 1 << 20, (1 << 40) - 1)) for _ in range(5)]
        prefill, place, cents = (
            rng.randrange(3),
            rng.randrange(1, 3) if long else 0,
            rng.choice((5_000, 5_001, 60_000_000)),
        )
        time_ms = rng.choice((0, 9, START_MS, 253_402_300_799_999))
        high, low = rng.getrandbits(64), rng.getrandbits(64)
        row["id"], row["time_ms"], row["user"], row["model"], row["chip"] = (high, low), time_ms, user, model, chip
        row["prefill"], row["place"], row["latency_cents"], row["streamed"] = prefill, place, cents, cents % 2
        for name, count in zip(lines._COUNTS, counts, strict=True):
            row[name] = count
        part = f"{high:016x}{low:016x}"
        variant = "89ab"[int(part[16], 16) & 3]
        record = {
            "request_id": f"{part[:8]}-{part[8:12]}-4{part[13:16]}-{variant}{part[17:20]}-{part[20:]}",
            "timestamp": time_ms, "user": user, "model": models[model], "chip": chips[chip],
            "prefill_chip": chips[prefill - 1] if prefill else None,
            "region": places[place - 1][0] if place else None, "endpoint": places[place - 1][1] if place else None,
            **{name: None if count < 0 else count for name, count in zip(lines._COUNTS, counts, strict=True)},
        }  # fmt: skip
        line = spelled(record, users)
        if place:
            end = (
                f',"latency_ms":{cents // 100}.{cents % 100:02d},"status":200,"stream":{str(bool(cents % 2)).lower()}}}'
            )
            line = line[:-1] + end.encode()
        wanted.append(line)
    block = spelling.block(table, np.zeros(500, np.int64))
    assert lines_of(bytes(block.data)) == wanted
    assert [block.line(row) for row in range(500)] == wanted
    names = block.user_names()
    assert [bytes(name).decode() for name in names] == [orjson.loads(line)["user"] for line in wanted]


@pytest.mark.slow
@pytest.mark.parametrize("compact", [False, True])
def test_a_block_knows_each_lines_user_and_when_it_comes(compact):
    profile = clean(duplicates=0.2, malformed=0.05, escaped=0.1, compact=compact)
    last = 0
    for block in synth.blocks(profile):
        found = lines_of(bytes(block.data))
        assert found == [block.line(row) for row in range(len(block))]
        assert (np.diff(block.due_ms) >= 0).all() and block.due_ms[0] >= last
        last = int(block.due_ms[-1])
        for line, name in list(zip(found, block.user_names(), strict=True))[::EVERY]:
            if (judged := verdict(line)).kind == "ok":
                assert judged.record.user == bytes(name).decode()
        middle = block.between(100, 200)
        assert [middle.line(row) for row in range(100)] == found[100:200]
        assert (middle.users == block.users[100:200]).all() and (middle.due_ms == block.due_ms[100:200]).all()


@pytest.mark.parametrize("lines_per_message", [1, 2, 7, 300, 100_000])
def test_lines_are_gathered_by_group_and_stay_in_order(lines_per_message):
    grouping, messages = lines.Grouping(5, lines_per_message), []
    wanted, waiting = [[] for _ in range(5)], [[] for _ in range(5)]
    for block in synth.blocks(clean(users=17, malformed=0.05)):
        for row, user in enumerate(block.users.tolist()):
            wanted[user % 5].append(block.line(row))
        messages.append(grouping.add(block))
        assert all(bytes(data).count(b"\n") == lines_per_message * len(ends) for data, ends, _ in messages)
    messages.append(grouping.rest())
    for data, ends, groups in messages:
        for start, end, group in zip([0, *ends], ends, groups, strict=False):
            text = bytes(data[start:end])
            assert 0 < text.count(b"\n") <= lines_per_message
            waiting[group] += lines_of(text)
    assert waiting == wanted
    assert [len(column) for column in grouping.rest()] == [0, 0, 0], "all is out"


# Settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"records": -1}, "records"),
        ({"records": 1.5}, "records"),
        ({"records": True}, "records"),
        ({"seed": -1}, "seed"),
        ({"users": 0}, "users"),
        ({"users": 10**10}, "users"),
        ({"models": 0}, "models"),
        ({"chips": 100_000}, "chips"),
        ({"user_skew": -0.1}, "user_skew"),
        ({"user_skew": math.nan}, "user_skew"),
        ({"rate": 0.0}, "rate"),
        ({"rate": math.inf}, "rate"),
        ({"rate": "fast"}, "rate"),
        ({"start_ms": 0}, "start_ms"),
        ({"start_ms": 253_402_300_000_000}, "start_ms"),
        ({"records": 1 << 40, "rate": 1.0}, "start_ms, records and rate"),
        ({"day_curve": 1}, "day_curve"),
        ({"compact": None}, "compact"),
        ({"bursts": 1.1}, "bursts"),
        ({"input_median": 0}, "input_median"),
        ({"output_median": 0}, "output_median"),
        ({"token_sigma": -1}, "token_sigma"),
        ({"cached_share": 2}, "cached_share"),
        ({"duplicates": -0.1}, "duplicates"),
        ({"duplicates": 0.6, "malformed": 0.6}, "duplicates"),
        ({"late": 0.6, "future": 0.6}, "late"),
        ({"malformed": math.nan}, "malformed"),
        ({"lines_per_message": 0}, "lines_per_message"),
    ],
)
def test_a_wrong_setting_is_named(settings, named):
    with pytest.raises(ValueError, match=rf"^{named}\b"):
        Profile(**({"records": 1} | settings))


def test_whole_numbers_are_taken_for_shares():
    assert len(lines_of(log(Profile(10, late=1, malformed=0)))) == 10


# Messages


@pytest.mark.parametrize("lines_per_message", [1, 2, 3, 7, 1_000, 10**6])
def test_messages_do_not_depend_on_chunks(lines_per_message):
    data = log(clean(1_500, compact=True))
    lines = lines_of(data)
    groups = [lines[at : at + lines_per_message] for at in range(0, len(lines), lines_per_message)]
    wanted = [b"\n".join(group) for group in groups]
    assert list(messages([data], lines_per_message)) == wanted
    rng = random.Random(lines_per_message)
    for longest in (50, 5_000, 100_000):
        cuts = sorted(rng.sample(range(len(data)), len(data) // longest))
        chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        assert list(messages(chunks, lines_per_message)) == wanted


@pytest.mark.parametrize(
    ("chunks", "lines_per_message", "wanted"),
    [
        ([], 1, []),
        ([b""], 1, []),
        ([b"a\n"], 1, [b"a"]),
        ([b"a\nb"], 1, [b"a", b"b"]),
        ([b"a\nb"], 2, [b"a\nb"]),
        ([b"a\n\nb\n"], 1, [b"a", b"", b"b"]),
        ([b"a\n", b"\n", b"b\n"], 2, [b"a\n", b"b"]),
        ([b"a\nb\nc\n"], 2, [b"a\nb", b"c"]),
    ],
)
def test_messages_of_small_inputs(chunks, lines_per_message, wanted):
    assert list(messages(chunks, lines_per_message)) == wanted


# Traces: small ones of each shape, made here

SHAPES = {
    "azure": "timestamp_ms,input_tokens,output_tokens\n1700158623979,4808,10\n1700158624031,3180,8\n",
    "mooncake": (
        "timestamp_ms,prefix_group,input_tokens,cached_input_tokens_derived,output_tokens\n"
        "0,1,6758,0,500\n0,14,7322,512,490\n27,1,7236,512,794\n"
    ),
    "vtc": "timestamp_ms,client,input_tokens,output_tokens\n0,0,13,199\n207,1,36,137\n441,0,456,156\n",
    "servegen": (
        "timestamp_ms,model,client,input_tokens,output_tokens,reasoning_tokens\n"
        "0,m-large,1,327,55,0\n0,m-small,1,1320,70,0\n5,deepseek-r1,133,7919,261,200\n6,m-large,1,1,1,0\n"
    ),
    "tracelab": (
        "timestamp,provider,model,session,input_tokens,cached_input_tokens,cache_creation_tokens,output_tokens,"
        "reasoning_output_tokens\n"
        "2026-06-01T05:40:20.151Z,claude,claude-opus-4-8,claude:a,32272,27217,2163,931,\n"
        "2026-03-21T10:06:59Z,codex,gpt-5.4,codex:b,12097,9216,,49,12\n"
    ),
}


def trace(tmp_path: Path, text: str, **settings) -> list[dict]:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    lines = lines_of(b"".join(from_trace(path, **settings)))
    assert all(verdict(line).kind == "ok" for line in lines)
    return [orjson.loads(line) for line in lines]


@pytest.mark.parametrize("shape", SHAPES)
def test_trace_keeps_every_count(tmp_path, shape):
    field_of = {
        "cached_input_tokens_derived": "cached_input_tokens",
        "cache_creation_tokens": "cache_write_tokens",
        "reasoning_output_tokens": "reasoning_tokens",
    }
    header, *rows = [line.split(",") for line in SHAPES[shape].splitlines()]
    records = trace(tmp_path, SHAPES[shape])
    assert len(records) == len(rows)
    for row, record in zip(rows, records, strict=True):
        for name, value in zip(header, row, strict=True):
            if "tokens" in name:
                assert record.get(field_of.get(name, name)) == (int(value) if value else None)
            if name == "model":
                assert record["model"] == value


def test_trace_users_follow_the_client_within_its_model(tmp_path):
    users = [record["user"] for record in trace(tmp_path, SHAPES["servegen"])]
    assert users[0] == users[3] and len(set(users)) == 3
    users = [record["user"] for record in trace(tmp_path, SHAPES["mooncake"], seed=9)]
    assert users[0] == users[2] != users[1]
    assert len({record["user"] for record in trace(tmp_path, SHAPES["servegen"], users=1)}) == 1


@pytest.mark.parametrize(
    ("shape", "start_ms", "first", "last"),
    [
        ("azure", None, 1_700_158_623_979, 1_700_158_624_031),
        ("azure", 5_000_000, 5_000_000, 5_000_052),
        ("mooncake", None, START_MS, START_MS + 27),
        ("mooncake", 0, 0, 27),
        ("tracelab", None, 1_780_292_420_151, 1_774_087_619_000),
    ],
)
def test_trace_times(tmp_path, shape, start_ms, first, last):
    times = [record["timestamp"] for record in trace(tmp_path, SHAPES[shape], start_ms=start_ms)]
    assert (times[0], times[-1]) == (first, last)


def test_trace_repeats_with_new_ids_and_later_times(tmp_path):
    records = trace(tmp_path, SHAPES["mooncake"], repeat=3)
    assert len({record["request_id"] for record in records}) == 9
    assert [r["timestamp"] - START_MS for r in records] == [0, 0, 27, 1_027, 1_027, 1_054, 2_054, 2_054, 2_081]
    assert [r["input_tokens"] for r in records] == [6758, 7322, 7236] * 3


def test_trace_model_name(tmp_path):
    assert {r["model"] for r in trace(tmp_path, SHAPES["vtc"], model='odd "né"')} == {'odd "né"'}
    assert {r["model"] for r in trace(tmp_path, SHAPES["vtc"])} == {MODEL_NAMES[0]}
    assert "m-large" in {r["model"] for r in trace(tmp_path, SHAPES["servegen"], model="other")}


def test_trace_does_not_depend_on_blocks_or_compression(tmp_path, monkeypatch):
    rows = "".join(f"{at},{at % 7},{at * 3},{at % 50},{at + 1}\n" for at in range(3_000))
    text = "timestamp_ms,prefix_group,input_tokens,cached_input_tokens_derived,output_tokens\n" + rows
    plain, packed = tmp_path / "trace.csv", tmp_path / "trace.csv.zst"
    plain.write_text(text)
    packed.write_bytes(zstandard.compress(text.encode()))
    whole = list(from_trace(plain, seed=4))
    assert list(from_trace(packed, seed=4)) == whole and len(whole) == 1
    monkeypatch.setattr("tokenometer.processor.load.trace._TRACE_BLOCK_BYTES", 2_000)
    small = list(from_trace(plain, seed=4))
    assert len(small) > 10 and b"".join(small) == whole[0]
    assert b"".join(from_trace(plain, seed=5)) != whole[0]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "accepted columns: timestamp_ms"),
        ("a,b\n1,2\n", "unknown column a, b; accepted columns: timestamp_ms"),
        ("model,client,window_start_s,rate_rps\nm,0,0,1.5\n", "unknown column window_start_s, rate_rps; accepted"),
        ("timestamp_ms,input_tokens\n1,2\n", "no column for output_tokens; accepted columns"),
        ("input_tokens,output_tokens\n1,2\n", "no column for timestamp; accepted columns"),
        ("timestamp_ms,timestamp,input_tokens,output_tokens\n1,,2,3\n", "more than one column for timestamp"),
        ("timestamp_ms,client,session,input_tokens,output_tokens\n1,a,b,2,3\n", "more than one column for user"),
        ("timestamp_ms,input_tokens,output_tokens\n1,2.5,3\n", "2.5.*accepted columns"),
        ("timestamp_ms,input_tokens,output_tokens\n1,many,3\n", "many.*accepted columns"),
        ("timestamp_ms,input_tokens,output_tokens\n1,2\n", "accepted columns"),
        ("timestamp_ms,input_tokens,output_tokens\n1,,3\n", "a row without input_tokens"),
        ("timestamp_ms,input_tokens,output_tokens\n1,2,3\n2,-2,3\n", "row 2: input_tokens is outside"),
        ("timestamp_ms,input_tokens,output_tokens\n1,2,1099511627776\n", "row 1: output_tokens is outside"),
        ("timestamp_ms,input_tokens,output_tokens,reasoning_tokens\n1,2,3,4\n", "row 1: reasoning tokens exceed"),
        (
            "timestamp_ms,input_tokens,output_tokens,cached_input_tokens,cache_creation_tokens\n1,9,3,5,4\n2,9,3,5,5\n",
            "row 2: cached and cache-write tokens exceed",
        ),
        ("timestamp_ms,model,input_tokens,output_tokens\n1," + "m" * 257 + ",2,3\n", "longer than 256 bytes"),
    ],
)
def test_a_wrong_trace_is_explained(tmp_path, text, why):
    with pytest.raises(TraceError, match=why):
        trace(tmp_path, text)


def test_a_trace_of_no_rows_is_an_empty_log(tmp_path):
    assert trace(tmp_path, "timestamp_ms,input_tokens,output_tokens\n", repeat=2) == []


def test_a_broken_zst_is_a_trace_error_and_a_missing_file_is_not(tmp_path):
    path = tmp_path / "trace.csv.zst"
    path.write_bytes(b"not zstd at all")
    with pytest.raises(TraceError, match=r"trace\.csv\.zst"):
        list(from_trace(path))
    with pytest.raises(FileNotFoundError):
        list(from_trace(tmp_path / "absent.csv"))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"repeat": 0}, "repeat"), ({"start_ms": -1}, "start_ms"), ({"model": ""}, "model"), ({"users": 0}, "users")],
)
def test_a_wrong_trace_setting_is_named(tmp_path, settings, named):
    with pytest.raises(ValueError, match=f"^{named} "):  # at the call, before a record is asked for
        from_trace(tmp_path / "trace.csv", **settings)


# Traces: the real ones


@pytest.fixture(scope="module")
def traces() -> Path:
    """They are not part of the repository."""
    folder = Path(os.environ.get("TOKENOMETER_TRACES", ROOT.parent / "shared/traces"))
    if not (folder / "azure_llm_2023_code.csv.zst").exists():
        pytest.skip(f"no public traces in {folder}; set TOKENOMETER_TRACES to their folder")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "input_tokens", "output_tokens"),
    [
        ("azure_llm_2023_code", 8_819, 18_059_974, 245_896),
        ("azure_llm_2023_conv", 19_366, 22_361_870, 4_088_665),
        ("mooncake_fast25_conversation", 12_031, 144_793_823, 4_122_048),
        ("mooncake_fast25_synthetic", 3_993, 61_194_628, 595_432),
        ("vtc_lmsys_arena_10min", 1_500, 204_398, 384_297),
        ("tracelab_example_sessions", 19, 514_012, 11_335),
    ],
)
def test_golden_sums_of_traces(traces, name, rows, input_tokens, output_tokens):
    lines = lines_of(b"".join(from_trace(traces / f"{name}.csv.zst")))
    found = [verdict(line).record for line in lines]
    assert len(found) == rows and None not in found
    assert sum(record.input_tokens for record in found) == input_tokens
    assert sum(record.output_tokens for record in found) == output_tokens


@pytest.mark.slow
def test_servegen_prefix_equals_its_rows(traces):
    path = traces / "servegen_sampled_requests_30min.csv.zst"
    lines = [line for chunk in islice(from_trace(path), 2) for line in lines_of(chunk)]
    with zstandard.open(path, "rt", encoding="utf-8") as source:
        rows = [row.rstrip("\n").split(",") for row in islice(source, 1, len(lines) + 1)]
    assert len(lines) > 30_000
    user_of: dict[tuple[str, str], str] = {}
    for row, line in zip(rows, lines, strict=True):
        found = verdict(line).record
        counts = (found.input_tokens, found.output_tokens, found.reasoning_tokens)
        assert (str(found.timestamp - START_MS), found.model) == (row[0], row[1])
        assert counts == tuple(map(int, row[3:]))
        assert user_of.setdefault((row[1], row[2]), found.user) == found.user
    assert len(set(user_of.values())) == len(user_of)
