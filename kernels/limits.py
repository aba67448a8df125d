"""The sizes of everything that an engine holds, and the reasons."""

from dataclasses import dataclass

from tokenometer.kernels import layout

FILL_LIMIT = 0.75  # of a table's slots: linear probing stays short


@dataclass(frozen=True)
class Limits:
    """Sizes of everything, and why.

    rows, cells, texts, windows: slots, powers of two. 68, 132, 36 and 16,404 bytes each. The first records of a part
        touch all of a table, and new pages cost more than counting: so no more than a part of a million rows needs.
    arena_bytes: names of users, models, chips and labels.
    identity_bytes: request ids of all partitions, 16 bytes each at no more than 75 % load, two generations, and both
        sizes while growing.
    batch_bytes: what one batch holds; 32-bit positions bound it to 1 GiB.
    tile_records: 192 bytes each. A tile of a whole batch costs some cache misses, and less than Python between tiles.
    """

    rows: int = 1 << 21
    cells: int = 1 << 19
    texts: int = 1 << 20
    windows: int = 1 << 12
    arena_bytes: int = 1 << 26
    identity_bytes: int = 1 << 32
    batch_bytes: int = 6 << 20
    tile_records: int = 1 << 15

    def __post_init__(self) -> None:
        for name in ("rows", "cells", "texts", "windows"):
            value = getattr(self, name)
            if value < 16 or value & (value - 1) or value > 1 << 31:
                raise ValueError(f"{name} = {value}: expected a power of two from 16 to 2^31")
        if not 1 <= self.batch_bytes <= 1 << 30:
            raise ValueError(f"batch_bytes = {self.batch_bytes}: expected 1 to 2^30")
        if not 1 <= self.tile_records <= 1 << 24:
            raise ValueError(f"tile_records = {self.tile_records}: expected 1 to 2^24")

    @property
    def tile_room(self) -> int:
        """Records that a tile holds at most: what is left of a batch after a tile is often little, and joins it."""
        return self.tile_records + self.tile_records // 8

    def tile_of(self, records: int) -> int:
        """How many of so many records are the next tile."""
        return records if records <= self.tile_room else self.tile_records

    @property
    def further(self) -> int:
        """Slots for further counters, 16 bytes each; there only where a mapping reads such. A row has up to five."""
        return 2 * self.rows

    @classmethod
    def from_memory(cls, memory_bytes: int, cuda: bool = False) -> "Limits":
        """Half of a budget for request ids, a quarter for rows, the rest for names, cells, sketches. From 256 MiB on a
        batch holds the longest record that counts, one byte more, and its newline."""
        rows = _power_of_two(memory_bytes // 4 // 68)
        return cls(
            rows=rows,
            cells=rows // 4,
            texts=rows // 2,
            windows=min(1 << 13, _power_of_two(memory_bytes // 16 // layout.SKETCH_REGISTERS)),
            arena_bytes=rows * 8,
            identity_bytes=memory_bytes // 2,
            batch_bytes=min(1 << 26 if cuda else cls.batch_bytes, rows * 2 + 2),
            tile_records=min(1 << 20 if cuda else cls.tile_records, rows // 16),
        )


def _power_of_two(most: int) -> int:
    """The largest that is no more than `most`."""
    return 1 << max(4, most.bit_length() - 1)
