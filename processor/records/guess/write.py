"""A plan as the text of a mapping file: TOML with the reasons and doubts as comments."""

import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from tokenometer.processor import show
from tokenometer.processor.records.guess.plan import LABELS, Doubt, GuessPlan, Table, paths_text
from tokenometer.schemas.mapping_model import FIELDS, PLACES_MAX, TOTAL_TOKENS, Path

CHECK = "# CHECK: "
_WIDTH = 118
# Where two paths exclude each other the more important field keeps its own: input and output first, then the time.
_ORDER = (
    "tokens", "input_tokens", "output_tokens", "timestamp", "request_id", "user", "model", "chip", "prefill_chip",
    "cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "total_tokens",
)  # fmt: skip


def quoted(text: str) -> str:
    """A TOML string: JSON's escapes are TOML's, but for DEL, which TOML wants escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, tuple):  # a path
        return quoted(value[0]) if len(value) == 1 else value_text(list(value))
    if isinstance(value, list):
        return f"[{', '.join(map(value_text, value))}]"
    if isinstance(value, dict):
        items = (f"{key if key.isidentifier() and key.isascii() else quoted(key)} = {value_text(item)}"
                 for key, item in value.items())  # fmt: skip
        return f"{{ {', '.join(items)} }}"
    return str(value)


def comment(text: str, first: str = "# ") -> list[str]:
    """Lines of a comment; nothing in a log's own text can end it."""
    safe = show.printable(" ".join(text.split()))
    return textwrap.wrap(safe, _WIDTH, initial_indent=first, subsequent_indent="#   ", break_long_words=True)


def made_valid(plan: GuessPlan) -> None:
    """Leaves out, with a doubt, what the loader would refuse: paths through values of others, and too many keys."""
    kept: set[Path] = set()
    for name in _ORDER:
        if table := plan.tables.get(name):
            _keep(table, kept, plan)
    for label, table in list(plan.labels.items()):
        if _conflicts(table.paths[0], kept):
            del plan.labels[label]
            plan.doubt(label, f"{paths_text(table.paths)} is not read: another field reads a part of this path.")
        else:
            kept.add(table.paths[0])
    _drop_skips(plan, kept)
    for key, value in plan.head.items():
        if isinstance(value, dict) and "path" in value:
            if _conflicts(value["path"], kept):
                plan.head[key] = "inclusive"
                plan.doubt(key, f"{paths_text([value['path']])} cannot tell: another field reads a part of this path.")
            kept.add(plan.head[key]["path"]) if plan.head[key] is value else None
    while len(_places(plan)) > PLACES_MAX:
        longest = max(plan.tables.values(), key=lambda table: len(table.paths))
        if len(longest.paths) < 2:
            break
        left_out = longest.paths.pop()
        plan.doubt(longest.name, f"{paths_text([left_out])} is not read: a mapping has at most {PLACES_MAX} keys.")


def _conflicts(path: Path, kept: Iterable[Path]) -> bool:
    return any(path != other and path[: len(other)] == other[: len(path)] for other in kept)


def _keep(table: Table, kept: set[Path], plan: GuessPlan) -> None:
    """A path may not go through the value that another path reads: the first one stays."""
    plus = table.settings.get("plus", [])
    for path in [*table.paths, *plus]:
        if _conflicts(path, kept):
            (table.paths if path in table.paths else plus).remove(path)
            plan.doubt(
                table.name, f"{paths_text([path])} is not read, because another field reads a part of this path."
            )
        else:
            kept.add(path)
    if not plus:
        table.settings.pop("plus", None)
    if table.paths or "constant" in table.settings:
        return
    if table.name in ("user", "model", "chip"):
        table.settings = {"constant": "unknown"}
    elif table.name == "timestamp":
        table.paths = [free(table.name, kept)]
        kept.add(table.paths[0])
    else:
        del plan.tables[table.name]


def free(name: str, kept: Iterable[Path]) -> Path:
    """A path of one key that goes through no other."""
    firsts = {path[0] for path in kept}
    while name in firsts:
        name = f"no_{name}"
    return (name,)


def _drop_skips(plan: GuessPlan, kept: set[Path]) -> None:
    entries = []
    for entry, why in plan.skip:
        paths = [entry["path"], *(more["path"] for more in entry.get("and", []))]
        if any(_conflicts(path, kept) for path in paths):
            plan.doubt("skip", f"{paths_text(paths)} cannot be looked at: another field reads a part of this path.")
        else:
            entries.append((entry, why))
            kept.update(paths)
    plan.skip = entries


def _places(plan: GuessPlan) -> set[Path]:
    tables = [*plan.tables.values(), *plan.labels.values()]
    paths = [path for table in tables for path in (*table.paths, *table.settings.get("plus", []))]
    paths += [table.settings["by"] for table in plan.tables.values() if "by" in table.settings]
    paths += [item["path"] for entry, _ in plan.skip for item in (entry, *entry.get("and", []))]
    paths += [value["path"] for value in plan.head.values() if isinstance(value, dict) and "path" in value]
    return {path[:end] for path in paths for end in range(1, len(path) + 1)}


def text_of(plan: GuessPlan, name: str, head: list[str]) -> str:
    lines = [line for text in head for line in comment(text)]
    lines += _checks(plan, "log")
    lines += ["", "format = 2", f"name = {quoted(name)}", 'description = "Guessed from a sample of the log."']
    for key in sorted(plan.head, key=lambda key: (not key.startswith("input"), not key.endswith("_are"), key)):
        lines += [line for text in plan.head_why.get(key, []) for line in comment(text)]
        lines += _checks(plan, key) + [f"{key} = {value_text(plan.head[key])}"]
    lines += _skip_lines(plan)
    if plan.value:
        lines += [
            "",
            "[value]",
            *(f"{key} = {value_text(list(value) if key == 'json_in' else value)}" for key, value in plan.value.items()),
        ]
    known = {"log", *plan.head}
    for field in (*FIELDS, "tokens", TOTAL_TOKENS):
        lines += _table_lines(plan, plan.tables, "fields", field)
        known.add(field)
    for label in dict.fromkeys([*plan.labels, *(doubt.field for doubt in plan.doubts if doubt.field in LABELS)]):
        lines += _table_lines(plan, plan.labels, "labels", label)
        known.add(label)
    assert {doubt.field for doubt in plan.doubts} <= known | {"skip"}, "a doubt that is not written"
    return "\n".join(lines) + "\n"


def _checks(plan: GuessPlan, field: str) -> list[str]:
    return [line for doubt in plan.doubts if doubt.field == field for line in comment(_sentence(doubt), CHECK)]


def _sentence(doubt: Doubt) -> str:
    return doubt.text if doubt.field in ("log", "skip") else f"{doubt.field}: {doubt.text}"


def _skip_lines(plan: GuessPlan) -> list[str]:
    checks = _checks(plan, "skip")
    lines = ["", *checks] if checks else []
    for entry, why in plan.skip:
        lines += ["", "[[skip]]", *comment(why), *(f"{key} = {value_text(value)}" for key, value in entry.items())]
    return lines


def _table_lines(plan: GuessPlan, tables: Mapping[str, Table], kind: str, field: str) -> list[str]:
    table = tables.get(field)
    checks = _checks(plan, field)
    if not table:
        return ["", *checks] if checks else []
    lines = ["", *(line for why in table.why for line in comment(why)), *checks, f"[{kind}.{field}]"]
    if table.paths:
        lines.append(f"path = {value_text(table.paths[0])}")
    if table.paths[1:]:
        lines.append(f"aliases = {value_text(table.paths[1:])}")
    return lines + [f"{key} = {value_text(value)}" for key, value in table.settings.items()]
