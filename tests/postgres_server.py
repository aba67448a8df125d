"""A real PostgreSQL for tests and benchmarks: Debian's, in a folder of its own on a free loopback port, or the one that
TOKENOMETER_TEST_POSTGRES names (a URL whose user may create databases)."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator

import psycopg

from tests.kafka_server import free_ports

ENVIRONMENT = "TOKENOMETER_TEST_POSTGRES"
_ACCOUNT = "postgres"  # of Debian's package; initdb refuses root
_START_SECONDS = 60


class PostgresMissing(Exception):
    """There is no PostgreSQL here; the message says how to get one."""


class PostgresServer:
    """`durable`: commits wait for the disk, as in production."""

    def __init__(self, durable: bool = False) -> None:
        self._folder: pathlib.Path | None = None
        if given := os.environ.get(ENVIRONMENT):
            self._url = given
            return
        self._programs = _programs()
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="tokenometer-postgres-"))
        try:
            self._start(durable)
        except BaseException:
            shutil.rmtree(self._folder)
            raise

    def _start(self, durable: bool) -> None:
        assert self._folder is not None
        if os.geteuid() == 0:
            shutil.chown(self._folder, _ACCOUNT, _ACCOUNT)
        port = free_ports()[0]
        self._run("initdb", "--auth=trust", f"--username={_ACCOUNT}", "--encoding=UTF8", "--no-locale", "--no-sync")
        # Of a batch that comes a hundred times a test, only the benchmark needs every one on the disk.
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "512MB",
            "fsync": "on" if durable else "off", "max_wal_size": "4GB",
        }  # fmt: skip
        options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
        log = str(self._folder / "log")
        self._run("pg_ctl", "start", "--wait", f"--timeout={_START_SECONDS}", "-l", log, "-o", options)
        self._url = f"postgresql://{_ACCOUNT}@127.0.0.1:{port}/postgres"

    def _run(self, program: str, *arguments: str) -> None:
        account = _ACCOUNT if os.geteuid() == 0 else None
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        # Not piped: the server would keep a pipe open for as long as it lives.
        with tempfile.TemporaryFile() as said:
            run = subprocess.run(command, stdout=said, stderr=said, user=account, cwd=self._folder, check=False)
            said.seek(0)
            if run.returncode:
                raise RuntimeError(f"{program} failed: {said.read().decode(errors='replace')[-2000:]}")

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty one."""
        name = f"tokenometer_test_{uuid.uuid4().hex[:12]}"
        self._say(f"CREATE DATABASE {name}")
        try:
            head, _, options = self._url.partition("?")
            yield head.rpartition("/")[0] + f"/{name}" + (f"?{options}" if options else "")
        finally:
            self._say(f"DROP DATABASE {name} WITH (FORCE)")

    def _say(self, statement: str) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(statement)

    def close(self) -> None:
        if self._folder is not None:
            self._run("pg_ctl", "stop", "--mode=immediate")
            shutil.rmtree(self._folder)


def _programs() -> pathlib.Path:
    """The newest installed version's."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    if on_path := shutil.which("initdb"):
        return pathlib.Path(on_path).resolve().parent
    raise PostgresMissing(f"no PostgreSQL here: apt-get install postgresql, or name one in {ENVIRONMENT}")
