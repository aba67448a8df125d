"""Stands between clients and a real broker, and damages the answers to Fetch requests on their way.

It forwards whole frames. A damage gets an answer, from its correlation id on, and gives back what the client is sent in
its place; None: the connection is closed in the middle of it. It does not know our code.
"""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable

from aiokafka.record.util import calc_crc32c

Damage = Callable[[bytes], bytes | None]
_FETCH, _API_VERSIONS = 1, 18


class Proxy:
    """damage: of Fetch answers; versions: of ApiVersions answers; damages: of others, by the request's number.

    pauses: by connection, the seconds from a Fetch answer to the next Fetch request.
    """

    def __init__(self) -> None:
        self.damage: Damage = lambda answer: answer
        self.versions: Damage = lambda answer: answer
        self.damages: dict[int, Damage] = {}
        self.pauses: list[list[float]] = []
        self.target: tuple[str, int] | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        assert self.target is not None
        asked: dict[int, int] = {}
        answered: list[float] = []
        pauses: list[float] = []
        self.pauses.append(pauses)
        with client, contextlib.suppress(OSError), socket.create_connection(self.target) as broker:
            self._open += [client, broker]
            threading.Thread(target=self._answers, args=(broker, client, asked, answered), daemon=True).start()
            while (frame := _frame(client)) is not None:
                key, _, correlation = struct.unpack(">hhi", frame[:8])
                asked[correlation] = key
                if key == _FETCH and answered:
                    pauses.append(time.monotonic() - answered[-1])
                broker.sendall(struct.pack(">i", len(frame)) + frame)
            broker.shutdown(socket.SHUT_RDWR)

    def _answers(
        self, broker: socket.socket, client: socket.socket, asked: dict[int, int], answered: list[float]
    ) -> None:
        with contextlib.suppress(OSError):
            while (answer := _frame(broker)) is not None:
                key = asked.pop(struct.unpack(">i", answer[:4])[0])
                if key == _FETCH:
                    answered.append(time.monotonic())
                damage = {_FETCH: self.damage, _API_VERSIONS: self.versions, **self.damages}.get(key)
                sent = answer if damage is None else damage(answer)
                if sent is None:
                    client.sendall(struct.pack(">i", len(answer)) + answer[: len(answer) // 2])
                    break
                client.sendall(struct.pack(">i", len(sent)) + sent)
        for connection in (broker, client):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        for connection in self._open:
            connection.close()


def _frame(connection: socket.socket) -> bytes | None:
    head = _exactly(connection, 4)
    return None if head is None else _exactly(connection, struct.unpack(">i", head)[0])


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


# --- Damages ---


def batches_in(answer: bytes) -> list[int]:
    """Where record batches begin: what has their format's number and a checksum that is right."""
    found, at = [], 0
    while (at := answer.find(b"\2", at + 1)) >= 0:
        begin = at - 16
        if begin < 0 or begin + 61 > len(answer):
            continue
        end = begin + 12 + struct.unpack(">i", answer[begin + 8 : begin + 12])[0]
        if begin + 61 <= end <= len(answer):
            (crc,) = struct.unpack(">I", answer[begin + 17 : begin + 21])
            if crc == calc_crc32c(answer[begin + 21 : end]):
                found.append(begin)
    return found


def _from(answer: bytes, lowest: int) -> list[int]:
    return [begin for begin in batches_in(answer) if struct.unpack(">q", answer[begin : begin + 8])[0] >= lowest]


def wrong_checksum(answer: bytes, lowest: int = 0) -> bytes:
    """Of the first batch from an offset on."""
    for begin in _from(answer, lowest)[:1]:
        return answer[: begin + 30] + bytes([answer[begin + 30] ^ 1]) + answer[begin + 31 :]
    return answer


def cut_short(answer: bytes, lowest: int = 0) -> bytes:
    """The first batch from an offset on says that it is longer than what comes."""
    for begin in _from(answer, lowest)[:1]:
        length = struct.pack(">i", len(answer) * 2)
        return answer[: begin + 8] + length + answer[begin + 12 :]
    return answer


def throttled(milliseconds: int) -> Damage:
    """It comes after the correlation id and the tags of the answer's head."""
    return lambda answer: answer[:5] + struct.pack(">i", milliseconds) + answer[9:]
