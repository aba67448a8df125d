"""Who is in a group, asked by a process of its own.

librdkafka (2.16, issue 4605) ends its whole process with a failed assertion where the broker that coordinates a group
goes away while an admin client describes that group. A meter asks every few seconds, so it would die with a broker.
Here only the asking process dies: that one question has no answer, and the next one has another process.

    parent                                                       child: this file, run as a script
    settings, then the name of a group a line ── its standard input ──> describe_consumer_groups
    GroupMembers, or the error's code ─────────── a JSON line <── its standard output

The child ends when its standard input does, which is when the parent ends, however it ends.
"""

import json
import os
import selectors
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import IO, Any

ANSWER_SECONDS = 10  # for a request that the broker answers at once if it answers at all
START_SECONDS = 30  # of a process, on a machine that is busy
_GONE = "the process that asks has ended, as librdkafka's does when a group's coordinator goes away"


class MembersSilent(Exception):
    """It may be asked again; the message says why."""


class Failed(Exception):
    """What the brokers said: an error's code and text."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


Member = tuple[str | None, list[tuple[str, int]]]  # group.instance.id, and topic and partition of what it has


class MembersAsker:
    """One child at a time, made when it is needed. From any thread."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)  # texts, all of them
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def members(self, group: str) -> list[Member]:
        """Raises Failed and MembersSilent."""
        with self._lock:
            if self._child is not None and self._child.poll() is not None:
                self._end()
            seconds = 2.0 * ANSWER_SECONDS + (0 if self._child else START_SECONDS)
            try:
                child = self._child = self._child or self._start()
                _write(child.stdin, group)
                answer = _read_line(child.stdout, seconds)
            except (OSError, MembersSilent) as error:
                self._end()
                raise MembersSilent(str(error) if isinstance(error, MembersSilent) else _GONE) from None
        found = json.loads(answer)
        if "code" in found:
            raise Failed(found["code"], found["text"])
        return [(name, [(topic, partition) for topic, partition in places]) for name, places in found["members"]]

    def _start(self) -> "subprocess.Popen[bytes]":
        # -P: the names of the files beside this one are no modules. Its assertions and log lines are not ours to show.
        child = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        _write(child.stdin, self._settings)  # by a pipe: arguments are seen by everybody, and these hold passwords
        return child

    def _end(self) -> None:
        if self._child is None:
            return
        child, self._child = self._child, None
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    def close(self) -> None:
        with self._lock:
            self._end()

    def __del__(self) -> None:
        self._end()


def _write(pipe: IO[bytes] | None, value: Any) -> None:
    assert pipe is not None
    os.write(pipe.fileno(), json.dumps(value).encode() + b"\n")  # a name or a few settings: no pipe is too small


def _read_line(pipe: IO[bytes] | None, seconds: float) -> bytes:
    """Raises MembersSilent where it does not come, or the other end is gone."""
    assert pipe is not None
    found = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not found.endswith(b"\n"):
            if not selector.select(seconds):
                raise MembersSilent(f"no answer in {seconds:.0f} s")
            more = os.read(pipe.fileno(), 1 << 16)
            if not more:
                raise MembersSilent(_GONE)
            found += more
    return found


# --- The child ---


def main() -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    admin = AdminClient(json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        group = json.loads(line)
        try:
            future = admin.describe_consumer_groups([group], request_timeout=ANSWER_SECONDS)[group]
            described = future.result(timeout=2 * ANSWER_SECONDS)
            members = [
                (member.group_instance_id, [(p.topic, p.partition) for p in member.assignment.topic_partitions])
                for member in described.members
            ]
            answer: dict[str, Any] = {"members": members}
        except KafkaException as error:
            answer = {"code": error.args[0].code(), "text": error.args[0].str()}
        except TimeoutError:
            answer = {"code": -185, "text": f"no answer in {2 * ANSWER_SECONDS} s"}  # librdkafka's _TIMED_OUT
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
