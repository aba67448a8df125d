"""layout.h and layout.py say the same, or nothing is built: each difference is refused by its name."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tokenometer.kernels import build, layout
from tokenometer.schemas.compiled import BuildError

ROOT = pathlib.Path(__file__).parents[1]
# Only what the compiler says is wanted: all other tests run what it makes.
BUILD = "from tokenometer.kernels import build; build.build_host(extra=('-fsyntax-only',))"


def build_changed(folder: pathlib.Path, file: str = "", changes: tuple[tuple[str, str], ...] = ()) -> str:
    """Builds a copy of the sources with texts of one file replaced; what the builder says, empty where it built."""
    package = folder / "tokenometer"
    for room in ("kernels", "schemas"):
        shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "__init__.py").touch()
    for old, new in changes:
        text = (package / file).read_text()
        assert text.count(old) == 1, f"{old} is one place"
        (package / file).write_text(text.replace(old, new))
    environment = os.environ | {"PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-c", BUILD]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not done.stderr)
    return done.stderr


@pytest.mark.slow
def test_unchanged_sources_build(tmp_path):
    assert build_changed(tmp_path) == ""


CHANGES = {
    # case: file, replacements, and what the refusal names
    "two counters in C++": (
        "kernels/layout.h",
        (("  OUTPUT = 4", "  REASONING = 4"), ("  REASONING = 5", "  OUTPUT = 5")),
        ("OUTPUT == 4", "REASONING == 5"),
    ),
    "two counters of the schema": (
        "schemas/usage.py",
        (
            ("    output_tokens: int", "    last: int"),
            ("    reasoning_", "    output_"),
            ("    last:", "    reasoning_tokens:"),
        ),
        ("OUTPUT == 5", "REASONING == 4"),
    ),
    "two verdicts": (
        "kernels/layout.py",
        (("REJECTED, DUPLICATE, SKIPPED,", "REJECTED, SKIPPED, DUPLICATE,"),),
        ("DUPLICATE == 5", "SKIPPED == 4"),
    ),
    "two pointers in C++": (
        "kernels/layout.h",
        (("  TextEntry* texts;\n  Cell* cells;\n", "  Cell* cells;\n  TextEntry* texts;\n"),),
        ("OFFSET_OF(Job, texts) == ", "OFFSET_OF(Job, cells) == "),
    ),
    "two pointers in numpy": (
        "kernels/layout.py",
        (("texts cells rows further", "cells texts rows further"),),
        ("OFFSET_OF(Job, texts) == ", "OFFSET_OF(Job, cells) == "),
    ),
    "a field in numpy alone": (
        "kernels/layout.py",
        (('("epoch", "u4"), ("further", "u4")', '("epoch", "u4"), ("unknown", "u4")'),),
        ("unknown",),
    ),
    "a field's size": (
        "kernels/layout.h",
        (("  u32 requests;  // such", "  u64 requests;  // such"),),
        ("sizeof(Choice::requests) == 4", "sizeof(Choice) == 64"),
    ),
    "a limit": ("kernels/layout.h", (("KEYS_MAX = 64", "KEYS_MAX = 65"),), ("KEYS_MAX == 64", "sizeof(Plan) == ")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGES)
def test_a_difference_is_refused_by_its_name(tmp_path, case):
    file, changes, named = CHANGES[case]
    said = build_changed(tmp_path, file, changes)
    assert "BuildError" in said
    for name in named:
        assert name in said


def test_every_name_of_the_header_is_compared():
    """The compiler compares what layout.py knows; here the other direction: nothing in layout.h is unknown to it."""
    header = re.sub(r"//.*", "", (ROOT / "kernels" / "layout.h").read_text())
    names = set(re.findall(r"\b([A-Z][A-Z0-9_]+) = ", header))
    assert names == set(layout.constants())
    structs = dict(re.findall(r"^struct (?:alignas\(\d+\) )?(\w+) \{\n(.*?)^\};", header, re.MULTILINE | re.DOTALL))
    fields = {
        struct: [
            name
            for line in re.findall(r"(.+);", body)
            for name in re.findall(r"(\w+)(?:\[\w+(?: [/+-] \d)?\])*(?:,|$)", line)
        ]
        for struct, body in structs.items()
    }
    assert fields == {
        struct: [name for name in dtype.names or () if name != "padding"] for struct, dtype in layout.STRUCTS.items()
    }


def test_the_gpus_compiler_refuses_a_difference_too(monkeypatch):
    pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="NVRTC is not installed", exc_type=ImportError)
    monkeypatch.setattr(layout, "OUTPUT", layout.REASONING)
    with pytest.raises(BuildError, match=r"layout\.py expects \(u64\)OUTPUT == 5"):
        build.compile_device("sm_80")
