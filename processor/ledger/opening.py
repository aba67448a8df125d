"""Which database a name means, and who may open it. The databases do not import this file."""

from tokenometer.processor.ledger.database import POSTGRES_SCHEMES, Database, shown
from tokenometer.processor.ledger.values import BadArgument


def open_database(name: str, writer: bool) -> Database:
    """`postgresql://...`, or the name of a DuckDB file. A writer is alone: Busy says that there is one already."""
    if name.startswith(POSTGRES_SCHEMES):
        from tokenometer.processor.ledger.postgres import PostgresDatabase

        return PostgresDatabase(name, writer)
    if "://" in name:
        raise BadArgument(f"{shown(name)}: expected postgresql://... or the name of a file")
    from tokenometer.processor.ledger.duck import DuckDatabase

    return DuckDatabase(name, writer)


def open_clerk(name: str) -> Database:
    """The database, to close a period without a ledger. PostgreSQL allows this beside one; a file has one process. A
    file that is not there is no ledger, and is not made."""
    if "://" not in name:
        from tokenometer.processor.ledger.duck import check_there

        check_there(name)
    return open_database(name, writer=not name.startswith(POSTGRES_SCHEMES))
