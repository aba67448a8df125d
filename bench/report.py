"""RESULTS.md from the JSON files in bench/results/: the same files give the same text.

python -m bench.report
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from bench import bench_engine, bench_exactly_once, bench_intake, common, report_builds
from tokenometer.schemas.usage import TARGET_TOKENS_PER_DAY

RESULTS_MD = common.ROOT / "bench" / "RESULTS.md"
NOTES = "notes.md"  # beside the results: what was measured by hand
GOAL_BYTES_PER_S, MARK_RECORDS_PER_S, GOAL_MEMORY_RATIO = 1.5e9, 8e6, 1.5
OURS = ("tokenometer", ".meter()", "replay")  # among the contenders of bench_peers
GOAL_SYNTH_PER_S = 1.5e6
RECORD_BYTES = (200, 350)  # of the goal
LATE_FRAMES_MAX = 0.01  # nobody sees one frame of a hundred that comes a sixtieth of a second later
MIB = 1 << 20


def report(results: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Markdown; `results` are file names and their contents, in the order wanted."""
    parts = [
        "# Results",
        "`python -m bench.report` writes this file from the files in `bench/results/`; do not edit it. The head of "
        "each `bench/bench_*.py` says what is timed and what is not. Figures are medians; GB are powers of ten, MiB "
        "and GiB powers of two.",
    ]
    parts += ["## Goals", _goals([content for _, content in results])]
    for name, content in results:
        parts += [*_SECTIONS[content["kind"]](content), _facts(name, content)]
    return "\n\n".join(parts) + "\n"


# --- Goals ---


def _goals(results: Sequence[dict[str, Any]]) -> str:
    rows = []
    for content in results:
        if content["kind"] == "engine" and content["device"] == "cpu":
            rows += _engine_goals(content)
        if content["kind"] == "peers":
            rows += _peer_goals(content)
        if content["kind"] == "pipeline":
            rows += _pipeline_goals(content["medians"])
        if content["kind"] == "exactly_once":
            rows += _exactly_once_goals(content["medians"])
        if content["kind"] == "soak":
            rows += _soak_goals(content)
        if content["kind"] == "alerts":
            rows += _alerts_goals(content)
        if content["kind"] == "rollup":
            rows += _rollup_goals(content)
        if content["kind"] == "page":
            rows += _page_goals(content)
        if content["kind"] == "ledger":
            rows += _ledger_goals(content)
        if content["kind"] == "lake":
            rows += _lake_goals(content)
        if content["kind"] == "intake":
            rows += _intake_goals(content)
        if content["kind"] == "synth":
            rows += _synth_goals(content)
        if content["kind"] == "builds":
            rows += [(words, found, _yes(met)) for words, found, met in report_builds.builds_goals(content)]
        if content["kind"] == "verify":
            rows += [(words, found, _yes(met)) for words, found, met in report_builds.verify_goals(content)]
    return _table(("goal", "measured", "met"), "lll", rows)


def _engine_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    measured = [case for case in content["cases"] if "skipped" not in case]
    for case in measured:
        if case["group"] != "records" or case["mode"] != "all" or case["threads"] != 1:
            continue
        what = f"one core, {case['name'].removesuffix(': all')} ({case['record_bytes']:.0f} bytes)"
        if RECORD_BYTES[0] <= case["record_bytes"] <= RECORD_BYTES[1]:
            met = case["bytes_per_s"] >= GOAL_BYTES_PER_S
            yield f"{what}: at least 1.5 GB/s", f"{case['bytes_per_s'] / 1e9:.2f} GB/s", _yes(met)
        else:
            met = case["records_per_s"] >= MARK_RECORDS_PER_S
            yield f"{what}: mark of 8 M records/s", f"{case['records_per_s'] / 1e6:.2f} M records/s", _yes(met)
    for case in measured:
        if case["group"] == "memory":
            goal = f"peak memory, {case['name']}: at most 1.5 x (tables + request ids + two batches)"
            yield goal, f"{case['ratio']:.2f} x", _yes(case["ratio"] <= GOAL_MEMORY_RATIO)
            ratio = case["ratio_with_commit"]
            yield f"{goal}, all rows taken out at once", f"{ratio:.2f} x", _yes(ratio <= GOAL_MEMORY_RATIO)


def _peer_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    for title, results in content["tables"].items():
        ours = next(one for one in results if one["name"] == "tokenometer" and one["threads"] == 1)
        peers = [one for one in results if one["name"] not in OURS]
        cores = max(one["threads"] for one in results)
        of = {one["name"]: one["records_per_s"] for one in results if one["threads"] == cores}
        if ".meter()" in of:
            share = of[".meter()"] / of["replay"]
            yield (
                f"{title}, {cores} cores: the Python interface within 5 % of replay",
                f"{share:.2f}",
                _yes(share > 0.95),
            )
        if {".meter()", "duckdb"} <= of.keys() and title == "with dedup":
            times = of[".meter()"] / of["duckdb"]
            yield f"{title}, {cores} cores: the Python interface 1.9 x DuckDB", f"{times:.2f} x", _yes(times >= 1.9)
        if not peers:
            continue
        best = max(peers, key=lambda one: one["records_per_s"])
        yield (
            f"{title}: one core beats the best peer on any number of cores, file to answer",
            f"{ours['records_per_s'] / 1e6:.2f} against {best['records_per_s'] / 1e6:.2f} M records/s "
            f"({best['name']}, cores: {best['threads']}): {best['ratio']:.2f} x",
            _yes(best["ratio"] > 1),
        )


def _pipeline_goals(medians: dict[str, dict[str, Any]]) -> Iterable[tuple[str, str, str]]:
    rates = {case: found["sustained"] / 1e6 for case, found in medians.items()}
    one, many = rates["one:meter"], rates["many:meter"]
    for case, tuned in (("one:consume", ""), ("one:consume-tuned", ", with the queues of the meter's consumer")):
        measured = f"{one:.2f} against {rates[case]:.2f} M records/s: {one / rates[case]:.2f} x"
        goal = f"meter, one record a message: at least 0.8 of a bare consume(){tuned}"
        yield goal, measured, _yes(one >= 0.8 * rates[case])
    goal = "meter, 200 lines a message, broker beside it: 1.4 M records/s"
    yield goal, f"{many:.2f} M records/s", _yes(many >= 1.4)


_TIMES = {"streams": 25, "streams-by-hand": 3, "flink": 10}


def _exactly_once_goals(medians: dict[str, dict[str, Any]]) -> Iterable[tuple[str, str, str]]:
    for name, times in _TIMES.items():
        ours, theirs = (medians[f"{one}:dedup"]["sustained"] for one in ("meter", name))
        measured = f"{ours / 1e6:.2f} against {theirs / 1e6:.3f} M records/s: {ours / theirs:.1f} x"
        yield f"meter, with dedup: at least {times} x {name}", measured, _yes(ours >= times * theirs)


# The second is of the third generation of request ids and later; results of before it was measured lack it.
_FRESHNESS = ("freshness, ms", "freshness_ms"), ("freshness, settled, ms", "freshness_ms_settled")


def _soak_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    found = content["meter"]
    minutes, rate = content["minutes"], content["sent"]["sent_per_second"] / 1e6
    settled = found["resident_mib"][len(found["resident_mib"]) // 3 :] or [0]
    goal = f"a steady {rate:.2f} M records/s: memory flat over 30 minutes"
    measured = f"{minutes:g} minutes; {min(settled)} to {max(settled)} MiB after the first third"
    yield goal, measured, _yes(minutes >= 30 and max(settled) <= 1.1 * min(settled))
    *_, p99 = (found[name]["p99"] / 1000 for _, name in _FRESHNESS if name in found)
    yield f"a steady {rate:.2f} M records/s: freshness p99 under 1 s", f"{p99:.2f} s", _yes(p99 < 1)


def _ledger_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    for kind, found in content["cases"].items():
        name, size = _DATABASES[kind], f"{content['size']['rows'] / 1e6:g} M rows"
        if kind == "duckdb":
            pace = found["rows_per_second"]
            yield f"ledger, {name}: at least 100 k rows/s", f"{pace / 1e3:.0f} k rows/s", _yes(pace >= 1e5)
        for question, what, most in (("user", "a month of one user", 50), ("top", "top 100 users of a day", 1000)):
            took = found[f"{question}_ms"]
            yield f"ledger of {size}, {name}, {what}: under {most} ms", f"{took:.0f} ms", _yes(took < most)


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


# --- Engine ---


def _engine(content: dict[str, Any]) -> list[str]:
    device = content["machine"]["accelerator"] or f"CPU ({content['machine']['cpu']})"
    parts = [f"## Engine, {device}"]
    for group in bench_engine.GROUPS:
        cases = [case for case in content["cases"] if case["group"] == group]
        if cases:
            rows = [_memory_row(case) if group == "memory" else _engine_row(case, content["device"]) for case in cases]
            head = _MEMORY_HEAD if group == "memory" else _ENGINE_HEAD[content["device"]]
            title = f"**{group}**: {bench_engine.GROUP_NOTES[group]}"
            parts += [title, _table(head, "l" + "r" * (len(head) - 2) + ("r" if group == "memory" else "l"), rows)]
    return parts


_MEMORY_HEAD = (
    "case",
    "rows",
    "tables",
    "ids",
    "two batches",
    "Python",
    "peak",
    "and rows out",
    "ratio",
    "and rows out",
)
_ENGINE_HEAD = {
    "cpu": ("case", "threads", "bytes", "ns", "M records/s", "GB/s", "with memcpy, M/s", "new rows", "ns by kernel"),
    "cuda": (
        "case",
        "bytes",
        "M records/s",
        "GB/s",
        "with memcpy, M/s",
        "copies GB/s",
        "plain copy GB/s",
        "ns by kernel",
    ),
}


def _engine_row(case: dict[str, Any], device: str) -> tuple[str, ...]:
    if "skipped" in case:
        return (case["name"], f"skipped: {case['skipped']}")
    filled = case["records_per_s_with_fill"]
    rates = (
        f"{case['records_per_s'] / 1e6:.2f}",
        f"{case['bytes_per_s'] / 1e9:.2f}",
        f"{filled / 1e6:.2f}" if filled else "",
    )
    kernels = ", ".join(f"{name} {ns:.3g}" for name, ns in case.get("kernels", {}).items())
    size = f"{case['record_bytes']:.0f}"
    if device == "cuda":
        copies = (f"{case[name] / 1e9:.1f}" for name in ("copy_bytes_per_s", "plain_copy_bytes_per_s"))
        return (case["name"], size, *rates, *copies, kernels)
    new = f"{case['new_rows_share']:.1%}" if case["mode"] == "all" else ""
    return (case["name"], str(case["threads"]), size, f"{case['ns']:.0f}", *rates, new, kernels)


def _memory_row(case: dict[str, Any]) -> tuple[str, ...]:
    if "skipped" in case:
        return (case["name"], f"skipped: {case['skipped']}")
    sizes = ("tables", "identities", "batches", "process", "peak", "peak_with_commit")
    in_mib = (f"{case[name + '_bytes'] / MIB:.0f} MiB" for name in sizes)
    return (case["name"], f"{case['rows']:,}", *in_mib, f"{case['ratio']:.2f}", f"{case['ratio_with_commit']:.2f}")


# --- Peers ---


def _peers(content: dict[str, Any]) -> list[str]:
    log = content["log"]
    intro = (
        f"One log of {log['records']:,} records, {log['bytes'] / 1e9:.2f} GB ({log['record_bytes']:.0f} bytes each), "
        f"from the page cache to an Arrow table. Requests and tokens by (minute, user, model, chip); all answers have "
        f"the same digest. The ratio is seconds to those of this engine on one core."
    )
    parts = ["## Peers", intro]
    head = ("contender", "cores", "seconds", "min - max", "M records/s", "GB/s", "ratio", "peak", "digest")
    for title, results in content["tables"].items():
        rows = [_peer_row(one) for one in results]
        rows += [(name, f"not run: {reason}") for name, reason in content["skipped"].items()]
        parts += [f"**{title}**, {results[0]['rows']:,} rows", _table(head, "l" + "r" * 7 + "l", rows)]
    how = [f"- {name}: {text}" for name, text in content["how"].items()]
    return [*parts, "How each does it (its id step only where ids count):", "\n".join(how)]


def _peer_row(one: dict[str, Any]) -> tuple[str, ...]:
    every = one["seconds_all_turns"]
    return (
        one["name"],
        str(one["threads"]),
        f"{one['seconds']:.2f}",
        f"{min(every):.2f} - {max(every):.2f}",
        f"{one['records_per_s'] / 1e6:.2f}",
        f"{one['bytes_per_s'] / 1e9:.2f}",
        f"{one['ratio']:.2f}",
        f"{one['peak_bytes'] / MIB:.0f} MiB",
        f"`{' '.join(one['digests'])}`",
    )


# --- Pipeline and soak ---


def _pipeline(content: dict[str, Any]) -> list[str]:
    intro = (
        "The same topic of a real Kafka on the same machine, each contender in a fresh process. `one`: a record a "
        "message, `many`: 200. The meter commits each second, usage rows included, and `read` is its consumer alone; "
        "orjson and faust only add up."
    )
    return ["## Pipeline", intro, _table(_PIPELINE_HEAD, "lrrrrrrrr", map(_pipeline_row, content["medians"].items()))]


_PIPELINE_HEAD = (
    "case", "records", "M records/s", "second half", "CPU s", "peak", "commits", "rows a commit, most",
    "commit ms, median - most",
)  # fmt: skip


def _pipeline_row(item: tuple[str, dict[str, Any]]) -> tuple[str, ...]:
    case, found = item
    commits = ("", "", "")
    if "commits" in found:
        took = f"{found['commit_ms_median']} - {found['commit_ms_max']}"
        commits = str(found["commits"]), f"{found['rows_max']:,}", took
    return (
        case,
        f"{found['records']:,}",
        f"{found['records_per_second'] / 1e6:.3f}",
        f"{found['sustained'] / 1e6:.3f}",
        f"{found['cpu_seconds']:.1f}",
        f"{found['peak_bytes'] // MIB} MiB",
        *commits,
    )


def _exactly_once(content: dict[str, Any]) -> list[str]:
    intro = (
        "One log in a topic of a real Kafka on the same machine, a record a message; each contender takes it in a "
        "fresh process and commits its rows exactly once into another topic. `dedup`: of each request id the first "
        "record counts. All rows were read back, and those of each run add up to what DuckDB makes of the log's file."
    )
    rows = [
        (
            case,
            f"{found['records']:,}",
            f"{found['answer']['rows']:,}",
            f"{found['records_per_second'] / 1e6:.3f}",
            f"{found['sustained'] / 1e6:.3f}",
            f"{found['cpu_seconds']:.1f}",
            f"{found['cpu_seconds'] / found['records'] * 1e6:.2f}",
            f"{found['peak_bytes'] // MIB} MiB",
            f"`{found['answer']['digest']}`",
        )
        for case, found in content["medians"].items()
    ]
    head = ("case", "records", "rows", "M records/s", "second half", "CPU s", "CPU us a record", "peak", "answer")
    how = "\n".join(f"- {name}: {text}" for name, text in bench_exactly_once.HOW.items())
    return ["## Exactly-once peers", intro, _table(head, "lrrrrrrrl", rows), "How each does it:", how]


def _soak(content: dict[str, Any]) -> list[str]:
    found, sent = content["meter"], content["sent"]
    rows = [
        ("sent", f"{sent['records_sent']:,} records, {sent['sent_per_second'] / 1e6:.2f} M/s"),
        ("counted", f"{found['records_counted']:,} records in {found['parts']} parts"),
        ("commits", f"{found['commits']}, {found['rows']:,} rows"),
        ("commit, ms", _percentiles(found["commit_ms"])),
        *((title, _percentiles(found[name])) for title, name in _FRESHNESS if name in found),
        ("resident, MiB, each minute", " ".join(map(str, found["resident_mib"][::6]))),
    ]
    return [f"## Soak, {content['minutes']:g} minutes", _table(("what", "measured"), "ll", rows)]


def _alerts_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    sent, latency = content["sent"], content["latency_ms"]["p99"] / 1000
    kept_up = sent["sent_per_second"] > 0.95 * content["rate"]
    goal = f"beside {content['rate'] / 1e6:.2f} M records/s: from append to alert p99 under 3 s"
    yield goal, f"{latency:.2f} s", _yes(latency < 3 and kept_up)


def _alerts(content: dict[str, Any]) -> list[str]:
    sent = content["sent"]
    rows = [
        ("sent", f"{sent['records_sent']:,} records, {sent['sent_per_second'] / 1e6:.2f} M/s"),
        (f"from append to alert, ms, of {content['probes']}", _percentiles(content["latency_ms"])),
        ("the meter's commit, ms", _percentiles(content["commit_ms"])),
        ("rows judged", f"{content['rows']:,}, {content['rows_per_second']:,.0f} a second"),
        ("processor time of a row, µs, the start included", f"{content['cpu_us_per_row']:.1f}"),
    ]
    return [f"## Alerts, {content['seconds']:g} seconds", _table(("what", "measured"), "ll", rows)]


def _synth_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    for case in ("file", "kafka"):
        if found := content["cases"].get(f"{case}, this"):
            rate = found["records_per_s"]
            yield f"synth, {case}, two cores: 1.5 M records/s", f"{rate / 1e6:.2f} M", _yes(rate >= GOAL_SYNTH_PER_S)
    if found := content["cases"].get("demo, this"):
        day = found["tokens_per_day"]
        yield "demo, two cores: 120 T tokens a day", f"{day / 1e12:.0f} T", _yes(day >= TARGET_TOKENS_PER_DAY)


def _synth(content: dict[str, Any]) -> list[str]:
    rows = []
    for name, found in content["cases"].items():
        rates = [run["records_per_s"] / 1e6 for run in found["runs"]]
        spread = f"{found['records_per_s'] / 1e6:.2f} ({min(rates):.2f} to {max(rates):.2f})"
        cpu = f"{found['cpu_us']:.2f}" if "cpu_us" in found else ""
        day = f"{found['tokens_per_day'] / 1e12:.0f} T" if "tokens_per_day" in found else ""
        rows.append((name, spread, cpu, day))
    head = ("case, build", "M records/s", "processor time, µs a record", "tokens a day")
    return [f"## Made-up logs, {content['records']:,} records", _table(head, "lrrr", rows)]


def _builds(content: dict[str, Any]) -> list[str]:
    head = ("case, clock", "turns", "ratio", "µs a record, this - other", "peak MiB, this - other")
    return ["## This build beside another one", _table(head, "lrrrr", report_builds.builds_rows(content))]


def _verify(content: dict[str, Any]) -> list[str]:
    head = ("log, build", "records", "processor s", "s", "k records/s", "peak MiB")
    return ["## The audit", _table(head, "lrrrrr", report_builds.verify_rows(content))]


def _page_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    shape = content["shape"]
    for case in content["cases"]:
        what = f"page, {shape['models']} models x {shape['chips']} chips, {case['span']} of history: 60 frames a second"
        share, longest = case["late"] / case["frames"], case["longest_ms"]
        shown = f"{case['frames_per_second']:.1f}, {share:.2%} of them late, the latest after {longest:.0f} ms"
        yield what, shown, _yes(share <= LATE_FRAMES_MAX)


def _page(content: dict[str, Any]) -> list[str]:
    rows = [
        (case["span"], str(case["seconds"]), f"{case['frames_per_second']:.1f}", f"{case['late']} of {case['frames']}",
         f"{case['longest_ms']:.1f}")
        for case in content["cases"]
    ]  # fmt: skip
    head = ("history", "seconds", "frames a second", "late", "longest, ms")
    return [f"## Page, in Chromium {content['browser']}", _table(head, "lrrrr", rows)]


def _rollup_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    need = content["meters"]
    for case in content["cases"]:
        if case["case"] in ("fold", "kafka"):
            ratio = case["summaries_per_second"] / need
            what = f"one rollup, {case['shape']} summaries of {need} meters a second ({case['case']})"
            yield what, f"{case['summaries_per_second']:,.0f} a second: {ratio:.1f} x", _yes(ratio >= 1)
        if case["case"] == "memory":
            third, last = case["resident_bytes"][len(case["resident_bytes"]) // 3], case["resident_bytes"][-1]
            shown = f"{third // MIB} to {last // MIB} MiB after the first third"
            yield "rollup: memory flat over an hour of synthetic time", shown, _yes(last <= 1.05 * third)


def _rollup(content: dict[str, Any]) -> list[str]:
    rows = []
    for case in content["cases"]:
        of = ", ".join(f"{name} {case[name]}" for name in ("shape", "meters", "seconds", "windows") if name in case)
        skipped = ("case", "shape", "meters", "seconds", "windows", "bootstrap")
        found = {name: value for name, value in case.items() if name not in skipped}
        rows.append((case["case"], of, ", ".join(f"{name} {_short(value)}" for name, value in found.items())))
    return ["## Rollup", _table(("case", "of", "measured"), "lll", rows)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{number // MIB}" for number in value) + " MiB"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _percentiles(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.0f}" for name, value in found.items())


# --- Ledger ---

_DATABASES = {"duckdb": "DuckDB", "postgres": "PostgreSQL"}


def _ledger(content: dict[str, Any]) -> list[str]:
    intro = (
        "Usage rows from the bytes of their messages to the committed transaction, a meter's commit in each; and "
        f"questions to a ledger of {content['size']['rows']:,} rows. Both databases wait for the disk at each commit."
    )
    rows = [_ledger_row(_DATABASES[kind], found) for kind, found in content["cases"].items()]
    rows += [(_DATABASES[kind], f"skipped: {why}") for kind, why in content["skipped"].items()]
    return ["## Ledger", intro, _table(_LEDGER_HEAD, "lrrrrrrrrrl", rows)]


_LEDGER_HEAD = (
    "database", "rows taken", "identities", "rows/s", "second half", "decoding", "merged rows/s", "month of a user, ms",
    "top 100 of a day, ms", "bytes a row", "answers",
)  # fmt: skip


def _ledger_row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    return (
        name,
        f"{found['messages']:,}",
        f"{found['identities']:,}",
        f"{found['rows_per_second']:,.0f}",
        f"{found['sustained']:,.0f}",
        f"{found['decoding_share']:.0%}",
        f"{found['merged_per_second']:,.0f}",
        f"{found['user_ms']:.1f}, most {found['user_ms_max']:.1f}",
        f"{found['top_ms']:.0f}, most {found['top_ms_max']:.0f}",
        f"{found['bytes'] / found['rows']:.0f}",
        f"`{found['digest']}`",
    )


# --- Lake ---


def _lake(content: dict[str, Any]) -> list[str]:
    intro = (
        "The same usage rows, from the bytes of their messages to a commit: by two writers of the lake on a core each, "
        "and by ledgers that use all cores. Bytes are of each row that is left, with catalogs and keys of databases."
    )
    case = content["cases"]["lake"]
    found = [("lake, two writers", case["rows_per_second"], case["processor_seconds"], case["bytes_a_row"])]
    for kind, name in _DATABASES.items():
        if f"{kind}_rows_per_second" in case:
            numbers = (case[f"{kind}_{what}"] for what in ("rows_per_second", "processor_seconds", "bytes_a_row"))
            found.append((f"ledger in {name}", *numbers))
    rows = [(name, f"{rate:,.0f}", f"{seconds:.1f}", f"{size:.1f}") for name, rate, seconds, size in found]
    return ["## Lake", intro, _table(("", "rows/s", "processor seconds", "bytes a row"), "lrrr", rows)]


def _lake_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    case = content["cases"]["lake"]
    yield (
        "two writers of the lake: 1.5 times the rows/s of the DuckDB ledger",
        f"{case['ratio']:.2f} times",
        _yes(case["ratio"] >= 1.5),
    )
    if "postgres_bytes_a_row" in case:
        share = case["bytes_a_row"] / case["postgres_bytes_a_row"]
        yield "a row in the lake: half of PostgreSQL's bytes", f"{share:.0%}", _yes(share <= 0.5)


# --- Intake ---


def _intake(content: dict[str, Any]) -> list[str]:
    intro = (
        "Values of messages into lines of records on one core, in seconds of processor time, each beside what one "
        "would write with the library, on the same messages."
    )
    decoders, engine = content["cases"][:-1], content["cases"][-1]
    rows = [
        (
            case["name"],
            f"{case['message_bytes']:,.0f}",
            f"{case['records_per_s'] / 1e6:.2f} M",
            f"{case['bytes_per_s'] / 1e9:.2f}",
            case["library"],
            f"{case['library_records_per_s'] / 1e6:.3f} M",
            f"{case['ratio']:.1f}",
            "equal" if len(set(case["digests"])) == 1 else "DIFFERENT",
        )
        for case in decoders
    ]
    head = ("values", "bytes a message", "records/s", "GB/s", "library", "its records/s", "times", "answers")
    whole = (
        f"The engine's whole way: {engine['ns']['lines']:.0f} ns a record in lines, {engine['ns']['arrays']:.0f} ns in "
        f"arrays; with one record a message {engine['ns']['plain']:.0f} ns, and {engine['ns']['openers']:.0f} ns where "
        f"each value is looked at for openers."
    )
    return ["## Intake", intro, _table(head, "lrrrlrrl", rows), whole]


def _intake_goals(content: dict[str, Any]) -> Iterable[tuple[str, str, str]]:
    decoders, engine = content["cases"][:-1], content["cases"][-1]
    for case in decoders:
        if case["name"] in bench_intake.GOALS:
            name, goal = bench_intake.GOALS[case["name"]]
            unit = f"{goal / 1e9:g} GB/s" if name == "bytes_per_s" else f"{goal / 1e6:g} M records/s"
            found = f"{case[name] / (1e9 if name == 'bytes_per_s' else 1e6):.2f}"
            yield f"intake: {case['name']} at {unit} on one core", found, _yes(case[name] >= goal)
        yield (
            f"intake: {case['name']} at {bench_intake.GOAL_RATIO} times {case['library']}",
            f"{case['ratio']:.1f} times",
            _yes(case["ratio"] >= bench_intake.GOAL_RATIO),
        )
    for what, key, goal in (
        ("arrays beside lines, the engine's whole way", "ratio", bench_intake.GOAL_ARRAYS),
        ("plain values with openers beside without", "openers_ratio", bench_intake.GOAL_OPENERS),
    ):
        yield f"intake: {what}: {goal:.0%} of the speed", f"{engine[key]:.1%}", _yes(engine[key] >= goal)


def _walk(content: dict[str, Any]) -> list[str]:
    found = content["ns"]
    rows = [(f"walked {where}", f"{found[name]:.0f}") for name, where in (("host", "by the host"), ("device", "on it"))]
    return [f"## Record batches of Kafka, {content['target']}", _table(("records", "ns"), "lr", rows)]


_SECTIONS = {
    "engine": _engine, "peers": _peers, "pipeline": _pipeline, "rollup": _rollup, "soak": _soak, "ledger": _ledger,
    "page": _page, "intake": _intake, "lake": _lake, "exactly_once": _exactly_once, "alerts": _alerts,
    "walk": _walk, "synth": _synth, "builds": _builds, "verify": _verify,
}  # fmt: skip


# --- Text ---


def _facts(name: str, content: dict[str, Any]) -> str:
    machine = content["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in content["versions"].items())
    return "\n".join(
        (
            f"- command: `{content['command']}` ({name}, {content['date']})",
            f"- machine: {machine['cpu']}, {machine['cores']} cores, {machine['caches']}, {machine['memory_gib']} GiB, "
            f"Linux {machine['kernel']}, load average before: {machine['load_average']:.2f}",
            f"- commit {content['commit']}, kernels {content['kernels']}; {versions}",
        )
    )


def _table(head: Sequence[str], align: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---:" if side == "r" else "---" for side in align]]
    lines += [[*row, *[""] * (len(head) - len(row))] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=common.RESULTS, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS_MD, metavar="FILE")
    options = parser.parse_args(arguments)
    files = sorted(options.results.glob("*.json"))
    if not files:
        print(f"{options.results}: no *.json; run the benchmarks with --json first", file=sys.stderr)
        return 2
    results = [(file.name, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    text = report([(name, content) for name, content in results if content.get("kind") in _SECTIONS])
    notes = options.results / NOTES
    if notes.exists():
        text += "\n" + notes.read_text(encoding="utf-8")
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
