"""Files whose values are no plain lines, in `replay`: keys, headers, and dead letters of large values."""

import orjson
import pytest

from tests import harness
from tokenometer.processor.files import decoded
from tokenometer.processor.files.replay import Outlets, PlacedLetter, replay
from tokenometer.processor.intake import Decoder
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping import MappingError

NATIVE = (harness.MAPPINGS / "native.toml").read_text().replace("format = 1", "format = 2")


@pytest.mark.parametrize("source", ["key = true", 'header = "ce_subject"'])
def test_a_file_has_neither_keys_nor_headers(source) -> None:
    mapping = mappings.parse(NATIVE.replace('path = "user"', source), "mine.toml")
    with pytest.raises(
        MappingError, match="mine.toml: fields.user reads the message's key or a header, and a file has"
    ):
        decoded.decoder_of(mapping)()
    either = mappings.parse(NATIVE.replace('path = "user"', f'{source}\naliases = ["user"]'), "mine.toml")
    assert decoded.decoder_of(either)()


def test_dead_letters_hold_copies_of_a_value_up_to_1_MiB(make_engine, tmp_path) -> None:
    bad = [orjson.dumps({"request_id": f"r-{number}", "pad": "x" * 5000}) for number in range(30)]
    (tmp_path / "array.json").write_bytes(b"[" + b",".join(bad) + b"]")
    mapping, letters = mappings.resolve("native"), list[PlacedLetter]()
    reader = decoded.reader_of([str(tmp_path / "array.json")], mapping.value, lambda: Decoder(mapping.value))
    replay(make_engine(), reader.fill, mapping, "test", Outlets(letters=letters.extend))
    assert [letter.record for letter in letters] == list(range(30))
    copies = [letter.value for letter in letters if letter.value is not None]
    assert len(copies) == 6 and set(copies) == {(tmp_path / "array.json").read_bytes()}
