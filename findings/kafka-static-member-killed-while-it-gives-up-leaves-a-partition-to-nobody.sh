#!/usr/bin/env bash
# Guess: in a consumer group that is Stable each partition has an owner, and a static member (group.instance.id) that is
# killed and started again within its session is as if it had never been away.
# Instead: with cooperative-sticky a partition moves in two rounds: its old owner gives it up and joins again, and then
# its new owner gets it. An owner that is killed between the two and started again is given what the first round left it,
# does not know that it had anything to give up, and does not join again. The group is Stable, its members are alive, and
# the partition is nobody's: not until the session is over, but until some member comes or goes. With the eager strategy
# `range` the same kill leaves nothing behind.
# Why it matters: static names are there for restarts, and meters are restarted while others come. Usage then
# waits unread in one partition, and no client logs a word; only its lag tells.
# Versions: Apache Kafka 4.4.0, confluent-kafka 2.16.1. Needs Java 17 and Maven.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check confluent-kafka==2.16.1
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

cat > "$work/member.py" <<'PY'
import os
import signal
import sys

from confluent_kafka import Consumer

servers, group, strategy, name, dies = sys.argv[1:]
settings = {
    "bootstrap.servers": servers, "group.id": group, "group.instance.id": name, "session.timeout.ms": 6000,
    "heartbeat.interval.ms": 500, "partition.assignment.strategy": strategy,
}  # fmt: skip


def revoked(consumer, partitions):
    if dies == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


consumer = Consumer(settings)
consumer.subscribe(["usage"], on_revoke=revoked)
while os.getppid() == int(os.environ["PARENT"]):
    consumer.poll(0.1)
PY

"$work/venv/bin/python" - "$work" <<'PY'
import os
import pathlib
import socket
import subprocess
import sys
import time

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

work = pathlib.Path(sys.argv[1])
print(*(jar.stem for jar in (work / "jars").glob("kafka_2.13-*.jar")), "confluent-kafka", confluent_kafka.__version__,
      "librdkafka", confluent_kafka.libversion()[0])  # fmt: skip
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
offsets.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
""")
servers = f"127.0.0.1:{port}"
java = ["java", "-Xmx512m", "-cp", f"{work}/jars/*"]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
format_it = ["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", f"{work}/server.properties"]
subprocess.run([*java, *format_it], check=True, **quiet)
running = [subprocess.Popen([*java, "kafka.Kafka", f"{work}/server.properties"], **quiet)]


def start(group, strategy, name, dies="lives"):
    command = [sys.executable, str(work / "member.py"), servers, group, strategy, name, dies]
    running.append(subprocess.Popen(command, env={**os.environ, "PARENT": str(os.getpid())}, **quiet))
    return running[-1]


def look(group):
    """The group's state, and what each member has; the coordinator may still be starting."""
    try:
        found = admin.describe_consumer_groups([group])[group].result()
    except confluent_kafka.KafkaException:
        return "UNKNOWN", {}
    held = {m.group_instance_id: sorted(p.partition for p in m.assignment.topic_partitions) for m in found.members}
    return found.state.name, held


def wait_for(condition, words, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"The behaviour has changed, or this machine is too slow: no {words} in {seconds} s")
        time.sleep(0.2)


def is_shared(group, members):
    state, held = look(group)
    return state == "STABLE" and len(held) == members and sorted(sum(held.values(), [])) == [0, 1, 2]


def kill_while_it_gives_up(group, strategy):
    first = start(group, strategy, "first", "dies")
    wait_for(lambda: is_shared(group, 1), "member with all three partitions")
    start(group, strategy, "second")
    wait_for(lambda: first.poll() is not None, "partition to give up")
    start(group, strategy, "first")
    time.sleep(20)  # more than three sessions
    state, held = look(group)
    print(f"{strategy}: 20 s after the restart the group is {state}, its members have {held}")
    return state, held


try:
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    wait_for(lambda: admin.list_topics(timeout=5).brokers, "broker", 90)
    admin.create_topics([NewTopic("usage", 3, 1)])["usage"].result()
    state, held = kill_while_it_gives_up("cooperative", "cooperative-sticky")
    nobodys = {0, 1, 2} - set(sum(held.values(), []))
    if (state, set(held), len(nobodys)) != ("STABLE", {"first", "second"}, 1):
        sys.exit("The behaviour has changed: expected a stable group of two, and one partition without an owner")
    start("cooperative", "cooperative-sticky", "third")
    wait_for(lambda: is_shared("cooperative", 3), "sharing by a third member")
    print("a third member comes: the group is", *look("cooperative"))
    state, held = kill_while_it_gives_up("eager", "range")
    if not is_shared("eager", 2):
        sys.exit("The behaviour has changed: expected that the eager group has shared all out")
finally:
    for each in reversed(running):
        each.kill()
        each.wait()
PY
