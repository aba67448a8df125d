"""Fixtures: every backend that this machine has, engines on it, and one real broker for the session."""

import contextlib
import dataclasses
import gc
import importlib.util
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

# Before numpy, which would start threads for linear algebra in each of a thousand processes. A command does so, too.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tokenometer.kernels.engine import Engine, Limits
from tokenometer.kernels.target import CudaTarget, DeviceError, HostTarget, Target
from tokenometer.processor import secret
from tokenometer.processor.records import engines

if TYPE_CHECKING:
    from tests.kafka_lender import Lender
    from tests.kafka_server import KafkaServer
    from tests.postgres_server import PostgresServer

pytest.register_assert_rewrite("tests.harness", "tests.streams")
from tests import harness  # noqa: E402  its asserts shall show what differs
from tests.cuda_on_cpu import CudaOnCpuTarget  # noqa: E402

# As in the Makefile: else each of a thousand processes compiles what has changed since it was compiled.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.pop("PYTHONUNBUFFERED", None)  # users do not have it, and with it nothing is left to be flushed
gc.disable()  # until all tests are collected
for _name in ("COLUMNS", "LINES"):  # readline puts them into the environment that a worker of xdist inherits
    os.environ.pop(_name, None)


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """A command that runs in this process writes to the streams of its test. Not imported: on a machine with a card
    there are the engine's packages only."""
    running = sys.modules.get("tokenometer.processor.cli.running")
    loggers = list(map(logging.getLogger, running.LOGGERS)) if running else []
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, state in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate, logger.level = state


@pytest.fixture(autouse=True)
def own_secrets() -> Iterator[None]:
    """What one test takes for a secret, such as `wrong`, may be a word in the messages of another."""
    before = secret._known.copy()
    yield
    secret._known.clear()
    secret._known.update(before)


@pytest.fixture(scope="session", autouse=True)
def smaller_tables() -> Iterator[None]:
    """Of the engines that commands and `tokenometer.meter` make in this process. The first records touch all pages of
    the usual tables, 0.3 GB of them. Commands that are processes of their own have the usual ones."""
    usual = engines.limits

    def limits(target: Target, memory: int | None) -> Limits:
        found = usual(target, memory)
        if memory is not None or not target.shares_memory:
            return found
        return dataclasses.replace(found, rows=1 << 18, cells=1 << 17, texts=1 << 18, arena_bytes=1 << 24)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "limits", limits)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_duckdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of one thread, unless a number is given: to wake another one costs more than the few rows of a test. And what is
    in memory is a database of an instance that is there already: to start one takes longer than most audits. A machine
    with a card has no DuckDB."""
    if importlib.util.find_spec("duckdb") is None:
        yield
        return
    import duckdb

    from tests.memory_databases import MemoryDatabases

    connect = duckdb.connect
    shared = MemoryDatabases(connect, str(tmp_path_factory.mktemp("duckdb")))

    def connected(*arguments: Any, config: dict[str, Any] | None = None, **more: Any) -> Any:
        config = {"threads": 1} | (config or {})
        return shared.open(config) if arguments == (":memory:",) else connect(*arguments, config=config, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duckdb, "connect", connected)
        yield


@pytest.fixture(scope="module")
def forked_children() -> Iterator[None]:
    """Processes of benchmarks: those of a small size would mostly import."""
    from bench import common  # here, for a machine with a card, as above
    from tests import forked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(common, "run_bound", lambda command, _, **options: forked.run(command, **options))
        yield


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process, which is faster than one of its own: exit code, stdout, stderr."""
    from tokenometer.processor.cli import __main__ as cli  # here, for a machine with a card, as above

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call


@pytest.fixture(
    scope="session", params=["cpu", "cpu x 2 threads", "cuda on cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
)
def target(request: pytest.FixtureRequest) -> Target:
    if request.param == "cpu":
        return HostTarget()
    if request.param == "cpu x 2 threads":
        return HostTarget(threads=2)
    if request.param == "cuda on cpu":
        return CudaOnCpuTarget()
    try:
        return CudaTarget()
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def make_engine(target: Target) -> Callable[..., Engine]:
    """`make_engine(rows=..., window_ms=...)`: an engine of moderate size, but for these settings."""
    return partial(harness.make_engine, target)


@pytest.fixture(scope="session")
def id_bytes(target: Target) -> int:
    """Of a request id's slot, with what its first record says: where records come in order, one word has both."""
    return 16 if target.in_order else 20


@pytest.fixture
def kafka(request: pytest.FixtureRequest) -> "KafkaServer":
    """A running broker: that of all tests, of all processes, unless the test has `owned`, one that it may stop."""
    name = "owned" if "owned" in request.fixturenames else "common_kafka"
    server: KafkaServer = request.getfixturevalue(name)
    return server


@pytest.fixture(scope="session")
def common_kafka(request: pytest.FixtureRequest) -> Iterator["KafkaServer"]:
    with kafka_for(request.config, alone=False) as server:
        yield server


@contextlib.contextmanager
def kafka_for(config: pytest.Config, alone: bool) -> Iterator["KafkaServer"]:
    """A broker of this process alone, or that of the whole run."""
    # Here, because the tests that run on a GPU's machine have no Kafka client.
    from tests.kafka_lender import borrow
    from tests.kafka_server import ENVIRONMENT, KafkaServer, KafkaToolMissing

    lender = None if alone else getattr(config, "workerinput", {}).get("kafka")
    try:
        server = KafkaServer(quick=True, bootstrap=borrow(lender) if lender else "")
        server.start()
    except KafkaToolMissing as error:
        # A skip must not pass for a proof where proofs are made.
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(f"{error}; or name a broker in {ENVIRONMENT}")
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator["PostgresServer"]:
    """A running PostgreSQL."""
    from tests.postgres_server import PostgresMissing, PostgresServer

    try:
        server = PostgresServer()
    except PostgresMissing as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(params=["duckdb", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[str]:
    """The name of a new database for a ledger, of each kind."""
    if request.param == "duckdb":
        yield str(tmp_path / "ledger.duckdb")
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


def pytest_collection_finish() -> None:
    """What was collected stays: the collector does not look at millions of objects again and again."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long fuzz runs where it is asked for: `pytest -m fuzz`."""
    if "fuzz" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("fuzz")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if hasattr(config, "workerinput"):
        items[:] = _in_lanes(items)


# --- Several processes ---

_LENDER: "pytest.StashKey[Lender]" = pytest.StashKey()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the process that controls the others, once for each of them."""
    stash = node.config.stash
    if _LENDER not in stash:
        try:
            from tests.kafka_lender import Lender
        except ModuleNotFoundError:  # no Kafka client
            return
        stash[_LENDER] = Lender()
    node.workerinput["kafka"] = stash[_LENDER].address


def pytest_unconfigure(config: pytest.Config) -> None:
    if _LENDER in config.stash:
        config.stash[_LENDER].close()


# Ten seconds and more of computing. They are begun first, because the one that is begun last decides when a run ends.
_LONGEST = (
    "test_bench", "test_races", "test_engine", "test_verify_since", "test_fuzz", "test_verify", "test_cuda_on_cpu",
    "test_package", "test_verify_quick", "test_page_ask", "test_labels", "test_simulation", "test_totals",
    "test_ledger_money", "test_ledger_usage", "test_cli", "test_page", "test_ledger", "test_rules", "test_synth",
    "test_openapi", "test_hash", "test_cli_live", "test_ledger_label_sets", "test_repeats", "test_cuda_build",
)  # fmt: skip
# Likewise a minute and more, mostly of waiting.
_LONGEST_OF_KAFKA = (
    "test_broker_contract", "test_meter_kafka", "test_intake_kafka", "test_ledger_kafka", "test_rollup_kafka",
    "test_bench_kafka", "test_service", "test_first_hour", "test_acl", "test_repeats_kafka", "test_group_protocol",
    "test_lake_kafka", "test_fetch_cluster",
)  # fmt: skip


def _rank(name: str, longest: tuple[str, ...]) -> int:
    return longest.index(name) if name in longest else len(longest)


def _in_lanes(items: list[pytest.Item]) -> list[pytest.Item]:
    """Files that wait for Kafka, the longest first, then those that compute, of which the longest are last."""
    files: dict[pathlib.Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def place(path: pathlib.Path) -> tuple[bool, int]:
        if any(item.get_closest_marker("kafka") for item in files[path]):
            return False, _rank(path.stem, _LONGEST_OF_KAFKA)
        return True, -_rank(path.stem, _LONGEST)

    return [item for path in sorted(files, key=place) for item in files[path]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`: one process for each processor takes files from the end of the row, which compute; further
    ones take files from its beginning, which mostly wait. So all processors are busy as long as there is work."""
    from xdist.scheduler import LoadFileScheduling

    processors = len(os.sched_getaffinity(0))

    class Lanes(LoadFileScheduling):  # type: ignore[misc]
        def _assign_work_unit(self, node: Any) -> None:
            if int(node.gateway.id.removeprefix("gw")) < processors:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    config.option.loadscopereorder = False  # the order is that of _in_lanes
    return Lanes(config, log) if config.option.dist == "loadfile" else None
