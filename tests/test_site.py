"""The documentation site and its notebook: they are built and run as readers get them."""

import pathlib
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
# What a page fetches by itself, and not when somebody follows a link.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)[^>]*\ssrc="?(https?:)?//|<link[^>]*rel="?(?:stylesheet|preconnect)[^>]*href="?(?:https?:)?//"""
)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_pages_ask_no_other_host(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    built = subprocess.run(
        [*command, "-f", ROOT / "deploy" / "site" / "mkdocs.yml", "-d", tmp_path],
        env={"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0 and not built.stderr.strip(), built.stderr
    pages = sorted(page.relative_to(tmp_path).as_posix() for page in tmp_path.glob("*.html"))
    assert {"index.html", "CONCEPTS.html", "BILLING.html", "PYTHON.html", "notebook.html", "RESULTS.html"} <= set(pages)
    for page in tmp_path.glob("*.html"):
        found = _FETCHED.search(page.read_text(encoding="utf-8"))
        assert found is None, f"{page.name} fetches {found.group()!r}"
    reference = (tmp_path / "PYTHON.html").read_text(encoding="utf-8")
    assert "Raises MappingError" in reference


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_notebook_runs_and_shows_what_it_shows_in_the_repository() -> None:
    shown = nbformat.read(NOTEBOOK, as_version=4)
    run = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(run, kernel_name="python3", timeout=120).execute()
    for before, after in zip(shown.cells, run.cells, strict=True):
        if before.cell_type == "code":
            outputs = [[output["data"]["text/plain"] for output in cell.outputs] for cell in (before, after)]
            assert outputs[0] == outputs[1], before.source
