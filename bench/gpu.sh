#!/bin/sh
# Everything that needs a card: tests, compute-sanitizer, figures. Some 15 minutes; where a call may take ten at most, by
# two calls: STEPS="tests same-totals memcheck initcheck walk" sh bench/gpu.sh; STEPS=engine sh bench/gpu.sh
#
#   sh bench/gpu.sh
#
#   STEPS    which steps to take (all): compile tests same-totals memcheck initcheck engine walk
#   WHEELS   a folder of wheels to install beside what python has, for a machine without a network
#   OUT      where results go (bench/results); bench/report.py reads <card>-engine.json and <card>-walk.json, and
#            <card>-gpu.log has everything
#   PYTHON   python3
#   GROUPS_  groups of bench_engine to run; SIZE: large or small
#   DEVICE   cuda; cpu tries the script itself where there is no card (the sanitizer is left out, and SIZE is best small)
#   TOKENOMETER_COMMIT  the commit, where the copy has no git
#
# Every step runs even where an earlier one failed, as a card is rarely at hand; the exit status says if any did.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
GROUPS_=${GROUPS_:-records repeats tiles batches messages identities skew rows}
SIZE=${SIZE:-large}
DEVICE=${DEVICE:-cuda}
STEPS=${STEPS:-compile tests same-totals memcheck initcheck engine walk}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The folders are one package, as when it is installed.
mkdir -p "$scratch/tree/tokenometer"
for part in kernels processor schemas processor/api/__init__.py processor/api/py.typed; do
  ln -s "$PWD/$part" "$scratch/tree/tokenometer/"
done
export PYTHONPATH="$scratch/tree:$PWD" PYTHONUNBUFFERED=1

if [ -n "${WHEELS:-}" ]; then
  "$PYTHON" -m pip install -q --no-index --find-links "$WHEELS" --no-deps --no-compile --target "$scratch/site" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$scratch/site"
fi

# A missing package or card stops here, with its own message.
"$PYTHON" -c 'import hypothesis, numpy, orjson, pyarrow, pytest, rich, zstandard'
card=$("$PYTHON" -c '
import re, sys
from tokenometer.kernels.target import open_target
print(re.sub("[^a-z0-9]+", "-", open_target(sys.argv[1]).name.lower()).strip("-"))
' "$DEVICE")
mkdir -p "$OUT"
log=$OUT/$card-gpu.log
{ date -u && nvidia-smi; } >>"$log" 2>&1 || echo "nvidia-smi failed" >>"$log"
cat "$log"

failed=
wanted() { case " $STEPS " in *" $1 "*) ;; *) return 1 ;; esac; }
# step NAME SECONDS COMMAND...: runs it, shows what it printed, and goes on.
step() {
  name=$1 limit=$2
  shift 2
  wanted "$name" || return 0
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

# Registers and spills on each architecture; needs NVRTC, which comes with CuPy, and no card.
step compile 120 "$PYTHON" -m pytest -q -p no:cacheprovider tests/test_cuda_build.py

# Every test of the engine: formats 1 and 2 with all their rules, repeats, labels, growing and turning request ids, races.
# A file that needs a package which this machine lacks is named and left out. The conftest skips what it cannot open, so a
# run in which nothing was tested must not look well.
if wanted tests; then
  files=
  for file in $(grep -lE '^def test_.*\b(make_engine|target)\b' tests/test_*.py); do
    module=tests.$(basename "$file" .py)
    if "$PYTHON" -c "import tests.conftest, $module" 2>"$scratch/said"; then
      files="$files $file"
    else
      echo "== left out: $file: $(tail -n 1 "$scratch/said")" | tee -a "$log"
    fi
  done
  marked="gpu and not fuzz"
  [ "$DEVICE" = cuda ] || marked="not (gpu or fuzz or slow)"
  # shellcheck disable=SC2086  # files are words
  step tests 400 "$PYTHON" -m pytest -q -m "$marked" -p no:cacheprovider $files
  grep -q ' passed' "$scratch/said" || failed="$failed no-test-passed"
  if grep -q 'SKIPPED' "$scratch/said"; then echo "== some tests were skipped: see above" | tee -a "$log"; fi
fi

step same-totals 60 "$PYTHON" -m bench.sanitize --device "$DEVICE"
# Reads and writes beyond an array, and reads of what nobody wrote. No kernel uses shared memory, so there is nothing for
# racecheck; races on global memory are tried by tests/test_cuda_on_cpu.py, which needs no card.
if [ "$DEVICE" = cuda ] && { wanted memcheck || wanted initcheck; }; then
  if command -v compute-sanitizer >/dev/null; then
    step memcheck 120 compute-sanitizer --tool memcheck --error-exitcode 1 "$PYTHON" -m bench.sanitize
    step initcheck 120 compute-sanitizer --tool initcheck --error-exitcode 1 "$PYTHON" -m bench.sanitize
  else
    failed="$failed no-compute-sanitizer"
  fi
fi
# shellcheck disable=SC2086  # groups are words
step engine 560 "$PYTHON" -m bench.bench_engine --device "$DEVICE" --size "$SIZE" --only $GROUPS_ \
  --data "$scratch/data" --json "$OUT/$card-engine.json"
# Record batches that the device walks, beside those that the host walks.
step walk 200 "$PYTHON" -m bench.bench_walk --device "$DEVICE" --size "$SIZE" --json "$OUT/$card-walk.json"

if [ -n "$failed" ]; then
  echo "== FAILED:$failed" | tee -a "$log" >&2
  exit 1
fi
echo "== all well: $OUT/$card-engine.json, $log" | tee -a "$log"
