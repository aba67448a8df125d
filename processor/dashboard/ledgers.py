"""Asks a running ledger what one user used, and who used most.

Promises: the token goes to the ledger's own address alone, because redirects are not followed; what is wrong is said
with status 502 and without what the ledger sent.
"""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

from tokenometer.processor.http.answers import RefusedRequest

SPAN_HOURS = 24
USERS_MAX = 20  # of the largest ones; as many as in rolling totals
_SECONDS = 10.0
_HOUR_S = 3600
_WINDOW_MS = 60_000


@dataclass(frozen=True)
class Ledger:
    """url: http://HOST:PORT of a running ledger. prices: the text of a price list; without one there is no money."""

    url: str
    token: str | None = field(default=None, repr=False)
    prices: str | None = field(default=None, repr=False)

    async def user(self, user: str) -> dict[str, Any]:
        """The last day of a user: rows by hour and model. Raises RefusedRequest."""
        end = (int(time.time()) // _HOUR_S + 1) * _HOUR_S
        given = {
            "from": _instant(end - SPAN_HOURS * _HOUR_S), "to": _instant(end), "user": user, "window": "hour",
            "group_by": "model", "limit": "10000",
        }  # fmt: skip
        found = await self._usage(given)
        rows = [{"begin": row["begin"], "model": row["model"], **_used(row)} for row in found["rows"]]
        return {
            "user": user, "source": "ledger", "total_tokens": sum(row["total_tokens"] for row in rows),
            "from": given["from"], "to": given["to"], "complete_up_to": found["complete_up_to"],
            "currency": found.get("currency"), "rows": rows,
        }  # fmt: skip

    async def users(self, begin_ms: int, end_ms: int, model: str | None, chip: str | None) -> dict[str, Any]:
        """Who used most in a time, of a model, a chip, both or all. Raises RefusedRequest."""
        begin_ms -= begin_ms % _WINDOW_MS
        given = {
            "from": _instant(begin_ms // 1000), "to": _instant(-(-end_ms // _WINDOW_MS) * _WINDOW_MS // 1000),
            "group_by": "user", "top": str(USERS_MAX),
        }  # fmt: skip
        given |= {name: value for name, value in (("model", model), ("chip", chip)) if value is not None}
        found = await self._usage(given)
        return {
            "source": "ledger", "from": given["from"], "to": given["to"], "complete_up_to": found["complete_up_to"],
            "currency": found.get("currency"),
            "rows": [{"user": row["user"], **_used(row)} for row in found["rows"]],
        }  # fmt: skip

    async def _usage(self, given: dict[str, str]) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = f"{self.url}/v1/usage"
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS), headers=headers) as session:
                if self.prices is None:
                    asking = session.get(url, params=given, allow_redirects=False)
                else:
                    body = {**given, "priced": "true", "prices": self.prices}
                    asking = session.post(url, json=body, allow_redirects=False)
                async with asking as answer:
                    if answer.status == 200:
                        return await answer.json()
                    raise RefusedRequest(502, f"the ledger answers with status {answer.status}")
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise RefusedRequest(502, "the ledger does not answer") from None


def _used(row: dict[str, Any]) -> dict[str, Any]:
    """With money where it was asked for."""
    return {name: row[name] for name in ("total_tokens", "revenue", "unpriced_tokens") if name in row}


def _instant(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
