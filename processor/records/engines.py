"""Engines as commands and the Python interface make them: on a device, sized by its memory, with the referee beside."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenometer.kernels.engine import Engine, Limits
from tokenometer.kernels.room import fitted
from tokenometer.kernels.target import Target, open_target
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas.mapping import Mapping as Format

_REPLAY_WINDOWS = 1 << 13  # slots for windows, 16 KB each when used: a part holds four days of minutes
_CUDA_MEMORY_MAX = 16 << 30  # larger tables must be asked for


def make_engine(
    device: str, memory: int | None, mappings: Sequence[Format], batch_bytes: int | None = None, **settings: Any
) -> Engine:
    """An engine on the wanted device, with a hash secret of its own. mappings: what it will read; batches are as large
    as these allow, unless their size is given. settings: those of `Engine`."""
    target = open_target(device)
    hash_secret = [secrets.randbits(64) for _ in range(8)]
    sizes = limits(target, memory)
    if batch_bytes is None:
        sizes = fitted(sizes, mappings)
    else:
        arena_bytes = max(sizes.arena_bytes, 3 * batch_bytes)
        sizes = replace(sizes, batch_bytes=batch_bytes, arena_bytes=arena_bytes)
    return Engine(target, _referee(settings), secret=hash_secret, limits=sizes, **settings)


def _referee(settings: Mapping[str, Any]) -> Referee:
    """A referee with the engine's bounds of time."""
    bounds = ("max_future_skew_ms", "max_past_ms", "not_before_ms")
    return Referee(**{name: settings[name] for name in bounds if name in settings})


def limits(target: Target, memory: int | None) -> Limits:
    """Without --memory, half of a GPU's free memory, or on the host modest tables and half of its memory for ids."""
    free = target.memory()[0] // 2
    if memory is None and target.shares_memory:
        return Limits(windows=_REPLAY_WINDOWS, identity_bytes=free)
    return Limits.from_memory(min(free, _CUDA_MEMORY_MAX) if memory is None else memory, not target.shares_memory)
