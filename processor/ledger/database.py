"""What the ledger needs of a database. `duck` and `postgres` give it, and `opening` chooses between them.

SQL is written once, with `?` for parameters.

Promises of both: a transaction is all or nothing and survives a crash once it is committed; what `snapshot` reads is of
one moment, and does not wait for the writer; no text that comes from a log is ever part of a statement.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tokenometer.schemas.usage import COUNTERS, FURTHER

Rows = list[tuple[Any, ...]]
POSTGRES_SCHEMES = ("postgresql://", "postgres://")

KEY = ("window_start", "user_id", "model_id", "chip_id", "labels_id")
IDENTITY = (*KEY, "part_id")
COUNTS = (*COUNTERS, *FURTHER)
COLUMNS = (*IDENTITY, *COUNTERS)  # of a batch on its way to `open_rows`; one that has further counters has WIDE
WIDE = (*COLUMNS, *FURTHER)


@dataclass(frozen=True)
class Types:
    """A dialect's names of types. u64: 64 bits without sign; total: wide enough for any sum of them."""

    u64: str
    total: str
    bytes: str


class Database(Protocol):
    """One connection. Raises DatabaseError for whatever the database says, Busy if another process has it."""

    types: Types

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> Rows: ...

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """A transaction that is committed at the end of the block, and rolled back if the block raises."""

    def ids(self, table: str, texts: Sequence[bytes]) -> dict[bytes, int]:
        """Of those texts that a table of `id` and `name` has: `names`, or `label_sets`."""

    def append(self, table: str, rows: Any) -> None:
        """An Arrow table into the columns of the same names."""

    def stage(self, batch: Any) -> None:
        """Make an Arrow table of COLUMNS or WIDE readable as `incoming` until the transaction ends."""

    def upsert(self, further: bool) -> None:
        """Write `incoming` into `open_rows`. Counters of an identity never go down. further: it is WIDE."""

    def merge_part(self, part_id: int) -> None:
        """Add the part's rows in `open_rows` up in `merged_rows`, and remove them there."""

    def buckets(self, bounds: Sequence[int]) -> str:
        """An expression: the greatest of `bounds` that is not above `window_start`."""

    def snapshot(self) -> contextlib.AbstractContextManager["Database"]:
        """A database to read from, by any thread, at one moment."""

    def close(self) -> None: ...


def shown(name: str) -> str:
    """A database's name without its password, for messages and logs."""
    scheme, separator, rest = name.partition("://")
    address, question, options = rest.partition("?")
    user, at, host = address.rpartition("@")
    if question:
        kept = [option for option in options.split("&") if not option.lower().startswith(("password", "sslpassword"))]
        host += "?" + "&".join(kept) if kept else ""
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}" if separator else name
