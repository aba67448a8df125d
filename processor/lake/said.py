"""What others say of parts: the meters in token-live, or a ledger's database."""

from tokenometer.processor.broker import Broker
from tokenometer.processor.ledger import decode
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.parts import DISPUTED, ENDED, MERGED
from tokenometer.schemas.usage import COUNTERS, Usage


def by_meters(broker: Broker, live_topic: str) -> dict[str, Usage]:
    """The tokens of each part's last summary, which `tokenometer verify` compares with the log. Raises BrokerError,
    LedgerError."""
    found: dict[str, tuple[int, Usage]] = {}
    for place, extent in broker.extents([live_topic]).items():
        for messages in broker.read(place, extent.begin, extent.end):
            for summary in decode.summaries([messages]):
                if summary.sequence >= found.get(summary.part, (-1,))[0]:
                    found[summary.part] = summary.sequence, summary.tokens
    return {part: tokens for part, (_, tokens) in found.items()}


def by_ledger(database: Database) -> dict[str, Usage]:
    """What the last summary of each part says that has ended, as the ledger keeps it; it has compared the rows with it.
    Raises LedgerError."""
    columns = ", ".join(COUNTERS)
    rows = database.rows(f"SELECT name, {columns} FROM parts WHERE state IN (?, ?, ?)", [ENDED, MERGED, DISPUTED])
    return {name: Usage(*map(int, counters)) for name, *counters in rows}
