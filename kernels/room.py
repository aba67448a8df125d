"""Whether the most that one message can bring fits into empty tables, and how large a batch may be so that it does."""

from collections.abc import Sequence
from dataclasses import replace

from tokenometer.kernels import layout
from tokenometer.kernels.limits import FILL_LIMIT, Limits
from tokenometer.kernels.plan import Plan, compile_mapping
from tokenometer.schemas.mapping import Mapping

_BATCH_BYTES_MIN = layout.RECORD_BYTES_MAX + 2  # the longest record that counts, one byte more, and its newline


def shortage(limits: Limits, plan: Plan) -> str | None:
    """Which table one segment could overfill while it is empty, in words; None: none of them. A segment is one message
    or at most a tile of records."""
    size = limits.batch_bytes
    need = plan.most(size, size)
    rows = max(need.rows, need.further * limits.rows // limits.further)
    for name, needed in (("texts", need.texts), ("cells", need.cells), ("rows", rows)):
        slots = getattr(limits, name)
        if needed > slots * FILL_LIMIT:
            return (
                f"{name} = {slots} slots: a message of batch_bytes = {size} may bring {needed}, more "
                f"than {FILL_LIMIT:.0%} of them; give the meter more memory, or smaller batches"
            )
    beside = need.arena_bytes - size - len(plan.prefix)  # of accounts
    if limits.arena_bytes < 2 * size + len(plan.prefix) + beside:
        more = f", and {beside} for labels" if beside else ""
        return f"arena_bytes = {limits.arena_bytes}: expected more than twice batch_bytes = {size}{more}"
    return None


def fitted(limits: Limits, mappings: Sequence[Mapping]) -> Limits:
    """With batches so small that no message overfills an empty table: short records bring more rows than long ones.

    As they are where that would be too small for the longest record: the engine then says which table is.
    """
    plans = [compile_mapping(mapping) for mapping in mappings]
    smaller = limits
    while any(shortage(smaller, plan) for plan in plans):
        smaller = replace(smaller, batch_bytes=smaller.batch_bytes - smaller.batch_bytes // 16)
        if smaller.batch_bytes < _BATCH_BYTES_MIN:
            return limits
    return smaller
