"""The loader of mapping files: every rule of docs/RECORDS.md, section "Mapping files", and the words of its errors."""

import json
import pathlib
import re

import pytest

from tests.mapping_text import EVENT, FORMATS, HEAD, PATH, TABLES, token_events, toml
from tokenometer.kernels.limits import FILL_LIMIT, Limits
from tokenometer.kernels.plan import compile_mapping
from tokenometer.kernels.room import fitted, shortage
from tokenometer.schemas.mapping import (
    FIELDS,
    STRINGS,
    Convention,
    Field,
    MappingError,
    Selector,
    load,
    parse,
    resolve,
    shipped,
)
from tokenometer.schemas.usage import FURTHER, TOKENS
from tokenometer.schemas.value import PLAIN

MAPPINGS = pathlib.Path(__file__).parents[1] / "schemas" / "mappings"
SHIPPED = (
    "anthropic",
    "anthropic-batch",
    "anthropic-stream",
    "apisix",
    "bedrock-converse",
    "bedrock-log",
    "cohere",
    "dashscope",
    "dynamo",
    "envoy-ai-gateway",
    "gemini",
    "kong",
    "litellm",
    "litellm-cache-hits",
    "llamacpp",
    "native",
    "ollama",
    "openai-batch",
    "openai-chat",
    "openai-responses",
    "openmeter",
    "otel-genai",
    "sglang-metrics",
    "vllm",
    "xai",
)
DECODED = tuple(name for name in shipped() if resolve(name).value != PLAIN)  # of values that are no plain lines

# --- What a mapping says ---


def test_fields_are_complete_and_in_canonical_order():
    mapping = parse(toml(), "example.toml")
    assert tuple(field.name for field in mapping.fields) == FIELDS
    assert mapping.field("user") == Field("user", "string", (("user",),), required=True, default=None)
    assert mapping.field("request_id") == Field("request_id", "string", (), required=False, default=None)
    assert mapping.field("reasoning_tokens") == Field("reasoning_tokens", "count", (), required=False, default=0)
    assert {field.name for field in mapping.fields if field.kind == "string"} == set(STRINGS)
    assert {field.name for field in mapping.fields if field.kind == "count"} == set(TOKENS)
    assert (mapping.name, mapping.selector, mapping.source) == ("example", None, "example.toml")
    with pytest.raises(KeyError):
        mapping.field("tokens")


def test_tokens_stands_in_place_of_the_counters():
    mapping = parse(token_events(), "example")
    assert tuple(field.name for field in mapping.fields) == (*FIELDS[:6], "tokens")
    assert mapping.field("tokens") == Field("tokens", "count", (("data", "tokens"),), required=True, default=None)
    to = (("input", "input_tokens"), ("output", "output_tokens"))
    assert mapping.selector == Selector(("data", "type"), to, None)
    assert parse(token_events(EVENT + 'requests = "output"'), "").selector == Selector(("data", "type"), to, "output")


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("user", 'path = "a.b"', Field("user", "string", (("a.b",),), True, None)),
        ("user", 'path = ["a", "b"]', Field("user", "string", (("a", "b"),), True, None)),
        (
            "user",
            'path = "a"\naliases = ["b", ["c", "d"]]',
            Field("user", "string", (("a",), ("b",), ("c", "d")), True, None),
        ),
        ("user", 'path = "a"\ndefault = "unknown"', Field("user", "string", (("a",),), False, "unknown")),
        ("user", 'path = "a"\nrequired = true', Field("user", "string", (("a",),), True, None)),
        ("chip", 'constant = "H100"', Field("chip", "string", (), False, "H100")),
        ("prefill_chip", 'path = "p"', Field("prefill_chip", "string", (("p",),), False, None)),
        ("prefill_chip", 'path = "p"\nrequired = true', Field("prefill_chip", "string", (("p",),), True, None)),
        (
            "request_id",
            'path = "id"\nscope = "s"',
            Field("request_id", "string", (("id",),), False, None, scope=("s",)),
        ),
        (
            "request_id",
            'path = "id"\nscope = ["s", "t"]\nrequired = true',
            Field("request_id", "string", (("id",),), True, None, scope=("s", "t")),
        ),
        (
            "input_tokens",
            'path = "i"\ndigits = true',
            Field("input_tokens", "count", (("i",),), True, None, digits=True),
        ),
        ("input_tokens", 'path = "i"\ndefault = 0', Field("input_tokens", "count", (("i",),), False, 0)),
        ("output_tokens", "constant = 0", Field("output_tokens", "count", (), False, 0)),
        ("reasoning_tokens", 'path = "r"', Field("reasoning_tokens", "count", (("r",),), False, 0)),
        ("reasoning_tokens", 'path = "r"\nrequired = false', Field("reasoning_tokens", "count", (("r",),), False, 0)),
        ("reasoning_tokens", 'path = "r"\nrequired = true', Field("reasoning_tokens", "count", (("r",),), True, None)),
        (
            "timestamp",
            'path = "t"\nformats = ["rfc3339", "epoch_ns"]\nfallback = "message_time"',
            Field(
                "timestamp", "time", (("t",),), False, None, formats=("rfc3339", "epoch_ns"), message_time_fallback=True
            ),
        ),
        (
            "timestamp",
            'path = "t"\nformats = ["epoch_s_decimal"]',
            Field("timestamp", "time", (("t",),), True, None, formats=("epoch_s_decimal",)),
        ),
    ],
)
def test_a_field_is_read_as_written(name, body, expected):
    assert parse(toml(**{name: body}), "example").field(name) == expected


@pytest.mark.parametrize(
    "text",
    [
        toml(user=f'path = "{"k" * 48}"'),
        toml(user='path = ["a", "b", "c", "d", "e", "f"]'),
        toml(user=f'path = "u"\ndefault = "{"é" * 128}"'),
        toml(input_tokens=f'path = "i"\ndefault = {2**40 - 1}'),
        toml(user='path = ["a", "b"]', model='path = ["a", "c"]', chip='path = "a.b"'),
        toml(user=f'path = "u"\naliases = {[str(n) for n in range(54)]}'),  # 60 places with the other five and u
        token_events(EVENT.replace("{", "{ a = 'input_tokens', b = 'input_tokens', c = 'input_tokens',"
                                         " d = 'input_tokens', e = 'input_tokens', f = 'input_tokens',")),
    ],
)  # fmt: skip
def test_limits_are_inclusive(text):
    parse(text, "example")


def test_additive_is_taken_as_written():
    mapping = parse(toml({"input_tokens_are": '"additive"'}), "example")
    assert (mapping.input_additive, mapping.output_additive) == (True, False)
    mapping = parse(toml({"output_tokens_are": '"additive"'}), "example")
    assert (mapping.input_additive, mapping.output_additive) == (False, True)


# --- Errors: where, what was expected, what was found ---


ERRORS = {
    "syntax": ("a = 1\nb = = 2\n", ["line 2, column 5: not valid TOML"]),
    "syntax_at_end": ("a = 1\nb =", ["line 2", "not valid TOML"]),
    "key_twice": (toml() + 'path = "x"\n', ["line 19, column 11: not valid TOML: Cannot overwrite"]),
    "deep_nesting": ("a = " + "[" * 100_000, ["not valid TOML"]),
    "huge_integer": (toml({"format": "9" * 5000}), ["not valid TOML"]),
    "empty": ("", ["format: expected 1 or 2", "found nothing"]),
    # Top level
    "format_absent": (toml({"format": None}), ["format: expected 1 or 2", "found nothing"]),
    "format_3": (toml({"format": "3", "name": None}), ["format: expected 1 or 2", "found 3"]),
    "format_true": (toml({"format": "true"}), ["format: expected 1", "found true"]),
    "format_string": (toml({"format": '"1"'}), ["format: expected 1", 'found "1"']),
    "top_unknown": (toml({"descripton": '"x"'}), ["descripton: unknown key", "did you mean description?"]),
    "top_unknown_quoted": (toml({'"a b"': "1"}), ['"a b": unknown key; expected one of format, name']),
    "name_absent": (toml({"name": None}), ["name: expected a string of a-z, 0-9 and -, found nothing"]),
    "name_empty": (toml({"name": '""'}), ["name: expected", 'found ""']),
    "name_upper_case": (toml({"name": '"Mine"'}), ["name: expected", 'found "Mine"']),
    "name_underscore": (toml({"name": '"a_b"'}), ["name: expected", 'found "a_b"']),
    "name_newline": (toml({"name": '"a\\n"'}), ["name: expected", r'found "a\n"']),
    "description_absent": (toml({"description": None}), ["description: expected a string of one line, found nothing"]),
    "description_two_lines": (toml({"description": '"a\\nb"'}), ["description: expected a string of one line"]),
    "description_blank": (toml({"description": '" "'}), ["description: expected a string of one line"]),
    "input_are_absent": (
        toml({"input_tokens_are": None}),
        ['input_tokens_are: expected "inclusive" or "additive", found nothing'],
    ),
    "input_are_other": (toml({"input_tokens_are": '"both"'}), ["input_tokens_are: expected", 'found "both"']),
    "output_are_bool": (toml({"output_tokens_are": "true"}), ["output_tokens_are: expected", "found true"]),
    "output_are_list": (toml({"output_tokens_are": "[1]"}), ["output_tokens_are: expected", "found a list of 1"]),
    "fields_absent": (
        "\n".join(f"{key} = {value}" for key, value in HEAD.items()),
        ["fields: expected a table with one table for each canonical field, found nothing"],
    ),
    "fields_list": (
        "\n".join(f"{key} = {value}" for key, value in {**HEAD, "fields": "[1, 2]"}.items()),
        ["fields: expected a table", "found a list of 2"],
    ),
    # Fields
    "field_unknown": (toml(usr='path = "u"'), ["fields.usr: unknown key", "did you mean user?"]),
    "field_string": (
        toml({"fields.request_id": '"id"'}),
        ['fields.request_id: expected a table, found "id"'],
    ),
    **{
        f"{name}_not_mapped": (
            toml(**{name: None}),
            [f"fields.{name}: expected a table: every record needs this field, found nothing"],
        )
        for name in TABLES
    },
    "key_unknown": (
        toml(user='path = "u"\nalias = ["v"]'),
        ["fields.user.alias: unknown key", "did you mean aliases?"],
    ),
    "scope_of_user": (
        toml(user='path = "u"\nscope = "s"'),
        ["fields.user.scope: not for this field; only for request_id"],
    ),
    "digits_of_string": (toml(user='path = "u"\ndigits = true'), ["fields.user.digits: not for this field", "tokens"]),
    "formats_of_count": (
        toml(input_tokens='path = "i"\nformats = ["epoch_s"]'),
        ["fields.input_tokens.formats: not for this field; only for timestamp"],
    ),
    "fallback_of_user": (
        toml(user='path = "u"\nfallback = "message_time"'),
        ["fields.user.fallback: not for this field"],
    ),
    "by_of_count": (
        toml(input_tokens='path = "i"\nby = "t"'),
        ["fields.input_tokens.by: not for this field; only for tokens"],
    ),
    "default_of_request_id": (
        toml(request_id='path = "i"\ndefault = "x"'),
        ["fields.request_id.default: not for this field"],
    ),
    "constant_of_request_id": (toml(request_id='constant = "x"'), ["fields.request_id.constant: not for this field"]),
    "default_of_timestamp": (
        toml(timestamp='path = "t"\nformats = ["epoch_s"]\ndefault = 1'),
        ["fields.timestamp.default: not for this field"],
    ),
    "constant_of_tokens": (token_events(EVENT + "constant = 1"), ["fields.tokens.constant: not for this field"]),
    # Paths
    "neither": (toml(user=""), ["fields.user: expected path or constant, found nothing"]),
    "only_default": (toml(user='default = "x"'), ["fields.user: expected path or constant, found nothing"]),
    "only_aliases": (toml(user='aliases = ["x"]'), ["fields.user: expected path or constant, found nothing"]),
    "request_id_without_path": (toml(request_id='scope = "s"'), ["fields.request_id.path: " + PATH + "nothing"]),
    "path_number": (toml(user="path = 7"), ["fields.user.path: " + PATH + "7"]),
    "path_empty_list": (toml(user="path = []"), ["fields.user.path: " + PATH + "an empty list"]),
    "path_seven_keys": (toml(user=f"path = {list('abcdefg')}"), ["fields.user.path: " + PATH + "a list of 7"]),
    "path_list_of_numbers": (toml(user='path = ["a", 1]'), ["fields.user.path: " + PATH + "1"]),
    "path_nested_list": (toml(user='path = ["a", ["b"]]'), ["fields.user.path: " + PATH + "a list of 1"]),
    "path_table": (toml(user='path = { a = "b" }'), ["fields.user.path: " + PATH + "a table"]),
    "path_date": (toml(user="path = 2026-11-23"), ["fields.user.path: " + PATH + "2026-11-23"]),
    "key_empty": (toml(user='path = ""'), ['fields.user.path: expected keys of 1 to 48 bytes, found "" of 0']),
    "key_empty_below": (toml(user='path = ["a", ""]'), ["fields.user.path: expected keys of 1 to 48 bytes"]),
    "key_49_bytes": (toml(user=f'path = "{"k" * 49}"'), ["fields.user.path: expected keys of 1 to 48 bytes", "of 49"]),
    "key_50_bytes_of_utf8": (
        toml(user=f'path = "{"é" * 25}"'),
        ["fields.user.path: expected keys of 1 to 48 bytes", "of 50"],
    ),
    "aliases_string": (
        toml(user='path = "u"\naliases = "v"'),
        ['fields.user.aliases: expected a list of paths, found "v"'],
    ),
    "alias_number": (toml(user='path = "u"\naliases = ["v", 7]'), ["fields.user.aliases[1]: " + PATH + "7"]),
    "scope_number": (toml(request_id='path = "i"\nscope = 7'), ["fields.request_id.scope: " + PATH + "7"]),
    "path_read_twice": (toml(model='path = "user"'), ['fields.model.path: "user" is already read by fields.user.path']),
    "alias_read_twice": (
        toml(user='path = "u"\naliases = ["u"]'),
        ['fields.user.aliases[0]: "u" is already read by fields.user.path'],
    ),
    "scope_read_twice": (
        toml(request_id='path = "i"\nscope = "user"'),
        ['fields.user.path: "user" is already read by fields.request_id.scope'],
    ),
    "by_read_twice": (
        token_events(model='path = ["data", "type"]'),
        ['fields.tokens.by: ["data", "type"] is already read by fields.model.path'],
    ),
    "prefix_before": (
        toml(model='path = ["user", "model"]'),
        ['fields.model.path: ["user", "model"] begins with the path of fields.user.path'],
    ),
    "prefix_after": (
        toml(user='path = ["model", "user"]'),
        ['fields.user.path: ["model", "user"] begins with the path of fields.model.path'],
    ),
    "prefix_in_field": (
        toml(user='path = "u"\naliases = [["u", "v", "w"]]'),
        ['fields.user.aliases[0]: ["u", "v", "w"] begins with the path of fields.user.path'],
    ),
    "61_places": (
        toml(user=f'path = "u"\naliases = {[str(n) for n in range(55)]}'),
        ["fields: expected at most 60 distinct keys in all paths, found 61"],
    ),
    "61_places_below": (
        toml(user=f'path = ["u", "v"]\naliases = {[["u", str(n)] for n in range(54)]}'),
        ["fields: expected at most 60 distinct keys in all paths, found 61"],
    ),
    # Constants, defaults, flags
    **{
        f"constant_and_{key}": (
            toml(user=f'constant = "u"\n{key} = {value}'),
            [f"fields.user.{key}: excluded by constant"],
        )
        for key, value in {"path": '"u"', "aliases": '["u"]', "default": '"u"', "required": "true"}.items()
    },
    "constant_number": (
        toml(user="constant = 7"),
        ["fields.user.constant: expected a string of 1 to 256 bytes, found 7"],
    ),
    "constant_empty": (toml(user='constant = ""'), ["fields.user.constant: expected a string of 1 to 256 bytes"]),
    "default_257_bytes": (
        toml(user=f'path = "u"\ndefault = "{"x" * 257}"'),
        ["fields.user.default: expected a string of 1 to 256 bytes, found", "(259 characters)"],
    ),
    "default_258_bytes_of_utf8": (toml(user=f'path = "u"\ndefault = "{"é" * 129}"'), ["fields.user.default: expected"]),
    "default_negative": (
        toml(input_tokens='path = "i"\ndefault = -1'),
        ["fields.input_tokens.default: expected an integer, 0 <= n < 2^40, found -1"],
    ),
    "default_too_large": (toml(input_tokens=f'path = "i"\ndefault = {2**40}'), ["fields.input_tokens.default", "2^40"]),
    "default_huge": (
        toml(input_tokens=f'path = "i"\ndefault = 0x{"f" * 4000}'),
        ["fields.input_tokens.default", "0xfff"],
    ),
    "default_fraction": (toml(input_tokens='path = "i"\ndefault = 0.0'), ["fields.input_tokens.default", "found 0.0"]),
    "default_bool": (toml(input_tokens='path = "i"\ndefault = true'), ["fields.input_tokens.default", "found true"]),
    "default_digits": (
        toml(input_tokens='path = "i"\ndigits = true\ndefault = "0"'),
        ["fields.input_tokens.default: expected an integer", 'found "0"'],
    ),
    "digits_string": (
        toml(input_tokens='path = "i"\ndigits = "yes"'),
        ['fields.input_tokens.digits: expected true or false, found "yes"'],
    ),
    "required_number": (
        toml(user='path = "u"\nrequired = 1'),
        ["fields.user.required: expected true or false, found 1"],
    ),
    "required_false": (
        toml(user='path = "u"\nrequired = false'),
        ["fields.user.required: expected true, found false", "give it a default"],
    ),
    "required_false_timestamp": (
        toml(timestamp='path = "t"\nformats = ["epoch_s"]\nrequired = false'),
        ["fields.timestamp.required: expected true, found false", 'give it fallback = "message_time"'],
    ),
    "required_and_default": (
        toml(user='path = "u"\nrequired = true\ndefault = "x"'),
        ["fields.user.required: excluded by default"],
    ),
    "required_and_fallback": (
        toml(timestamp='path = "t"\nformats = ["epoch_s"]\nrequired = true\nfallback = "message_time"'),
        ["fields.timestamp.required: excluded by fallback"],
    ),
    # Times
    "formats_absent": (toml(timestamp='path = "t"'), ["fields.timestamp.formats: " + FORMATS, "found nothing"]),
    "formats_empty": (
        toml(timestamp='path = "t"\nformats = []'),
        ["fields.timestamp.formats: " + FORMATS, "an empty list"],
    ),
    "formats_string": (
        toml(timestamp='path = "t"\nformats = "epoch_s"'),
        ["fields.timestamp.formats: " + FORMATS, 'found "epoch_s"'],
    ),
    "formats_unknown": (
        toml(timestamp='path = "t"\nformats = ["rfc3399"]'),
        ["fields.timestamp.formats: " + FORMATS, 'found "rfc3399"; did you mean rfc3339?'],
    ),
    "formats_number": (
        toml(timestamp='path = "t"\nformats = [1]'),
        ["fields.timestamp.formats: " + FORMATS, "found 1"],
    ),
    "formats_two_epochs": (
        toml(timestamp='path = "t"\nformats = ["epoch_s", "epoch_ms"]'),
        ["fields.timestamp.formats: " + FORMATS, "found epoch_s, epoch_ms"],
    ),
    "formats_twice": (
        toml(timestamp='path = "t"\nformats = ["rfc3339", "rfc3339"]'),
        ["fields.timestamp.formats: " + FORMATS, "found rfc3339, rfc3339"],
    ),
    "fallback_other": (
        toml(timestamp='path = "t"\nformats = ["epoch_s"]\nfallback = "now"'),
        ['fields.timestamp.fallback: expected "message_time", found "now"'],
    ),
    # Token events
    **{
        f"tokens_and_{name}": (
            token_events() + f'[fields.{name}]\npath = "x"\n',
            [f"fields.{name}: excluded by fields.tokens, which takes the place of the five counters"],
        )
        for name in TOKENS
    },
    "tokens_without_path": (
        token_events(EVENT.replace("path", "# path")),
        ["fields.tokens.path: " + PATH + "nothing"],
    ),
    "by_absent": (token_events(EVENT.replace("by =", "# by =")), ["fields.tokens.by: " + PATH + "nothing"]),
    "by_number": (token_events(EVENT.replace('["data", "type"]', "7")), ["fields.tokens.by: " + PATH + "7"]),
    "by_prefix": (
        token_events(EVENT.replace('["data", "type"]', '"data"')),
        ['fields.tokens.path: ["data", "tokens"] begins with the path of fields.tokens.by'],
    ),
    "to_absent": (
        token_events(EVENT.replace("to =", "# to =")),
        ["fields.tokens.to: expected a table of 1 to 8 entries"],
    ),
    "to_string": (
        token_events(re.sub("{.*}", '"output_tokens"', EVENT)),
        ["fields.tokens.to: expected a table of 1 to 8"],
    ),
    "to_empty": (
        token_events(re.sub("{.*}", "{}", EVENT)),
        ["fields.tokens.to: expected a table of 1 to 8", "0 entries"],
    ),
    "to_nine": (
        token_events(re.sub("{.*}", "{" + ",".join(f"t{n}='input_tokens'" for n in range(9)) + "}", EVENT)),
        ["fields.tokens.to: expected a table of 1 to 8 entries", "9 entries"],
    ),
    "to_unknown_counter": (
        token_events(EVENT.replace('"input_tokens"', '"inputtokens"')),
        ["fields.tokens.to.input: expected one of input_tokens,", 'found "inputtokens"; did you mean input_tokens?'],
    ),
    "to_number": (
        token_events(EVENT.replace('"input_tokens"', "7")),
        ["fields.tokens.to.input: expected one of", "found 7"],
    ),
    "to_empty_value": (
        token_events(EVENT.replace("input =", '"" =')),
        ["fields.tokens.to: expected source values of 1 to 48"],
    ),
    "requests_not_in_to": (
        token_events(EVENT + 'requests = "ouput"'),
        ['fields.tokens.requests: expected one of the source values in `to` ("input", "output"), found "ouput"'],
    ),
    "requests_number": (token_events(EVENT + "requests = 7"), ["fields.tokens.requests: expected", "found 7"]),
}


@pytest.mark.parametrize(("text", "fragments"), ERRORS.values(), ids=ERRORS)
def test_an_error_says_where_and_what(text, fragments):
    with pytest.raises(MappingError) as caught:
        parse(text, "dir/mine.toml")
    message = str(caught.value)
    assert message.startswith("dir/mine.toml: ")
    assert "\n" not in message
    assert [fragment for fragment in fragments if fragment not in message] == [], message


# --- Files ---


def test_load_names_the_file(tmp_path):
    file = tmp_path / "example.toml"
    file.write_text(toml())
    assert load(file).source == str(file)
    assert load(str(file)) == load(file) == resolve(str(file))
    (tmp_path / "other.toml").write_text(toml())
    with pytest.raises(MappingError, match=r'other\.toml: name: expected .* "other", found "example"'):
        load(tmp_path / "other.toml")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(MappingError, match=r"absent\.toml: cannot be read: No such file"):
        resolve(str(tmp_path / "absent.toml"))
    with pytest.raises(MappingError, match="cannot be read: Is a directory"):
        resolve(str(tmp_path))
    (tmp_path / "latin.toml").write_bytes(b'name = "x"\n# caf\xe9\n')
    with pytest.raises(MappingError, match=r"latin\.toml: line 2: not valid TOML: not UTF-8"):
        load(tmp_path / "latin.toml")


def test_a_file_may_have_any_suffix(tmp_path):
    (tmp_path / "example").write_text(toml())
    assert resolve(str(tmp_path / "example")).name == "example"


def test_shipped_mappings_load():
    assert shipped() == tuple(sorted((*SHIPPED, *DECODED)))
    for name in SHIPPED:
        mapping = resolve(name)
        assert (mapping.name, mapping.source) == (name, name)
        assert load(MAPPINGS / f"{name}.toml").fields == mapping.fields
    additive = [name for name in SHIPPED if resolve(name).conventions[0] == Convention(True)]
    assert additive == ["anthropic", "anthropic-batch", "anthropic-stream", "bedrock-converse", "bedrock-log"]
    assert [name for name in SHIPPED if resolve(name).format == 1] == ["native"]
    growing = [name for name in SHIPPED if resolve(name).repeats == "grow"]
    assert growing == ["anthropic-stream", "dashscope", "gemini", "vllm", "xai"]
    assert [name for name in SHIPPED if resolve(name).selector] == ["openmeter"]


def test_the_engine_itself_judges_the_records_of_every_shipped_mapping():
    """A mapping that says more than a plan holds is right, and slow: Python judges every record."""
    assert [name for name in shipped() if compile_mapping(resolve(name)).table["undecided"]] == []


@pytest.mark.parametrize("limits", [Limits(), Limits.from_memory(256 << 20)], ids=["replay", "smallest meter"])
def test_a_batch_of_any_shipped_mapping_fits_into_empty_tables(limits):
    """As large as the commands make them: a mapping of short records and many labels must not need more."""
    for name in shipped():
        plan = compile_mapping(resolve(name))
        need = plan.most(limits.batch_bytes, limits.batch_bytes)
        assert need.texts <= limits.texts * FILL_LIMIT, name
        assert need.cells <= limits.cells * FILL_LIMIT, name
        assert max(need.rows, need.further / 2) <= limits.rows * FILL_LIMIT, name
        assert need.arena_bytes + limits.batch_bytes <= limits.arena_bytes, name


SHORT = """format = 2
name = "short"
description = "Two numbers and a time."
input_tokens_are = "inclusive"
output_tokens_are = "inclusive"
[fields.request_id]
path = "id"
[fields.timestamp]
path = "t"
formats = ["epoch_ms"]
[fields.user]
constant = "u"
[fields.model]
constant = "m"
[fields.chip]
constant = "c"
[fields.input_tokens]
path = "i"
default = 0
[fields.output_tokens]
default = 0
path = "o"
"""


@pytest.mark.parametrize("limits", [Limits(), Limits.from_memory(1 << 30)], ids=["replay", "meter"])
def test_batches_are_as_large_as_mappings_of_short_records_allow(limits):
    """Its shortest record has 8 bytes: six MiB of them have more rows than there is room for."""
    short, native = parse(SHORT, "short.toml"), resolve("native")
    assert shortage(Limits(), compile_mapping(short)) is not None
    assert shortage(fitted(limits, [native, short]), compile_mapping(short)) is None
    assert fitted(limits, [native]) == limits == fitted(limits, [])
    assert fitted(limits, [native, short]).batch_bytes > limits.batch_bytes // 3


def test_where_no_batch_would_do_the_engine_says_which_table_is_too_small():
    small = Limits.from_memory(64 << 20)
    assert fitted(small, [parse(SHORT, "short.toml")]) == small
    assert "cells = " in (shortage(small, compile_mapping(parse(SHORT, "short.toml"))) or "")


def test_a_shipped_name_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "native").write_text(toml({"name": '"native"'}))
    assert resolve("native").source == "native"
    assert resolve("native").field("user") == Field("user", "string", (("user",),), True, None)
    assert resolve("./native").source == "./native"


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(MappingError) as caught:
        resolve("openai")
    assert str(caught.value).startswith("openai: expected a .toml file or the name of a shipped mapping (anthropic, ")
    with pytest.raises(MappingError, match=r"; did you mean litellm\?"):
        resolve("litelm")


def test_native_is_the_canonical_names():
    native = resolve("native")
    assert all(field.paths == ((field.name,),) for field in native.fields)


@pytest.mark.parametrize("name", SHIPPED)
def test_examples_have_one_result_for_each_line(name):
    lines = (MAPPINGS / "examples" / f"{name}.ndjson").read_bytes().splitlines()
    results = json.loads((MAPPINGS / "examples" / f"{name}.expected.json").read_text())
    assert 3 <= len(lines) == len(results)
    assert any("rejected" in result for result in results)
    scoped = {"scope"} if resolve(name).field("request_id").scope else set()
    for line, result in zip(lines, results, strict=True):
        json.loads(line)
        kinds = ({"rejected", "field"}, {"skipped"}, {*FIELDS, "requests", *scoped})
        assert set(result) - {*FURTHER, "labels"} in kinds


def test_every_shipped_mapping_has_examples():
    named = {file.name.partition(".")[0] for file in (MAPPINGS / "examples").iterdir()}
    assert set(SHIPPED) <= named <= set(shipped())
