"""Label sets on their way from the text of a row to the numbers of a ledger: in columns, without an object for each."""

import json
import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import books, harness
from tests.test_ledger import COUNTS, HOSTILE, IDENTITY, labelled, messages, take
from tokenometer.processor.ledger import decode, labels, store
from tokenometer.processor.ledger.values import LedgerRows, Malformed
from tokenometer.schemas.usage import COUNTERS, FURTHER, TOTAL

Labels = dict[str, str]
NAMES = ["team", "tier", "a", "b_2", "zone", "l" * 63, "key", "labels_", "x0", "x1", "x2"]
TIMES = ["2026-11-01", "2026-11-01T00:00:00Z", "12:00:00", "1", "true", "null"]  # texts that look like something else
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64).filter(
    lambda t: len(t.encode()) < 257
)
values = st.sampled_from([*HOSTILE, *TIMES]) | texts
sets = st.dictionaries(st.sampled_from(NAMES), values, max_size=8)
several = st.lists(sets, min_size=1, max_size=12)


def spelled(each: Labels, draw: random.Random, breaks: bool) -> bytes:
    """A row with these labels in one of the many ways of JSON: members in any order, characters escaped or not, white
    space, labels that are null. breaks: with a line break, which a line of the columns' reader cannot have."""

    def space() -> str:
        return draw.choice(["", "", " ", "\t  "])

    def text(given: str) -> str:
        plain = json.dumps(given, ensure_ascii=draw.random() < 0.5)[1:-1]
        if draw.random() < 0.5:
            return f'"{plain}"'
        units = [given.encode("utf-16-be")[at : at + 2] for at in range(0, len(given.encode("utf-16-be")), 2)]
        return '"' + "".join(f"\\u{unit.hex()}" for unit in units) + '"'

    def member(name: str, value: str) -> str:
        return f"{space()}{text(name)}{space()}:{space()}{value}{space()}"

    held = [member(name, text(value)) for name, value in each.items()]
    absent = [name for name in NAMES if name not in each] if each else []
    held += [member(name, "null") for name in absent if draw.random() < 0.1]
    draw.shuffle(held)
    row = [member(name, json.dumps(value)) for name, value in json.loads(labelled({})).items()]
    row += [member("labels", "{" + ",".join(held) + "}")] if held else []
    draw.shuffle(row)
    return ("{" + "\n" * breaks + ",".join(row) + "}").encode()


def found_in(rows: LedgerRows | None, count: int) -> list[Labels]:
    """The labels of each row."""
    assert rows is not None and len(rows) == count
    if rows.labels is None:
        return [{}] * count
    of_sets = rows.labels.sets
    assert len(set(of_sets)) == len(of_sets) == rows.labels.held.shape[1], "each set is there once"
    assert rows.labels.sizes().tolist() == [len(each) for each in of_sets]
    assert all(list(each) == sorted(each) for each in of_sets)
    return [{name.decode(): value.decode() for name, value in of_sets[code]} for code in rows.labels.codes]


@settings(deadline=None)
@given(some=several, seed=st.integers(0, 1 << 32))
def test_labels_say_the_same_in_any_spelling(some: list[Labels], seed: int) -> None:
    draw = random.Random(seed)
    for breaks in (False, True):  # in columns, and row by row
        rows = [spelled(each, draw, breaks) for each in some]
        assert found_in(decode.usage_rows([messages(rows)]), len(rows)) == some


@settings(deadline=None)
@given(some=several)
def test_sets_of_a_table_are_those_of_its_messages(some: list[Labels]) -> None:
    """Of a file's columns: a struct that is null, or all of whose fields are, says nothing."""
    kind = pa.struct([(name, pa.string()) for name in NAMES])
    for absent in (None, {}):
        column = pa.array([each or absent for each in some], kind)
        assert found_in(decode.of_table(table_with(column), "a file"), len(some)) == some


def table_with(column: Any, **changed: Any) -> Any:
    """Rows of a file, with this column of labels."""
    row = {**json.loads(labelled({})), **dict.fromkeys(FURTHER, 0)}
    fields = {name: pa.array([value] * len(column)) for name, value in row.items()}
    fields |= {name: fields[name].cast(pa.uint64()) for name in (*COUNTERS, *FURTHER, TOTAL)}
    return pa.table({**fields, "labels": column, **changed})


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["team"]), pa.array([7]), pa.array([["team"]]), pa.array([{"team": 7}]), pa.array([{"team": b"x"}]),
        pa.array([{"team": ["x"]}]), pa.array([{"team": {"a": "b"}}]), pa.array([{"team": ""}]),
        pa.array([{"Team": "x"}]), pa.array([{name: "x" for name in NAMES[:9]}]), pa.array([{"team": "x" * 257}]),
    ],
    ids=lambda column: str(column.type)[:40],
)  # fmt: skip
def test_a_column_that_is_none_of_labels_is_refused(column: Any) -> None:
    with pytest.raises(Malformed, match="a file: not usage rows"):
        decode.of_table(table_with(column), "a file")


def test_a_column_of_labels_may_have_codes_of_its_texts_and_fields_that_nobody_has() -> None:
    """Codes need be neither distinct nor in use."""
    team = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), pa.array(["blue", "red", "blue", "x" * 257]))
    column = pa.StructArray.from_arrays([team, pa.nulls(3)], ["team", "No name"])
    rows = decode.of_table(table_with(column), "a file")
    assert found_in(rows, 3) == [{"team": "blue"}, {"team": "red"}, {"team": "blue"}]
    assert rows.labels is not None and rows.labels.names == [b"team"]


@pytest.mark.parametrize("field", ["user", "model", "chip", "team"])
def test_a_text_that_is_no_utf_8_is_refused(field: str) -> None:
    """Arrow's readers take it as it is."""
    good = labelled({"team": "blue"}, COUNTS, (IDENTITY[0], "user", "model", "chip", "p"))
    value = b'"blue"' if field == "team" else f'"{field}"'.encode()
    bad = good.replace(b":" + value, b':"\xff"')
    assert bad != good
    with pytest.raises(Malformed, match="partition 0, offset 8: not JSON"):
        decode.usage_rows([messages([good, bad, good], 7)])
    binary = pa.array([b"\xff"]).view(pa.string())
    team = pa.StructArray.from_arrays([binary if field == "team" else pa.array(["blue"])], ["team"])
    with pytest.raises(Malformed, match="a file: not usage rows"):
        decode.of_table(table_with(team, **({} if field == "team" else {field: binary})), "a file")


def test_of_a_label_that_is_there_twice_the_last_one_is_meant() -> None:
    """As JSON's readers do, also where one of the two is escaped."""
    for text in (b'{"team":"red","team":"blue"}', b'{"team":"red","te\\u0061m":"blue"}'):
        for end in (b"}", b"\n}"):
            row = labelled({})[:-1] + b',"labels":' + text + end
            assert found_in(decode.usage_rows([messages([row])]), 1) == [{"team": "blue"}]


@pytest.mark.parametrize(("count", "fits"), [(8, True), (9, False)])
def test_a_row_has_eight_labels_at_most_however_many_a_batch_has(count: int, fits: bool) -> None:
    rows = [labelled({f"n{first + number}": "x" for number in range(8)}) for first in range(0, 80, 8)]
    rows.append(labelled({f"n{number * 7}": "x" for number in range(count)}))
    if fits:
        assert found_in(decode.usage_rows([messages(list(rows))]), len(rows)) == [
            json.loads(row)["labels"] for row in rows
        ]
    else:
        with pytest.raises(Malformed, match="offset 10: a row has at most 8 labels, not 9"):
            decode.usage_rows([messages(list(rows))])


@settings(deadline=None)
@given(some=several, seed=st.integers(0, 1 << 32))
def test_the_keys_of_all_sets_are_those_of_each(some: list[Labels], seed: int) -> None:
    """Whatever numbers the texts have."""
    kind = pa.struct([(name, pa.string()) for name in NAMES])
    coded = labels.coded(pa.array([each or None for each in some], kind))
    known = sorted({text for each in coded.sets for pair in each for text in pair})
    numbers = dict(zip(known, random.Random(seed).sample(range(1, 1 << 31), len(known)), strict=True))
    assert store.set_keys(coded, numbers) == [store.set_key(each, numbers) for each in coded.sets]


# --- In a ledger ---


@pytest.mark.slow
@pytest.mark.parametrize("bound", [0, 1, 7, 1000])
@settings(max_examples=5 * harness.TIMES, deadline=None, suppress_health_check=list(HealthCheck))
@given(batches=st.lists(several, min_size=2, max_size=4))
def test_a_bound_on_what_is_remembered_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, bound: int, batches: list[list[Labels]]
) -> None:
    """Names and sets that are forgotten are found again in the database, with the numbers that they have."""
    name = str(tmp_path_factory.mktemp("ledger") / "ledger.duckdb")
    with pytest.MonkeyPatch.context() as patch, books.opened(name) as held:
        patch.setattr(store, "NAMES_CACHED_MAX", bound)
        for each in [*batches, batches[0]]:
            take(held, [labelled(one, COUNTS) for one in each])
        check(held, [one for each in batches for one in each])
    with books.opened(name) as held:  # all of it is forgotten now
        take(held, [labelled(one, COUNTS) for one in batches[-1]])
        check(held, [one for each in batches for one in each])


def test_label_sets_that_are_known_and_new_come_together(database: str) -> None:
    some: list[Labels] = [{"team": "blue"}, {"tier": "blue"}, {}, {"team": "blue", "tier": "batch"}, {"tier": "team"}]
    with books.opened(database) as held:
        for end in range(1, len(some) + 1):
            take(held, [labelled(one, COUNTS) for one in some[:end]])
            check(held, some[:end])


def check(held: store.Store, some: list[Labels]) -> None:
    """Each set has one row, since all else of their identity is the same, and one number."""
    wanted = {tuple(sorted(one.items())) for one in some}
    rows = books.totals(held)
    assert sorted(dict(enumerate(key)).get(4, ()) for key in rows) == sorted(wanted)
    assert all(counts == COUNTS for counts in rows.values())
    [(in_use,)] = held.database.rows("SELECT count(*) FROM (SELECT DISTINCT labels_id FROM open_rows) AS used")
    [(known,)] = held.database.rows("SELECT count(*) FROM label_sets WHERE id <> 0")
    assert in_use == len(wanted) and known == len(wanted - {()})
