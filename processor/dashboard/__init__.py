"""The operator's dashboard: a page, a JSON API, an event stream and metrics, over HTTP.

access.py    pure: where one may bind, who may ask, the headers of every answer
openapi.py   pure: the API's description
metrics.py   pure but for its collector: totals as Prometheus metrics
assets.py    the page's files, in memory
server.py    aiohttp: routes, the event stream, two ways to run it
static/      the page: plain ES modules, no build step
"""

from tokenometer.processor.dashboard.access import DashboardError, Settings
from tokenometer.processor.dashboard.server import Site, SiteThread, Source

__all__ = ["DashboardError", "Settings", "Site", "SiteThread", "Source"]
