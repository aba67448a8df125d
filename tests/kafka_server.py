"""A real Apache Kafka for development and tests: one node, broker and KRaft controller in one JVM, on loopback.

    make kafka                      one broker until Ctrl-C
    with KafkaServer() as kafka:    the same from Python; kafka.bootstrap is its address

Maven resolves the jars once, into the user's cache. Where KAFKA_BOOTSTRAP_SERVERS names a broker, that one is used
and none is started; `owned` says which it is. What the server promises: when `start` returns, clients are answered;
`stop` and `restart` keep ports and data; no broker outlives the process that started it, however that one ends.

The first start on a machine also writes, beside the jars, an archive of the classes that a broker loads. With it a
start takes half of the processor's time. A broker with `quick=True` leaves out the JVM's better compiler too: that is
cheapest for tests, which send little, and wrong for a benchmark.

    <data_dir>/server.properties  log4j2.properties  server.log   written anew, or appended to, by each start
    <data_dir>/log/                                               Kafka's own
"""

import argparse
import base64
import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType, TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

KAFKA_VERSION = "4.4.0"
LOG4J_VERSION = "2.25.5"  # what this Kafka brings; it lacks only the binding, without which it logs nothing
JAVA_MIN = 17
CLUSTER_ID = "dG9rZW5vbWV0ZXItdGVzdA"  # 16 bytes in base64; one node has no other cluster to be told apart from
ENVIRONMENT = "KAFKA_BOOTSTRAP_SERVERS"

RESOLVE_SECONDS_MAX = 300
START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 20  # takes under one second; longer only with gigabytes to flush
PORT_TRIES = 3
LOG_TAIL_LINES = 30
STARTED = "Kafka Server started"
ONE_COMPILER = "-XX:TieredStopAtLevel=1"  # of the JVM's two the one that is done sooner

# What Maven brings for the broker: group:artifact:version.
KAFKA = (
    f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
    f"org.apache.logging.log4j:log4j-slf4j-impl:{LOG4J_VERSION}",
)

POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tokenometer</groupId>
  <artifactId>kafka-for-tests</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
{}
  </dependencies>
</project>
"""
DEPENDENCY = """    <dependency>
      <groupId>{}</groupId>
      <artifactId>{}</artifactId>
      <version>{}</version>
    </dependency>"""

LOG4J = """status = ERROR
rootLogger.level = INFO
rootLogger.appenderRef.0.ref = OUT
appender.0.type = Console
appender.0.name = OUT
appender.0.layout.type = PatternLayout
appender.0.layout.pattern = [%d] %p %m (%c)%n
"""

# Where the defaults are made for a cluster under constant load, a single node for tests wants something else.
SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "CLIENT",
    "controller.listener.names": "CONTROLLER",
    # One node cannot replicate; few partitions because each is a directory to make, load and flush.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A misspelt topic shall be an error, as the meter promises.
    "auto.create.topics.enable": "false",
    # Room for messages of 1 MB in batches of several.
    "message.max.bytes": str(8 << 20),
    # Groups form at once, and tests may use timeouts of a second.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    # With KIP-848 they are the brokers' to set.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.heartbeat.interval.ms": "300",
    # Else the controller writes a record that says nothing twice a second: a third of what an idle broker costs.
    "metadata.max.idle.interval.ms": "0",
    # After kill -9 the controller refuses the broker until its former session has ended.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    # A transaction past its timeout is aborted within half a second, not ten.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    # Message timestamps are often long past in tests: retention would delete the log while a test reads it.
    "log.retention.ms": "-1",
    # Deleted topics give their disk space back soon, and compaction is seen soon. The cleaner's default buffer alone
    # is half of the heap.
    "log.segment.delete.delay.ms": "1000",
    "log.cleaner.enable": "true",
    "log.cleaner.backoff.ms": "1000",
    "log.cleaner.dedupe.buffer.size": str(16 << 20),
    # Threads for two cores that the clients share.
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
}


class KafkaToolMissing(RuntimeError):
    """Java or Maven is not there; the message says what to install."""


class KafkaFailed(RuntimeError):
    """The jars could not be resolved or the broker did not start; the message has the end of the log."""


class KafkaNotOwned(RuntimeError):
    """The broker was started by someone else, who alone may stop it."""


class KafkaServer:
    """One broker: `start`, `stop`, `kill`, `restart`, and `close`, which also removes a temporary data directory."""

    def __init__(
        self,
        data_dir: pathlib.Path | None = None,
        *,
        port: int | None = None,
        heap: str = "256m",
        settings: Mapping[str, str] | None = None,
        quick: bool = False,
        bootstrap: str = "",
    ) -> None:
        """`settings` go over SETTINGS; `quick` is for a broker with little to do, whose code is not worth optimising.
        A broker named in the environment ignores all arguments, and so does one at `bootstrap`, which runs already."""
        external = bootstrap or os.environ.get(ENVIRONMENT, "").strip()
        self.owned = not external
        self._external = external
        self._given_dir = None if data_dir is None else data_dir.absolute()
        self._given_port = port
        self._heap = heap
        self._quick = quick
        self._archiving: pathlib.Path | None = None  # the archive to be written when the broker stops
        self._settings = {**SETTINGS, **(settings or {})}
        self._data_dir: pathlib.Path | None = None
        self._ports: tuple[int, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._log_from = 0  # where in the log the present start begins

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        if not self.owned:
            return self._external
        assert self._ports is not None, "the address is known once the broker was started"
        return f"127.0.0.1:{self._ports[0]}"

    @property
    def pid(self) -> int | None:
        """The JVM's process, None where none runs."""
        return None if self._process is None else self._process.pid

    @property
    def log_path(self) -> pathlib.Path:
        """What the broker printed, over all its starts."""
        assert self._data_dir is not None, "the log is there once the broker was started"
        return self._data_dir / "server.log"

    def start(self) -> None:
        """Returns when clients are answered. A second call on a running broker does nothing."""
        if not self.owned:
            _await_answer(self.bootstrap, time.monotonic() + START_SECONDS_MAX)
            return
        if self._process is not None:
            if self._process.poll() is None:
                return
            self.kill()  # it ended by itself: reap it, and its watcher
        java, jars = find_java(), resolve()
        archive = None if self._archiving else find_archive(java, jars)
        if self._data_dir is None:
            self._data_dir = self._given_dir or pathlib.Path(tempfile.mkdtemp(prefix="tokenometer-kafka-"))
            self._data_dir.mkdir(parents=True, exist_ok=True)
        jvm = self._jvm(java, jars, archive)
        ports_are_new = self._ports is None and self._given_port is None
        for tries_left in reversed(range(PORT_TRIES)):
            self._ports = self._ports or free_ports(self._given_port)
            self._write_settings()
            self._format(jvm, jars)
            self._launch(jvm)
            try:
                self._await_ready()
                return
            except KafkaFailed as error:
                self.kill()
                # Another process may take a port between our look and the broker's bind.
                if not (ports_are_new and tries_left and "Address already in use" in str(error)):
                    raise
                self._ports = None

    def stop(self, grace_seconds: float = STOP_SECONDS_MAX) -> None:
        """An orderly end, or a kill where that takes too long. Ports and data stay for the next start."""
        self._end(signal.SIGTERM, grace_seconds)

    def kill(self) -> None:
        """kill -9: the broker flushes nothing and says no goodbye."""
        self._end(signal.SIGKILL, STOP_SECONDS_MAX)

    def wait(self) -> int:
        """Blocks for as long as the broker runs; its exit status."""
        assert self._process is not None
        return self._process.wait()

    def restart(self) -> None:
        """Stop and start with the same ports and data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop our broker and remove a temporary data directory; a broker of someone else is left alone."""
        if not self.owned:
            return
        self.stop()
        if self._data_dir is not None and self._given_dir is None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None

    def _jvm(self, java: str, jars: pathlib.Path, archive: pathlib.Path | None) -> list[str]:
        """The command, but for the main class and its arguments."""
        return [
            java,
            f"-Xmx{self._heap}",
            *([f"-XX:SharedArchiveFile={archive}"] if archive else []),
            *([ONE_COMPILER] if self._quick else []),
            "-XX:+UseSerialGC",
            "-XX:-UsePerfData",
            "-XX:+ExitOnOutOfMemoryError",  # out of memory shall be seen as an end, not as a broker that lingers
            f"-Dlog4j2.configurationFile={self._data_dir}/log4j2.properties",
            "-cp",
            ":".join(sorted(map(str, jars.glob("*.jar")))),  # an archive is of one order of the jars
        ]

    def _write_settings(self) -> None:
        assert self._data_dir is not None and self._ports is not None
        client, controller = self._ports
        settings = {
            "listeners": f"CLIENT://127.0.0.1:{client},CONTROLLER://127.0.0.1:{controller}",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "log.dirs": str(self._data_dir / "log"),
            **self._settings,
        }
        lines = "".join(f"{name}={value}\n" for name, value in settings.items())
        (self._data_dir / "server.properties").write_text(lines)
        (self._data_dir / "log4j2.properties").write_text(LOG4J)

    def _format(self, jvm: list[str], jars: pathlib.Path) -> None:
        """What Kafka's tool writes is the same for every broker but for its number and the folder's own id, so it is
        kept and copied: a JVM less to start."""
        assert self._data_dir is not None
        log = self._data_dir / "log"
        if (log / "meta.properties").exists():
            return
        formatted = jars.with_name(f"{jars.name}-formatted")
        if formatted.is_dir():
            copied = pathlib.Path(shutil.copytree(formatted, self._data_dir / "formatted"))
            own, node = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="), self._settings["node.id"]
            facts = f"version=1\ncluster.id={CLUSTER_ID}\nnode.id={node}\ndirectory.id={own}\n"
            (copied / "meta.properties").write_text(facts)
            copied.rename(log)
            return
        tool = ["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", f"{self._data_dir}/server.properties"]
        _run(
            [*jvm, ONE_COMPILER, *tool],  # it ends before a better compiler would pay
            START_SECONDS_MAX,
            f"Kafka could not format {self._data_dir}/log",
        )
        with tempfile.TemporaryDirectory(prefix="formatted-", dir=jars.parent) as scratch, contextlib.suppress(OSError):
            copied = pathlib.Path(shutil.copytree(log, f"{scratch}/log"))
            copied.rename(formatted)  # which fails where another process was first

    def _launch(self, jvm: list[str]) -> None:
        archiving = [f"-XX:ArchiveClassesAtExit={self._archiving}"] if self._archiving else []
        with self.log_path.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                [*jvm, *archiving, "kafka.Kafka", f"{self._data_dir}/server.properties"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to us alone, so that the broker ends after its clients
            )
        # Reads from a pipe that the kernel closes when we end, however we end; PR_SET_PDEATHSIG would fire when the
        # thread ends that called start. A line says that we have stopped the broker ourselves.
        self._watcher = subprocess.Popen(
            ["sh", "-c", 'read -r line || { kill "$0" && sleep 5 && kill -9 "$0"; }', str(self._process.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _await_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        assert self._process is not None
        try:
            # The log says that it is our broker which is up; another one may hold the port and answer for it.
            while STARTED not in self._log():
                if self._process.poll() is not None:
                    raise KafkaFailed(f"Kafka ended with status {self._process.returncode} before it was ready")
                if time.monotonic() > deadline:
                    raise KafkaFailed(f"Kafka was not ready within {START_SECONDS_MAX} s")
                time.sleep(0.05)
            _await_answer(self.bootstrap, deadline)
        except KafkaFailed as error:
            raise KafkaFailed(f"{error}; the end of {self.log_path}:\n{_tail(self._log())}") from None

    def _log(self) -> str:
        return self.log_path.read_bytes()[self._log_from :].decode(errors="replace")

    def _end(self, first: signal.Signals, grace_seconds: float) -> None:
        if not self.owned:
            raise KafkaNotOwned(
                f"this broker was there ({ENVIRONMENT} names it, or another process), so it is not ours to stop"
            )
        if self._process is not None:
            self._process.send_signal(first)
            try:
                self._process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._watcher is not None:
            self._watcher.communicate(b"\n")
            self._watcher = None


def find_java() -> str:
    """The java command, of JAVA_HOME or else of PATH, new enough for the broker."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin" if home else None)
    wanted = (
        f"Apache Kafka {KAFKA_VERSION} needs Java {JAVA_MIN} or newer (a JDK or JRE; Debian: openjdk-17-jre-headless)"
    )
    if java is None:
        raise KafkaToolMissing(f"{wanted}: no java in {f'JAVA_HOME={home}' if home else 'PATH'}")
    said = _version(java)
    version = re.search(r'version "(\d+)', said)
    if version is None or int(version[1]) < JAVA_MIN:
        raise KafkaToolMissing(f"{wanted}: {java} says {said.strip()!r}")
    return java


@functools.cache
def _version(java: str) -> str:
    return subprocess.run([java, "-version"], capture_output=True, text=True, errors="replace", timeout=30).stderr


def resolve(name: str = f"kafka-{KAFKA_VERSION}", artifacts: Sequence[str] = KAFKA) -> pathlib.Path:
    """The directory of the jars of these artifacts and of what they need; Maven fills it once for each name."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tokenometer"
    jars = cache / name
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaToolMissing(
            f"{artifacts[0]} comes through Maven, which is not in PATH (Debian: maven); "
            f"or name a broker in {ENVIRONMENT}"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):  # Maven's own store is not made for several processes
        if not jars.is_dir():
            _fill(maven, cache, jars, artifacts)
    return jars


@contextlib.contextmanager
def _alone(cache: pathlib.Path) -> Iterator[None]:
    with open(cache / "kafka.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fill(maven: str, cache: pathlib.Path, jars: pathlib.Path, artifacts: Sequence[str]) -> None:
    """A rename at the end, so that an interrupted run does not leave half a directory."""
    with tempfile.TemporaryDirectory(prefix="resolving-", dir=cache) as scratch:
        pom = pathlib.Path(scratch) / "pom.xml"
        pom.write_text(POM.format("\n".join(DEPENDENCY.format(*artifact.split(":")) for artifact in artifacts)))
        filled = pathlib.Path(scratch) / "jars"
        _run(
            [
                *(maven, "--batch-mode", "--quiet", "--strict-checksums", f"--file={pom}"),
                *("dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={filled}"),
            ],
            RESOLVE_SECONDS_MAX,
            f"Maven could not resolve {artifacts[0]}",
        )
        filled.rename(jars)


def find_archive(java: str, jars: pathlib.Path) -> pathlib.Path:
    """Of the classes that a broker loads, in this Java's own form, written once. It saves time and decides nothing: the
    JVM goes without an archive that is not there, is empty or is damaged."""
    archive = jars.with_name(f"{jars.name}-{hashlib.sha256(_version(java).encode()).hexdigest()[:12]}.jsa")
    if not archive.exists():
        with contextlib.suppress(OSError, KafkaFailed), _alone(jars.parent):
            if not archive.exists():
                _make_archive(archive)
    return archive


def _make_archive(archive: pathlib.Path) -> None:
    """An empty one where the JVM wrote none, so that not every start tries again."""
    with tempfile.TemporaryDirectory(prefix="archiving-", dir=archive.parent) as scratch:
        broker = KafkaServer(quick=True)
        broker._archiving = made = pathlib.Path(scratch) / archive.name
        with broker:
            pass
        made.touch()
        made.rename(archive)


def free_ports(client: int | None = None) -> tuple[int, int]:
    """Two loopback ports, for clients (unless given) and for the controller.

    They lie below the range from which the kernel takes outgoing ports: a client that keeps reconnecting to a broker
    that restarts could otherwise be given the broker's own port, connect to itself and hold it.
    """
    try:
        outgoing_from = int(pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        outgoing_from = 32768
    ports = [client] if client else []
    candidates = range(10_000, max(outgoing_from, 11_000))
    for port in random.sample(candidates, 500):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
        if len(ports) == 2:
            return ports[0], ports[1]
    raise KafkaFailed("no free loopback port for Kafka")


def _await_answer(bootstrap: str, deadline: float) -> None:
    """Returns when the broker answers a client's request for metadata and names itself."""
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})
    why = "it names no broker"
    while time.monotonic() < deadline:
        try:
            if admin.list_topics(timeout=2).brokers:
                return
        except KafkaException as error:
            why = str(error)
        time.sleep(0.05)
    raise KafkaFailed(f"Kafka at {bootstrap} did not answer in time ({why})")


def _run(command: list[str], seconds_max: float, failed: str) -> None:
    """Run to the end; where that is a failure, raise with what it printed."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds_max,
        )
    except subprocess.TimeoutExpired:
        raise KafkaFailed(f"{failed} within {seconds_max:.0f} s") from None
    if done.returncode:
        raise KafkaFailed(f"{failed}:\n{_tail(done.stdout)}")


def _tail(text: str) -> str:
    return "\n".join(text.rstrip().splitlines()[-LOG_TAIL_LINES:])


class _Terminated(KeyboardInterrupt):
    pass


def _stop_on_sigterm(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _run_beside(command: list[str]) -> int:
    """Its status. Whoever uses the broker ends before the broker does."""
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except _Terminated:
            process.terminate()
        except KeyboardInterrupt:
            pass  # Ctrl-C on a terminal goes to all of its processes


def main() -> int:
    """`make kafka`: a broker until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m tests.kafka_server", description=main.__doc__)
    parser.add_argument("--port", type=int, help="for clients (default: any free one)")
    parser.add_argument("--data", type=pathlib.Path, help="keep topics here (default: a temporary directory)")
    parser.add_argument("--heap", default="256m", help="of the JVM (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="for a few messages: compile less")
    parser.add_argument("--run", metavar="COMMAND", help="stop when this has ended; {} is the broker's address")
    arguments = parser.parse_args()
    if os.environ.get(ENVIRONMENT):
        print(f"{ENVIRONMENT} already names a broker: {os.environ[ENVIRONMENT]}", file=sys.stderr)
        return 2

    signal.signal(signal.SIGTERM, _stop_on_sigterm)
    kafka = KafkaServer(arguments.data, port=arguments.port, heap=arguments.heap, quick=arguments.quick)
    print(f"Starting Apache Kafka {KAFKA_VERSION}; the very first time Maven fetches it ...", flush=True)
    try:
        with kafka:
            print(f"Apache Kafka {KAFKA_VERSION} answers at {kafka.bootstrap}; its log: {kafka.log_path}", flush=True)
            if arguments.run:
                return _run_beside(shlex.split(arguments.run.format(kafka.bootstrap)))
            print(f"Use it, the tests too, from another terminal:\n\n    export {ENVIRONMENT}={kafka.bootstrap}\n")
            print("Ctrl-C stops it.", flush=True)
            status = kafka.wait()
        print(f"Kafka ended by itself with status {status}.", file=sys.stderr)
        return 1
    except (KafkaToolMissing, KafkaFailed) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.")
        return 0


if __name__ == "__main__":
    sys.exit(main())
