"""What is installed: one top-level package, complete, that runs from any directory beside others' packages.

The slow half builds the wheel and installs it into a fresh virtual environment: nothing of this repository is on its
path. What the wheel says that it needs is linked from the environment of the tests, where pip has installed the same.
"""

import fnmatch
import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass

import orjson
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tokenometer.schemas import compiled

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = ("kernels", "processor", "schemas")
NOT_INSTALLED = (
    "schemas/examples/*",
    "schemas/mappings/examples/*.expected.json",
    "*.md",
)  # for readers and tests of the repository
RECORD = {"timestamp": 1_795_000_000_000, "request_id": "r", "user": "ann", "model": "m", "chip": "c",
          "input_tokens": 30, "output_tokens": 12}  # fmt: skip


def module_of(folder: pathlib.PurePath) -> str:
    """processor/api is the package itself; the others are named as they lie."""
    return "tokenometer" if folder.as_posix() == "processor/api" else ".".join(("tokenometer", *folder.parts))


def tracked() -> list[pathlib.PurePosixPath]:
    """Of the repository, with those that are new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a checkout of the repository")
    return [pathlib.PurePosixPath(name) for name in found.split("\0") if name and (ROOT / name).is_file()]


def test_every_folder_of_code_is_a_package_that_is_listed():
    folders = {path.parent for path in tracked() if path.name == "__init__.py" and path.parts[0] in FOLDERS}
    assert SETTINGS["packages"] == sorted(map(module_of, folders)), "the list is sorted, too"
    without = {path.parent for path in tracked() if path.suffix == ".py" and path.parts[0] in FOLDERS} - folders
    assert not without, "a folder of modules without __init__.py is not installed"


# --- The wheel ---


@dataclass(frozen=True)
class Installed:
    """A fresh virtual environment with the wheel in it, and a directory that is not the repository's."""

    home: pathlib.Path
    wheel: pathlib.Path
    elsewhere: pathlib.Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of its programs, as a user's shell runs it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        # So that the kernels are built anew, and in a second: how fast they are is not asked here.
        environment |= {"XDG_CACHE_HOME": str(self.elsewhere / "cache"), "CXX": str(self.elsewhere / "hasty-compiler")}
        return subprocess.run(
            [self.home / "bin" / program, *arguments], cwd=self.elsewhere, env=environment, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def python(*arguments: object) -> None:
    subprocess.run([*map(str, arguments)], check=True, capture_output=True, timeout=600)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("package")
    copy = base / "copy"  # setuptools leaves its own folders where it builds
    for path in tracked():
        if path.parts[0] in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_bytes((ROOT / path).read_bytes())
    pip = sys.executable, "-m", "pip", "--quiet"
    python(*pip, "wheel", "--no-deps", "--wheel-dir", base / "wheels", copy)
    [wheel] = (base / "wheels").glob("*.whl")
    home, elsewhere = base / "venv", base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "hasty-compiler").write_text(f'#!/bin/sh\nexec {compiled.compiler()} "$@" -O0\n')
    (elsewhere / "hasty-compiler").chmod(0o700)
    venv.create(home)
    # --no-compile: Python compiles what it imports. PyPI's `kernels` is only to lie beside ours.
    python(*pip, "--python", home / "bin/python", "install", "--no-deps", "--no-compile", wheel, "kernels")
    [site_packages] = home.glob("lib/python*/site-packages")
    link_what_it_needs(site_packages)
    return Installed(home, wheel, elsewhere)


def link_what_it_needs(site_packages: pathlib.Path) -> None:
    """Its requirements without extras, and theirs: pip would take half of all this file's time to unpack them."""
    [ours] = importlib.metadata.distributions(name="tokenometer", path=[str(site_packages)])
    linked, waiting = set(), [ours]
    while waiting:
        for requirement in map(Requirement, waiting.pop().requires or []):
            name = canonicalize_name(requirement.name)
            wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if wanted and name not in linked:
                assert not requirement.extras, "its extras need something, too"
                linked.add(name)
                found = importlib.metadata.distribution(requirement.name)
                assert requirement.specifier.contains(found.version), f"{requirement}, but {found.version} is installed"
                waiting.append(found)
                for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                    (site_packages / top).symlink_to(found.locate_file(top))


@pytest.mark.slow
def test_the_wheel_has_one_top_level_package_and_every_file(installed: Installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"tokenometer"}
    assert "tokenometer/py.typed" in names
    wanted = {
        "/".join((*module_of(path.parent).split("."), path.name))
        for path in tracked()
        if path.parts[0] in FOLDERS and path.parts[:2] != ("processor", "api")
        if not any(fnmatch.fnmatch(str(path), pattern) for pattern in NOT_INSTALLED)
    }
    # The folders inside a package that are no packages lie in it as they do here.
    assert names == wanted | {"tokenometer/__init__.py", "tokenometer/py.typed"}


@pytest.mark.slow
def test_it_replays_a_log_with_kernels_built_from_what_is_installed(installed: Installed):
    (installed.elsewhere / "log.ndjson").write_bytes(orjson.dumps(RECORD, option=orjson.OPT_APPEND_NEWLINE))
    said = succeed(installed.run("tokenometer", "replay", "log.ndjson", "--device", "cpu", "--json"))
    assert orjson.loads(said)["usage"]["total_tokens"] == 42
    assert list((installed.elsewhere / "cache/tokenometer").glob("*.so"))
    assert "openai-chat" in succeed(installed.run("tokenometer", "mappings"))
    assert "Read from" in succeed(installed.run("tokenometer", "mappings", "show", "native"))


@pytest.mark.slow
def test_it_is_imported_beside_another_package_named_kernels(installed: Installed):
    program = (
        "import importlib.util as u, tokenometer, tokenometer.kernels.engine as ours\n"
        "import tokenometer.processor.meter.meter\n"
        "print(tokenometer.__version__, ours.__file__, u.find_spec('kernels').origin, u.find_spec('processor'), "
        "u.find_spec('schemas'))"
    )
    version, ours, theirs, processor, schemas = succeed(installed.run("python", "-c", program)).split()
    assert version == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert ours.endswith("site-packages/tokenometer/kernels/engine.py")
    assert theirs.endswith("site-packages/kernels/__init__.py"), "the name is theirs, and stays so"
    assert processor == schemas == "None"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["replay", "synth", "meter", "verify", "rollup", "top", "ledger", "usage", "close",
                                     "statement", "demo", "live", "mappings"])  # fmt: skip
def test_every_command_explains_itself_without_the_extras(installed: Installed, command: str):
    assert f"Usage: tokenometer {command}" in succeed(installed.run("tokenometer", command, "--help"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("verify", ["verify"]),
        ("verify", ["demo", "--listen", ""]),
        ("rollup", ["rollup"]),
        ("rollup,ledger", ["live"]),
        ("ledger", ["ledger"]),
        ("ledger", ["statement"]),
        ("ledger", ["usage", "--from", "2026-11-01", "--to", "2026-12-01"]),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(installed: Installed, extra: str, arguments: list[str]):
    result = installed.run("tokenometer", *arguments)
    assert result.returncode == 1 and f"pip install 'tokenometer[{extra}]'" in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1
