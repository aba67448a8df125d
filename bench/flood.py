"""Connections that want nothing good: silent, slow, half a request, or answers that nobody reads.

    python -m bench.flood 2000 9464 8321      # so many of them on each port, until standard input ends

A connection that the server ends is opened again. The last line says how many were open on each port at most, how many
were opened, and how many at the end.
"""

import asyncio
import contextlib
import json
import resource
import sys
from collections import Counter

AGAIN_SECONDS = 1.0
SLOW_SECONDS = 2.0
_KINDS = ("silent", "slow head", "slow body", "reads nothing", "rubbish")


class Flood:
    def __init__(self) -> None:
        self.open: Counter[int] = Counter()
        self.most: Counter[int] = Counter()
        self.opened: Counter[int] = Counter()

    async def keep(self, port: int, kind: str) -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
                self.opened[port] += 1
                self.open[port] += 1
                self.most[port] = max(self.most[port], self.open[port])
                try:
                    await self._use(kind, reader, writer)
                finally:
                    self.open[port] -= 1
                    writer.transport.abort()
            await asyncio.sleep(AGAIN_SECONDS)

    async def _use(self, kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = {
            "slow head": b"GET /healthz HTTP/1.1\r\nX: ",
            "slow body": b"POST /v1/close HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000\r\n\r\n{",
            "reads nothing": b"GET /api/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            + b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50,
            "rubbish": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 3,
        }.get(kind, b"")
        writer.write(head)
        if kind == "reads nothing":
            writer.transport.pause_reading()  # type: ignore[attr-defined]
        while not (writer.transport.is_closing() or reader.at_eof()):
            if kind in ("slow head", "slow body"):
                writer.write(b"x")
            await asyncio.sleep(SLOW_SECONDS)


async def flood(each: int, ports: list[int]) -> Flood:
    one, loop = Flood(), asyncio.get_running_loop()
    tasks = []
    for number in range(each):
        tasks += [loop.create_task(one.keep(port, _KINDS[number % len(_KINDS)])) for port in ports]
        if number % 20 == 0:
            await asyncio.sleep(0.05)
    await loop.run_in_executor(None, sys.stdin.read)
    for task in tasks:
        task.cancel()
    return one


def main() -> None:
    each, ports = int(sys.argv[1]), [int(port) for port in sys.argv[2:]]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    done = asyncio.run(flood(each, ports))
    print(json.dumps({"most": done.most, "opened": done.opened, "at_the_end": done.open}))


if __name__ == "__main__":
    main()
