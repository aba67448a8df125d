"""What a start does not load: a command is run thousands of times, and pays for every package that it imports."""

import subprocess
import sys

import pytest

from tokenometer.kernels import target
from tokenometer.kernels.target import HostTarget, open_target

# The packages that take tens of milliseconds.
HEAVY = ("numpy", "pyarrow", "aiohttp", "confluent_kafka", "duckdb", "cupy")


def loaded(code: str) -> set[str]:
    """Which of them are loaded after it."""
    report = f"; import sys; print(*[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    return set(subprocess.run([sys.executable, "-c", code + report], stderr=subprocess.PIPE, text=True).stderr.split())


def test_the_version_is_told_without_a_command() -> None:
    assert loaded("from tokenometer.processor.cli import __main__; assert __main__.run(['--version']) == 0") == set()


@pytest.mark.parametrize("name", ["usage", "close", "prices"])
def test_a_command_that_asks_loads_no_server(name: str) -> None:
    asked = f"assert __main__.run(['{name}', '--help']) == 0"
    found = loaded(f"from tokenometer.processor.cli import __main__; {asked}")
    assert not found & {"aiohttp", "confluent_kafka", "duckdb", "cupy"}


@pytest.mark.parametrize("name", ["meter", "replay", "synth", "verify", "rollup", "ledger", "alerts"])
def test_a_command_s_module_loads_no_server_no_client_and_no_database(name: str) -> None:
    found = loaded(f"import tokenometer.processor.cli.{name}")
    assert not found & {"aiohttp", "confluent_kafka", "duckdb", "cupy"}


def test_no_garbage_is_looked_for_while_a_command_loads_and_when_it_ends() -> None:
    """But while it runs."""
    code = """
import atexit, gc, sys
from tokenometer.processor.cli import __main__ as cli
load, before = cli.importlib.import_module, []
cli.importlib.import_module = lambda name: (before.append(gc.isenabled()), load(name))[1]
atexit.register(lambda: print(before, gc.isenabled(), gc.get_freeze_count() > 10_000))
sys.argv[1:] = ["usage", "--help"]
cli.main()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[False] True True", run.stderr


def test_without_a_driver_auto_is_the_cpu_and_cupy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    def asked() -> None:
        pytest.fail("there is no driver that CuPy could use")

    with monkeypatch.context() as patch:
        patch.setattr(target.ctypes, "CDLL", absent)
        assert not target._has_driver()
    monkeypatch.setattr(target, "_has_driver", lambda: False)
    monkeypatch.setattr(target, "CudaTarget", asked)
    assert isinstance(open_target("auto"), HostTarget)


def test_with_a_driver_auto_is_the_gpu_and_the_cpu_where_it_is_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def useless() -> None:
        raise target.DeviceError("no usable GPU")

    gpu = object()
    monkeypatch.setattr(target, "_has_driver", lambda: True)
    monkeypatch.setattr(target, "CudaTarget", lambda: gpu)
    assert open_target("auto") is gpu
    monkeypatch.setattr(target, "CudaTarget", useless)
    assert isinstance(open_target("auto"), HostTarget)


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("3", "3")])
def test_linear_algebra_gets_one_thread_unless_someone_wants_more(given: str | None, found: str) -> None:
    name = "OPENBLAS_NUM_THREADS"
    code = (
        f"import os, sys; os.environ.pop('{name}', None); given = {given!r}\n"
        f"if given: os.environ['{name}'] = given\n"
        "from tokenometer.processor.cli import __main__\n"
        "assert 'numpy' not in sys.modules, 'it would have started its threads'\n"
        "sys.argv = ['tokenometer', '--version']\n"
        f"try: __main__.main()\nfinally: print(os.environ['{name}'], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, f"{found}\n")
