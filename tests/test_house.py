"""The house keeps its order: sizes of files and functions.

Floors and circles of imports are import-linter's (pyproject.toml); `make check` runs it.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CODE = {".py", ".h", ".cpp", ".cu", ".js", ".css"}
FILES = sorted(
    path for room in ("processor", "kernels", "schemas") for path in (ROOT / room).rglob("*") if path.suffix in CODE
)
FILE_LINES_MAX, FUNCTION_LINES_MAX = 600, 60  # a file has one subject, a function fits a screen


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_of_a_size_to_be_read(path: pathlib.Path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES_MAX
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < FUNCTION_LINES_MAX, f"{node.name}, line {node.lineno}"
