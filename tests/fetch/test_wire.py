"""Requests and answers as bytes, compared with aiokafka's and kafka's own; and who we say that we are."""

import struct
import uuid

import pytest

from tokenometer.processor.broker import Place
from tokenometer.processor.broker.kafka.fetch import security, wire
from tokenometer.processor.broker.kafka.fetch.security import Distrusted, Unable, security_of
from tokenometer.processor.broker.kafka.fetch.wire import Malformed, Reader, Wanted, Writer

TOPIC = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def test_a_fetch_request_is_as_the_protocol_says() -> None:
    """Written out by hand from the message's definition, FetchRequest.json."""
    wanted = [Wanted(Place("logs", 3), TOPIC, 1_000, 7, 6)]
    expected = b"".join((
        struct.pack(">iiiib", -1, 100, 1, 1 << 20, 1), struct.pack(">ii", 0, -1),
        b"\2", TOPIC.bytes, b"\2", struct.pack(">iiqiqi", 3, 7, 1_000, 6, -1, 4_096), b"\0\0",
        b"\1", b"\5rack", b"\0",
    ))  # fmt: skip
    assert wire.fetch(wanted, wire.Sizes(100, 1, 1 << 20, 4_096), "rack") == expected


def test_a_frame_has_its_length_and_the_clients_name() -> None:
    assert wire.framed(wire.FETCH, 9, "me", b"body") == struct.pack(">ihhih", 17, 1, 13, 9, 2) + b"me\0body"
    assert wire.framed(wire.SASL_HANDSHAKE, 9, "me", b"")[-2:] == b"me", "without tags"


def a_fetch_answer() -> bytearray:
    writer = Writer().pack("ihi", 250, 0, 0).size(1).raw(TOPIC.bytes).size(1)
    writer.pack("ihqqq", 3, 0, 50, 40, 0).size(2)
    writer.pack("qq", 11, 30).no_tags().pack("qq", 12, 35).no_tags()
    writer.pack("i", 2).text(b"records")
    writer.size(0).data.extend(b"\0\x0c" + bytes(12))  # one tag of 12 bytes: the log has diverged
    return writer.no_tags().no_tags().data


def test_a_fetch_answer_is_read() -> None:
    fetched = wire.read_fetch(Reader(memoryview(a_fetch_answer())))
    (part,) = fetched.parts
    assert (fetched.throttle_ms, fetched.error, part.partition, part.stable, part.nearer) == (250, 0, 3, 40, 2)
    assert part.topic_id == TOPIC and part.aborted == [(11, 30), (12, 35)]
    assert bytes(part.records) == b"records" and part.diverged


def test_an_answer_that_ends_early_is_malformed() -> None:
    whole = bytes(a_fetch_answer())
    for size in range(len(whole) - 1):
        with pytest.raises(Malformed):
            wire.read_fetch(Reader(memoryview(whole[:size])))


def test_numbers_of_any_size_come_back() -> None:
    for count in (-1, 0, 1, 126, 127, 128, 16_383, 1 << 20):
        assert Reader(memoryview(Writer().size(count).data)).varint() == count + 1
    with pytest.raises(Malformed):
        Reader(memoryview(b"\xff" * 9)).varint()


# --- SCRAM, by the example of RFC 7677 ---


def test_a_password_is_proved_as_in_the_rfc() -> None:
    nonce = "rOprNGfwEbeRWgbNEkqO"
    first = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    proof = b"dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    final = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=" + proof
    last = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    talk = security.scram("sha256", "user", "pencil", nonce)
    assert next(talk) == f"n,,n=user,r={nonce}".encode()
    assert talk.send(first) == final
    with pytest.raises(StopIteration):
        talk.send(last)
    for wrong in (b"v=AAAA", b"e=invalid-proof", b""):
        again = security.scram("sha256", "user", "pencil", nonce)
        next(again)
        again.send(first)
        with pytest.raises(Distrusted, match="does not prove"):
            again.send(wrong)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"r=another,s=AAAA,i=4096", "nonce"),
        (b"r=mine-and-more,s=AAAA,i=1", "1 iterations"),
        (b"r=mine-and-more,s=AAAA,i=999999999", "999999999 iterations"),
        (b"r=mine-and-more,s=AAAA,i=x", "0 iterations"),
        (b"", "nonce"),
    ],
)
def test_a_broker_that_may_be_another_is_not_trusted(answer: bytes, why: str) -> None:
    """Few iterations would make our proof easy to guess from; very many would keep us busy."""
    talk = security.scram("sha512", "user", "pencil", "mine")
    next(talk)
    with pytest.raises(Distrusted, match=why):
        talk.send(answer)


def test_the_bounds_of_iterations_are_kafkas() -> None:
    for iterations, allowed in ((4_095, False), (4_096, True), (16_384, True), (16_385, False)):
        talk = security.scram("sha256", "user", "pencil", "mine")
        next(talk)
        said = f"r=mine1,s=c2FsdA==,i={iterations}".encode()
        if allowed:
            assert talk.send(said).startswith(b"c=biws,r=mine1,p=")
            continue
        with pytest.raises(Distrusted):
            talk.send(said)


# --- Settings ---


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"security.protocol": "SASL_SSL"}, "mechanism GSSAPI"),  # librdkafka's default
        ({"security.protocol": "sasl_plaintext", "sasl.mechanisms": "OAUTHBEARER"}, "mechanism OAUTHBEARER"),
        ({"security.protocol": "ssl", "ssl.keystore.location": "x"}, "ssl.keystore.location"),
        ({"security.protocol": "ssl", "ssl.crl.location": "x"}, "ssl.crl.location"),
        ({"security.protocol": "ssl", "ssl.key.pem": "x"}, "ssl.key.pem"),
    ],
)
def test_what_only_librdkafka_can_do_is_named(settings: dict[str, str], reason: str) -> None:
    with pytest.raises(Unable, match=reason):
        security_of(settings)


def test_secrets_are_not_shown() -> None:
    settings = {"security.protocol": "sasl_ssl", "sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "p!"}
    assert "p!" not in repr(security_of(settings))


def test_settings_of_a_protocol_that_is_not_used_do_not_matter() -> None:
    assert security_of({"ssl.keystore.location": "x", "sasl.mechanism": "GSSAPI"}).tls is None
