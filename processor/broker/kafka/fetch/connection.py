"""One connection to one broker: requests go out, answers come into one buffer that is used again and again.

Owns a socket. Promises: no call waits longer than it was told; what goes wrong is an OSError, Malformed, Refused with
the fix, or Unable.
"""

import socket
import ssl
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenometer.processor.broker import Refused
from tokenometer.processor.broker.kafka.fetch import wire
from tokenometer.processor.broker.kafka.fetch.security import Distrusted, Security, Unable, security_of
from tokenometer.processor.broker.kafka.fetch.wire import Malformed, Request

_SASL_FAILED, _UNSUPPORTED_MECHANISM = 58, 33
_FAMILIES = {"any": socket.AF_UNSPEC, "v4": socket.AF_INET, "v6": socket.AF_INET6}
_BUFFER_BYTES = 1 << 20  # at first


@dataclass(frozen=True)
class Options:
    """Of every connection, by librdkafka's settings of the same names. timeouts: seconds. requests: that a broker has
    to know."""

    client_id: str
    security: Security
    connect_timeout: float
    answer_timeout: float
    answer_bytes_max: int
    family: int
    requests: Sequence[Request]

    @classmethod
    def of(cls, settings: Mapping[str, Any], requests: Sequence[Request] = wire.OF_A_READER) -> "Options":
        """Raises Unable, and OSError where a certificate cannot be read."""
        return cls(
            str(settings.get("client.id", "tokenometer")),
            security_of(settings),
            int(settings.get("socket.connection.setup.timeout.ms", 30_000)) / 1000,
            int(settings.get("socket.timeout.ms", 60_000)) / 1000,
            int(settings.get("receive.message.max.bytes", 100_000_000)),
            _FAMILIES[str(settings.get("broker.address.family", "any")).lower()],
            requests,
        )


def addresses(bootstrap: str) -> Iterable[tuple[str, int]]:
    """Of bootstrap.servers. Raises Refused."""
    for name in filter(None, (name.strip() for name in bootstrap.split(","))):
        host, _, port = name.split("://")[-1].rpartition(":")
        if not host:
            host, port = port, "9092"
        if not port.isdigit():
            raise Refused(f"bootstrap.servers: {name} is no HOST:PORT")
        yield host.strip("[]"), int(port)


class Connection:
    """Opens it, and says who we are. `answer`s come in the order of the requests."""

    def __init__(self, host: str, port: int, options: Options) -> None:
        self._options, self._address = options, f"{host}:{port}"
        self._buffer = _buffer(_BUFFER_BYTES)
        self._sent = self._answered = 0
        self._socket = _connected(host, port, options)
        try:
            self._open(options)
        except BaseException:
            self.close()
            raise

    def _open(self, options: Options) -> None:
        security = options.security
        if lacking := wire.missing(self.ask(wire.API_VERSIONS, wire.api_versions()), options.requests):
            raise Unable(f"the broker {self._address}, which does not know {', '.join(lacking)} (Kafka 3.1 does)")
        if security.mechanism is not None:
            self._authenticate(security, security.mechanism)

    def _authenticate(self, security: Security, mechanism: str) -> None:
        error, known = wire.read_handshake(self.ask(wire.SASL_HANDSHAKE, wire.handshake(mechanism)))
        if error == _UNSUPPORTED_MECHANISM:
            raise Refused(f"{self._address} knows the SASL mechanisms {', '.join(known)}, not {mechanism}: check"
                          " sasl.mechanisms")  # fmt: skip
        conversation = security.conversation()
        try:
            token = next(conversation)
            while True:
                asked = wire.authenticate(token)
                error, text, answer = wire.read_authenticate(self.ask(wire.SASL_AUTHENTICATE, asked))
                if error == _SASL_FAILED:
                    raise Refused(f"{self._address} refuses these credentials: {text}: check the sasl.* settings")
                if error:
                    raise ConnectionError(f"authentication failed with error {error}: {text}")
                token = conversation.send(answer)
        except StopIteration:
            return
        except Distrusted as error_of_broker:
            raise Refused(f"{self._address} is not trusted: {error_of_broker}") from None

    def ask(self, request: Request, body: bytes | bytearray) -> wire.Reader:
        self.send(request, body)
        return self.answer(request)

    def send(self, request: Request, body: bytes | bytearray) -> None:
        self._sent += 1
        self._socket.settimeout(self._options.answer_timeout)
        self._socket.sendall(wire.framed(request, self._sent, self._options.client_id, body))

    def answer(self, request: Request, wait_seconds: float = 0.0) -> wire.Reader:
        """The oldest that is due. wait_seconds: that the broker may wait itself. It is valid until the next one."""
        self._answered += 1
        deadline = time.monotonic() + self._options.answer_timeout + wait_seconds
        self._receive(self._buffer[:4], deadline)
        size = struct.unpack(">i", self._buffer[:4])[0]
        if not 4 <= size <= self._options.answer_bytes_max:
            raise Malformed(f"an answer of {size} bytes (receive.message.max.bytes, or another security.protocol?)")
        if size > len(self._buffer):
            self._buffer = _buffer(size + size // 4)
        body = self._buffer[:size]
        self._receive(body, deadline)
        return wire.unframed(request, self._answered, body)

    def _receive(self, into: memoryview, deadline: float) -> None:
        at = 0
        while at < len(into):
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                count = self._socket.recv_into(into[at:])
            except TimeoutError:
                raise TimeoutError("the answer did not come in time (socket.timeout.ms)") from None
            if not count:
                raise ConnectionError("the broker has closed the connection")
            at += count

    def interrupt(self) -> None:
        """From another thread: a call that waits ends with an OSError."""
        try:
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # TLS's own would forget its keys under a reader
        except OSError:
            pass  # it is closed already

    def close(self) -> None:
        self._socket.close()


def _connected(host: str, port: int, options: Options) -> socket.socket:
    failure: OSError | None = None
    for family, kind, _, _, address in socket.getaddrinfo(host, port, options.family, socket.SOCK_STREAM):
        made = socket.socket(family, kind)
        try:
            made.settimeout(options.connect_timeout)
            made.connect(address)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            tls = options.security.tls
            return made if tls is None else tls.wrap_socket(made, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            made.close()
            raise Refused(f"{host}:{port} is not trusted: {error.verify_message}: check the ssl.* settings") from None
        except OSError as error:
            made.close()
            failure = error
    raise failure or OSError(f"{host} has no address")


def _buffer(size: int) -> memoryview:
    """Not cleared, as a bytearray would be."""
    made: memoryview = np.empty(size, np.uint8).data
    return made
