"""What all HTTP servers share: a meter's health, the rollup's dashboard, the ledger's API.

access.py    pure: where one may bind, who may ask, the headers of every answer
answers.py   answers: JSON, errors (always JSON), metrics
health.py    /metrics and /healthz of a process that has no other page
server.py    aiohttp on a thread of its own, with limits that no client can pass
openapi.py   pure: the pieces of an API's description
"""
