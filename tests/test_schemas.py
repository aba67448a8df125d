"""The JSON Schemas of our topics: every y_ example is valid, every n_ example breaks one rule."""

import datetime
import json
import pathlib
import tomllib

import jsonschema
import pytest

from tests import oracle
from tokenometer.schemas.mapping import FIELDS
from tokenometer.schemas.usage import FURTHER

SCHEMAS = pathlib.Path(__file__).parents[1] / "schemas"
NAMES = ("alert", "live", "record", "rejected", "totals", "usage", "usage-key")
ROWS = ("usage", "usage-key")  # of version 2; readers take rows of version 1 too
EXAMPLES = sorted((SCHEMAS / "examples").glob("*/*.json"))

formats = jsonschema.FormatChecker(formats=())


@formats.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    """jsonschema's own check needs another package; the pattern beside each format leaves only the date to judge."""
    return not isinstance(value, str) or bool(datetime.datetime.fromisoformat(value))


def schema(name: str) -> dict:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema(name), format_checker=formats)


def objects(node: object):
    """Every subschema that describes an object."""
    if isinstance(node, dict):
        if node.get("type") == "object":
            yield node
        for value in node.values():
            yield from objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from objects(value)


def test_the_list_of_schemas_is_complete():
    assert tuple(sorted(file.name.removesuffix(".schema.json") for file in SCHEMAS.glob("*.schema.json"))) == NAMES
    assert {file.parent.name for file in EXAMPLES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_schemas_are_schemas(name):
    document = schema(name)
    jsonschema.Draft202012Validator.check_schema(document)
    assert document["$id"] == f"urn:tokenometer:schema:{name}:{2 if name in ROWS else 1}"
    assert document["title"] and document["description"]
    examples = {file.name[:2] for file in EXAMPLES if file.parent.name == name}
    assert examples == {"y_", "n_"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "record"])
def test_what_we_produce_is_closed(name):
    assert all("additionalProperties" in node for node in objects(schema(name)))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_examples_keep_their_name(file):
    errors = list(validator(file.parent.name).iter_errors(json.loads(file.read_bytes())))
    assert len(errors) == (0 if file.name.startswith("y_") else 1), errors


@pytest.mark.parametrize(
    "file", [file for file in EXAMPLES if file.parent.name == "record"], ids=lambda file: file.stem
)
def test_the_oracle_agrees_about_records(file):
    native = tomllib.loads((SCHEMAS / "mappings" / "native.toml").read_text())
    verdict = oracle.judge(file.read_bytes().rstrip(b"\n"), native)
    assert verdict.kind == ("ok" if file.name.startswith("y_") else "rejected"), verdict


def test_a_usage_value_is_its_key_and_counters():
    key, usage = schema("usage-key"), schema("usage")
    assert {name: usage["properties"][name] for name in key["properties"]} == key["properties"]
    counters = list(usage["properties"])[-7 - len(FURTHER) : -len(FURTHER)]
    assert tuple(usage["properties"])[-len(FURTHER) :] == FURTHER
    assert counters == ["requests", *FIELDS[6:], "total_tokens"]
    live, totals = schema("live"), schema("totals")
    cell = live["properties"]["cells"]["items"]["properties"]
    for properties in (
        live["properties"]["tokens"]["properties"],
        {name: cell[name] for name in cell if name not in ("window_start", "model", "chip")},
        totals["$defs"]["counters"]["properties"],
    ):
        assert list(properties) == counters


def test_reasons_and_fields_are_those_of_records_md():
    page = (SCHEMAS.parent / "docs" / "RECORDS.md").read_text()
    table = page.split("## Reasons")[1].split("##")[0]
    reasons = [reason for reason in schema("rejected")["properties"]["reason"]["enum"] if f"`{reason}` |" in table]
    assert reasons == schema("rejected")["properties"]["reason"]["enum"]
    assert len(reasons) == sum(line.startswith("| ") and "`" in line for line in table.splitlines()) - 1
    assert [*schema("live")["properties"]["rejects"]["propertyNames"]["enum"], "conflicting_duplicate"] == reasons
    named, labels = schema("rejected")["properties"]["field"]["anyOf"]
    assert named["enum"] == [*FIELDS, *FURTHER, "tokens", "total_tokens", "skip"]
    assert labels == {"pattern": "^labels\\." + schema("usage")["$defs"]["labels"]["propertyNames"]["pattern"][1:]}
    assert list(schema("record")["properties"]) == list(FIELDS)
