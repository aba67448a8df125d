"""Schema Registries for tests: a real one, Apicurio, and a small one that follows the documented API.

    with SchemaRegistry() as registry:      Apicurio Registry in a JVM on loopback; registry.url is its Confluent API
    with SmallRegistry() as registry:       a thread; `answer` makes it answer something else, such as 500

Apicurio knows neither GUIDs nor `format=serialized` of protobuf schemas, which Confluent's own has: those are tested
with the small one. Maven brings Apicurio's archive once, into the user's cache.
"""

import base64
import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
import ssl
import subprocess
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.kafka_server import KafkaFailed, KafkaToolMissing, find_java, free_ports

VERSION = "2.6.13.Final"  # the last line that runs on Java 17
ARTIFACT = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
RESOLVE_SECONDS_MAX = 300
START_SECONDS_MAX = 120


class SchemaRegistry:
    """A real registry that keeps its schemas in memory. `start` returns when it answers."""

    def __init__(self, port: int | None = None) -> None:
        self._port = port or free_ports()[0]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def start(self) -> None:
        java, folder = find_java(), resolve()
        options = ["-Xmx256m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:TieredStopAtLevel=1"]
        self._process = subprocess.Popen(
            [java, *options, "-jar", str(folder / f"apicurio-registry-app-{VERSION}-runner.jar")],
            env={**os.environ, "QUARKUS_HTTP_HOST": "127.0.0.1", "QUARKUS_HTTP_PORT": str(self._port)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(f"{self.url}/subjects", timeout=5).close()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")[-3000:]
                self.kill()
                raise KafkaFailed(f"Apicurio Registry did not start in {START_SECONDS_MAX} s:\n{said}")
            time.sleep(0.1)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def resolve() -> pathlib.Path:
    """The folder of Apicurio's jars."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "tokenometer"
    folder = cache / f"apicurio-registry-{VERSION}"
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise KafkaToolMissing("Apicurio Registry comes through Maven, which is not in PATH (Debian: maven)")
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "kafka.lock", "w") as lock:  # Maven's own store is not made for several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _fill(maven, cache, folder)
    return folder


def _fill(maven: str, cache: pathlib.Path, folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory(prefix="resolving-", dir=cache) as scratch:
        goal = ["dependency:copy", f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={scratch}"]
        done = subprocess.run(
            [maven, "--batch-mode", "--quiet", "--strict-checksums", *goal],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=scratch,
            timeout=RESOLVE_SECONDS_MAX,
        )
        if done.returncode:
            raise KafkaFailed(f"Maven could not bring Apicurio Registry {VERSION}:\n{done.stdout[-3000:]}")
        [archive] = pathlib.Path(scratch).glob("*.tar.gz")
        filled = pathlib.Path(scratch) / "filled"
        with tarfile.open(archive) as tar:
            tar.extractall(filled, filter="data")
        filled.rename(folder)


# --- A small one ---


class SmallRegistry:
    """Confluent's API as far as it is used. answer: the status of every answer, where it is not None; "silent": none.
    user_info: the credentials that it wants. asked: the paths of requests. tls: what it shows of itself and
    wants of clients."""

    def __init__(self, user_info: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.answer: int | str | None = None
        self.body = b"not JSON"  # of such an answer
        self.asked: list[str] = []
        self.user_info = user_info
        self._schemas: list[dict[str, Any]] = []
        self._subjects: dict[str, list[int]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._scheme = "https" if tls else "http"
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, subject: str, schema: dict[str, Any]) -> int:
        """The id of a schema, a new one where there is none."""
        known = next((one["id"] for one in self._schemas if _same(one, schema)), None)
        if known is None:
            known = len(self._schemas) + 1
            self._schemas.append({**schema, "id": known, "guid": str(uuid.uuid4())})
        versions = self._subjects.setdefault(subject, [])
        if known not in versions:
            versions.append(known)
        return known

    def guid(self, schema_id: int) -> str:
        return str(self._schemas[schema_id - 1]["guid"])

    def get(self, path: str) -> tuple[int, Any]:
        match path.strip("/").split("/"):
            case ["schemas", "types"]:
                return 200, ["JSON", "PROTOBUF", "AVRO"]
            case ["schemas", "ids", number] if 1 <= int(number) <= len(self._schemas):
                return 200, self._schemas[int(number) - 1]
            case ["schemas", "guids", guid] if found := [one for one in self._schemas if one["guid"] == guid]:
                return 200, found[0]
            case ["schemas", *_]:
                return 404, {"error_code": 40403, "message": "Schema not found"}
            case ["subjects", subject, "versions", version] if subject in self._subjects:
                number = self._subjects[subject][int(version) - 1]
                return 200, {"subject": subject, "version": int(version), **self._schemas[number - 1]}
            case ["subjects", *_]:
                return 404, {"error_code": 40401, "message": "Subject not found"}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                registry.asked.append(path)
                self._answer(*registry.get(path))

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                subject = self.path.split("/")[2].partition("?")[0]
                number = registry.add(subject, {key: content[key] for key in _KEYS if key in content})
                versions = registry._subjects[subject]
                placed = {"subject": subject, "version": versions.index(number) + 1}
                self._answer(200, {**registry._schemas[number - 1], **placed})

            def _answer(self, status: int, content: Any) -> None:
                body = json.dumps(content).encode()
                if registry.answer == "silent":
                    time.sleep(30)
                if registry.answer is not None:
                    status, body = int(registry.answer), registry.body
                elif registry.user_info is not None:
                    wanted = "Basic " + base64.b64encode(registry.user_info.encode()).decode()
                    if self.headers["Authorization"] != wanted:
                        status, body = 401, b'{"error_code":40101,"message":"User cannot access the resource."}'
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body)

        return Handler


_KEYS = ("schema", "schemaType", "references")


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in _KEYS)
