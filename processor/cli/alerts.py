"""The command `alerts`: budgets, judged in the stream."""

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from tokenometer.processor import show
from tokenometer.processor.cli import running, topics
from tokenometer.processor.cli.common import needs
from tokenometer.processor.cli.options import Address, Config, KafkaSettings, LogSettings, address

if TYPE_CHECKING:
    pass

log = logging.getLogger("tokenometer.alerts")
_HOOK_SECONDS = 5.0  # a new webhook begins before the first alert, unless the broker is away


@dataclass(frozen=True)
class AlertsCommand(KafkaSettings, LogSettings):
    rules: Annotated[
        str, Argument(metavar="RULES.toml", help="Budgets and webhooks, as docs/ALERTS.md describes them.")
    ] = field(kw_only=True)
    config: Config = None
    name: Annotated[
        str,
        Option(help="Of this process. A second one of this name ends the first; each file of rules needs its own."),
    ] = "alerts"
    usage_topic: Annotated[str, Option(help="Usage rows.")] = topics.USAGE
    alerts_topic: Annotated[str, Option(help="The topic of alerts.")] = topics.ALERTS
    state_topic: Annotated[str, Option(help="The compacted topic of sums, to go on from.")] = topics.ALERTS_STATE
    state_interval: Annotated[
        int, Option(min=1, max=3600, metavar="SECONDS", help="How often sums are kept: what a crash reads again.")
    ] = 30
    create_topics: Annotated[bool, Option("--create-topics", help="Create the output topics if they are missing.")] = (
        False
    )
    replication: Annotated[int, Option(min=1, max=9, help="How many copies a topic that is created has.")] = 1
    accept_gap: Annotated[
        bool, Option("--accept-gap", help="Go on although retention has deleted usage that was not read.")
    ] = False
    listen: Annotated[
        Address | None,
        Option(parser=address, metavar="HOST:PORT", help="Where /metrics and /healthz are served; '' serves none."),
    ] = Address("127.0.0.1", 9466)
    check: Annotated[bool, Option("--check", help="Only read the rules file, say what is wrong with it, and end.")] = (
        False
    )


def alerts_command(command: AlertsCommand) -> None:
    """Judge budgets in the stream: announce each threshold that usage passes, once, until SIGTERM.

    Alerts go to a topic, to webhooks, and onto the dashboard of `tokenometer rollup`. Each option may also be given in
    the environment, --name as TOKENOMETER_ALERTS_NAME, or in the --config file.

    Examples:
        tokenometer alerts budgets.toml --bootstrap kafka:9092 --create-topics
        tokenometer alerts budgets.toml --check
    """
    with needs("ledger"):
        from tokenometer.processor.alerts import rulefile, worker
        from tokenometer.processor.alerts.health import AlertHealth
        from tokenometer.processor.alerts.hooks import HookThread

    rules = rulefile.load(command.rules)
    if command.check:
        found = show.plural(len(rules.rules), "rule"), show.plural(len(rules.webhooks), "webhook")
        print(f"{command.rules}: {', '.join(found)}")
        return
    running.start_logs(command)
    broker = running.broker_of(command)
    command.log()
    settings = worker.AlertSettings(
        command.name, command.usage_topic, command.alerts_topic, command.state_topic, command.state_interval * 1000,
        command.accept_gap,
    )  # fmt: skip
    if command.create_topics:
        worker.create_topics(broker, settings, command.replication)
    alerts = worker.AlertWorker(broker, rules, settings)
    names = frozenset(rule.name for rule in rules.rules)
    hooks = [HookThread(broker, settings, hook, names) for hook in rules.webhooks]
    health = AlertHealth(alerts.progress, hooks, lambda: time.time_ns() // 1_000_000)
    with running.served(health, command.listen), running.stop_signals() as stopped:
        for hook in hooks:
            hook.start()
        for hook in hooks:
            hook.ready.wait(_HOOK_SECONDS)
        alerts.run(stopped)
        for hook in hooks:
            hook.stop()
        for hook in hooks:
            hook.close()
    broker.close()
    log.info("stopped")
