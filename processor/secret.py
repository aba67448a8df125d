"""Secrets have a type: a value that prints as `***` wherever it goes.

Owns: what counts as a secret, and how it is shown. It imports nothing of ours.
Promises: `str`, `repr`, `format` and logging of a `Secret` never give its value; `reveal` does, and is called where the
value leaves the process: at a client's constructor, in a header. `scrub` is the safety net for messages of libraries
that repeat what they were given.
"""

import json
import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

MASK = "***"
# A short value occurs in many words, and to blank it out would make messages unreadable. No secret should be so short.
_SCRUBBED_MIN = 4

# What a part of a setting's name says. librdkafka marks sasl.password, ssl.key.password, ssl.key.pem,
# ssl.keystore.password, sasl.oauthbearer.client.secret and the passphrase and key of an assertion as sensitive: these
# words name all of them. `config` of OAUTHBEARER and `kinit.cmd` of Kerberos are texts that may hold a password.
_SECRET_WORDS = re.compile(
    r"passw|passphrase|passwd|secret|credential|jaas|token|(?:^|[._-])(?:key|pwd|auth)(?:[._-]|$)|apikey"
    r"|oauthbearer\.config|kinit\.cmd"
)

_known: set[str] = set()


class Secret:
    """A text that is not shown. shown: what messages have in its place."""

    __slots__ = ("_shown", "_value")

    def __init__(self, value: "str | Secret", shown: str = MASK) -> None:
        self._value: str = value._value if isinstance(value, Secret) else value
        self._shown: str = value._shown if isinstance(value, Secret) else shown
        if self._shown == MASK:
            remember(self._value)

    def reveal(self) -> str:
        return self._value

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"Secret({self._shown})"

    def __format__(self, form: str) -> str:
        return format(self._shown, form)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


def remember(value: str) -> None:
    """`scrub` takes this text out from now on, in all forms that a message may have it in."""
    if len(value) >= _SCRUBBED_MIN:
        _known.update(form for form in (value, json.dumps(value)[1:-1], repr(value)[1:-1]) if form)


def scrub(text: str) -> str:
    """A message without the secrets of this process, whoever wrote it."""
    for value in sorted(_known, key=len, reverse=True):
        if value in text:
            text = text.replace(value, MASK)
    return text


def is_secret(name: str) -> bool:
    """Whether the name of a setting says that its value is a secret."""
    return _SECRET_WORDS.search(name.lower()) is not None


def setting(name: str, value: str) -> str | Secret:
    """The value of a setting, as a secret where its name or its form says so."""
    if is_secret(name):
        return Secret(value)
    return url(value) if "://" in value and "@" in value else value


def url(text: str) -> Secret:
    """A URL that is shown without its password, and without the secrets among its parameters."""
    scheme, _, rest = text.partition("://")
    address, question, query = rest.partition("?")
    authority, slash, path = address.partition("/")
    user, at, host = authority.rpartition("@")
    name, colon, password = user.partition(":")
    shown = f"{scheme}://{name}{colon and ':' + _hidden(password)}{at}{host}{slash}{path}"
    return Secret(text, f"{shown}{question}{'&'.join(map(_parameter, query.split('&')))}")


def _parameter(text: str) -> str:
    name, equals, value = text.partition("=")
    return f"{name}{equals}{_hidden(value) if is_secret(name) else value}"


def _hidden(value: str) -> str:
    remember(value)
    remember(unquote(value))
    return MASK


def has_user(text: str) -> bool:
    """Whether a URL has a name or a password in it. It is True for a text that cannot be read as a URL."""
    try:
        return "@" in urlsplit(text).netloc
    except ValueError:
        return True


def reveal(settings: Mapping[str, str | Secret]) -> dict[str, str]:
    """Plain values, for the client that needs them."""
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in settings.items()}
