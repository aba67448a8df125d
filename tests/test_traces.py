"""Public traces through generator and engine: the sums that their README publishes, to the token.

Traces are looked for in $TOKENOMETER_TRACES, else in ../shared/traces beside the repository.
"""

import os
import pathlib

import numpy as np
import pytest

from tests import harness
from tokenometer.kernels import layout
from tokenometer.kernels.engine import Engine
from tokenometer.processor.load.trace import from_trace

FOLDER = pathlib.Path(os.environ.get("TOKENOMETER_TRACES", pathlib.Path(__file__).parents[2] / "shared/traces"))
BATCH_BYTES = 1 << 23

TRACES = [  # rows, input tokens, output tokens
    ("azure_llm_2023_code", 8_819, 18_059_974, 245_896),
    ("azure_llm_2023_conv", 19_366, 22_361_870, 4_088_665),
    ("mooncake_fast25_conversation", 12_031, 144_793_823, 4_122_048),
    ("mooncake_fast25_synthetic", 3_993, 61_194_628, 595_432),
    ("vtc_lmsys_arena_10min", 1_500, 204_398, 384_297),
    ("servegen_sampled_requests_30min", 2_744_629, 1_499_546_275, 247_086_222),
]


def feed(engine: Engine, data: bytes) -> int:
    """Count whole lines as one message; 0 if the open part has no room for it."""
    batch = engine.open_batch()
    batch.length = len(data)
    batch.space[: len(data)] = np.frombuffer(data, np.uint8)
    batch.message_end = np.array([len(data)], np.uint32)
    return engine.count(engine.load(batch, harness.shipped().engine)).next_message


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows", "input_tokens", "output_tokens"), TRACES, ids=[trace[0] for trace in TRACES])
def test_golden_sums(make_engine, name, rows, input_tokens, output_tokens):
    path = FOLDER / f"{name}.csv.zst"
    if not path.exists():
        pytest.skip(f"no public traces in {FOLDER}; set TOKENOMETER_TRACES to their folder")
    engine = make_engine(
        rows=1 << 20, cells=1 << 19, texts=1 << 20, arena_bytes=1 << 25, batch_bytes=BATCH_BYTES, tile_records=1 << 12
    )
    for chunk in from_trace(path):
        assert feed(engine, bytes(chunk)) == 1
    assert (engine.tally().counted, engine.tally().read) == (rows, rows)
    counters = sum(rows.table["counters"].sum(axis=0) for rows in engine.changes())
    sums = (counters[layout.REQUESTS], counters[layout.INPUT], counters[layout.OUTPUT])
    assert sums == (rows, input_tokens, output_tokens)
    assert sum(engine.user_tokens().values()) == input_tokens + output_tokens
    cells = np.array([cell.counters for cell in engine.cells()], np.uint64)
    assert cells.sum(axis=0).tolist() == counters.tolist()
