#!/usr/bin/env bash
# Guess: an idempotent producer may repeat any of its last five batches of a partition, and its broker knows each of them
# again, whatever their records' times are and whether it was restarted meanwhile.
# Instead: a broker that starts again knows a producer's last batch of a partition only, after a stop in order as after
# kill -9. The ones before are answered with OUT_OF_ORDER_SEQUENCE_NUMBER (45), which a producer takes for lost data,
# though all of them are in the log. And it does not remember a producer at all whose last records have times of more than
# a day ago: the last batch, repeated, is written twice.
# Why it matters: rows whose answers are lost in a rolling restart look as if they had not been written, and where old
# logs are replayed with their own times a retry over a restart is counted twice, with enable.idempotence on. A later
# batch that is accepted says that the earlier ones are there; a producer's messages had better have the time of now.
# Versions: Apache Kafka 4.4.0; aiokafka 0.14.0 for the batch's bytes. Needs Java 17 and Maven.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check aiokafka==0.14.0
cat > "$work/pom.xml" <<'POM'
<project>
  <modelVersion>4.0.0</modelVersion><groupId>a</groupId><artifactId>a</artifactId><version>1</version>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.4.0</version>
  </dependency></dependencies>
</project>
POM
mvn --batch-mode --quiet --color=never --file "$work/pom.xml" dependency:copy-dependencies -DincludeScope=runtime \
    -DoutputDirectory="$work/jars"

"$work/venv/bin/python" - "$work" <<'PY'
import contextlib
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import time
from importlib.metadata import version

from aiokafka.record.default_records import DefaultRecordBatchBuilder

work = pathlib.Path(sys.argv[1])
print(*(jar.stem for jar in (work / "jars").glob("kafka_2.13-*.jar")), "aiokafka", version("aiokafka"))
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
port, controller = (each.getsockname()[1] for each in sockets)
for each in sockets:
    each.close()
(work / "server.properties").write_text(f"""
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
listeners=CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
log.dirs={work}/log
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
""")
java = ["java", "-Xmx512m", "-cp", f"{work}/jars/*"]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
format_it = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", f"{work}/server.properties"]
subprocess.run([*java, *format_it], check=True, **quiet)


def text(value):
    return struct.pack(">h", len(value)) + value


def ask(key, api_version, body):
    with socket.create_connection(("127.0.0.1", port), 10) as broker:
        frame = struct.pack(">hhi", key, api_version, 1) + text(b"finding") + body
        broker.sendall(struct.pack(">i", len(frame)) + frame)
        stream = broker.makefile("rb")
        (size,) = struct.unpack(">i", stream.read(4))
        return stream.read(size)[4:]


def leader_is_there():  # Metadata 4; it makes the topic
    answer = ask(3, 4, struct.pack(">i", 1) + text(b"usage") + b"\1")
    at = answer.index(b"\0\5usage")
    partitions = struct.unpack(">i", answer[at + 8 : at + 12])[0] if answer[at - 2 : at] == b"\0\0" else 0
    return partitions == 1 and answer[at + 12 : at + 14] == b"\0\0"


def start():
    broker = subprocess.Popen([*java, "kafka.Kafka", f"{work}/server.properties"], **quiet)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, struct.error, ValueError):
            if leader_is_there():
                return broker
        time.sleep(0.2)
    broker.kill()
    sys.exit("Kafka did not start")


def produce(producer, epoch, sequence, days_ago=0):
    """The error and the offset of a batch with one record."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=producer, producer_epoch=epoch,
        base_sequence=sequence, batch_size=1 << 16,
    )
    builder.append(0, int(1000 * (time.time() - 86_400 * days_ago)), None, b"%d" % sequence, [])
    records = bytes(builder.build())
    body = struct.pack(">hhi", -1, -1, 10_000) + struct.pack(">i", 1) + text(b"usage")
    body += struct.pack(">iii", 1, 0, len(records)) + records
    answer = ask(0, 7, body)  # Produce 7
    at = answer.index(b"usage") + len(b"usage") + 8
    return struct.unpack(">hq", answer[at : at + 10])


def identity():
    error = 1
    while error:  # the first answers may say that it is not yet ready
        _, error, producer, epoch = struct.unpack(">ihqh", ask(22, 0, struct.pack(">hi", -1, 60_000)))  # InitProducerId 0
    return producer, epoch


def check(words, seen, expected):
    print(f"{words}: {seen}")
    if seen != expected:
        sys.exit(f"The behaviour has changed: expected {expected}")


broker = start()
try:
    producer, other = identity(), identity()
    check("error, offset of three batches", [produce(*producer, n) for n in range(3)], [(0, 0), (0, 1), (0, 2)])
    check("the first one again", produce(*producer, 0), (0, 0))
    check("a batch of another producer, two days old", produce(*other, 0, days_ago=2), (0, 3))
    check("the same again", produce(*other, 0, days_ago=2), (0, 3))
    broker.send_signal(signal.SIGTERM)
    broker.wait(60)
    broker = start()
    check("after a stop in order, the last of the three again", produce(*producer, 2), (0, 2))
    check("the first one again", produce(*producer, 0), (45, -1))
    check("the old one again, which is written once more", produce(*other, 0, days_ago=2), (0, 4))
    check("three more", [produce(*producer, n) for n in range(3, 6)], [(0, 5), (0, 6), (0, 7)])
    broker.kill()
    broker.wait()
    broker = start()
    check("after kill -9, the first of these again", produce(*producer, 3), (45, -1))
    check("the last of these again", produce(*producer, 5), (0, 7))
finally:
    broker.kill()
    broker.wait()
PY
