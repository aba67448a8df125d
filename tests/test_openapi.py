"""Both APIs against their descriptions: Schemathesis makes requests, right ones and wrong ones, and every answer has a
status, a type and a form that the description names. None is a fault of ours."""

import base64
import contextlib
import functools
import http.client
import pathlib
import urllib.parse
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import validate
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi import checks

from tests import books, harness
from tests.ledgers import make
from tests.test_http import TOKEN
from tests.test_ledger_usage import serving
from tests.totals_data import Feed
from tokenometer.processor.dashboard import ServeAddress, SiteThread
from tokenometer.processor.dashboard import openapi as dashboard_openapi
from tokenometer.processor.ledger import openapi as ledger_openapi
from tokenometer.processor.ledger import pricefile

CHECKS: list[CheckFunction] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
]
EXAMPLES = 50 * harness.TIMES  # of each operation


def test_the_ledger_s_description_is_openapi() -> None:
    validate(ledger_openapi.describe())


@pytest.fixture
def ledger(database: str) -> Iterator[str]:
    with books.opened(database) as store:
        make.fill(store)
        make.fill_money(store)
        with serving(store, prices=pricefile.parse(make.PRICES, "p.toml")) as url:
            yield url


@pytest.fixture
def dashboard() -> Iterator[str]:
    with contextlib.closing(SiteThread(Feed().source(), ServeAddress(port=0))) as site:
        yield site.url


def cases_of(description: dict[str, Any], streams: tuple[str, ...] = ()) -> list[Any]:
    schema = schemathesis.openapi.from_dict(description)
    found: list[Any] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:
            found += _cases(operation, mode, operation.path in streams)
    return found


def _cases(operation: Any, mode: Any, stream: bool) -> list[Any]:
    given_by_client = (*operation.query, *operation.path_parameters, *operation.body)
    if mode.is_negative and not given_by_client:
        return []  # nothing about it can be wrong
    found: list[Any] = []

    @settings(
        max_examples=5 if stream else EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def take(case: Any) -> None:
        found.append(case)

    take()
    return found


@functools.cache
def cases_of_the_ledger() -> list[Any]:
    """The same for each database: making them costs as much as answering."""
    return cases_of(ledger_openapi.describe())


def check(cases: list[Any], url: str, streams: tuple[str, ...] = ()) -> None:
    with requests.Session() as session:
        for case in cases:
            if case.operation.path in streams:
                _listen(case, url)
                continue
            response = case.call(base_url=url, session=session, timeout=60)
            case.validate_response(response, checks=[not_a_server_error_but_503, *CHECKS])


def not_a_server_error_but_503(context: Any, response: Any, case: Any) -> None:
    """503 is in the descriptions: no totals yet, a database that is away."""
    if response.status_code != 503:
        not_a_server_error(context, response, case)


def _listen(case: Any, url: str) -> None:
    """The first event of a stream that never ends."""
    target = urllib.parse.urlsplit(case.as_transport_kwargs(base_url=url)["url"])
    with contextlib.closing(http.client.HTTPConnection(target.netloc, timeout=10)) as connection:
        connection.request("GET", target.path + (f"?{target.query}" if target.query else ""))
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
        assert answer.readline() == b"retry: 1000\n"
        answer.close()


@pytest.mark.slow
def test_the_ledger_answers_as_it_is_described(ledger: str) -> None:
    check(cases_of_the_ledger(), ledger)


@pytest.mark.slow
def test_the_dashboard_answers_as_it_is_described(dashboard: str) -> None:
    streams = ("/api/stream",)
    check(cases_of(dashboard_openapi.describe(), streams), dashboard, streams)


def test_the_ledger_describes_every_route(tmp_path: pathlib.Path) -> None:
    described = {(path, method.upper()) for path, each in ledger_openapi.describe()["paths"].items() for method in each}
    with books.opened(str(tmp_path / "ledger.duckdb")) as store, serving(store, token=TOKEN) as url:
        netloc = urllib.parse.urlsplit(url).netloc
        for path, method in sorted(described):
            with contextlib.closing(http.client.HTTPConnection(netloc, timeout=10)) as connection:
                asked = path.replace("{name}", "next").replace("{kind}", "adjustments")
                connection.request(method, asked)
                assert connection.getresponse().status == (200 if path == "/healthz" else 401), path


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


DAYS = "from=2026-11-22&to=2026-11-28"
ODD_QUESTIONS = [
    "/v1/usage?from=0001-01-01&to=9999-12-31&time_zone=Etc/GMT-14",  # the year 0 in UTC
    "/v1/usage?from=2026-11-22&to=9999-12-31T23:59:59-23:59",  # the year 10000
    "/v1/usage?from=9999-12-31&to=9999-12-31T23:59:59Z&time_zone=Asia/Kathmandu&window=day",
    f"/v1/usage?{DAYS}&after={cursor('[' * 5000)}",
    f"/v1/usage?{DAYS}&after={cursor('[' + '9' * 4000 + ']')}",
    f"/v1/usage?{DAYS}&after=%00",
    f"/v1/usage?{DAYS}&after=%ED%A0%80",
    f"/v1/usage?{DAYS}&group_by=user&after={cursor('[1795392000000, [1]]')}",
    f"/v1/usage?{DAYS}&limit=9223372036854775808",
    f"/v1/usage?{DAYS}&time_zone=%00",
    f"/v1/usage?{DAYS}&time_zone=Europe",
    f"/v1/usage?{DAYS}&time_zone={'a' * 5000}",
    f"/v1/usage?{DAYS}&%ED%A0%80=1",
    f"/v1/statements/1/lines?after={cursor('[' * 5000)}",
    "/v1/statements/1/adjustments?after=" + cursor("[" + "9" * 4000 + ',"61","62","63"]'),
    f"/v1/statements/{'1' * 5000}/lines",
    "/v1/statements/%00/lines",
    "/v1/statements/1/%ED%A0%80",
]
ODD_BODIES = [
    b"[" * 50_000,
    b'{"to":' * 10_000,
    b"\xff",
    b"1" * 10_000,
    b'{"to":"\\ud800"}',
    b'{"to":"2026-11-22","time_zone":"\\u0000"}',
    b'{"to":"2026-11-22","time_zone":"\\ud800"}',
    b'{"\\ud800":1,"to":"2026-11-24"}',
    b'{"to":"9999-12-31T23:59:59.999-23:59","anyway":true}',
    b'{"to":"0001-01-01","time_zone":"Etc/GMT-14","anyway":true}',
]


def test_odd_questions_get_400(ledger: str) -> None:
    with contextlib.closing(http.client.HTTPConnection(urllib.parse.urlsplit(ledger).netloc, timeout=30)) as connection:
        for path in ODD_QUESTIONS:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 400 and list(orjson.loads(answer.read())) == ["error"], path
        for text in ODD_BODIES:
            connection.request("POST", "/v1/close", text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 400 and list(orjson.loads(answer.read())) == ["error"], text[:100]
        # Not odd, though it is all that the calendar has; and the time up to which it is complete is beyond it.
        connection.request("GET", "/v1/usage?from=0001-01-01&to=9999-12-31&group_by=user")
        assert connection.getresponse().read().count(b'"user"') >= 5
        connection.request("POST", "/v1/close", b'{"to":"9999-12-31T23:59:59Z"}', {"Content-Type": "application/json"})
        assert connection.getresponse().status == 409
