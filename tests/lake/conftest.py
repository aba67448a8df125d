"""The broker's fixtures are those of tests/kafka/."""

from tests.kafka.conftest import admin, make_stream, stream

__all__ = ["admin", "make_stream", "stream"]
