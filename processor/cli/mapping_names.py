"""The mappings that a command line names."""

import pathlib

from tokenometer.processor.cli.common import WrongArgument
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping import Mapping, MappingError


def resolve(name: str) -> Mapping:
    """A shipped mapping, or a file's. A name that is neither is a wrong argument, and a file that cannot be used is
    not."""
    try:
        return mappings.resolve(name)
    except MappingError as error:
        if name in mappings.shipped() or name.endswith(".toml") or pathlib.Path(name).exists():
            raise
        raise WrongArgument(str(error)) from None


def shipped_text(name: str) -> bytes:
    try:
        return mappings.shipped_text(name)
    except MappingError as error:
        raise WrongArgument(str(error)) from None
