"""Usage by labels: grouped, filtered, the most of it, and further counters, on every database."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests import books
from tests.test_ledger import IDENTITY, take
from tests.test_ledger_usage import ask, fetch, run, serving
from tokenometer.processor.ledger import usage
from tokenometer.processor.ledger.store import Store
from tokenometer.processor.ledger.values import BadRequest
from tokenometer.schemas.usage import FURTHER

DAYS = {"from": "2026-11-22", "to": "2026-11-28"}
HOSTILE_VALUES = ["blue", "red", "'; DROP TABLE names; --", '{"a":1}', "\u0000", "=1+1", "NULL"]
Made = tuple[Any, dict[str, str], list[int], dict[str, int]]


@pytest.fixture(scope="module")
def made() -> list[Made]:
    """Rows with labels: identity, labels, counters, further counters."""
    draw, rows = random.Random(3), {}
    for identity, counts in books.history(7, 200):
        labels = {"team": draw.choice(HOSTILE_VALUES)} if draw.random() < 0.8 else {}
        if draw.random() < 0.5:
            labels["service_tier"] = draw.choice(["batch", "flex", "begin"])
        if draw.random() < 0.3:
            labels["begin"] = "x"
        further = {"audio_input_tokens": counts[1] // 2} if draw.random() < 0.3 else {}
        rows[identity, tuple(sorted(labels.items()))] = identity, labels, counts, further
    return list(rows.values())


@pytest.fixture
def store(database: str, made: list[Made]) -> Iterator[Store]:
    with books.opened(database) as store:
        take(store, [row_of(each) for each in made])
        with store.database.transaction():
            store.database.merge_part(store.parts.of("meter.0", books.WINDOW_MS).id)
        yield store


def row_of(row: Made) -> bytes:
    identity, labels, counts, further = row
    return books.usage_row(identity, counts, schema=2, **({"labels": labels} if labels else {}), **further)


def brute(rows: list[Made], group_by: list[str], only: dict[str, str]) -> dict[tuple[Any, ...], list[int]]:
    """By hand. Absent is None, and asked for as an empty text."""
    found: dict[tuple[Any, ...], list[int]] = {}
    for (_, user, model, chip, _), labels, counts, further in rows:
        named = {**labels, "user": user, "model": model, "chip": chip}
        if all(named.get(name, "") == value for name, value in only.items()):
            key = tuple(named.get(name) for name in group_by)
            more = [*counts, *(further.get(name, 0) for name in FURTHER)]
            found[key] = books.add(found.get(key, [0] * 11), more)
    return found


def shown(answer: usage.Answer) -> dict[tuple[Any, ...], list[int]]:
    return {tuple(group.names.values()): [*group.counters, *group.further] for group in answer.groups}


def test_usage_by_labels_is_what_the_rows_say(store: Store, made: list[Made]) -> None:
    draw = random.Random(1)
    for _ in range(25):
        group_by = [name for name in ("user", "model", "team", "service_tier", "begin") if draw.random() < 0.4]
        only = {"team": draw.choice([*HOSTILE_VALUES, "", "nobody"])} if draw.random() < 0.5 else {}
        only |= {"service_tier": draw.choice(["batch", ""])} if draw.random() < 0.3 else {}
        given = {**DAYS, "group_by": ",".join(group_by), "label": [f"{name}={value}" for name, value in only.items()]}
        found = shown(ask(store, **given))
        assert found == brute(made, group_by, only), given
        order = [tuple((name or "").encode() for name in key) for key in found]
        assert order == sorted(order)
        if group_by:
            largest = sorted(brute(made, group_by, only).items(), key=lambda item: -item[1][1] - item[1][4])[:3]
            top = shown(ask(store, **given, top="3"))
            assert [row[1] + row[4] for row in top.values()] == [row[1] + row[4] for _, row in largest]


def test_pages_by_a_label_are_the_whole(store: Store) -> None:
    given = {**DAYS, "group_by": "team,user", "window": "day"}
    whole, pages = ask(store, **given), [ask(store, **given, limit="3")]
    while pages[-1].following is not None:
        pages.append(ask(store, **given, limit="3", after=pages[-1].following))
    assert [group for page in pages for group in page.groups] == list(whole.groups) and len(pages) > 3


@pytest.mark.parametrize("given", [{"group_by": "project"}, {"label": ["project=x"]}])
def test_a_label_that_no_row_has_is_told_with_those_there_are(store: Store, given: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="no row has a label project; the ledger has begin, service_tier, team"):
        ask(store, **DAYS, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"label": ["team"]}, "label 'team': expected NAME=VALUE"),
        ({"label": ["user=x"]}, "label 'user=x': expected NAME=VALUE"),
        ({"label": ["team=a", "team=b"]}, "label team is given twice"),
        ({"group_by": "Team"}, "group_by 'Team'"),
        ({"further": "yes"}, "further 'yes'"),
    ],
)
def test_a_wrong_question_about_labels_is_told(given: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        usage.parse({**DAYS, **given})


def test_a_ledger_without_labels_says_so(database: str) -> None:
    with books.opened(database) as store:
        take(store, [books.usage_row(IDENTITY, [1, 10, 0, 0, 5, 0])])
        with pytest.raises(BadRequest, match="no row has a label team; the ledger has none"):
            ask(store, **DAYS, group_by="team")


def test_labels_and_further_counters_over_http(store: Store, made: list[Made]) -> None:
    with serving(store) as url:
        asked = f"{url}/v1/usage?from=2026-11-22&to=2026-11-28"
        status, found = fetch(f"{asked}&group_by=team,begin&label=team=blue&label=service_tier=batch")
        wanted = brute(made, ["team", "begin"], {"team": "blue", "service_tier": "batch"})
        assert status == 200 and found["group_by"] == ["team", "label.begin"]
        assert [(row["team"], row["label.begin"], row["requests"]) for row in found["rows"]] == [
            (*key, row[0]) for key, row in sorted(wanted.items(), key=lambda item: item[0][1] or "")
        ]
        [row] = fetch(asked)[1]["rows"]
        assert row["audio_input_tokens"] > 0 and "image_input_tokens" not in row
        assert fetch(f"{asked}&further=true")[1]["rows"][0]["image_input_tokens"] == 0
        assert fetch(f"{asked}&group_by=project")[0] == 400
        header = fetch(f"{asked}&format=csv&group_by=team")[1].splitlines()[0]
        assert header.startswith("begin,end,team,requests,") and header.endswith(",total_tokens,audio_input_tokens")


def test_the_command_usage_by_labels(database: str, made: list[Made], capsys: Any, tmp_path: Any) -> None:
    with books.opened(database) as store:
        take(store, [row_of(each) for each in made])
    asked = ["usage", "--database", database, "--from", "2026-11-22", "--to", "2026-11-28"]
    code, out, _ = run(capsys, *asked, "--group-by", "team", "--label", "service_tier=batch")
    assert code == 0 and "blue" in out
    code, out, _ = run(capsys, *asked, "--group-by", "team", "--format", "json")
    assert json.loads(out)["rows"][0]["team"] is None
    file = tmp_path / "by-team.parquet"
    assert run(capsys, *asked, "--group-by", "team,user", "--out", str(file))[0] == 0
    table, wanted = pq.read_table(file), brute(made, ["team", "user"], {})
    audio = dict(zip(zip(table["team"].to_pylist(), table["user"].to_pylist(), strict=True),
                     table["audio_input_tokens"].to_pylist(), strict=True))  # fmt: skip
    assert audio == {key: row[7] for key, row in wanted.items()}
    code, _, err = run(capsys, *asked, "--group-by", "project")
    assert code == 1 and "no row has a label project" in err
