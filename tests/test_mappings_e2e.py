"""Every shipped mapping's examples through engine and oracle: both say what the file beside them expects."""

import json

import pytest

from tests import harness, oracle
from tests.harness import Piece, shipped
from tests.mapping_text import toml2
from tokenometer.kernels.values import SKIPPED, Canonical, Rejection
from tokenometer.processor.records.referee import Referee
from tokenometer.processor.verify.judge import Judge, SkippedRecord
from tokenometer.processor.verify.values import RefusedRecord

EXAMPLES = harness.MAPPINGS / "examples"
COUNTERS = ("requests", *oracle.COUNTS)


def example(name: str) -> tuple[list[bytes], list[dict]]:
    lines = (EXAMPLES / f"{name}.ndjson").read_bytes().splitlines()
    results = json.loads((EXAMPLES / f"{name}.expected.json").read_text())
    assert len(lines) == len(results) > 0
    return lines, results


def rows_of_result(result: dict) -> harness.Rows:
    """The one or two rows that a counted record makes, read off its expected fields."""
    start = result["timestamp"] - result["timestamp"] % 60_000
    key, input_chip = (start, result["user"], result["model"]), result["prefill_chip"] or result["chip"]
    requests, *inputs, output, reasoning = [result[name] for name in COUNTERS]
    *further_in, further_out = [result.get(name, 0) for name in oracle.FURTHER]
    labels = (tuple(result["labels"].items()),) if "labels" in result else ()
    further = [[*further_in, 0] if any(further_in) else [], [0, 0, 0, 0, further_out] if further_out else []]
    rows: harness.Rows = {}
    harness.add_rows(rows, {(*key, result["chip"], *labels): [requests, 0, 0, 0, output, reasoning] + further[1]})
    harness.add_rows(rows, {(*key, input_chip, *labels): [0, *inputs, 0, 0] + further[0]})
    return rows


def as_result(record: oracle.Canonical) -> dict:
    """As the expected results are written: further counters and labels only where there are some."""
    found = {name: value for name, value in record._asdict().items() if name not in oracle.FURTHER or value}
    return found | {"labels": dict(record.labels)}


@pytest.mark.parametrize("name", harness.SHIPPED)
def test_each_example_line_alone_has_its_expected_result(make_engine, name):
    mapping = shipped(name)
    engine = make_engine()
    for number, (line, result) in enumerate(zip(*example(name), strict=True)):
        run = harness.Run(engine, mapping)
        before = engine.tally()
        loaded = engine.load(engine.pack([line], None, ("line", number)), mapping.engine)
        letters = engine.count(loaded).dead_letters
        fate = engine.tally() - before
        verdict = oracle.judge(line, mapping.oracle)
        if "rejected" in result:
            (letter,) = letters
            assert (letter.rejection.reason, letter.rejection.field) == (result["rejected"], result["field"])
            assert (verdict.reason, verdict.field) == (result["rejected"], result["field"])
            assert letter.value == line and fate.rejected == fate.read == 1
        elif "skipped" in result:
            assert not letters and fate.skipped == fate.read == 1
            assert verdict.kind == "skipped"
        else:
            assert not letters and fate.counted == fate.read == 1
            assert run.rows() == rows_of_result(result)
            assert verdict.record is not None
            assert as_result(verdict.record) == {"scope": verdict.record.scope, "labels": {}} | result
        engine.open_part()


@pytest.mark.parametrize("name", harness.SHIPPED)
def test_referee_and_audit_say_the_same_of_each_example_line(name):
    mapping = shipped(name)
    referee, audit = Referee(), Judge(mapping.engine, 3_600_000)
    for line, result in zip(*example(name), strict=True):
        ruling = referee(line, mapping.engine, None)
        try:
            audited = audit(line, None)
        except RefusedRecord as refused:
            assert ruling == Rejection(refused.reason, refused.field) == Rejection(result["rejected"], result["field"])
        except SkippedRecord:
            assert ruling == SKIPPED and result == {"skipped": True}
        else:
            assert isinstance(ruling, Canonical) and audited is not None
            assert list(ruling.counters) == list(audited[7:13]) == [result[name] for name in COUNTERS]
            assert list(ruling.further) == list(audited[14:]) == [result.get(name, 0) for name in oracle.FURTHER]
            named = zip(mapping.engine.labels, ruling.labels, strict=True)
            labels = {label.name: text.decode() for label, text in named if text}
            assert labels == json.loads(audited[13] or "{}") == result.get("labels", {})
            assert ruling.time_ms == audited[2] == result["timestamp"]


@pytest.mark.parametrize("name", harness.SHIPPED)
def test_an_example_file_adds_up(make_engine, name):
    """As one message and as one message a line; nothing in the examples is a duplicate unless its id says so."""
    lines, results = example(name)
    for values in (lines, [b"\n".join(lines)]):
        run = harness.check(make_engine(), shipped(name), [Piece(values)])
        assert run.engine.tally().rejected == sum("rejected" in result for result in results)
        assert run.engine.tally().skipped == sum("skipped" in result for result in results)
        assert [letter[3:5] for letter in run.letters] == [
            (result["rejected"], result["field"]) for result in results if "rejected" in result
        ]
        if not run.engine.tally().duplicates:
            total: harness.Rows = {}
            for result in results:
                if "requests" in result:
                    harness.add_rows(total, rows_of_result(result))
            assert run.rows() == total


def test_a_mapping_at_its_limits_of_keys_and_conditions_counts_as_the_oracle_does(make_engine):
    """Fifty keys in place, eight entries of skip with eight conditions each; every mark of a record has a use."""
    parts = {name: f'path = "{name}"' for name in ("cached_input_tokens", "reasoning_tokens", "total_tokens")}
    parts |= {"prefill_chip": 'path = "prefill"'}
    keys = [f"k{n}" for n in range(40)]
    shared = [f'{{ path = "{name}", in = ["{name[0]}"] }}' for name in ("user", "model", "chip")]
    entries = []
    for first, *others in (keys[begin : begin + 5] for begin in range(0, 40, 5)):
        conditions = [f'{{ path = "{key}", present = true }}' for key in others] + shared
        entries.append(f'[[skip]]\npath = "{first}"\npresent = true\nand = [{", ".join(conditions)}]\n')
    mapping = harness.Mapping.parse(toml2({"output_tokens_are": '"by_total"'}, "".join(entries), **parts))
    record = {"time": 1_795_453_500_000, "user": "u", "model": "m", "chip": "c", "in": 10, "out": 5}
    record |= {"cached_input_tokens": 3, "reasoning_tokens": 2, "total_tokens": 17, "prefill": "p"}
    assert len(set(mapping.engine.paths)) == 50 and sum(map(len, mapping.engine.skip)) == 64
    records = [record, record | dict.fromkeys(keys, 1), record | dict.fromkeys(keys[1:], 1) | {"user": "v"}]
    records += [record | dict.fromkeys(keys[begin : begin + 5], 1) for begin in range(0, 40, 5)]
    records += [record | dict.fromkeys(keys[begin : begin + 4], 1) for begin in range(0, 40, 5)]
    records += [record | {"total_tokens": 18}, {name: value for name, value in record.items() if name != "out"}]
    lines = [json.dumps(each).encode() for each in records]
    run = harness.check(make_engine(), mapping, [Piece(lines), Piece([b"\n".join(lines)])])
    assert run.engine.tally().skipped == 18 and run.engine.tally().rejected == 4
