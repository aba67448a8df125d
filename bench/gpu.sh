#!/bin/sh
# Everything that needs a card, in under ten minutes: tests, compute-sanitizer, figures.
#
#   sh bench/gpu.sh
#
#   WHEELS   a folder of wheels to install beside what python has, for a machine without a network
#   OUT      where results go (bench/results); <card>-engine.json is read by bench/report.py, <card>-gpu.log has everything
#   PYTHON   python3
#   GROUPS_  groups of bench_engine to run
#   TOKENOMETER_COMMIT  the commit, where the copy has no git
#
# Every step runs even where an earlier one failed, as a card is rarely at hand; the exit status says if any did.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
GROUPS_=${GROUPS_:-records tiles batches identities rows}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1

if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install -q --no-index --find-links "$WHEELS" --no-deps --no-compile --target "$scratch/site" "$WHEELS"/*.whl
  export PYTHONPATH="$PWD:$scratch/site"
fi

# A missing package or card stops here, with its own message.
"$PYTHON" -c 'import cupy, hypothesis, numpy, orjson, pyarrow, pytest, rich, typer, zstandard'
card=$("$PYTHON" -c '
import re
from tokenometer.kernels.target import CudaTarget
print(re.sub("[^a-z0-9]+", "-", CudaTarget().name.lower()).strip("-"))
')
mkdir -p "$OUT"
log=$OUT/$card-gpu.log
{ date -u; nvidia-smi; } >"$log" 2>&1 || echo "nvidia-smi failed" >>"$log"
cat "$log"

failed=
# step NAME SECONDS COMMAND...: runs it, shows what it printed, and goes on.
step() {
  name=$1 limit=$2
  shift 2
  echo "== $name: $*" | tee -a "$log"
  status=0
  timeout -k 10 "$limit" "$@" >"$scratch/said" 2>&1 || status=$?
  cat "$scratch/said" >>"$log"
  tail -n 60 "$scratch/said"
  if [ "$status" -ne 0 ]; then
    failed="$failed $name"
    echo "== $name FAILED with status $status (124: it took longer than $limit s)" | tee -a "$log"
  fi
}

# The conftest skips what it cannot open, so a run in which nothing was tested must not look well.
# Only files with engine tests: others need packages that a card's machine may lack.
# shellcheck disable=SC2046
step tests 150 "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider $(grep -lwE 'make_engine|target' tests/test_*.py)
grep -q ' passed' "$scratch/said" || failed="$failed no-test-passed"
if grep -q 'SKIPPED' "$scratch/said"; then echo "== some tests were skipped: see above" | tee -a "$log"; fi

step same-totals 60 "$PYTHON" -m bench.sanitize
if command -v compute-sanitizer >/dev/null; then
  step memcheck 90 compute-sanitizer --tool memcheck --error-exitcode 1 "$PYTHON" -m bench.sanitize
  step racecheck 60 compute-sanitizer --tool racecheck --error-exitcode 1 "$PYTHON" -m bench.sanitize
else
  failed="$failed no-compute-sanitizer"
fi
# shellcheck disable=SC2086  # groups are words
step engine 230 "$PYTHON" -m bench.bench_engine --device cuda --size large --only $GROUPS_ \
  --data "$scratch/data" --json "$OUT/$card-engine.json"

if [ -n "$failed" ]; then
  echo "== FAILED:$failed" | tee -a "$log" >&2
  exit 1
fi
echo "== all well: $OUT/$card-engine.json, $log" | tee -a "$log"
