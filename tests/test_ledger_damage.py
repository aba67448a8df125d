"""A ledger's file that is damaged, held by another process, or no ledger: each is told from the others, and the way
back to exact totals is the one that docs/BILLING.md gives."""

import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests import books, forked, streams
from tests.ledgers import make
from tokenometer.processor.broker.memory import MemoryBroker
from tokenometer.processor.ledger import periods, statements
from tokenometer.processor.ledger.opening import open_database
from tokenometer.processor.ledger.values import Busy, Damaged, DatabaseError


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    """A ledger with rows in every table."""
    name = tmp_path / "ledger.duckdb"
    with books.opened(str(name)) as store:
        make.fill(store)
    return name


def test_a_flipped_bit_anywhere_is_found_at_the_start(file: pathlib.Path) -> None:
    """Or nothing reads it: then every answer is the same."""
    whole = file.read_bytes()
    with books.opened(str(file)) as store:
        told = make.answers(store)
    seed = random.randrange(1 << 32)
    draw, found = random.Random(seed), 0
    written = [at for at, byte in enumerate(whole) if byte]
    for _ in range(40):
        spoilt = bytearray(whole)
        spoilt[draw.choice(written)] ^= 1 << draw.randrange(8)
        file.write_bytes(spoilt)
        file.with_suffix(".duckdb.wal").unlink(missing_ok=True)
        try:
            with books.opened(str(file)) as store:
                assert make.answers(store) == told, f"seed {seed}"
        except Damaged as error:
            found += 1
            assert "docs/BILLING.md, 'A damaged ledger'" in str(error), f"seed {seed}"
    assert found > 20, f"seed {seed}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:100],
        lambda whole: b"",
        lambda whole: b"\0" * len(whole),
        lambda whole: b"this is no database\n" * 1000,
        lambda whole: whole[:4096] + whole[8192:],
    ],
    ids=["half", "head", "empty", "zeros", "text", "shifted"],
)
def test_a_damaged_file_is_not_said_to_be_in_use(file: pathlib.Path, spoil: object) -> None:
    spoilt = spoil(file.read_bytes())  # type: ignore[operator]
    file.write_bytes(spoilt)
    for writer in (True, False):
        with pytest.raises(Damaged, match="is damaged, or no ledger at all"):
            open_database(str(file), writer)
    assert file.read_bytes() == spoilt, "it is left as it is"


@pytest.fixture
def holder(file: pathlib.Path) -> Iterator[int]:
    """Another process that has the file."""
    code = "import sys, duckdb; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    process = forked.Popen([sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    try:
        assert process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def test_a_file_in_use_is_not_said_to_be_damaged(file: pathlib.Path, holder: int) -> None:
    for writer in (True, False):
        with pytest.raises(Busy, match=f"process {holder} has it open"):
            open_database(str(file), writer)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_file_of_somebody_else_is_neither(file: pathlib.Path) -> None:
    file.chmod(0)
    with pytest.raises(DatabaseError, match="this user may not read and write it"):
        open_database(str(file), writer=True)


def test_a_folder_or_a_place_that_is_not_there_is_neither(tmp_path: pathlib.Path) -> None:
    for name in (tmp_path, tmp_path / "none" / "ledger.duckdb"):
        with pytest.raises(DatabaseError) as raised:
            open_database(str(name), writer=True)
        assert type(raised.value) is DatabaseError


def test_the_way_back_is_a_new_ledger_from_the_topic(tmp_path: pathlib.Path) -> None:
    """As docs/BILLING.md has it. A period that is closed again has all that is known by then."""
    broker = MemoryBroker()
    streams.make_topics(broker)
    rows = books.history(11, 300)
    cut = 200  # what came before the first close
    file, end = tmp_path / "ledger.duckdb", books.START_MS + 5 * books.WINDOW_MS
    _publish(broker, rows[:cut])
    with books.opened(str(file)) as store:
        ledger = books.make_ledger(broker, store)
        books.drain(ledger)
        first = periods.close(store.database, end, 0, 0, anyway=True)
        _publish(broker, rows[cut:])
        books.drain(ledger)
        issued = statements.lines(store.database, first.id).lines
        late = statements.adjustments(store.database, None).lines
    file.write_bytes(file.read_bytes()[:-300_000])
    with pytest.raises(Damaged):
        open_database(str(file), writer=True)
    file.rename(tmp_path / "damaged.duckdb")
    with books.opened(str(file)) as store:
        books.drain(books.make_ledger(broker, store))
        assert books.totals(store) == books.truth(rows)
        again = periods.close(store.database, end, 0, 0, anyway=True)
        assert _sums(statements.lines(store.database, again.id).lines) == _sums([*issued, *late])
        assert statements.reconcile(store.database) == []


def _publish(broker: MemoryBroker, rows: list[tuple[books.Identity, list[int]]]) -> None:
    broker.append(streams.USAGE, [books.usage_row(*row) for row in rows], [repr(row[0]).encode() for row in rows])


def _sums(lines: list[statements.Line]) -> dict[tuple[str, ...], list[int]]:
    found: dict[tuple[str, ...], list[int]] = {}
    for line in lines:
        key = (line.user, line.model, line.chip)
        found[key] = books.add(found.get(key, [0] * 6), line.counters)
    return found
