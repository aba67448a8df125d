"""Exact token accounting for LLM inference logs.

This file is the package `tokenometer` itself. The repository's folders are its parts: `tokenometer.kernels` is the
engine, `tokenometer.processor` is everything around it, `tokenometer.schemas` says what records, rows and mappings are.
"""

from importlib.metadata import version

__version__ = version("tokenometer")
