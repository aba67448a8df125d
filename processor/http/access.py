"""Where a server may be bound, who may ask it, and the headers that every answer carries.

Owns: the address and its checks, comparing tokens, the Content-Security-Policy.
Promises: no I/O; a secret is compared in constant time and occurs in no message and no repr.

Ways in, where there is a token; the last two only where people open a page:

    Authorization: Bearer TOKEN     programs, Prometheus
    ?token=TOKEN                    once, by a person; answered with the cookie
    the cookie                      the page and its event stream; derived from the token, so it does not give it away
"""

import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tokenometer.schemas.errors import TokenometerError

TOKEN_MIN = 16  # characters; nothing slows down guessing
COOKIE_SECONDS = 30 * 86_400
OPEN_PATHS = ("/healthz",)  # probes hold no secrets, and it tells nothing of the usage

HEADERS = {
    # The chart library writes its styles into the document; scripts come from here alone.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ServeError(TokenometerError):
    """A server cannot be started; the message says what to do."""


@dataclass(frozen=True)
class ServeAddress:
    """Raises ServeError for an address that needs a token and has none, and for a weak token."""

    host: str = "127.0.0.1"
    port: int = 8321  # 0: any that is free
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check(self.host, self.token)


def check(host: str, token: str | None) -> None:
    """Checks that usage is served only to this machine, or to those who hold a token that cannot be guessed. Raises
    ServeError."""
    if token is None and not is_loopback(host):
        raise ServeError(
            f"refusing to serve on {host or 'all addresses'} without a token: everybody who reaches it could "
            "read users and usage; give a token (openssl rand -hex 24), or bind 127.0.0.1"
        )
    if token is not None and not re.fullmatch(rf"[!-~]{{{TOKEN_MIN},}}", token):
        raise ServeError(
            f"the token must have {TOKEN_MIN} or more visible ASCII characters; make one: openssl rand -hex 24"
        )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_own_host(header: str | None) -> bool:
    """Whether a Host header names this machine to itself. A page elsewhere whose name resolves to 127.0.0.1 sends its
    own name.

    This is asked only where no token is needed, because another site's page has no cookie of ours.
    """
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return False
    return header is not None and is_loopback(name)


def cookie_of(token: str) -> str:
    return hmac.new(token.encode(), b"tokenometer dashboard cookie", hashlib.sha256).hexdigest()


def may_ask(token: str, authorization: str | None, query: str | None = None, cookie: str | None = None) -> bool:
    scheme, _, bearer = (authorization or "").partition(" ")
    given = (
        (bearer.strip() if scheme.lower() == "bearer" else "", token),
        (query or "", token),
        (cookie or "", cookie_of(token)),
    )
    return any([_equal(text, wanted) for text, wanted in given])  # a list: all are compared


def _equal(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), wanted.encode())
