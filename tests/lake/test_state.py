"""What a snapshot's summary says of Kafka, and what `--check` compares. Pure."""

import pytest

from tokenometer.processor.broker import Offset
from tokenometer.processor.lake import state as states
from tokenometer.processor.lake.check import Difference, compare
from tokenometer.processor.lake.state import Done, LakeState, Mark, Slice, Topics, advanced
from tokenometer.processor.lake.values import OtherTable
from tokenometer.schemas.usage import Usage

TOPICS = Topics("token-usage", "u1", "token-live", "l1", 2)
ONE = Usage(1, 10, 0, 0, 5, 0)


def slice_of(part: str, partition: int, end: int, live: int, said: Usage | None) -> Slice:
    return Slice(part, {partition: Offset(end)}, 0, live, ONE, said)


def test_a_part_is_complete_when_every_partition_has_it_and_then_its_sums_are_compared() -> None:
    said = ONE.plus(ONE)
    first, disputes = advanced(LakeState(TOPICS), [slice_of("p", 0, 8, 3, said)], {0: Offset(4)}, {0: Offset(3)})
    assert first.sums == {"p": ONE} and disputes == [] and "p" in first.marks[0].done
    whole, disputes = advanced(first, [slice_of("p", 1, 9, 3, said)], {1: Offset(9)}, {0: Offset(4)})
    assert whole.sums == {} and disputes == []
    assert "p" in whole.marks[0].done, "its rows are read again from offset 4 on"
    assert "p" not in whole.marks[1].done and whole.marks[1].has("p", 0, 3), "nothing of it is read again"
    [dispute] = advanced(first, [slice_of("p", 1, 9, 3, ONE)], {1: Offset(9)}, {0: Offset(4)})[1]
    assert (dispute.part, dispute.said, dispute.found) == ("p", ONE, said)
    assert advanced(first, [slice_of("p", 1, 9, 3, None)], {1: Offset(9)}, {0: Offset(4)})[1] == []


def test_the_names_of_parts_that_ended_are_kept_up_to_a_limit() -> None:
    state = LakeState(Topics("u", "1", "l", "2", 1))
    for number in range(states.ENDED_KEPT + 1):
        slices = [slice_of(f"p.{number}", 0, number, number, ONE)]
        state, _ = advanced(state, slices, {0: Offset(number + 1)}, {0: Offset(number + 1)})
    assert len(state.ended) == states.ENDED_KEPT and "p.0" not in state.ended and "p.1" in state.ended
    assert state.marks[0].done == {}


def test_a_state_comes_back_as_it_was_written() -> None:
    mark = Mark(Offset(2**62), {0: Offset(1), 7: Offset(3)}, {"a.b.1": Done(5, 7, 2), "c": Done(1, -1, -1)})
    state = LakeState(TOPICS, {0: mark, 1: Mark(Offset(0), {})}, {"a.b.1": ONE}, {"z": Done(0, 1, 2)})
    assert states.decode(states.encode(state)) == state


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "usage": [1, 2]}'])
def test_a_state_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(OtherTable, match="cannot be read"):
        states.decode(text)


def test_a_state_of_another_version_says_so() -> None:
    text = states.encode(LakeState(TOPICS)).replace('"version":1', '"version":2')
    with pytest.raises(OtherTable, match="another version of tokenometer lake"):
        states.decode(text)


def test_check_compares_parts_that_are_in_as_a_whole() -> None:
    two, other = ONE.plus(ONE), Usage(1, 11, 0, 0, 5, 0)
    table = {"same": two, "differs": ONE, "partly": ONE, "unknown": ONE}
    found = compare(
        table, {"partly": ONE}, {"same": two, "differs": other, "partly": two, "waits": ONE, "empty": Usage()}
    )
    assert found.differences == [Difference("differs", ONE, other)] and not found.clean
    assert (found.equal, found.sums, found.waiting, found.unknown) == (1, two, 2, 1)
    assert compare({"same": two}, {}, {"same": two}).clean
