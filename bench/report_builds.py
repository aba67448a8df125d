"""Sections of RESULTS.md about this build beside another one: bench_builds and bench_verify."""

import statistics
from collections.abc import Iterable
from typing import Any

MIB = 1 << 20
GOAL_READ_US, GOAL_VERIFY_RATIO, GOAL_VERIFY_BYTES = 0.22, 6.0, 4 << 30
# The least ratio of this build's rate to the other's, or of a log's or mapping's to a plain one's; by processor time.
GOALS = {
    "meter:one": (1.35, "the meter, one record a message, beside the other build"),
    "meter:many": (1.0, "the meter, 200 records a message, beside the other build"),
    "engine:default": (0.97, "the engine, default log, beside the other build"),
    "engine:compact": (0.97, "the engine, compact log, beside the other build"),
    "share": (0.85, "the meter beside a bare consume()"),
    "rules": (1 / 1.15, "a mapping with skip, a total and an identity of three fields beside one without"),
    "meter:labels": (0.85, "the meter, four labels beside none"),
}
CLOCKS = {"cpu_seconds": "processor time", "seconds": "the clock"}
Goal = tuple[str, str, bool]


def builds_goals(content: dict[str, Any]) -> Iterable[Goal]:
    """What is wanted, what was measured, whether it is met."""
    for case in content["cases"]:
        if case["clock"] != "cpu":
            continue
        if case["case"] == "read:one":
            us = case["us"][0]
            yield f"reading alone: {GOAL_READ_US} µs of processor time a record", f"{us:.3f} µs", us <= GOAL_READ_US
        if case["case"] in GOALS:
            goal, words = GOALS[case["case"]]
            yield f"{words}: {goal:.2f} x", f"{case['ratio']:.3f} x", case["ratio"] >= goal


def builds_rows(content: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """Case and clock, ratio with its range, µs a record of both, peak MiB of both."""
    for case in content["cases"]:
        spread = f"{case['ratio']:.3f} ({min(case['ratios']):.3f} to {max(case['ratios']):.3f})"
        both = " - ".join(f"{us:.3f}" for us in case["us"])
        peaks = " - ".join(f"{peak / MIB:.0f}" for peak in case["peak_bytes"]) if any(case["peak_bytes"]) else ""
        yield f"{case['case']}, {case['clock']}", str(len(case["ratios"])), spread, both, peaks


def verify_goals(content: dict[str, Any]) -> Iterable[Goal]:
    """As `builds_goals`."""
    for name, case in content["cases"].items():
        peak = max(run["peak_bytes"] for run in case["runs"]["this"])
        yield f"verify, {name}: below 4 GiB", f"{peak / MIB:,.0f} MiB", peak < GOAL_VERIFY_BYTES
        for clock, ratio in case["ratios"].items():
            words = f"verify, {name}, beside the other build, by {CLOCKS[clock]}: {GOAL_VERIFY_RATIO:.0f} x"
            yield words, f"{ratio:.2f} x", ratio >= GOAL_VERIFY_RATIO


def verify_rows(content: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    """Log and build, records, processor seconds, seconds, k records/s, peak MiB."""
    for name, case in content["cases"].items():
        for build, runs in case["runs"].items():
            cpu, seconds, peak = (
                statistics.median(run[key] for run in runs) for key in ("cpu_seconds", "seconds", "peak_bytes")
            )
            rate = f"{case['records'] / seconds / 1e3:,.0f}"
            yield f"{name}, {build}", f"{case['records']:,}", f"{cpu:.1f}", f"{seconds:.1f}", rate, f"{peak / MIB:,.0f}"
