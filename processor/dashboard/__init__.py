"""The operator's dashboard: a page, a JSON API, an event stream and metrics, over HTTP.

openapi.py   pure: the API's description
metrics.py   pure but for its collector: totals as Prometheus metrics
assets.py    the page's files, in memory
questions.py pure: what a request may ask for
ledgers.py   asks a running ledger of one user
server.py    routes, the event stream
static/      the page: plain ES modules, no build step
"""

from tokenometer.processor.dashboard.ledgers import Ledger
from tokenometer.processor.dashboard.questions import Question
from tokenometer.processor.dashboard.server import Site, SiteThread, Source
from tokenometer.processor.http.access import ServeAddress
from tokenometer.processor.http.access import ServeError as DashboardError

__all__ = ["DashboardError", "Ledger", "Question", "ServeAddress", "Site", "SiteThread", "Source"]
