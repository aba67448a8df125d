"""Asks a running ledger what one user used.

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
_SECONDS = 10.0
_HOUR_S = 3600


@dataclass(frozen=True)
class Ledger:
    """url: http://HOST:PORT of a running ledger."""

    url: str
    token: str | None = field(default=None, repr=False)

    async def user(self, user: str) -> dict[str, Any]:
        """The last day of a user: rows by hour and model. Raises RefusedRequest."""
        end = (int(time.time()) // _HOUR_S + 1) * _HOUR_S
        given = {
            "from": _instant(end - SPAN_HOURS * _HOUR_S), "to": _instant(end), "user": user, "window": "hour",
            "group_by": "model", "limit": "10000",
        }  # fmt: skip
        found = await self._get("/v1/usage", given)
        rows = [
            {"begin": row["begin"], "model": row["model"], "total_tokens": row["total_tokens"]} for row in found["rows"]
        ]
        total = sum(row["total_tokens"] for row in rows)
        return {
            "user": user, "source": "ledger", "total_tokens": total, "from": given["from"], "to": given["to"],
            "complete_up_to": found["complete_up_to"], "rows": rows,
        }  # fmt: skip

    async def _get(self, path: str, given: dict[str, str]) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
                session.get(f"{self.url}{path}", params=given, headers=headers, allow_redirects=False) as answer,
            ):
                if answer.status == 200:
                    return await answer.json()
                raise RefusedRequest(502, f"the ledger answers with status {answer.status}")
        except (aiohttp.ClientError, TimeoutError, ValueError):
            raise RefusedRequest(502, "the ledger does not answer") from None


def _instant(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
