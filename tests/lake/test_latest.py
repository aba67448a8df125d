"""Of messages of one key only the last is read. A key that lies is not believed, so that no row is left out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenometer.processor.broker import Messages, Place
from tokenometer.processor.lake.latest import Latest

ROWS = [b'{"user":"%s"}' % name for name in (b"a", b"ab", b"b")]
OTHERS = [None, b"", b"{", b'{"user":"zz"}']
MESSAGE = st.tuples(
    st.sampled_from([0, 1]),  # partition
    st.one_of(st.none(), st.tuples(st.sampled_from(ROWS), st.integers(0, 9))),  # a tombstone, or a row and its count
    st.one_of(st.just("own"), st.sampled_from(ROWS), st.sampled_from(OTHERS)),  # its key
)


def value_of(row: tuple[bytes, int] | None) -> bytes | None:
    return None if row is None else row[0][:-1] + b',"n":%d}' % row[1]


def key_of(row: tuple[bytes, int] | None, key: str | bytes | None) -> bytes | None:
    return (row[0] if row else ROWS[0]) if key == "own" else key  # type: ignore[return-value]


def expected(messages: list[tuple[int, bytes | None, bytes | None]]) -> set[int]:
    """Places of the messages that must be read."""
    kept, last = set(), dict[tuple[int, bytes], int]()
    for place, (partition, value, key) in enumerate(messages):
        if value is None:
            continue
        if key is None or not value.startswith(key[:-1]):
            kept.add(place)
        else:
            last[partition, key] = place
    return kept | set(last.values())


@settings(deadline=None)
@given(st.lists(MESSAGE, max_size=40), st.integers(1, 30), st.integers(1, 7))
def test_the_last_of_each_key_is_taken_and_whatever_has_another_key_than_its_own(drawn, most, together) -> None:
    messages = [(partition, value_of(row), key_of(row, key)) for partition, row, key in drawn]
    latest = Latest(most)
    for first in range(0, len(messages), together):
        for partition in (0, 1):
            places = [at for at in range(first, min(first + together, len(messages))) if messages[at][0] == partition]
            if places:
                values, keys = ([messages[at][column] for at in places] for column in (1, 2))
                offsets = np.array(places, np.int64)
                latest.add(Messages(Place("t", partition), values, np.zeros(len(places), np.uint64), offsets, keys))
        assert latest.is_full or latest.count < most
    taken = latest.take()
    assert latest.count == 0 and not latest.is_full and latest.take() == []
    found = {offset: value for each in taken for offset, value in zip(each.offsets.tolist(), each.values, strict=True)}
    assert all(each.offsets.tolist() == sorted(each.offsets.tolist()) for each in taken)
    assert found == {place: messages[place][1] for place in expected(messages)}


def test_without_keys_all_of_them_are_taken() -> None:
    latest, values = Latest(), [b'{"user":"a","n":1}'] * 3
    latest.add(Messages(Place("t", 0), values, np.zeros(3, np.uint64), np.arange(3)))
    [taken] = latest.take()
    assert taken.values == values


def test_hot_keys_make_no_writer_full() -> None:
    latest = Latest(100)
    for first in range(0, 10_000, 50):
        keys = [ROWS[at % 3] for at in range(50)]
        values = [key[:-1] + b',"n":1}' for key in keys]
        latest.add(Messages(Place("t", 0), values, np.zeros(50, np.uint64), np.arange(first, first + 50), keys))
        assert latest.count <= 100 and not latest.is_full
    latest.add(Messages(Place("t", 0), values := [b'{"user":"%d","n":1}' % n for n in range(100)],
                        np.zeros(100, np.uint64), np.arange(20_000, 20_100),
                        [value[: value.index(b",")] + b"}" for value in values]))  # fmt: skip
    assert latest.is_full and latest.count == 103
