"""Bad input through the engine: each case alone, and between two good records of one batch."""

import dataclasses

import pytest

from tests import harness, oracle
from tests.bad_input import CASES, Case, changed
from tests.harness import Mapping, Piece, Run, shipped
from tokenometer.kernels.values import Canonical, Rejection
from tokenometer.processor.records.referee import Referee

BEFORE = changed(request_id=b'"before"', user=b'"before"')
AFTER = changed(request_id=b'"after"', user=b'"after"')


def wanted_rejections(case: Case) -> list[str]:
    return [verdict for verdict in case.expect if verdict.startswith("rejected")]


def rejections(run: Run) -> list[str]:
    return [
        ":".join(filter(None, ("rejected", reason, field)))
        for _, _, _, reason, field, _ in run.letters
        if reason != "conflicting_duplicate"
    ]


def wanted_tally(case: Case, more: int = 0) -> dict[str, int]:
    kinds = [verdict.partition(":")[0] for verdict in case.expect]
    return {
        "counted": kinds.count("counted") + more,
        "duplicates": kinds.count("duplicate"),
        "rejected": kinds.count("rejected"),
        "empty": kinds.count("empty"),
        "skipped": 0,
        "conflicts": case.conflicts,
    }


def room(case: Case) -> dict[str, int]:
    """An engine's sizes: most cases need few."""
    return harness.LARGE if len(case.value or b"") > harness.LIMITS["batch_bytes"] // 2 else harness.LIMITS


def piece(case: Case, *values: bytes | None) -> Piece:
    return Piece(values, None if case.message_time is None else [case.message_time] * len(values))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_has_its_verdict_and_keeps_its_bytes(make_engine, case):
    run = harness.check(make_engine(**room(case)), shipped(), [piece(case, case.value)])
    assert dataclasses.asdict(run.engine.tally()) == wanted_tally(case)
    assert rejections(run) == wanted_rejections(case)
    lines = oracle.records(case.value)
    assert [(letter[2], letter[5]) for letter in run.letters] == [
        (number, lines[number])
        for number, verdict in enumerate(case.expect)
        if verdict.startswith("rejected") or (verdict == "duplicate" and case.conflicts)
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_takes_no_neighbour_with_it(make_engine, case):
    run = harness.check(make_engine(**room(case)), shipped(), [piece(case, BEFORE, case.value, AFTER)])
    assert dataclasses.asdict(run.engine.tally()) == wanted_tally(case, more=2)
    assert rejections(run) == wanted_rejections(case)
    users = {user: row for (_, user, _, _), row in run.rows().items()}
    assert users["before"] == users["after"] == [1, 10, 0, 0, 5, 0]


@pytest.mark.parametrize("case", [case for case in CASES if case.value is not None], ids=lambda case: case.name)
def test_a_case_takes_no_line_of_its_message_with_it(make_engine, case):
    value = b"\n".join([BEFORE, case.value.removesuffix(b"\n") if case.value != b"\n" else b"", AFTER])
    run = harness.check(make_engine(**room(case)), shipped(), [piece(case, value)])
    users = {user: row for (_, user, _, _), row in run.rows().items()}
    assert users["before"] == users["after"] == [1, 10, 0, 0, 5, 0]


@pytest.mark.parametrize("tile_records", [1, 7])
def test_all_cases_in_one_batch(make_engine, tile_records):
    """Each in a partition's log of its own would be easier; together they meet every neighbour."""
    values = [case.value for case in CASES if case.message_time is None]
    pieces = [Piece(batch) for batch in harness.batches(values)]
    run = harness.check(make_engine(**harness.LARGE | {"tile_records": tile_records}), shipped(), pieces)
    assert run.engine.tally().rejected == sum(len(wanted_rejections(case)) for case in CASES if not case.message_time)


@pytest.mark.parametrize("escape", [b"\\u4f60", b'\\"', b"\\\\"], ids=["a letter", "a quote", "a backslash"])
def test_a_prompt_that_is_all_escapes_is_judged_in_one_pass(escape):
    """As Python writes Chinese. A referee that reads the prompt anew at each of its escapes needs minutes here."""
    referee, mapping = Referee(), shipped().engine
    record = changed(prompt=b'"' + escape * (900_000 // len(escape)) + b'"')
    assert referee(record, mapping, None) == referee(changed(prompt=b'""'), mapping, None)
    twice = record[:-1] + b',"\\u0075ser":"bob"}'
    assert referee(twice, mapping, None) == Rejection("repeated_field", None)


def test_an_empty_key_is_nobodys_path():
    """A constant has no path, and no record's value may take its place."""
    text = (harness.MAPPINGS / "native.toml").read_text().replace('path = "chip"', 'constant = "edge"')
    ruling = Referee()(changed(**{"": b'"other"'}), Mapping.parse(text, "constant").engine, None)
    assert isinstance(ruling, Canonical) and ruling.texts[3] == b"edge"
