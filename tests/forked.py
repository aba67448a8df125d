"""Commands of Python without the start of an interpreter: a process that has imported everything forks for each.

    forked.run([sys.executable, "-m", "tokenometer.processor.cli", "synth"], capture_output=True)

`Popen` and `run` are those of `subprocess`; only the start differs. What a command needs most of at its start is the
import of large libraries, a third of a second of a processor. Here that is done once for each process of tests:

    tests ──request: arguments, folder, environment; descriptors 0, 1, 2──> origin: one thread, all is imported
      ▲                                                                       │ fork
      │ its parent from now on                                              middle: ends at once
      └──────────────────────────────────────────────────────── command ◄─────┘ fork

A command is a child of the process that asked for it, which gets its exit status and its stops from the system, and
may kill it. It begins as a fresh interpreter does: arguments, folder, environment, streams, `__main__` and the first
entry of sys.path are its own; signals are as they were when the origin was started, before any test.

What differs: modules are imported already, the hash seed is that of the origin, /proc says the origin's command line,
and at the end no module is taken apart. So tests of how a command starts and ends, of what it imports and of how much
memory it takes use `subprocess`. A command that is asked for in another way than with `-m` or `-c`, or that has another
environment where an import may look at it, is started by `subprocess` here, too. The origin ends when the process that
started it does, however that one ends.
"""

import atexit
import contextlib
import ctypes
import functools
import gc
import importlib
import io
import multiprocessing.process
import os
import pathlib
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

ROOT = pathlib.Path(__file__).parents[1]
REQUEST_BYTES_MAX = 1 << 17  # a socket takes one as a whole
PR_SET_CHILD_SUBREAPER = 36
STATUS_UNFLUSHED = 120  # an interpreter's, where its last words could not be written

IMPORTS = (
    *(f"tokenometer.processor.cli.{name}" for name in (
        "adjust", "alerts", "demo", "lake", "ledger", "live", "mappings", "meter", "prices", "reconcile", "replay",
        "rollup", "statement", "synth", "top", "usage", "verify",
    )),
    *("tokenometer.processor.broker.kafka", "tokenometer.processor.broker.registry", "tokenometer.processor.dashboard"),
    *("tokenometer.processor.lake", "tokenometer.processor.lake.writer", "tokenometer.processor.meter.watching"),
    *("tokenometer.processor.rollup.worker", "tokenometer.processor.ledger.export", "tokenometer.processor.verify"),
    *("tests.engines", "duckdb", "psycopg", "pyarrow.parquet", "pyiceberg.catalog.sql"),
)  # fmt: skip
# What may be another one than the origin's: a command reads it when it runs.
FREE = ("TOKENOMETER_", "_TOKENOMETER_", "KAFKA_", "COMP_", "_TYPER_", "PYTEST_", "COLUMNS", "LINES", "TERM", "_RJEM_",
        "NO_COLOR", "POLARS_")  # fmt: skip
# jemalloc, which pyarrow brings and does not use, has a thread of its own; and a fork takes no threads along.
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT = dict(os.environ)  # the origin's: no test has changed it yet


class Request(NamedTuple):
    """arguments: those of the interpreter."""

    arguments: tuple[str, ...]
    folder: str
    environment: dict[str, str]


# --- The process that asks ---


class Popen(subprocess.Popen[Any]):
    """As subprocess.Popen, with its pipes, waiting and signals. Its only method of ours is the one that starts."""

    def _execute_child(self, *given: Any) -> None:
        (arguments, executable, before, _, more, folder, environment, _, _, shell, *pipes) = given[:16]
        in_, _, _, out, _, error = pipes
        environment = dict(os.environ if environment is None else environment)
        folder = os.path.abspath(folder or os.getcwd())
        plain = executable is None and before is None and not more and not shell and tuple(given[17:]) == _PLAIN
        alike = _imported_with(environment) == _imported_with(ENVIRONMENT) and os.path.isdir(folder)
        if not plain or not alike or not _is_python(arguments):
            return super()._execute_child(*given)  # type: ignore[misc,no-any-return]
        request = Request(tuple(map(os.fspath, arguments[1:])), folder, environment)
        descriptors = [given_one if given_one >= 0 else own for own, given_one in enumerate((in_, out, error))]
        with _STARTING:
            self.pid = _origin().ask(request, descriptors)
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]
        return None


# Of the last arguments of _execute_child: gid, gids, uid, umask, start_new_session, process_group.
_PLAIN = (None, None, None, -1, False, -1)
_STARTING = threading.Lock()


def run(
    arguments: Sequence[str | os.PathLike[str]], *, input: Any = None, timeout: float | None = None,
    capture_output: bool = False, check: bool = False, **more: Any,
) -> subprocess.CompletedProcess[Any]:  # fmt: skip
    """As subprocess.run."""
    if input is not None:
        more["stdin"] = subprocess.PIPE
    if capture_output:
        more |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(arguments, **more) as process:
        try:
            out, error = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, error)
    if check:
        done.check_returncode()
    return done


def _is_python(arguments: Any) -> bool:
    words = list(arguments) if isinstance(arguments, list | tuple) else []
    return len(words) > 2 and words[0] == sys.executable and words[1] in ("-m", "-c")


def _imported_with(environment: Mapping[str, str]) -> dict[str, str]:
    """What modules may have looked at when they were imported."""
    return {name: value for name, value in environment.items() if not name.startswith(FREE)}


class _Origin:
    """The asker's end."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.forked", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT | NO_THREADS, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        try:
            assert self._ours.recv(1) == b"!", "the origin of commands has not started; what it says is above"
        except BaseException:
            self.close()
            raise

    def ask(self, request: Request, descriptors: Sequence[int]) -> int:
        """The process of the command, which is a child of ours."""
        data = pickle.dumps(tuple(request))
        assert len(data) <= REQUEST_BYTES_MAX, f"{len(data):,} bytes of arguments and environment"
        library = ctypes.CDLL(None, use_errno=True)
        library.prctl(PR_SET_CHILD_SUBREAPER, 1)  # whose parent ends below us, is our child; for some milliseconds
        try:
            socket.send_fds(self._ours, [data], list(descriptors))
            answer = self._ours.recv(32)
        finally:
            library.prctl(PR_SET_CHILD_SUBREAPER, 0)
        assert answer, "the origin of commands has ended"
        return int(answer)

    def close(self) -> None:
        self._ours.close()
        self._process.wait()


@functools.cache
def _origin() -> _Origin:
    made = _Origin()
    atexit.register(made.close)
    return made


# --- The origin, and what it becomes ---


def main(descriptor: int) -> NoReturn:
    """Goes on as the command that was asked for."""
    asker = socket.socket(fileno=descriptor)
    _import()
    asker.send(b"!")
    request = _serve(asker)
    status = 1
    try:
        _begin(request)
        status = _run(request)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    _end(status)


def _import() -> None:
    gc.disable()
    for name in IMPORTS:
        importlib.import_module(name)
    sys.modules.pop("tokenometer.processor.cli.__main__", None)  # that of each command is its own
    gc.collect()
    gc.freeze()  # so that the collector of a command does not write to what all share
    gc.enable()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"a fork would not take {len(threads) - 1} threads along, nor free the locks they hold"


def _serve(asker: socket.socket) -> Request:
    """Returns in each command; ends where nobody can ask any more."""
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(asker, REQUEST_BYTES_MAX, 3)
        except KeyboardInterrupt:  # of a terminal; our asker got it, too
            os._exit(1)
        if not data:
            os._exit(0)
        read, write = os.pipe()
        if (middle := os.fork()) == 0:
            if command := os.fork():
                os.write(write, b"%d" % command)
                os._exit(0)
            asker.close()
            os.close(read)
            os.close(write)
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return Request(*pickle.loads(data))
        os.close(write)
        answer = os.read(read, 32)
        os.close(read)
        os.waitpid(middle, 0)  # from now on the command is the asker's child
        asker.send(answer)
        for descriptor in descriptors:
            os.close(descriptor)


def _begin(request: Request) -> None:
    """As an interpreter does."""
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update(request.environment)
    kind, _, *arguments = request.arguments
    sys.argv[:] = [kind, *arguments]
    sys.path[0] = os.getcwd() if kind == "-m" else ""
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(descriptor, name, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _stream(descriptor: int, name: str, like: io.TextIOWrapper) -> io.TextIOWrapper:
    mode = "w" if descriptor else "r"
    raw = io.FileIO(descriptor, mode, closefd=False)
    raw.name = f"<{name}>"
    at_once, on_terminal = like.write_through, raw.isatty()  # at once: python -u
    buffer: Any = raw if at_once else io.BufferedWriter(raw) if descriptor else io.BufferedReader(raw)
    by_lines = not at_once and (on_terminal or name == "stderr")
    stream = io.TextIOWrapper(buffer, like.encoding, like.errors, "\n", by_lines, at_once)
    stream.mode = mode  # type: ignore[misc]
    return stream


def _run(request: Request) -> int:
    """Its exit status."""
    kind, what, *_ = request.arguments
    try:
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = own = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(own))
    except SystemExit as leaving:
        if leaving.code is None or isinstance(leaving.code, int):
            return leaving.code or 0
        print(leaving.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    return 0


def _end(status: int) -> NoReturn:
    """As multiprocessing ends what it has forked, because an interpreter's own end takes apart all that was imported,
    for a tenth of a second."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            if not stream.closed:
                stream.flush()
        except OSError as error:
            status = STATUS_UNFLUSHED
            with contextlib.suppress(OSError):
                print(f"Exception ignored in: {stream!r}\n{type(error).__name__}: {error}", file=sys.stderr)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    main(int(sys.argv[1]))
