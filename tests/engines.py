"""Engines for tests: a process that has one, and compares nothing, does not need tests/harness."""

import random
from typing import Any

from tokenometer.kernels import engine
from tokenometer.kernels.engine import Engine, Limits
from tokenometer.kernels.target import Target
from tokenometer.processor.records.referee import Referee

engine.READ_AHEAD_LINES = 1  # batches of tests are small

# Tables take any batch of any shipped mapping. Small, because the first records of an engine touch most of their pages,
# which costs more than counting some thousands of records.
LIMITS = {
    "rows": 1 << 15,
    "cells": 1 << 15,
    "texts": 1 << 16,
    "windows": 1 << 8,
    "arena_bytes": 1 << 20,
    "batch_bytes": 1 << 18,
    "tile_records": 1 << 10,
}
# A batch holds some hundreds of mutated records.
MIDDLE = LIMITS | {
    "rows": 1 << 16,
    "cells": 1 << 16,
    "texts": 1 << 17,
    "arena_bytes": 1 << 21,
    "batch_bytes": 1 << 19,
}
# A batch holds two of the longest records and then some.
LARGE = LIMITS | {
    "rows": 1 << 18,
    "cells": 1 << 18,
    "texts": 1 << 19,
    "arena_bytes": 1 << 24,
    "batch_bytes": 2_250_000,
}
# One message of 900 bytes just fits: every few messages open a new part.
TINY = {
    "rows": 32,
    "cells": 32,
    "texts": 128,
    "windows": 16,
    "arena_bytes": 4096,
    "batch_bytes": 900,
    "tile_records": 8,
}


def secret(seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.getrandbits(64) for _ in range(8)]


def make_engine(target: Target, secret_seed: int = 1, **settings: Any) -> Engine:
    """An engine of moderate size; `settings` are fields of Limits and arguments of Engine."""
    limits = Limits(**{name: settings.pop(name, size) for name, size in {**LIMITS, "identity_bytes": 1 << 30}.items()})
    bounds = ("max_future_skew_ms", "max_past_ms", "not_before_ms")
    referee = Referee(**{name: settings[name] for name in bounds if name in settings})
    return Engine(target, referee, secret=secret(secret_seed), limits=limits, **settings)
