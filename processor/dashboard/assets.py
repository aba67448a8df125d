"""The page's files, read once: our own, and the chart library out of the package plotly.

Owns: their names, types and tags, and their compressed bytes.
Promises: a file is found by its exact name or not at all, so no path leads elsewhere.
"""

import asyncio
import gzip
import hashlib
from dataclasses import dataclass, field
from importlib import resources

from tokenometer.processor.http.access import ServeError

PAGE = "index.html"
_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass
class Asset:
    content_type: str
    plain: bytes = field(repr=False)
    tag: str = ""
    _packed: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.tag = f'"{hashlib.sha256(self.plain).hexdigest()[:32]}"'

    async def packed(self) -> bytes:
        """Compresses a file when it is first asked for, beside the loop; the chart library takes 0.3 s."""
        if self._packed is None:
            self._packed = await asyncio.to_thread(gzip.compress, self.plain, 6)
        return self._packed


def load() -> dict[str, Asset]:
    static = resources.files("tokenometer.processor.dashboard") / "static"
    files = {file.name: file.read_bytes() for file in static.iterdir() if file.name.rpartition(".")[2] in _TYPES}
    files["plotly.min.js"] = _chart_library()
    return {name: Asset(_TYPES[name.rpartition(".")[2]], content) for name, content in files.items()}


def _chart_library() -> bytes:
    try:
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    except (ModuleNotFoundError, FileNotFoundError):
        raise ServeError(
            "the page's chart library is missing: python -m pip install 'tokenometer[dashboard]'"
        ) from None
