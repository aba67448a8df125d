"""Asking a server of ours over HTTP.

Promises: a token goes only to the origin that it was given for. Where that origin redirects to another one, the request
follows without the token.
"""

import contextlib
import http.client
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from tokenometer.processor.secret import Secret

_PORTS = {"http": 80, "https": 443}
_LOOK_SECONDS = 5.0
_SERVICES = {
    "/v1/status": "a ledger answers there, which `tokenometer usage` asks",
    "/api/totals": "the dashboard of a rollup answers there, which `tokenometer top` asks",
}


def open_url(url: str, token: Secret | None, timeout: float, body: bytes | None = None) -> Any:
    """The answer, to be closed. Raises what urllib does. body: JSON, which makes it a POST."""
    headers = {} if body is None else {"Content-Type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    if token:
        # "Unredirected" headers are not copied to the next request; `_SameOrigin` adds it where it may be.
        request.add_unredirected_header("Authorization", f"Bearer {token.reveal()}")
    return urllib.request.build_opener(_SameOrigin).open(request, timeout=timeout)


def service_at(url: str, token: Secret | None) -> str:
    """What answers there, in words, where that is a server of ours that was asked for another one's path. Else ''."""
    for path, words in _SERVICES.items():
        with contextlib.suppress(OSError, http.client.HTTPException), open_url(f"{url}{path}", token, _LOOK_SECONDS):
            return words
    return ""


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        token = req.unredirected_hdrs.get("Authorization")
        if following is not None and token and _origin(newurl) == _origin(req.full_url):
            following.add_unredirected_header("Authorization", token)
        return following


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
