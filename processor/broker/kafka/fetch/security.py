"""TLS and SASL as librdkafka's settings describe them, by Python's own ssl and hashlib. No I/O but for certificates.

`security_of` raises Unable for what only librdkafka can do: Kerberos, OAuth, key stores, keys in hardware.
"""

import base64
import hashlib
import hmac
import os
import ssl
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

# A conversation yields what we say and is sent what the broker says.
Conversation = Generator[bytes, bytes, None]
_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
_ITERATIONS_MIN, _ITERATIONS_MAX = 4096, 16384  # Kafka's own bounds of a stored credential
_SSL = {
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.cipher.suites",
    "ssl.endpoint.identification.algorithm",
}


class Unable(Exception):
    """What the fetcher cannot do, and librdkafka can. The argument is the reason."""


class Distrusted(Exception):
    """The broker does not know the password that it should check: nobody may be talking in its place."""


@dataclass(frozen=True)
class Security:
    """tls: None: without. mechanism: None: no SASL."""

    tls: ssl.SSLContext | None
    mechanism: str | None
    username: str
    password: str

    def __repr__(self) -> str:
        return f"Security(tls={self.tls is not None}, mechanism={self.mechanism})"

    def conversation(self) -> Conversation:
        if self.mechanism == "PLAIN":
            return _plain(self.username, self.password)
        assert self.mechanism in _HASHES
        return scram(_HASHES[self.mechanism], self.username, self.password, base64.b64encode(os.urandom(24)).decode())


def security_of(settings: Mapping[str, Any]) -> Security:
    """Raises Unable, and OSError or ssl.SSLError where a certificate cannot be read."""
    protocol = str(settings.get("security.protocol", "plaintext")).lower()
    mechanism = None
    if protocol.startswith("sasl_"):
        mechanism = str(settings.get("sasl.mechanism", settings.get("sasl.mechanisms", "GSSAPI")))
        if mechanism != "PLAIN" and mechanism not in _HASHES:
            raise Unable(f"the SASL mechanism {mechanism}")
    tls = _tls(settings) if protocol.endswith("ssl") else None
    return Security(tls, mechanism, settings.get("sasl.username", ""), settings.get("sasl.password", ""))


def _tls(settings: Mapping[str, Any]) -> ssl.SSLContext:
    others = sorted(name for name in settings if name.startswith("ssl.") and name not in _SSL)
    if others:
        raise Unable(f"the setting {others[0]}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if str(settings.get("ssl.endpoint.identification.algorithm", "https")).lower() == "none":
        context.check_hostname = False
    if str(settings.get("enable.ssl.certificate.verification", "true")).lower() in ("false", "0", "f"):
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    _load_authorities(context, settings)
    if certificate := settings.get("ssl.certificate.location"):
        context.load_cert_chain(certificate, settings.get("ssl.key.location"), settings.get("ssl.key.password"))
    if ciphers := settings.get("ssl.cipher.suites"):
        context.set_ciphers(ciphers)
    return context


def _load_authorities(context: ssl.SSLContext, settings: Mapping[str, Any]) -> None:
    location, text = settings.get("ssl.ca.location", ""), settings.get("ssl.ca.pem")
    if text:
        context.load_verify_locations(cadata=text)
    elif location in ("", "probe"):
        context.load_default_certs()
    else:
        folder = os.path.isdir(location)
        context.load_verify_locations(cafile=None if folder else location, capath=location if folder else None)


def _plain(username: str, password: str) -> Conversation:
    """RFC 4616."""
    yield b"\0" + username.encode() + b"\0" + password.encode()


def scram(hash_name: str, username: str, password: str, nonce: str) -> Conversation:
    """RFC 5802, without channel binding. Raises Distrusted."""
    name = username.replace("=", "=3D").replace(",", "=2C")
    first = f"n={name},r={nonce}"
    answer = yield f"n,,{first}".encode()
    said = _fields(answer)
    if not said.get("r", "").startswith(nonce):
        raise Distrusted(f"its nonce is not ours: {answer[:200]!r}")
    iterations = int(said.get("i", "0")) if said.get("i", "0").isdigit() else 0
    if not _ITERATIONS_MIN <= iterations <= _ITERATIONS_MAX:
        raise Distrusted(f"it asks for {iterations} iterations; {_ITERATIONS_MIN} to {_ITERATIONS_MAX} are allowed")
    salted = hashlib.pbkdf2_hmac(hash_name, password.encode(), base64.b64decode(said["s"]), iterations)
    client_key = hmac.digest(salted, b"Client Key", hash_name)
    final = f"c={base64.b64encode(b'n,,').decode()},r={said['r']}"
    spoken = b",".join((first.encode(), answer, final.encode()))
    signature = hmac.digest(hashlib.new(hash_name, client_key).digest(), spoken, hash_name)
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    answer = yield f"{final},p={base64.b64encode(proof).decode()}".encode()
    expected = hmac.digest(hmac.digest(salted, b"Server Key", hash_name), spoken, hash_name)
    if not hmac.compare_digest(_fields(answer).get("v", ""), base64.b64encode(expected).decode()):
        raise Distrusted("it does not prove that it knows the password")


def _fields(text: bytes) -> dict[str, str]:
    return {part[:1]: part[2:] for part in text.decode(errors="replace").split(",") if part[1:2] == "="}
