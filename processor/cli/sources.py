"""Where settings come from besides the command line: the file of --config, and the environment.

Promises: a setting has the name of its long option. `--prices` of `ledger` is `prices` in a file, and
TOKENOMETER_LEDGER_PRICES in the environment. The name that its field has in Python (`price_list`), under which older
versions read it, is understood too. A name that is not known is refused, and a wrong value is reported with the place
that it came from; no value is repeated.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any

import typer

from tokenometer.processor.cli.common import usage_error
from tokenometer.schemas.errors import TokenometerError

KAFKAS_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"  # for --bootstrap; Kafka's users know it
# Kubernetes gives every pod such variables for each service: those of a service `tokenometer-ledger` begin as ours do.
_KUBERNETES = re.compile(r"(.*_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")


class FileUnusable(TokenometerError):
    """A file of settings or secrets cannot be used. The message names it and repeats nothing that is in it."""


def secret_text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise FileUnusable(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FileUnusable(f"{path}: cannot be read: it is not text in UTF-8") from None


# --- Names ---


def setting_name(parameter: Any) -> str:
    """As it is written in a file: that of the long option, with _ for -."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    long = next((option for option in parameter.opts if option.startswith("--")), parameter.name)
    return str(long).lstrip("-").replace("-", "_")


def _by_name(parameters: Iterable[Any]) -> dict[str, Any]:
    """Each setting by its name, and by the name of its field where no other has that name."""
    found = {setting_name(each): each for each in parameters}
    return {str(each.name): each for each in found.values()} | found


def _hint(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""


# --- The file ---


def load_config(context: typer.Context, path: str | None) -> str | None:
    """Give the file's settings to the other options as their defaults."""
    if path is None:
        return None
    try:
        settings = tomllib.loads(secret_text(path))
    except FileUnusable as error:
        usage_error(str(error))
    except tomllib.TOMLDecodeError as error:
        usage_error(f"{path}: not TOML: {error}")
    own = [each for each in context.command.params if each.name not in ("config", "help")]
    known, values = _by_name(own), {}
    for given, value in settings.items():
        name = given.replace("-", "_")
        if name not in known:
            names = sorted(map(setting_name, own))
            usage_error(f"{path}: no such setting: {name}{_hint(name, names)}; expected one of {', '.join(names)}")
        parameter = known[name]
        if parameter.name in values:
            usage_error(f"{path}: {setting_name(parameter)} is given twice")
        values[parameter.name] = _checked(f"{path}: {given}", parameter, value)
    context.default_map = values
    return path


def _checked(place: str, parameter: Any, value: Any) -> Any:
    """The value, if TOML's type fits. What is in a text, the option itself judges."""
    several = getattr(parameter, "multiple", False) or parameter.nargs != 1
    if several and isinstance(value, dict):
        return [f"{key}={item}" for key, item in _flat(value)]
    if several:
        if not isinstance(value, list) or any(isinstance(item, list | dict | bool) for item in value):
            usage_error(f'{place}: expected a list of texts, such as ["..."]')
    elif isinstance(value, list | dict):
        usage_error(f"{place}: expected one value, not a {'list' if isinstance(value, list) else 'table'}")
    elif getattr(parameter, "is_flag", False) != isinstance(value, bool):
        usage_error(f"{place}: expected {'a text or a number' if isinstance(value, bool) else 'true or false'}")
    return value


def _flat(table: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """`security.protocol = "SSL"` is a table in a table to TOML, and one setting to librdkafka."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, str(value).lower() if isinstance(value, bool) else str(value)


# --- The environment ---


def settle_environment(path: str, command: Any) -> None:
    """Give each option its variable, TOKENOMETER_COMMAND_OPTION. path: of the command, as TOKENOMETER_COMMAND."""
    for each in command.params:
        if each.param_type_name == "option":
            each.show_envvar = False  # thirty times that makes no help
            names = dict.fromkeys((setting_name(each), str(each.name)))
            each.envvar = [f"{path}_{name}".upper() for name in names]
            each.envvar += [KAFKAS_VARIABLE] if each.name == "bootstrap" else []


def refuse_unknown_variables(context: typer.Context) -> None:
    """A misspelt variable would be left out without a word."""
    if context.auto_envvar_prefix is None:
        return
    prefix = f"{context.auto_envvar_prefix}_"
    known = {name for each in context.command.params for name in getattr(each, "envvar", None) or ()}
    others = tuple(f"{prefix}{name}_".upper() for name in getattr(context.command, "commands", ()))
    for name in sorted(os.environ):
        if name.startswith(prefix) and name not in known and not name.startswith(others):
            if _KUBERNETES.fullmatch(rest := name.removeprefix(prefix)):
                continue
            close = difflib.get_close_matches(rest, [each.removeprefix(prefix) for each in known], 1)
            way = f"did you mean {prefix}{close[0]}?" if close else f"{context.command_path} --help lists the options"
            usage_error(f"{name}: there is no such setting; {way}")


# --- Wrong values ---


def with_its_place(error: Any) -> str:
    """The message of a wrong value, after the variable or the file's setting where it came from one."""
    message, parameter, context = str(error.format_message()), getattr(error, "param", None), error.ctx
    if parameter is None or context is None:
        return message
    source = getattr(context.get_parameter_source(parameter.name), "name", "")
    if source == "ENVIRONMENT":
        names = [name for name in parameter.envvar or () if os.environ.get(name)]
        return f"{names[0]}: {message}" if names else message
    if source == "DEFAULT_MAP":
        return f"{context.params.get('config')}: {setting_name(parameter)}: {message}"
    return message
