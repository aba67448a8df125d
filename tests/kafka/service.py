"""`tokenometer meter` as a process, and what it tells of itself over HTTP."""

import pathlib
import sys
import urllib.error
import urllib.request

import orjson

from tests import forked
from tests.kafka.stream import Stream
from tests.kafka_server import free_ports


class Service:
    def __init__(self, stream: Stream, log: pathlib.Path, *more: str, bootstrap: str | None = None) -> None:
        self.port, self._log = free_ports()[0], log
        usage, live, rejected = stream.outputs
        with log.open("wb") as out:
            self.process = forked.Popen(
                [
                    sys.executable, "-m", "tokenometer.processor.cli", "meter",
                    "--bootstrap", bootstrap or stream.bootstrap, "--group", stream.group,
                    "--input", f"{stream.input}={stream.mapping}", "--name", stream.named("meter-0"),
                    "--usage-topic", usage, "--live-topic", live, "--rejected-topic", rejected,
                    "--device", "cpu", "--memory", "256MiB", "--listen", f"127.0.0.1:{self.port}", *more,
                ],
                stdout=out, stderr=out,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    def health(self) -> tuple[int, str]:
        """0: it does not answer yet."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as answer:
                return answer.status, orjson.loads(answer.read())["status"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, orjson.loads(error.read())["status"]
        except OSError:
            assert self.process.poll() is None, self.log
            return 0, ""

    def lag(self) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("tokenometer_lag_messages{"))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
