"""What services log: times that can be compared, and no line for a commit that has nothing new."""

import json
import logging
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tokenometer.processor.cli import running
from tokenometer.processor.cli.meter import CommitLog
from tokenometer.processor.cli.options import LogFormat, LogLevel

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_line_has_its_time_in_utc_with_a_zone(form: str, in_tokyo: Any, capsys: pytest.CaptureFixture[str]):
    running.start_logging(LogFormat(form))
    record = logging.getLogger("tokenometer").makeRecord("tokenometer", logging.INFO, "", 0, "said", (), None)
    record.created = 1_795_453_500.25
    logging.getLogger("tokenometer").handle(record)
    said = capsys.readouterr().err
    if form == "json":
        line = json.loads(said)
        assert "asctime" not in line
        found = line["time"]
    else:
        found = said.split()[0]
    assert found == "2026-11-23T17:05:00.250Z" and TIME.fullmatch(found)


def done(rows: int = 0, letters: int = 0, records: int = 0) -> Any:
    tally, totals = SimpleNamespace(read=records), SimpleNamespace(total_tokens=7)
    summary = SimpleNamespace(part="p", sequence=1, tally=tally, totals=totals)
    return SimpleNamespace(rows=rows, took_ms=1, snapshot=SimpleNamespace(summary=summary, letters=[None] * letters))


def test_a_commit_with_nothing_new_is_for_debugging(capsys: pytest.CaptureFixture[str]):
    running.start_logging(LogFormat.JSON, LogLevel.DEBUG)
    log_commit = CommitLog()
    for each in (done(), done(2, 0, 5), done(0, 0, 5), done(0, 1, 6), done(0, 0, 9), done(0, 0, 9)):
        log_commit(each)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    levels = [line["level"] for line in lines]
    assert levels == ["DEBUG", "INFO", "DEBUG", "INFO", "INFO", "DEBUG"], "also a commit of duplicates alone is new"
    assert lines[1]["rows"] == 2 and lines[1]["records"] == 5
