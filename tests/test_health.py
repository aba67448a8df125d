"""What a meter tells of itself: counters agree with what was committed, and /healthz with the clock."""

import contextlib
import dataclasses
import socket
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from wsgiref.simple_server import WSGIServer

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.test_emission import PLAIN
from tokenometer.kernels.values import PartitionState, Tally
from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.meter.counting import Snapshot
from tokenometer.processor.meter.emission import LiveSummary, Range
from tokenometer.processor.meter.health import STALE_MS, Health
from tokenometer.processor.meter.meter import Committed
from tokenometer.processor.meter.watching import Verdict
from tokenometer.schemas.usage import COUNTERS, Usage

NOW_MS = 1_795_000_000_000
A, B = Place("inference-logs", 0), Place("other-logs", 7)
CATEGORIES = [name.removesuffix("_tokens") for name in COUNTERS[1:]]
LABELS = {
    "tokenometer_records_total": {"verdict"},
    "tokenometer_conflicts_total": set(),
    "tokenometer_rejected_records_total": {"reason"},
    "tokenometer_tokens_total": {"category"},
    "tokenometer_usage_rows_total": set(),
    "tokenometer_commit_seconds_bucket": {"le"},
    "tokenometer_commit_seconds_count": set(),
    "tokenometer_commit_seconds_sum": set(),
    "tokenometer_lag_messages": {"topic", "partition"},
    "tokenometer_freshness_seconds": {"topic", "partition"},
    "tokenometer_watermark_timestamp_seconds": {"topic", "partition"},
    "tokenometer_table_fill_ratio": {"table"},
    "tokenometer_parts_opened": {"reason"},
    "tokenometer_last_commit_timestamp_seconds": set(),
    "tokenometer_healthy": set(),
    "tokenometer_log_fits": {"topic"},
    "tokenometer_device_info": {"device"},
}


class Clock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def prompt_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server looks twice a second whether it should end; here it looks more often."""
    serve = WSGIServer.serve_forever
    monkeypatch.setattr(WSGIServer, "serve_forever", lambda server: serve(server, poll_interval=0.01))


@pytest.fixture
def health(clock: Clock) -> Health:
    return Health(clock, "cpu")


@pytest.fixture
def url(health: Health) -> Iterator[str]:
    with contextlib.closing(health.serve("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.port}"


def get(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def samples(url: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    status, content_type, body = get(url + "/metrics")
    assert status == 200 and content_type.startswith("text/plain")
    found: dict = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return {name: values for name, values in found.items() if not name.endswith("_created")}


def by(found: dict, name: str) -> dict[str, float]:
    """Of a metric with one label."""
    return {labels[0][1]: value for labels, value in found[name].items()}


def summary(part: str, tally: Tally, totals: tuple[int, ...], rejects: dict[str, int] | None = None) -> LiveSummary:
    return dataclasses.replace(PLAIN, part=part, tally=tally, totals=Usage(*totals), rejects=rejects or {})


def committed(told: LiveSummary, rows: int = 0, took_ms: int = 20, **settings) -> Committed:
    known = {"positions": {}, "fill": {"rows": (1, 4)}, "parts_opened": {"start": 1}} | settings
    ends = known.pop("ends", {})
    began_ms = known.pop("began_ms", NOW_MS)
    return Committed(Snapshot([], told, [], **known), began_ms, took_ms, rows, ends)


# Commits of a meter over several parts: absolute within each. The last column: usage rows written.
COMMITS = [
    ("part-1", Tally(10, 1, 2, 3), (10, 100, 10, 1, 50, 5), {"invalid_json": 2}, 4),
    ("part-1", Tally(10, 1, 2, 3), (10, 100, 10, 1, 50, 5), {"invalid_json": 2}, 0),  # without news
    ("part-1", Tally(25, 4, 5, 3), (25, 260, 10, 1, 90, 9), {"invalid_json": 3, "bad_count": 2}, 6),
    ("part-2", Tally(7, 0, 0, 0), (7, 70, 0, 0, 7, 0), {}, 1),  # smaller, and equal in places
    ("part-2", Tally(30, 4, 6, 3), (30, 300, 11, 2, 100, 10), {"bad_count": 5, "too_long": 1}, 8),
    ("part-3", Tally(30, 4, 6, 3), (30, 300, 11, 2, 100, 10), {"bad_count": 5, "too_long": 1}, 8),  # as the one before
]


def test_counters_are_the_sums_over_parts(health, url):
    last: dict[str, tuple] = {}
    for part, tally, totals, rejects, rows in COMMITS:
        health.committed(committed(summary(part, tally, totals, rejects), rows))
        last[part] = tally, totals, rejects
        found = samples(url)
        for verdict in ("counted", "duplicates", "rejected", "empty", "skipped"):
            wanted = sum(getattr(tally, verdict) for tally, _, _ in last.values())
            assert by(found, "tokenometer_records_total")[verdict] == wanted
        tokens = [sum(column) for column in zip(*(totals for _, totals, _ in last.values()), strict=True)][1:]
        assert by(found, "tokenometer_tokens_total") == dict(zip(CATEGORIES, tokens, strict=True))
        reasons: Counter[str] = Counter()
        for _, _, told in last.values():
            reasons.update(told)
        assert by(found, "tokenometer_rejected_records_total") == reasons
    assert found["tokenometer_usage_rows_total"][()] == sum(rows for *_, rows in COMMITS)
    assert found["tokenometer_commit_seconds_count"][()] == len(COMMITS)


def test_names_and_labels_are_stable(health, url):
    """Dashboards and alerts know them."""
    state = PartitionState(NOW_MS - 100, NOW_MS - 50, 0)
    told = dataclasses.replace(
        summary("p", Tally(1, 1, 1, 1), (1,) * 6, {"bad_count": 1}), ranges=[Range(A, Offset(0), Offset(3), state)]
    )
    health.committed(committed(told, ends={A: Offset(3)}))
    found = samples(url)
    assert {name: {key for labels in values for key, _ in labels} for name, values in found.items()} == LABELS
    assert set(by(found, "tokenometer_records_total")) == {"counted", "duplicates", "rejected", "empty", "skipped"}
    assert set(by(found, "tokenometer_tokens_total")) == {
        "input", "cached_input", "cache_write", "output", "reasoning",
    }  # fmt: skip


def test_every_metric_has_a_type_and_a_help(health, url):
    body = get(url + "/metrics")[2].decode()
    families = [family for family in text_string_to_metric_families(body) if family.name.startswith("tokenometer_")]
    assert len(families) >= 10 and all(family.documentation and family.type != "unknown" for family in families)
    assert {family.name for family in families} >= {
        name.removesuffix("_total") for name in LABELS if name.endswith("_total")
    }


def test_metrics_are_there_before_the_first_commit(health, url):
    found = samples(url)
    assert by(found, "tokenometer_device_info") == {"cpu": 1}
    assert found["tokenometer_usage_rows_total"][()] == 0


def test_partitions_tell_lag_freshness_and_watermark(health, url):
    ranges = [
        Range(A, Offset(10), Offset(40), PartitionState(NOW_MS - 61_000, NOW_MS - 2500, 0)),
        Range(B, Offset(0), Offset(0), PartitionState()),
    ]
    told = dataclasses.replace(summary("p", Tally(), (0,) * 6), ranges=ranges)
    health.committed(committed(told, ends={A: Offset(100)}, began_ms=NOW_MS))
    found = samples(url)
    place = (("partition", "0"), ("topic", "inference-logs"))
    assert found["tokenometer_lag_messages"] == {place: 60}
    assert found["tokenometer_freshness_seconds"] == {place: 2.5}
    assert found["tokenometer_watermark_timestamp_seconds"] == {place: (NOW_MS - 61_000) / 1000}
    health.committed(committed(told, ends={A: Offset(30), B: Offset(5)}))
    found = samples(url)
    assert found["tokenometer_lag_messages"] == {place: 0, (("partition", "7"), ("topic", "other-logs")): 5}


def test_a_partition_that_went_to_another_meter_is_told_no_more(health, url):
    """Else its last lag would stand here until the end, and an alert with it."""
    state = PartitionState(NOW_MS - 100, NOW_MS - 50, 0)
    ranges = [Range(place, Offset(0), Offset(3), state) for place in (A, B)]
    told = dataclasses.replace(summary("p", Tally(), (0,) * 6), ranges=ranges)
    health.committed(committed(told, ends={A: Offset(9), B: Offset(9)}))
    assert len(samples(url)["tokenometer_lag_messages"]) == 2
    health.committed(committed(told, ends={B: Offset(9)}))  # the part still tells of both
    found = samples(url)
    for name in ("lag_messages", "freshness_seconds", "watermark_timestamp_seconds"):
        assert set(found[f"tokenometer_{name}"]) == {(("partition", "7"), ("topic", "other-logs"))}


def test_parts_are_counted_from_zero(health, url):
    """A series that begins with the first failure has no increase."""
    assert set(by(samples(url), "tokenometer_parts_opened").values()) == {0}


def test_parts_fill_and_commit_time(health, url):
    told = summary("p", Tally(), (0,) * 6)
    fill = {"rows": (3, 4), "arena": (0, 100)}
    health.committed(
        committed(told, took_ms=250, fill=fill, parts_opened={"start": 1, "full": 2}, began_ms=NOW_MS + 1500)
    )
    found = samples(url)
    assert by(found, "tokenometer_table_fill_ratio") == {"rows": 0.75, "arena": 0.0}
    assert by(found, "tokenometer_parts_opened") == {"start": 1, "age": 0, "full": 2, "rebalance": 0, "failure": 0}
    assert found["tokenometer_commit_seconds_sum"][()] == 0.25
    buckets = by(found, "tokenometer_commit_seconds_bucket")
    assert (buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 1, 1)
    assert found["tokenometer_last_commit_timestamp_seconds"][()] == (NOW_MS + 1500) / 1000


def test_tokens_of_a_day_are_exact(health, url):
    """120 T tokens, one by one: doubles hold them."""
    tokens = 120 * 10**12
    health.committed(committed(summary("p", Tally(1), (1, tokens, 0, 0, 1, 0))))
    health.committed(committed(summary("p", Tally(2), (2, tokens + 1, 0, 0, 1, 0))))
    assert by(samples(url), "tokenometer_tokens_total")["input"] == tokens + 1


# --- /healthz ---


def healthz(url: str) -> tuple[int, dict]:
    status, content_type, body = get(url + "/healthz")
    assert content_type == "application/json" and body.endswith(b"\n")
    return status, orjson.loads(body)


def test_a_meter_is_healthy_while_commits_come(health, url, clock):
    assert healthz(url) == (200, {"status": "ok", "since_last_commit_ms": 0, "committed": False})
    clock.now_ms += STALE_MS - 1
    assert healthz(url)[0] == 200
    clock.now_ms += 1
    status, state = healthz(url)
    assert status == 503 and state["since_last_commit_ms"] == STALE_MS and not state["committed"]
    assert state["status"] != "ok" and "log" in state["status"], "where to look"
    health.committed(committed(summary("p", Tally(), (0,) * 6)))
    assert healthz(url) == (200, {"status": "ok", "since_last_commit_ms": 0, "committed": True})
    clock.now_ms += STALE_MS
    assert healthz(url)[0] == 503


def test_a_meter_that_reads_request_ids_again_says_so(health, url):
    health.judged(Verdict([], {}, 2))
    assert healthz(url)[1]["refilling_partitions"] == 2
    health.judged(Verdict([], {}))
    assert "refilling_partitions" not in healthz(url)[1]


def test_partitions_that_nobody_has_are_named_and_the_meter_is_healthy(health, url):
    for count, names in ((1, "t-0"), (3, "t-0, t-1, t-2"), (5, "t-0, t-1, t-2 and 2 more")):
        health.judged(Verdict([], {}, unowned=[Place("t", number) for number in range(count)]))
        status, said = healthz(url)
        assert (status, said["status"]) == (200, f"degraded: nobody in the group has {names}")
    health.judged(Verdict([], {}))
    assert healthz(url)[1]["status"] == "ok"


def test_an_idle_meter_is_healthy(health, url, clock):
    """It commits every ten seconds, and has nothing to say."""
    for _ in range(20):
        clock.now_ms += 10_000
        health.committed(committed(summary("p", Tally(), (0,) * 6)))
        assert health.status()[0]


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/healthz/x", "/favicon.ico", "/../etc/passwd"])
def test_other_paths_are_not_found_and_say_what_is(url, path):
    status, content_type, body = get(url + path)
    assert (status, content_type) == (404, "application/json")
    assert orjson.loads(body) == {"error": "here are /metrics and /healthz"}


def test_a_query_changes_nothing(url):
    assert get(url + "/healthz?verbose=1")[0] == 200
    assert get(url + "/metrics?name%5B%5D=tokenometer_usage_rows_total")[0] == 200


def test_a_port_in_use_is_an_error_and_a_closed_one_is_free(health):
    server = health.serve("127.0.0.1", 0)
    with pytest.raises(OSError):
        health.serve("127.0.0.1", server.port)
    assert get(f"http://127.0.0.1:{server.port}/healthz")[0] == 200, "the first one still answers"
    server.close()
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", server.port), timeout=1):
        pass


def test_an_unknown_host_is_an_error(health):
    with pytest.raises(OSError):
        health.serve("192.0.2.1", 0)


def test_a_request_writes_no_line(url, capfd):
    get(url + "/metrics")
    get(url + "/nothing")
    assert capfd.readouterr() == ("", "")


def test_two_meters_of_one_process_have_metrics_of_their_own(health, clock, url):
    told = committed(summary("p", Tally(9), (9,) * 6), rows=3)
    Health(clock, "cpu").committed(told)
    assert samples(url)["tokenometer_usage_rows_total"][()] == 0
    health.committed(told)
    assert by(samples(url), "tokenometer_records_total")["counted"] == 9
