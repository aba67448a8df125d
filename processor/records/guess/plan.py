"""What a guess has decided so far: the tables of a mapping, and the reasons and doubts that go into its comments."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tokenometer.processor import show
from tokenometer.schemas.mapping_errors import show_path
from tokenometer.schemas.mapping_model import Path

# Labels that price lists go by, and the ends of their paths.
LABELS = {"service_tier": ["service_tier"], "inference_geo": ["inference_geo"], "speed": ["usage_speed"]}


@dataclass(frozen=True)
class Doubt:
    """What a person must check. field: a canonical field, a label, `skip`, `repeats`, or `log` for all of the log."""

    field: str
    text: str


@dataclass
class Table:
    """One [fields.NAME] or [labels.NAME]. settings: keys other than path and aliases, in their order."""

    name: str
    paths: list[Path] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    why: list[str] = field(default_factory=list)


@dataclass
class GuessPlan:
    tables: dict[str, Table] = field(default_factory=dict)
    labels: dict[str, Table] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)  # conventions and repeats
    head_why: dict[str, list[str]] = field(default_factory=dict)
    value: dict[str, Any] = field(default_factory=dict)  # [value]
    skip: list[tuple[dict[str, Any], str]] = field(default_factory=list)  # entries with their reasons
    doubts: list[Doubt] = field(default_factory=list)

    def doubt(self, name: str, text: str) -> None:
        if Doubt(name, text) not in self.doubts:
            self.doubts.append(Doubt(name, text))


def listed(names: Iterable[str], most: int = 6) -> str:
    """`a, b, c and 4 more`."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def paths_text(paths: Iterable[Path], most: int = 6) -> str:
    return listed(map(show_path, paths), most)


def of_records(count: int, total: int) -> str:
    return f"{count:,} of {show.plural(total, 'record')}"
