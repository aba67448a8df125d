"""The options that commands share, and what their texts become: each is made here, once.

A command is a function of one frozen dataclass, its settings. `register` turns the dataclass's fields into options.
A setting comes from the command line, else from the environment (TOKENOMETER_METER_GROUP for --group), else from the
TOML file of --config (`group = "billing"`; see sources.py), else it is the default that --help shows. Secrets are
`Secret`s from the moment they are read.
"""

import dataclasses
import inspect
import logging
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer import Option

from tokenometer.processor import secret
from tokenometer.processor.cli.common import usage_error
from tokenometer.processor.cli.help import Command, Group
from tokenometer.processor.cli.sources import FileUnusable, load_config, refuse_unknown_variables, secret_text
from tokenometer.processor.secret import Secret

log = logging.getLogger("tokenometer")
BOOTSTRAP = "127.0.0.1:9092"
_MEMORY_MIN = 256 << 20  # one message of 1 MiB may bring 10,000 rows and names
_BATCH_MIN, _BATCH_MAX = 2 << 20, 1 << 30  # more than the longest record; positions in a batch have 32 bits
_PORT_MAX = 65_535
_TOKEN_MIN = 16  # nothing slows down guessing; the servers refuse shorter ones, too


# --- Settings ---


@dataclass(frozen=True)
class CommandSettings:
    """What a command was told. It logs itself, with every secret as `***`."""

    def shown(self) -> dict[str, Any]:
        """The settings by name, as texts and numbers that may be seen."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {f"setting.{name}": _plain(value) for name, value in given.items() if value is not None}

    def log(self) -> None:
        log.info("settings", extra=self.shown())


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return value if isinstance(value, int | float) else str(value)


_Run = Callable[[Any], None]
_HEADING = "\n\nExamples:\n"


def register(app: typer.Typer, name: str, run: _Run) -> None:
    """Add a command. Its options are the fields of the dataclass that `run` takes; its help and its examples are the
    docstring of `run`."""
    command, text, examples = _command(run)
    app.command(name, cls=Command, help=text, epilog=examples)(command)


def group_of(run: _Run, others: dict[str, _Run]) -> typer.Typer:
    """A command that has commands of its own beside what it does without one."""
    command, text, examples = _command(run)
    group = typer.Typer(cls=Group, invoke_without_command=True, help=text, epilog=examples)
    group.callback()(command)
    for other, its_run in others.items():
        register(group, other, its_run)
    return group


def _command(run: _Run) -> tuple[Callable[..., None], str, str | None]:
    """The function that typer calls, its help and its examples. It does nothing if another command follows."""
    [settings] = [kind for key, kind in typing.get_type_hints(run).items() if key != "return"]

    def command(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            refuse_unknown_variables(context)
            run(settings(**values))

    own = inspect.get_annotations(settings)  # these first, then what is shared with other commands
    fields = sorted(dataclasses.fields(settings), key=lambda field: field.name not in own)
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *map(_parameter, fields)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    text, _, examples = (inspect.getdoc(run) or "").partition(_HEADING)
    lines = ["Examples:", *(escape(line.strip()) for line in examples.splitlines() if line.strip())]
    return command, text, "\n\n".join(lines) if examples else None


def _parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=field.type)


# --- Choices ---


class Device(StrEnum):
    AUTO, CUDA, CPU = "auto", "cuda", "cpu"


class LogFormat(StrEnum):
    JSON, TEXT = "json", "text"


class LogLevel(StrEnum):
    DEBUG, INFO, WARNING, ERROR = "debug", "info", "warning", "error"


# --- What texts become ---


@dataclass(frozen=True)
class Address:
    """Where something is served."""

    host: str  # without the brackets of IPv6
    port: int  # 0: any that is free

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def address(text: str | Address) -> Address | None:
    """Reads HOST:PORT or [HOST]:PORT. An empty text means that nothing is served."""
    if isinstance(text, Address) or not text:
        return text or None
    host, _, port = text.rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > _PORT_MAX:
        usage_error(f"expected HOST:PORT, got {text!r}")
    return Address(host.strip("[]"), int(port))


def memory_bytes(text: str | int) -> int:
    size = _bytes(text)
    if size < _MEMORY_MIN:
        usage_error(f"expected 256MiB or more, got {text}")
    return size


def _bytes(text: str | int) -> int:
    """The bytes of `2GiB`, `500MB`, `1073741824`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(text).strip(), re.IGNORECASE | re.ASCII)
    if not match:
        usage_error(f"expected a size such as 2GiB or 500MB, got {text!r}")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " "))


def batch_bytes(text: str | int) -> int:
    size = _bytes(text)
    if not _BATCH_MIN <= size <= _BATCH_MAX:
        usage_error(f"expected 2MiB to 1GiB, got {text}")
    return size


def http_url(text: str) -> str:
    """The address of a server of ours. A name or a password in it is refused and not repeated."""
    if secret.has_user(text):
        usage_error("expected http://HOST:PORT without a name or password; give a token with --token-file")
    if not text.startswith(("http://", "https://")):
        usage_error(f"expected http://HOST:PORT, got {text!r}")
    return text.rstrip("/")


@dataclass(frozen=True)
class KafkaSetting:
    """One setting of librdkafka."""

    name: str
    value: str | Secret

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


def kafka_setting(text: "str | KafkaSetting") -> KafkaSetting:
    """Reads NAME=VALUE. A text of another form may be a secret, so it is not repeated."""
    if isinstance(text, KafkaSetting):
        return text
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[0-9A-Za-z._-]+", name.strip()):
        usage_error("expected NAME=VALUE, such as security.protocol=SASL_SSL")
    return KafkaSetting(name.strip(), secret.setting(name.strip(), value))


# --- Files of settings and secrets ---


def token_file(path: "str | Secret") -> Secret:
    """The token that a file holds."""
    if isinstance(path, Secret):
        return path
    token = secret_text(path).strip()
    if not re.fullmatch(rf"[!-~]{{{_TOKEN_MIN},}}", token):
        raise FileUnusable(f"{path}: expected a token of {_TOKEN_MIN} characters at least, ASCII without spaces")
    return Secret(token)


def _kafka_file(path: str) -> Iterator[KafkaSetting]:
    """Lines of NAME=VALUE; empty ones and those that begin with # are left out."""
    for number, line in enumerate(secret_text(path).splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            yield kafka_setting(text)
        except typer.BadParameter as error:
            raise FileUnusable(f"{path}, line {number}: {error.message}") from None


# --- Options ---


Config = Annotated[
    str | None, Option(metavar="FILE", callback=load_config, is_eager=True, help="A TOML file of these settings.")
]
Listen = Annotated[
    Address | None,
    Option(parser=address, metavar="HOST:PORT", help="Where /metrics and /healthz are served; '' serves none."),
]
DeviceName = Annotated[Device, Option(help="auto uses a GPU where there is one.")]
Memory = Annotated[
    int | None,
    Option(
        parser=memory_bytes, metavar="SIZE", help="The memory of all tables together, such as 2GiB; 256MiB or more."
    ),
]
BatchBytes = Annotated[
    int | None,
    Option(
        parser=batch_bytes,
        metavar="SIZE",
        help="How much goes to the engine at once; a larger message goes in pieces. [dim]\\[default: 6MiB; less with a "
        "small --memory, more on a GPU][/]",
    ),
]
Window = Annotated[int, Option(min=1, max=86_400, metavar="SECONDS", help="The length of a usage row's window.")]
LogForm = Annotated[LogFormat, Option(help="json is for programs, text is for people.")]
LogLevels = Annotated[
    LogLevel,
    Option(
        metavar="LEVEL",
        help="debug, info, warning or error: messages of this level and of the more serious ones are logged.",
    ),
]
TokenFile = Annotated[Secret | None, Option(parser=token_file, metavar="FILE", help="A file that holds the token.")]
Force = Annotated[bool, Option("--force", "-f", help="Replace files that exist.")]


@dataclass(frozen=True)
class LogSettings(CommandSettings):
    """What a service logs."""

    log_format: LogForm = LogFormat.JSON
    log_level: LogLevels = LogLevel.INFO


# --- Kafka ---

_KAFKA = "Kafka"

Bootstrap = Annotated[
    str,
    Option(
        rich_help_panel=_KAFKA, metavar="HOST:PORT,...", help="Kafka's addresses, also from KAFKA_BOOTSTRAP_SERVERS.",
    ),
]  # fmt: skip
_KAFKA_PAIRS = "A setting of librdkafka, such as security.protocol=SASL_SSL; may be repeated."
KafkaPairs = Annotated[
    list[KafkaSetting] | None,
    Option(
        "--kafka",
        parser=kafka_setting,
        rich_help_panel=_KAFKA,
        metavar="NAME=VALUE",
        help=f"{_KAFKA_PAIRS} --config has a table [bold]\\[kafka][/] for them.",
    ),
]
KafkaPairsWithoutConfig = Annotated[
    list[KafkaSetting] | None,
    Option("--kafka", parser=kafka_setting, rich_help_panel=_KAFKA, metavar="NAME=VALUE", help=_KAFKA_PAIRS),
]
KafkaFile = Annotated[
    str | None,
    Option(
        rich_help_panel=_KAFKA,
        metavar="FILE",
        help="A file of such settings, one NAME=VALUE a line. Passwords belong there. --kafka overrides it.",
    ),
]


@dataclass(frozen=True)
class KafkaSettings(CommandSettings):
    """Where Kafka is, and the settings of its clients."""

    bootstrap: Bootstrap = BOOTSTRAP
    kafka: KafkaPairs = None
    kafka_file: KafkaFile = None

    @property
    def client(self) -> dict[str, str | Secret]:
        """librdkafka's settings by name."""
        pairs = [*(_kafka_file(self.kafka_file) if self.kafka_file else ()), *(self.kafka or ())]
        return {pair.name: pair.value for pair in pairs}

    def shown(self) -> dict[str, Any]:
        shown = super().shown() | {"kafka": {name: str(value) for name, value in self.client.items()}}
        return {name: value for name, value in shown.items() if name != "setting.kafka"}


@dataclass(frozen=True)
class ToKafkaSettings(KafkaSettings):
    kafka: KafkaPairsWithoutConfig = None
    to_kafka: Annotated[
        str | None,
        Option(
            rich_help_panel="Kafka",
            metavar="TOPIC",
            help="Put the log into this topic, keyed by user; without one by request id, else by its bytes.",
        ),
    ] = None
    create_topics: Annotated[
        int,
        Option(
            rich_help_panel="Kafka", min=0, max=10_000, metavar="PARTITIONS",
            help="Create the topic with so many partitions if it is missing.",
        ),
    ] = 0  # fmt: skip
    lines: Annotated[
        int, Option(rich_help_panel="Kafka", min=1, max=10_000, help="How many records a message has.")
    ] = 1
    speed: Annotated[
        float | None,
        Option(
            rich_help_panel="Kafka",
            min=0.001,
            metavar="X",
            help="How many times faster than the log's clock; without it as fast as it goes.",
            show_default=False,
        ),
    ] = None


# --- Schema Registry ---

RegistryPairs = Annotated[
    list[KafkaSetting] | None,
    Option(
        "--registry",
        parser=kafka_setting,
        rich_help_panel=_KAFKA,
        metavar="NAME=VALUE",
        help="A setting of the Schema Registry, such as schema.registry.url=https://registry:8081, for mappings with "
        "registry = true; may be repeated. In --config: a table [bold]\\[registry][/].",
    ),
]
RegistryFile = Annotated[
    str | None,
    Option(
        rich_help_panel=_KAFKA,
        metavar="FILE",
        help="A file of such settings, one NAME=VALUE a line: basic.auth.user.info belongs there. --registry goes "
        "before it.",
    ),
]


@dataclass(frozen=True)
class RegistrySettings(CommandSettings):
    """Where schemas come from that values name by an id."""

    registry: RegistryPairs = None
    registry_file: RegistryFile = None

    @property
    def registry_client(self) -> dict[str, str | Secret] | None:
        """Confluent's settings by name; None: there are none."""
        pairs = [*(_kafka_file(self.registry_file) if self.registry_file else ()), *(self.registry or ())]
        return {pair.name: pair.value for pair in pairs} or None

    def shown(self) -> dict[str, Any]:
        shown = {name: value for name, value in super().shown().items() if name != "setting.registry"}
        client = self.registry_client
        return shown | ({"registry": {name: str(value) for name, value in client.items()}} if client else {})
