"""Commands that are forked: they begin, run and end as those that `subprocess` starts."""

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import orjson
import pytest

from tests import forked

ROOT = pathlib.Path(__file__).parents[1]
WAIT_SECONDS = 30

# What a process can tell of how it began.
BEGINNING = """
import json, locale, logging, multiprocessing.process, os, signal, sys, threading
named = [number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)]
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "main": sys.modules["__main__"].__dict__ is globals(),
    "environment": dict(os.environ), "folder": os.getcwd(), "again": multiprocessing.process.ORIGINAL_DIR,
    "signals": {number: str(signal.getsignal(number)).split(" at ")[0] for number in named},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": [len(os.listdir("/proc/self/task")), threading.active_count()], "main thread": threading.main_thread().name,
    "descriptors": sorted(set(os.listdir("/proc/self/fd")) - {str(os.open("/", 0))}),
    "streams": [
        [each.name, each.mode, each.encoding, each.errors, each.newlines, each.line_buffering, each.fileno(),
         each is getattr(sys, f"__{name}__")]
        for name in ("stdin", "stdout", "stderr") for each in [getattr(sys, name)]
    ],
    "said": sys.stdin.read(), "locale": locale.getlocale(), "flags": str(sys.flags), "warnings": sys.warnoptions,
    "logs": [str(logging.root.handlers), logging.root.level, logging.getLogger("tokenometer").level],
    "parent": os.getppid(), "group": os.getpgid(0), "session": os.getsid(0), "mask": os.umask(0),
    "cores": sorted(os.sched_getaffinity(0)), "collects": __import__("gc").isenabled(), "trace": str(sys.gettrace()),
}))
"""  # noqa: E501


@pytest.fixture(params=[forked.Popen, subprocess.Popen], ids=["forked", "started"])
def popen(request: pytest.FixtureRequest) -> Callable[..., "subprocess.Popen[str]"]:
    """Both, so that what is demanded of one is so of the other."""

    def start(code: str, *arguments: str, **options: object) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return request.param([sys.executable, "-c", code, *arguments], text=True, **pipes | options)

    return start


def is_forked(process: "subprocess.Popen[str]") -> bool:
    return b"tests.forked" in pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes()


@pytest.mark.parametrize(
    "options", [{}, {"cwd": "/"}, {"env": {**os.environ, "TOKENOMETER_X": "ÿ =\n"}}], ids=["", "/", "x"]
)
def test_a_command_begins_as_a_fresh_interpreter_does(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")

    def beginning(run: Callable[..., "subprocess.CompletedProcess[str]"], words: list[str]) -> dict:
        command = [sys.executable, *words, "one", "two words", ""]
        done = run(command, input="given", capture_output=True, text=True, check=True, **options)
        assert done.stderr == ""
        told: dict = orjson.loads(done.stdout)
        told["environment"].pop("LINES", None)  # of readline, which os.environ does not know
        told["environment"].pop("COLUMNS", None)
        return told

    code = beginning(forked.run, ["-c", BEGINNING])
    assert code == beginning(subprocess.run, ["-c", BEGINNING])
    assert code["argv"] == ["-c", "one", "two words", ""] and code["said"] == "given" and code["parent"] == os.getpid()
    if "cwd" not in options:
        (tmp_path / "beginning.py").write_text(BEGINNING)
        module = beginning(forked.run, ["-m", "beginning"])
        assert module == beginning(subprocess.run, ["-m", "beginning"])
        assert module["argv"][0] == str(tmp_path / "beginning.py") and module["name"] == "__main__"


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(7)", 7, ""),
        ("import sys; sys.exit(-1)", 255, ""),
        ("import sys; sys.exit('words')", 1, "words\n"),
        ("import os; os._exit(9)", 9, ""),
        ("raise ValueError('why')", 1, "ValueError: why\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import os; os.abort()", -signal.SIGABRT, ""),
        ("what is", 1, "SyntaxError: invalid syntax\n"),
        ("import sys; sys.stderr.write('no newline')", 0, "no newline"),
    ],
)
def test_it_ends_as_it_says(popen, code, status, said):
    interrupts = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a worker's are off
    with popen((interrupts if "SIGINT" in code else "") + code) as process:
        out, error = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, out) == (status, "")
    assert error.endswith(said) and bool(error) == bool(said)


ENDING = """
import atexit, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
threading.Thread(target=lambda: time.sleep(3600), daemon=True).start()
sys.stdout.write("unflushed ")
"""


def test_its_last_words_are_heard(popen):
    with popen(ENDING) as process:
        assert process.communicate(timeout=WAIT_SECONDS) == ("unflushed thread\nat exit\n", "")
    with open("/dev/full", "w") as full, popen("print('lost')", stdout=full) as process:
        _, error = process.communicate(timeout=WAIT_SECONDS)
    # What is not kept until the end fails at once.
    wanted = 1 if os.environ.get("PYTHONUNBUFFERED") else forked.STATUS_UNFLUSHED
    assert process.returncode == wanted and "No space left on device" in error


def test_it_is_killed_frozen_and_told_to_end(popen):
    code = "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(5)); print(1, flush=True)"
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGUSR1, 5)):
        with popen(f"{code}; time.sleep(3600)") as process:
            assert process.stdout and process.stdout.readline() == "1\n" and process.poll() is None
            process.send_signal(signal.SIGSTOP)
            stopped = os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            assert stopped and stopped.si_pid == process.pid and stopped.si_status == signal.SIGSTOP
            process.send_signal(number)
            process.send_signal(signal.SIGCONT)
            assert process.wait(WAIT_SECONDS) == status


def test_time_that_runs_out_is_told(popen):
    with popen("import time; time.sleep(3600)") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.1)
        process.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run([sys.executable, "-c", "import time; time.sleep(3600)"], timeout=0.1)
    with pytest.raises(subprocess.CalledProcessError):
        forked.run([sys.executable, "-c", "raise SystemExit(1)"], check=True)


def test_output_goes_where_it_belongs(popen, tmp_path):
    code = "import os, sys; os.write(1, b'one '); print('two'); print('three', file=sys.stderr)"
    with (tmp_path / "out").open("w") as out, popen(code, stdout=out, stderr=subprocess.STDOUT) as process:
        process.communicate(timeout=WAIT_SECONDS)
    assert sorted((tmp_path / "out").read_text().split()) == ["one", "three", "two"]
    with popen(code, stderr=subprocess.DEVNULL) as process:
        assert process.communicate(timeout=WAIT_SECONDS) == ("one two\n", None)


def test_it_has_our_streams_where_it_is_given_none(popen, capfd):
    with popen("import sys; print('out'); print('error', file=sys.stderr)", stdout=None, stderr=None) as process:
        process.communicate(timeout=WAIT_SECONDS)
    assert capfd.readouterr() == ("out\n", "error\n")


def test_commands_share_nothing_but_what_is_imported():
    code = "import random, sys; print(random.random(), len(sys.modules), hasattr(sys, 'left')); sys.left = 1"
    said = [forked.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(3)]
    assert len({draw for draw, _, _ in said}) == 3
    assert {left for _, _, left in said} == {"False"}
    assert all(int(modules) > 1000 for _, modules, _ in said), "all is imported"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["-c", "input()"], {"env": {**os.environ, "PYTHONHASHSEED": "1"}}),
        (["-c", "input()"], {"env": {"PATH": os.environ["PATH"]}}),
        (["-c", "input()"], {"preexec_fn": os.getpid}),
        (["-c", "input()"], {"start_new_session": True}),
        (["-c", "input()"], {"umask": 0o77}),
        (["-c", "input()"], {"pass_fds": [2]}),
        (["-X", "utf8", "-c", "input()"], {}),
    ],
    ids=["hash seed", "environment", "before", "session", "umask", "descriptor", "option"],
)
def test_what_an_import_may_look_at_is_started_afresh(arguments, options):
    with forked.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, text=True, **options) as process:
        time.sleep(0.2)  # until it has its own name
        assert not is_forked(process)
        process.communicate("\n", timeout=WAIT_SECONDS)
    assert process.returncode == 0


def test_a_folder_that_is_none_has_its_error(popen, tmp_path):
    with pytest.raises(FileNotFoundError):
        popen("pass", cwd=tmp_path / "none")


def test_many_ask_at_once():
    def asked(number: int) -> int:
        return forked.run([sys.executable, "-c", f"raise SystemExit({number})"]).returncode

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(asked, range(40))) == list(range(40))


ASKER = """
import sys
from tests import forked
command = forked.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print(forked._origin()._process.pid, command.pid, flush=True)
input()
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_the_origin_ends_with_who_started_it(end):
    """However that one ends. The command goes on, as a started one does."""
    asker = subprocess.Popen(
        [sys.executable, "-c", ASKER], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it says that it has left a command alone
    )  # fmt: skip
    with asker:
        assert asker.stdin and asker.stdout
        origin, command = map(int, asker.stdout.readline().split())
        assert b"tests.forked" in pathlib.Path(f"/proc/{origin}/cmdline").read_bytes()
        assert len(os.listdir(f"/proc/{origin}/task")) == 1
        if end is None:
            asker.stdin.write("\n")
            asker.stdin.flush()
        else:
            asker.send_signal(end)
        assert asker.wait(WAIT_SECONDS) == (0 if end is None else -end)
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while is_there(origin):
            assert time.monotonic() < deadline, "the origin is left"
            time.sleep(0.01)
        assert is_there(command)
    finally:
        os.kill(command, signal.SIGKILL)


def is_there(process: int) -> bool:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
