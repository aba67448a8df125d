"""Reads partitions as they grow, in no group."""

import time
from collections.abc import Mapping

from tokenometer.processor.broker import Messages, Offset, Place
from tokenometer.processor.broker.memory.cluster import Cluster


class MemoryFollower:
    def __init__(self, cluster: Cluster, starts: Mapping[Place, Offset], keys: bool) -> None:
        self._cluster, self._positions, self._keys = cluster, dict(starts), keys

    def poll(self, timeout_seconds: float, most: int) -> list[Messages]:
        self._cluster.fault("read")
        deadline = time.monotonic() + timeout_seconds
        with self._cluster.locked():
            while True:
                found = self._take(most)
                if found or not self._cluster.wait(deadline):
                    return found

    def _take(self, most: int) -> list[Messages]:
        found: list[Messages] = []
        for place, position in self._positions.items():
            log = self._cluster.log_at(place, position)
            for messages in log.read(place, position, log.last_stable, most, self._keys):
                found.append(messages)
                most -= len(messages.values)
                self._positions[place] = messages.next_offset
            if most:  # there was room for more, and nothing is left but markers
                self._positions[place] = Offset(log.last_stable)
        return found

    def reached(self) -> dict[Place, Offset]:
        return dict(self._positions)

    def close(self) -> None:
        pass
