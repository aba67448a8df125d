"""Logs into a topic: what `synth --to-kafka` and `replay --to-kafka` have in common."""

import sys
import time
from collections.abc import Callable, Iterator

from tokenometer.processor import show
from tokenometer.processor.broker import Broker
from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import progress_bar, say
from tokenometer.processor.cli.options import ToKafkaSettings
from tokenometer.processor.load import blocks, produce
from tokenometer.processor.load.lines import Block
from tokenometer.processor.records.referee import Referee
from tokenometer.schemas.mapping import Mapping

_Progress = Callable[[produce.Sent], None]
_Send = Callable[[Broker, str, produce.Pacing, int, _Progress], produce.Sent]


def send_lines(lines: Iterator[bytes], mapping: Mapping, settings: ToKafkaSettings) -> None:
    sent = _send(lambda to, topic, *how: produce.send(to, topic, lines, mapping, Referee(), *how), None, settings)
    if sent.keyed_by_bytes:
        say(
            f"{show.plural(sent.keyed_by_bytes, 'record')} without a user and a request id, as mapping {mapping.name} "
            "reads them, went to partitions by their bytes: one that comes again with other bytes may be counted twice",
            sys.stderr,
        )


def send_blocks(log: Iterator[Block], records: int | None, settings: ToKafkaSettings) -> None:
    """records: how many there will be, where that is known."""
    _send(lambda to, topic, *how: blocks.send_blocks(to, topic, blocks.ahead(log), *how), records, settings)


def _send(send: _Send, records: int | None, settings: ToKafkaSettings) -> produce.Sent:
    topic = settings.to_kafka
    assert topic is not None
    broker = running.broker_of(settings)
    topics.check_input(broker, topic, settings.create_topics)
    pacing = produce.Pacing(settings.speed, lambda: time.monotonic_ns() // 1_000_000, time.sleep)
    begun = time.perf_counter()

    def progress(sent: produce.Sent) -> None:
        if advance:
            pace = show.si(sent.records / (time.perf_counter() - begun))
            advance(sent.records, f"{sent.records:,} records  {pace} records/s")

    with progress_bar(records) as advance:
        sent = send(broker, topic, pacing, settings.lines, progress)
    broker.close()
    elapsed = show.seconds(time.perf_counter() - begun)
    what = f"{show.plural(sent.records, 'record')} in {show.plural(sent.messages, 'message')}"
    say(f"{topic}: {what}, {show.si(sent.bytes)}B in {elapsed}", sys.stderr)
    return sent
