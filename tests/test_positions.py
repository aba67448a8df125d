"""What is committed with an offset comes back as it was; what others wrote is refused by name."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenometer.kernels.values import PartitionState
from tokenometer.processor.broker import BrokerError
from tokenometer.processor.meter import positions
from tokenometer.processor.meter.positions import UnknownMetadata

METADATA_BYTES_MAX = 4096  # Kafka's offset.metadata.max.bytes
MS_MAX = (1 << 63) - 1

property_test = settings(max_examples=200, deadline=None)
numbers = st.none() | st.integers(0, MS_MAX)
states = st.builds(PartitionState, numbers, numbers, numbers)
topic_ids = (
    st.uuids().map(str)
    | st.from_regex(r"\A[A-Za-z0-9_-]{22}\Z")
    | st.text(max_size=40).filter(lambda text: text.isprintable())
)


@property_test
@given(state=states, topic_id=topic_ids)
def test_a_state_comes_back(state, topic_id):
    assert positions.decode(positions.encode(state, topic_id)) == (state, topic_id)


@property_test
@given(state=states, topic_id=st.uuids().map(str))
def test_metadata_is_small_and_plain(state, topic_id):
    text = positions.encode(state, topic_id)
    assert len(text.encode()) <= 300 < METADATA_BYTES_MAX
    assert text.isascii() and text.isprintable()
    found = orjson.loads(text)
    assert found["v"] == 1, "DESIGN.md names the fields"
    assert (found["watermark"], found["log_time"], found["dedup_from"]) == (
        state.watermark_ms, state.log_time_ms, state.dedup_from,
    )  # fmt: skip


def test_the_longest_metadata_is_far_below_the_limit():
    text = positions.encode(PartitionState(MS_MAX, MS_MAX, MS_MAX), "t" * 36)
    assert len(text) < METADATA_BYTES_MAX // 16


def test_no_metadata_is_an_offset_that_an_operator_set():
    assert positions.decode("") == (PartitionState(), None)


FOREIGN = [
    " ",
    "hello",
    "{",
    "{}",
    "[]",
    "[1]",
    "1",
    "1.5",
    "true",
    "null",
    '"v"',
    '{"v":1}',
    '{"v":1,"watermark":1,"log_time":2,"dedup_from":3}',
    '{"v":1,"watermark":1,"log_time":2,"topic":"t"}',
    '{"version":1,"watermark":1,"log_time":2,"dedup_from":3,"topic":"t"}',
    "AAAAAAAAAAAAAAAAAAAAAA==",
    "\x00",
    "consumer-1-3f2c",
    "\ud800",
]


@pytest.mark.parametrize("metadata", FOREIGN, ids=repr)
def test_foreign_metadata_is_refused_with_a_way_out(metadata):
    with pytest.raises(UnknownMetadata, match="metadata that no meter wrote") as caught:
        positions.decode(metadata)
    assert repr(metadata) in str(caught.value), "it is shown"
    assert "group" in str(caught.value) and isinstance(caught.value, BrokerError)


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_another_version_is_refused_by_its_number(version):
    metadata = orjson.dumps({"v": version, "watermark": 1, "something": "new"}).decode()
    with pytest.raises(UnknownMetadata, match=rf"version {version}, expected 1"):
        positions.decode(metadata)


@property_test
@given(metadata=st.text(max_size=80) | st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["v", "watermark", "log_time", "dedup_from", "topic"]), inner, max_size=5
    ),
    max_leaves=8,
).map(lambda value: orjson.dumps(value).decode()))  # fmt: skip
def test_whatever_stands_there_is_a_state_or_refused(metadata):
    try:
        state, topic_id = positions.decode(metadata)
    except UnknownMetadata:
        return
    assert metadata == "" or orjson.loads(metadata)["v"] == 1
    assert (topic_id is None) == (metadata == "") or orjson.loads(metadata)["topic"] is None
