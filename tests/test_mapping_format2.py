"""What only mapping format 2 can say, and the words of its errors."""

import dataclasses

import pytest

from tests.mapping_text import FORMATS, PATH, token_events, toml, toml2
from tokenometer.schemas.mapping import FIELDS, Condition, Convention, Field, MappingError, parse

TOTAL = 'path = "total"'


def test_format_2_without_anything_new_is_format_1_with_longer_ids():
    one, two = parse(toml(request_id='path = "id"'), "e"), parse(toml2(request_id='path = "id"'), "e")
    assert two.field("request_id") == dataclasses.replace(one.field("request_id"), bytes_max=1024)
    assert one.fields[1:] == two.fields[1:]
    assert (one.conventions, one.skip, one.total, one.repeats) == (two.conventions, (), None, "first")
    assert one.plain and two.plain


@pytest.mark.parametrize(
    ("name", "body", "changes"),
    [
        ("request_id", 'path = "i"\nempty = "absent"', {"empty_is_absent": True}),
        ("request_id", 'path = "i"\nnumbers = true', {"numbers": True}),
        ("request_id", 'path = "i"\nwith = ["user", "model"]', {"with_fields": ("user", "model")}),
        ("user", 'path = "u"\nempty = "absent"\nnumbers = true', {"empty_is_absent": True, "numbers": True}),
        ("input_tokens", 'path = "i"\nplus = ["a", ["b", "c"]]', {"plus": (("a",), ("b", "c"))}),
        ("input_tokens", 'path = "i"\nwhole_numbers = true', {"whole_numbers": True}),
        ("timestamp", 'path = "t"\nformats = ["iso8601"]', {"formats": ("iso8601",)}),
        ("timestamp", 'path = "t"\nformats = ["iso8601"]\nzone = "UTC"', {"zone_minutes": 0}),
        ("timestamp", 'path = "t"\nformats = ["iso8601"]\nzone = "+08:00"', {"zone_minutes": 480}),
        ("timestamp", 'path = "t"\nformats = ["iso8601"]\nzone = "-23:59"', {"zone_minutes": -1439}),
        ("timestamp", 'path = "t"\nformats = ["epoch_ms"]\ndigits = true', {"digits": True}),
    ],
)
def test_a_field_of_format_2_is_read_as_written(name, body, changes):
    field = parse(toml2(**{name: body}), "e").field(name)
    assert {key: getattr(field, key) for key in changes} == changes


def test_the_total_is_no_field_of_a_row():
    mapping = parse(toml2(total_tokens='path = "total"\naliases = ["all"]\ndigits = true'), "e")
    assert mapping.total == Field("total_tokens", "count", (("total",), ("all",)), False, None, digits=True)
    assert tuple(field.name for field in mapping.fields) == FIELDS
    required = parse(toml2(total_tokens='path = "total"\nrequired = true'), "e").total
    assert required is not None and required.required


@pytest.mark.parametrize(
    ("body", "condition"),
    [
        ('in = ["a", true, 1, ""]', Condition(("k",), "in", ("a", ""), (1,), (True,))),
        ("not_in = [false]\nabsent = true", Condition(("k",), "not_in", (), (), (False,), or_absent=True)),
        ("present = true", Condition(("k",), "present")),
        ("absent = true", Condition(("k",), "absent")),
        (f'in = ["{"x" * 48}", {2**64 - 1}, {-(2**63)}]',
         Condition(("k",), "in", ("x" * 48,), (2**64 - 1, -(2**63)))),
        (r"in = ['a*', 'a\*', 'b\\*', '\\', '*', 1]",
         Condition(("k",), "in", ("a*", "\\"), (1,), prefixes=("a", "b\\", ""))),
        (f"not_in = ['{'x' * 48}*', '{'y' * 47}{chr(92)}*']",
         Condition(("k",), "not_in", ("y" * 47 + "*",), prefixes=("x" * 48,))),
    ],
)  # fmt: skip
def test_a_condition_is_read_as_written(body, condition):
    assert parse(toml2(end=f'[[skip]]\npath = "k"\n{body}\n'), "e").skip == ((condition,),)


def test_conditions_of_an_entry_are_kept_together():
    end = (
        '[[skip]]\npath = "k"\npresent = true\nand = [{ path = ["a", "b"], in = [1] }, { path = "c", absent = true }]\n'
    )
    [entry] = parse(toml2(end=end), "e").skip
    assert [(each.path, each.test) for each in entry] == [(("k",), "present"), (("a", "b"), "in"), (("c",), "absent")]


INCLUSIVE = Convention(False)
REASONING = Convention(False, field="output_tokens")
BY_PATH = '{ path = "provider", additive = ["anthropic"], inclusive = ["openai"]%s }'
BY_VALUE = Convention(None, paths=(("provider",),), values=(("openai", False), ("anthropic", True)))


@pytest.mark.parametrize(
    ("head", "conventions"),
    [
        ({}, (INCLUSIVE, INCLUSIVE, REASONING)),
        ({"cache_write_tokens_are": '"additive"'},
         (INCLUSIVE, Convention(True, field="cache_write_tokens"), REASONING)),
        ({"reasoning_tokens_are": '"by_total"'},
         (INCLUSIVE, INCLUSIVE, Convention(False, by_total=True, field="reasoning_tokens"))),
        ({"input_tokens_are": '{ by_total = "additive" }'},
         (Convention(True, by_total=True), Convention(True, by_total=True), REASONING)),
        ({"input_tokens_are": BY_PATH % ""}, (BY_VALUE, BY_VALUE, REASONING)),
        ({"input_tokens_are": BY_PATH % ', otherwise = "additive"'},
         (dataclasses.replace(BY_VALUE, additive=True), dataclasses.replace(BY_VALUE, additive=True), REASONING)),
        ({"output_tokens_are": '{ path = "m", aliases = [["a", "b"], "c"], additive = ["x"] }'},
         (INCLUSIVE, INCLUSIVE, Convention(None, paths=(("m",), ("a", "b"), ("c",)), values=(("x", True),),
                                           field="output_tokens"))),
        ({"output_tokens_are": r"{ path = 'm', inclusive = ['a*', 'a'], additive = ['b*', true, 'c\*'] }"},
         (INCLUSIVE, INCLUSIVE, Convention(None, paths=(("m",),), values=(("a", False), (True, True), ("c*", True)),
                                           field="output_tokens", prefixes=(("a", False), ("b", True))))),
    ],
)  # fmt: skip
def test_a_convention_is_read_as_written(head, conventions):
    mapping = parse(toml2(head, total_tokens=TOTAL), "e")
    assert mapping.conventions == conventions
    assert mapping.plain == (head == {})


@pytest.mark.parametrize(
    "text",
    [
        toml2(chip='path = "model"'),
        toml2(request_id='path = "user"\nscope = "model"', end='[[skip]]\npath = "model"\nin = ["x"]\n'),
        toml2(end='[[skip]]\npath = "in"\npresent = true\nand = [{ path = "error", present = true }]\n'),
        toml2(input_tokens='path = ["usage", "in"]', end='[[skip]]\npath = "usage"\nabsent = true\n'),
        toml2(end="".join(f'[[skip]]\npath = "k{n}"\nin = {list(range(16))}\n' for n in range(8))),
        toml2(input_tokens='path = "i"\nplus = ["a", "b", "c", "d"]'),
        toml2({"repeats": '"grow"'}, request_id='path = "id"'),
        toml2({"repeats": '"first"'}),
        toml2({"input_tokens_are": f'{{ path = "p", inclusive = {[str(n) for n in range(16)]} }}'}),
    ],
)
def test_what_format_2_allows(text):
    parse(text, "example")


def test_every_path_is_listed():
    mapping = parse(
        toml2(
            {"input_tokens_are": '{ path = "p", inclusive = [""] }'},
            request_id='path = "id"\nscope = "s"',
            input_tokens='path = "i"\naliases = ["j"]\nplus = ["k"]',
            total_tokens=TOTAL,
            end='[[skip]]\npath = "q"\npresent = true\n',
        ),
        "e",
    )
    names = {*"s i j k p q".split(), "id", "total", "time", "user", "model", "chip", "out"}
    assert {path[0] for path in mapping.paths} == names


# --- Errors ---


def skip(*bodies: str) -> str:
    return toml2(end="".join(f"[[skip]]\n{body}\n" for body in bodies))


TESTS = "expected exactly one of in, not_in, present = true and absent = true"
ARE = 'expected "inclusive", "additive", "by_total", or a table with by_total or path'
ERRORS = {
    # What format 1 has not
    **{
        f"{key}_under_format_1": (toml({key: '"x"'}), [f"{key}: needs format = 2"])
        for key in ("repeats", "skip", "cached_input_tokens_are", "reasoning_tokens_are")
    },
    "total_under_format_1": (toml(total_tokens=TOTAL), ["fields.total_tokens: needs format = 2"]),
    "plus_under_format_1": (
        toml(input_tokens='path = "i"\nplus = ["j"]'),
        ["fields.input_tokens.plus: needs format = 2"],
    ),
    "iso8601_under_format_1": (
        toml(timestamp='path = "t"\nformats = ["iso8601"]'),
        ["fields.timestamp.formats: needs format = 2"],
    ),
    "by_total_under_format_1": (
        toml({"input_tokens_are": '"by_total"'}),
        ['input_tokens_are: expected "inclusive" or "additive", found "by_total"'],
    ),
    "shared_path_under_format_1": (toml(chip='path = "model"'), ['"model" is already read by fields.model.path']),
    # Skip
    "skip_table": (toml2({"skip": "{}"}), ["skip: expected 1 to 8 tables, each written as [[skip]], found a table"]),
    "skip_nine": (
        skip(*[f'path = "k{n}"\nin = [1]' for n in range(9)]),
        ["skip: expected 1 to 8 tables", "a list of 9"],
    ),
    "skip_string": (toml2({"skip": '["x"]'}), ['skip[0]: expected a table with a path and one test, found "x"']),
    "skip_unknown_key": (skip('path = "k"\nisin = [1]'), ["skip[0].isin: unknown key; expected one of path, in"]),
    "skip_without_path": (skip("in = [1]"), ["skip[0].path: " + PATH + "nothing"]),
    "skip_without_test": (skip('path = "k"'), ["skip[0]: " + TESTS, "found nothing"]),
    "skip_two_tests": (skip('path = "k"\nin = [1]\npresent = true'), ["skip[0]: " + TESTS, '"in and present"']),
    "skip_present_absent": (skip('path = "k"\npresent = true\nabsent = true'), ["skip[0]: " + TESTS]),
    "skip_present_false": (skip('path = "k"\npresent = false'), ["skip[0].present: expected true, found false"]),
    "skip_absent_string": (skip('path = "k"\nabsent = "yes"'), ['skip[0].absent: expected true, found "yes"']),
    "skip_in_string": (skip('path = "k"\nin = "a"'), ["skip[0].in: expected a list of 1 to 16", 'found "a"']),
    "skip_in_empty": (skip('path = "k"\nin = []'), ["skip[0].in: expected a list of 1 to 16", "an empty list"]),
    "skip_in_17": (skip(f'path = "k"\nin = {list(range(17))}'), ["skip[0].in: expected a list of 1 to 16", "17"]),
    "skip_in_fraction": (skip('path = "k"\nin = ["a", 1.0]'), ["skip[0].in[1]: expected strings,", "found 1.0"]),
    "skip_in_list": (skip('path = "k"\nin = [["a"]]'), ["skip[0].in[0]: expected strings,", "found a list of 1"]),
    "skip_star_inside": (skip(r"path = 'k'" + "\nin = ['a*b']"), ["skip[0].in[0]: expected a star only at the end"]),
    "skip_two_stars": (skip(r"path = 'k'" + "\nin = ['a**']"), ["skip[0].in[0]: expected a star only at the end"]),
    "skip_lone_backslash": (skip(r"path = 'k'" + "\nin = ['a', 'a\\b']"), ["skip[0].in[1]: expected a star only at"]),
    "skip_beginning_twice": (
        skip(r"path = 'k'" + "\nin = ['a*', 'a*']"),
        ["skip[0].in: the same value is listed twice"],
    ),
    "skip_beginning_of_49_bytes": (skip(f"path = 'k'\nin = ['{'x' * 49}*']"), ["expected at most 48 bytes"]),
    "skip_in_49_bytes": (skip(f'path = "k"\nin = ["{"x" * 49}"]'), ["skip[0].in[0]: expected at most 48 bytes"]),
    "skip_in_65_bits": (skip(f'path = "k"\nnot_in = [{2**64}]'), ["skip[0].not_in[0]: expected an integer of 64 bits"]),
    "skip_in_twice": (skip('path = "k"\nin = ["a", "a"]'), ["skip[0].in: the same value is listed twice"]),
    "skip_and_table": (skip('path = "k"\nin = [1]\nand = {}'), ["skip[0].and: expected a list of 1 to 7 tables"]),
    "skip_and_eight": (
        skip('path = "k"\nin = [1]\nand = [' + ",".join(f'{{path="a{n}",in=[1]}}' for n in range(8)) + "]"),
        ["skip[0].and: expected a list of 1 to 7 tables, found a list of 8"],
    ),
    "skip_and_and": (
        skip('path = "k"\nin = [1]\nand = [{ path = "a", in = [1], and = [] }]'),
        ["skip[0].and[0].and: unknown key"],
    ),
    "skip_same_path_twice": (
        skip('path = "k"\nin = [1]\nand = [{ path = "k", not_in = [2] }]'),
        ['skip[0].and[0].path: "k" is already read by skip[0].path'],
    ),
    "skip_can_never_fit": (
        skip('path = "k"\nabsent = true\nand = [{ path = ["k", "l"], in = [2] }]'),
        ["skip[0]: can never fit"],
    ),
    "skip_everything": (
        skip('path = "a"\nin = [1]', 'path = "user"\npresent = true'),
        ["skip[1]: would skip every record that can be counted: user is required there"],
    ),
    "skip_value_of_an_object": (
        toml2(input_tokens='path = ["usage", "in"]', end='[[skip]]\npath = "usage"\nin = [1]\n'),
        ['fields.input_tokens.path: ["usage", "in"] begins with the path of skip[0].path'],
    ),
    # Conventions
    "are_number": (toml2({"input_tokens_are": "1"}), ["input_tokens_are: " + ARE, "found 1"]),
    "are_other": (toml2({"output_tokens_are": '"by_totals"'}), ["output_tokens_are: " + ARE, '"by_totals"']),
    "are_empty": (
        toml2({"output_tokens_are": "{}"}),
        ["output_tokens_are: expected a table with either by_total or path"],
    ),
    "are_both": (
        toml2({"output_tokens_are": '{ by_total = "additive", path = "p" }'}, total_tokens=TOTAL),
        ["output_tokens_are: expected a table with either by_total or path"],
    ),
    "by_total_without_a_total": (
        toml2({"output_tokens_are": '"by_total"'}),
        ["output_tokens_are: by_total needs the total: map fields.total_tokens"],
    ),
    "by_total_other": (
        toml2({"output_tokens_are": '{ by_total = "both" }'}, total_tokens=TOTAL),
        ['output_tokens_are.by_total: expected "inclusive" or "additive", found "both"'],
    ),
    "by_total_otherwise": (
        toml2({"output_tokens_are": '{ by_total = "additive", otherwise = "additive" }'}, total_tokens=TOTAL),
        ["output_tokens_are.otherwise: unknown key; expected one of by_total"],
    ),
    "are_path_alone": (
        toml2({"output_tokens_are": '{ path = "p", otherwise = "additive" }'}),
        ["output_tokens_are: expected a list of values under inclusive or additive"],
    ),
    "are_path_number": (
        toml2({"output_tokens_are": '{ path = 7, additive = ["x"] }'}),
        ["output_tokens_are.path: " + PATH + "7"],
    ),
    "are_aliases_five": (
        toml2({"output_tokens_are": '{ path = "p", aliases = ["a", "b", "c", "d", "e"], additive = ["x"] }'}),
        ["output_tokens_are.aliases: expected a list of 1 to 4 paths"],
    ),
    "are_alias_twice": (
        toml2({"output_tokens_are": '{ path = "p", aliases = ["p"], additive = ["x"] }'}),
        ['output_tokens_are.aliases[0]: "p" is already read by output_tokens_are.path'],
    ),
    "are_values_number": (
        toml2({"output_tokens_are": '{ path = "p", additive = [7] }'}),
        ["output_tokens_are.additive[0]: expected strings or booleans, found 7"],
    ),
    "are_values_twice": (
        toml2({"output_tokens_are": '{ path = "p", additive = ["x"], inclusive = ["x"] }'}),
        ["output_tokens_are: the same value is listed under inclusive and under additive"],
    ),
    "are_values_17": (
        toml2({"output_tokens_are": f'{{ path = "p", additive = ["x"], inclusive = {[str(n) for n in range(16)]} }}'}),
        ["output_tokens_are: expected at most 16 values in both lists", "17 values"],
    ),
    "are_otherwise_other": (
        toml2({"output_tokens_are": '{ path = "p", additive = ["x"], otherwise = "reject" }'}),
        ['output_tokens_are.otherwise: expected "inclusive", "additive" or "by_total", found "reject"'],
    ),
    "are_otherwise_by_total_without_one": (
        toml2({"input_tokens_are": '{ path = "p", additive = ["x"], otherwise = "by_total" }'}),
        ["input_tokens_are.otherwise: by_total needs the total: map fields.total_tokens"],
    ),
    "refuse_without_a_test": (toml2(end='[[refuse]]\npath = "k"\n'), ["refuse[0]: " + TESTS]),
    "refuse_nine": (
        toml2(end="".join(f'[[refuse]]\npath = "k{n}"\nin = [1]\n' for n in range(9))),
        ["refuse: expected 1 to 8 tables, each written as [[refuse]]"],
    ),
    "refuse_everything": (
        toml2(end='[[refuse]]\npath = "model"\npresent = true\n'),
        ["refuse[0]: would refuse every record that can be counted: model is required there"],
    ),
    "refuse_under_format_1": (
        toml() + '[[refuse]]\npath = "k"\nin = [1]\n',
        ["refuse: needs format = 2"],
    ),
    "scope_of_other": (
        toml2(request_id='path = "i"\naliases = ["j"]\nscope = "s"\nscope_of = "path"'),
        ['fields.request_id.scope_of: expected "aliases", found "path"'],
    ),
    "scope_of_nothing": (
        toml2(request_id='path = "i"\naliases = ["j"]\nscope_of = "aliases"'),
        ["fields.request_id.scope_of: needs scope"],
    ),
    "scope_of_no_aliases": (
        toml2(request_id='path = "i"\nscope = "s"\nscope_of = "aliases"'),
        ["fields.request_id.scope_of: needs aliases"],
    ),
    "are_without_effect": (
        toml2({"output_tokens_are": '{ path = "p", additive = ["x"] }', "reasoning_tokens_are": '"inclusive"'}),
        ["output_tokens_are: has no effect: each of its parts has a convention of its own"],
    ),
    # Totals and sums
    "total_and_tokens": (
        token_events().replace("format = 1", "format = 2") + f"[fields.total_tokens]\n{TOTAL}\n",
        ["fields.total_tokens: excluded by fields.tokens"],
    ),
    "total_default": (
        toml2(total_tokens=TOTAL + "\ndefault = 0"),
        ["fields.total_tokens.default: not for this field"],
    ),
    "plus_string": (
        toml2(input_tokens='path = "i"\nplus = "j"'),
        ["fields.input_tokens.plus: expected a list of 1 to 4"],
    ),
    "plus_five": (toml2(input_tokens=f'path = "i"\nplus = {list("abcde")}'), ["fields.input_tokens.plus", "list of 5"]),
    "plus_empty": (toml2(input_tokens='path = "i"\nplus = []'), ["fields.input_tokens.plus", "an empty list"]),
    "plus_itself": (
        toml2(input_tokens='path = "i"\nplus = ["j", "i"]'),
        ['fields.input_tokens.plus[1]: "i" is already read by fields.input_tokens.path'],
    ),
    "plus_of_user": (toml2(user='path = "u"\nplus = ["v"]'), ["fields.user.plus: not for this field; only for"]),
    "plus_of_constant": (
        toml2(input_tokens='constant = 1\nplus = ["v"]'),
        ["fields.input_tokens.plus: excluded by constant"],
    ),
    # Strings, numbers and identity
    "empty_other": (toml2(user='path = "u"\nempty = "null"'), ['fields.user.empty: expected "absent", found "null"']),
    "empty_true": (toml2(user='path = "u"\nempty = true'), ['fields.user.empty: expected "absent", found true']),
    "numbers_string": (toml2(user='path = "u"\nnumbers = "yes"'), ["fields.user.numbers: expected true or false"]),
    "numbers_of_count": (
        toml2(input_tokens='path = "u"\nnumbers = true'),
        ["fields.input_tokens.numbers: not for this"],
    ),
    "whole_numbers_string": (
        toml2(input_tokens='path = "i"\nwhole_numbers = 1'),
        ["fields.input_tokens.whole_numbers: expected true or false, found 1"],
    ),
    "with_string": (
        toml2(request_id='path = "i"\nwith = "user"'),
        ["fields.request_id.with: expected a list of user, model"],
    ),
    "with_empty": (toml2(request_id='path = "i"\nwith = []'), ["fields.request_id.with: expected a list of user"]),
    "with_unknown": (
        toml2(request_id='path = "i"\nwith = ["usr"]'),
        ["fields.request_id.with[0]: expected one of user, model, chip, prefill_chip", "did you mean user?"],
    ),
    "with_twice": (
        toml2(request_id='path = "i"\nwith = ["user", "user"]'),
        ["fields.request_id.with: the same field is listed twice"],
    ),
    "with_a_constant": (
        toml2(request_id='path = "i"\nwith = ["user", "chip"]', chip='constant = "H100"'),
        ["fields.request_id.with[1]: chip is the same in every record of this mapping"],
    ),
    "with_unmapped": (
        toml2(request_id='path = "i"\nwith = ["prefill_chip"]'),
        ["fields.request_id.with[0]: prefill_chip"],
    ),
    "with_of_user": (
        toml2(user='path = "i"\nwith = ["model"]'),
        ["fields.user.with: not for this field; only for request_id"],
    ),
    # Times
    "two_text_formats": (
        toml2(timestamp='path = "t"\nformats = ["rfc3339", "iso8601"]'),
        ["fields.timestamp.formats: " + FORMATS, "found rfc3339, iso8601"],
    ),
    "zone_without_iso8601": (
        toml2(timestamp='path = "t"\nformats = ["rfc3339"]\nzone = "UTC"'),
        ["fields.timestamp.zone: needs iso8601 in formats"],
    ),
    **{
        f"zone_{number}": (
            toml2(timestamp=f'path = "t"\nformats = ["iso8601"]\nzone = {zone}'),
            ['fields.timestamp.zone: expected "UTC" or an offset such as "+08:00"'],
        )
        for number, zone in enumerate(['"Z"', '"Europe/Berlin"', '"+24:00"', '"+0800"', '"08:00"', "8", '"+08:60"'])
    },
    "digits_without_an_epoch": (
        toml2(timestamp='path = "t"\nformats = ["iso8601"]\ndigits = true'),
        ["fields.timestamp.digits: needs an epoch format in formats"],
    ),
    # Repeats
    "repeats_other": (toml2({"repeats": '"last"'}), ['repeats: expected "first" or "grow", found "last"']),
    "repeats_true": (toml2({"repeats": "true"}), ['repeats: expected "first" or "grow", found true']),
    "grow_without_an_id": (
        toml2({"repeats": '"grow"'}),
        ["repeats: grow needs to know which records belong together: map fields.request_id"],
    ),
}


@pytest.mark.parametrize(("text", "fragments"), ERRORS.values(), ids=ERRORS)
def test_an_error_says_where_and_what(text, fragments):
    with pytest.raises(MappingError) as caught:
        parse(text, "dir/mine.toml")
    message = str(caught.value)
    assert message.startswith("dir/mine.toml: ")
    assert "\n" not in message
    assert [fragment for fragment in fragments if fragment not in message] == [], message
