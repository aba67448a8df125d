"""Exact token accounting for LLM inference logs.

    import tokenometer

    usage = tokenometer.meter("requests.ndjson.zst", mapping="openai-chat")
    usage.table        # a pyarrow.Table: window_start, user, model, chip, counters
    usage.rejects      # the records that do not count, with their reasons

`meter` meters a log, `mapping` reads a mapping, `verify` audits a metered stream. Every error that is not a wrong
argument is a `TokenometerError`, whose message says what to do.

This file is the package `tokenometer` itself. The repository's folders are its parts: `tokenometer.kernels` is the
engine, `tokenometer.processor` is everything around it, `tokenometer.schemas` says what records, rows and mappings are.
Only the names of `__all__` are promised to stay.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenometer.processor.files.metering import MeteredUsage as Usage
    from tokenometer.processor.files.metering import mapping_of as mapping
    from tokenometer.processor.files.metering import meter as meter
    from tokenometer.processor.verify.stream import verify_stream as verify
    from tokenometer.schemas.errors import TokenometerError as TokenometerError

    __version__: str

__all__ = ["TokenometerError", "Usage", "mapping", "meter", "verify"]

_HOMES = {
    "TokenometerError": ("schemas.errors", "TokenometerError"),
    "Usage": ("processor.files.metering", "MeteredUsage"),
    "mapping": ("processor.files.metering", "mapping_of"),
    "meter": ("processor.files.metering", "meter"),
    "verify": ("processor.verify.stream", "verify_stream"),
}


def __getattr__(name: str) -> Any:
    """The promised names, each from its home when it is first asked for: an engine is not loaded for an import."""
    if name == "__version__":  # what reads it needs the standard library's package for e-mail
        return import_module("importlib.metadata").version("tokenometer")
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenometer' has no attribute {name!r}")
    home, own = _HOMES[name]
    globals()[name] = found = getattr(import_module(f"tokenometer.{home}"), own)
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), "__version__", *_HOMES])
