"""What a price list says of the usage in a ledger: what has no price, and what in the list is never used. `database`: a
snapshot."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tokenometer.processor.ledger import labelsets
from tokenometer.processor.ledger.database import Database
from tokenometer.processor.ledger.prices import Entry, PriceError, Prices
from tokenometer.schemas.usage import PARENTS, TOKENS

# How sources name the tier that a price without a tier is for.
_USUAL = {"service_tier": {"default", "standard"}}
_TOTAL = " + ".join(name for name in TOKENS if name not in PARENTS)


@dataclass
class PriceCheck:
    """unpriced: tokens by model and labels, of all users. ties: usage that two entries fit equally well."""

    unpriced: dict[tuple[str, str], int] = field(default_factory=dict)
    used: dict[int, int] = field(default_factory=dict)  # by line of an entry: tokens
    fitting: set[int] = field(default_factory=set)  # lines of entries that some usage fits, whichever entry wins
    fallen: dict[tuple[int, str], int] = field(default_factory=dict)  # see `_fall`
    ties: set[str] = field(default_factory=set)
    models: set[str] = field(default_factory=set)


def may_tie(prices: Prices) -> Iterator[tuple[Entry, Entry]]:
    """Entries of one rank that some usage may fit alike, unless a third one is more specific for all of that."""
    for number, entry in enumerate(prices.entries):
        for other in prices.entries[:number]:
            if entry.rank == other.rank and entry.may_meet(other):
                if not any(_settles(third, other, entry) for third in prices.entries):
                    yield other, entry


def _settles(third: Entry, a: Entry, b: Entry) -> bool:
    """Does it win wherever both of the others fit?"""
    both = {**a.labels, **b.labels}
    return (
        third.rank > a.rank
        and all(both.get(name) == value for name, value in third.labels.items())
        and third.customer in (None, a.customer or b.customer)
        and third.model in ({a.model, b.model} if a.is_pattern and b.is_pattern else {a.model, b.model, third.model})
        and all(not each.model or third.fits_model(each.model) for each in (a, b) if not each.is_pattern)
        and (third.begin is None or all(each.begin is not None and third.begin <= each.begin for each in (a, b)))
        and (third.end is None or all(each.end is not None and each.end <= third.end for each in (a, b)))
    )


def against(database: Database, prices: Prices, begin: int | None = None, end: int | None = None) -> PriceCheck:
    """Of the usage of windows from `begin` on and before `end`; None: of all."""
    found = PriceCheck()
    [(first, last)] = database.rows("SELECT min(window_start), max(window_start) FROM usage")
    if first is None:
        return found
    first = max(int(first), begin) if begin is not None else int(first)
    stop = min(int(last) + 1, end) if end is not None else int(last) + 1
    if first >= stop:
        return found
    segment = database.buckets(prices.bounds(first, stop))
    user = "user_id" if prices.by_user else "0"
    rows = database.rows(
        f"SELECT segment, user_id, model_id, labels_id, sum(total) FROM (SELECT {segment} AS segment, "
        f"{user} AS user_id, model_id, labels_id, {_TOTAL} AS total FROM usage "
        "WHERE window_start >= ? AND window_start < ?) AS placed "
        "GROUP BY segment, user_id, model_id, labels_id",
        [first, stop],
    )
    names = _names(database, {int(row[2]) for row in rows} | {int(row[1]) for row in rows})
    sets = labelsets.sets(database, {int(row[3]) for row in rows})
    for at, user_id, model_id, labels_id, total in rows:
        model, labels, tokens = names[int(model_id)], sets[int(labels_id)], int(total)
        found.models.add(model)
        try:
            entry = prices.entry(model, names.get(int(user_id), ""), labels, int(at))
        except PriceError as error:
            found.ties.add(str(error))
            continue
        fits = (each for each in prices.entries if each.line not in found.fitting and each.fits_model(model))
        found.fitting |= {each.line for each in fits if each.fits(names.get(int(user_id), ""), labels, int(at))}
        if entry is not None:
            _fall(found, prices, entry, labels, tokens)
            found.used[entry.line] = found.used.get(entry.line, 0) + tokens
        elif tokens:
            place = model, ", ".join(f"{name}={value}" for name, value in labels.items())
            found.unpriced[place] = found.unpriced.get(place, 0) + tokens
    return found


def _fall(found: PriceCheck, prices: Prices, entry: Entry, labels: Mapping[str, str], tokens: int) -> None:
    """Count tokens by entry and label, where the list has prices by this label, and none for this value."""
    for name, value in labels.items():
        priced = {each.labels[name] for each in prices.entries if name in each.labels}
        if priced and value not in priced and value not in _USUAL.get(name, ()):
            place = entry.line, f"{name}={value}"
            found.fallen[place] = found.fallen.get(place, 0) + tokens


def fallen_texts(found: PriceCheck) -> list[str]:
    """A sentence for each value of a label that has the price of usage without it."""
    return [
        f"line {line}: has {tokens:,} tokens with {label}, for which no entry has a price of its own"
        for (line, label), tokens in sorted(found.fallen.items())
    ]


def _names(database: Database, ids: set[int]) -> dict[int, str]:
    wanted = ", ".join(map(str, sorted(ids)))
    return {
        int(id): bytes(name).decode()
        for id, name in database.rows(f"SELECT id, name FROM names WHERE id IN ({wanted})")
    }
