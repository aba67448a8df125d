"""The labels that a ledger holds: their names, and what is in a set. `database`: a snapshot, or the writer's."""

from collections.abc import Iterable, Mapping

from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.values import BadRequest

_CHUNK = 10_000  # numbers of one question
LabelsOf = Mapping[int, Mapping[str, str]]


def names(database: Database) -> dict[str, int]:
    """Of all labels that any row has, with their numbers."""
    found = database.rows(
        "SELECT names.name, names.id FROM names JOIN (SELECT DISTINCT name_id FROM set_labels) AS used "
        "ON used.name_id = names.id ORDER BY names.name"
    )
    return {bytes(name).decode(): int(id) for name, id in found}


def checked(database: Database, wanted: Iterable[str]) -> dict[str, int]:
    """The numbers of labels by these names. Raises BadRequest for one that no row has."""
    known = names(database)
    for name in wanted:
        if name not in known:
            there = f"the ledger has {', '.join(known)}" if known else "the ledger has none"
            raise BadRequest(f"no row has a label {name}; {there}")
    return known


def sets(database: Database, ids: Iterable[int]) -> LabelsOf:
    """What the sets of these numbers have."""
    wanted = sorted(set(ids) - {0})
    found: dict[int, dict[str, str]] = {id: {} for id in (0, *wanted)}
    for begin in range(0, len(wanted), _CHUNK):
        numbers = ", ".join(str(int(id)) for id in wanted[begin : begin + _CHUNK])
        for id, name, value in database.rows(
            "SELECT set_id, n.name, v.name FROM set_labels JOIN names AS n ON n.id = name_id "
            f"JOIN names AS v ON v.id = value_id WHERE set_id IN ({numbers}) ORDER BY set_id, n.name"
        ):
            found[int(id)][bytes(name).decode()] = bytes(value).decode()
    return found
