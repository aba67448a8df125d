# One entry point for people and for CI. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
TREE := .venv/tree/tokenometer# the folders as one package, for tools that read files and import nothing
LINKS := $(addprefix ../../../,kernels processor schemas processor/api/__init__.py processor/api/py.typed)
SOURCES := $(sort $(shell find kernels processor tests -name '*.h' -o -name '*.cpp' -o -name '*.cu'))
LIVE_ARGS ?=# --rate 20000: ten times the load
DEMO_ARGS ?=# --pace: the slow one, an hour of a log in half a minute
WORKERS ?= 5# two that compute, three that mostly wait for Kafka

unexport PYTHONDONTWRITEBYTECODE# else each of a thousand processes compiles all of our files

.DEFAULT_GOAL := help
.PHONY: help demo demo-kafka live replay-demo test test-sources test-engines test-fast check format kafka chaos fuzz picture site bench gpu up clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-11s %s\n", $$1, $$2 }'

demo: .venv/installed ## install, meter a live log of 900,000 records a second on a dashboard; audit the result
	$(BIN)/tokenometer demo $(DEMO_ARGS)

demo-kafka: .venv/installed ## the same through a real Apache Kafka (needs Maven and a JDK 17+)
	$(BIN)/python -m tests.kafka_server --run "$(BIN)/tokenometer demo $(DEMO_ARGS) --bootstrap {}"

live: .venv/installed-live ## the whole service on a real Kafka until Ctrl-C: meters, dashboard, ledger, a load of now (Maven, JDK 17+)
	$(BIN)/python -m tests.kafka_server --run "$(BIN)/tokenometer live --folder live --bootstrap {} $(LIVE_ARGS)"

replay-demo: .venv/installed ## write a log of 3 million requests, meter the file
	@mkdir -p demo
	$(BIN)/tokenometer synth --count 3000000 --duplicates 0.02 --malformed 0.01 --escaped 0.005 \
		--force --output demo/requests.ndjson
	$(BIN)/tokenometer replay demo/requests.ndjson --out demo/usage.parquet --rejected demo/rejected.ndjson --force

test: .venv/installed-dev ## install with test tools, run the whole test suite in five processes (WORKERS=0: in one)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-sources: .venv-sources/installed ## run LiteLLM, OpenTelemetry's instrumentations and others, and read what they write
	.venv-sources/bin/python -m pytest tests/test_sources.py

test-engines: .venv-engines/installed ## Spark and DuckDB's Iceberg extension read what `tokenometer lake` writes (downloads 600 MB)
	.venv-engines/bin/python -m pytest tests/lake/test_engines.py

test-fast: .venv/installed-dev ## what needs no Kafka, PostgreSQL, browser or GPU, and is not slow, in four processes, of which two may wait
	$(BIN)/python -m pytest -n 4 --dist loadfile -m "not (kafka or postgres or browser or gpu or slow or fuzz or sources or engines)"

check: .venv/installed-dev ## lint, types, C++ format and warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=.venv/tree $(BIN)/lint-imports --no-cache
	$(BIN)/clang-format --dry-run -Werror $(SOURCES)
	$(BIN)/python -m tokenometer.kernels.build

format: .venv/installed-dev ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

chaos: .venv/installed-dev ## 20 million records, a hundred SIGKILLs of two meters, then the audit (about 12 minutes)
	$(BIN)/python -m tests.kafka.chaos $(CHAOS_ARGS)

kafka: .venv/installed-dev ## start a real Apache Kafka on loopback until Ctrl-C (needs Maven and a JDK 17+)
	$(BIN)/python -m tests.kafka_server $(KAFKA_ARGS)

fuzz: .venv/installed-dev ## compare a million mutated lines with the oracle (about 4 minutes)
	$(BIN)/python -m pytest -m fuzz -k "not threads" tests/test_fuzz.py

picture: .venv/installed-dev ## take docs/dashboard.png anew: Chromium looks at a real demo (about 2 minutes)
	$(BIN)/python -m tests.picture

site: .venv/installed-dev ## build the documentation site into .site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f deploy/site/mkdocs.yml

bench: .venv/installed-bench ## take the CPU's benchmarks anew and rewrite bench/RESULTS.md (about an hour, half of it a soak)
	$(BIN)/python -m bench.bench_engine --size large --json bench/results/engine-cpu.json
	$(BIN)/python -m bench.bench_peers --size large --json bench/results/peers.json
	$(BIN)/python -m bench.bench_pipeline --size large --json bench/results/pipeline.json
	$(BIN)/python -m bench.bench_exactly_once --size large --json bench/results/exactly-once.json
	$(BIN)/python -m bench.bench_rollup --size large --json bench/results/rollup.json
	$(BIN)/python -m bench.bench_page --size large --json bench/results/page.json
	$(BIN)/python -m bench.bench_soak --size large --json bench/results/soak.json
	$(BIN)/python -m bench.bench_ledger --size large --json bench/results/ledger.json
	$(BIN)/python -m bench.bench_lake --size large --json bench/results/lake.json
	$(BIN)/python -m bench.bench_alerts --size large --json bench/results/alerts.json
	$(BIN)/python -m bench.bench_synth --size large --json bench/results/synth.json
	$(BIN)/python -m bench.report

gpu: ## the engine's tests, compute-sanitizer and benchmarks on this machine's GPU
	sh bench/gpu.sh

up: ## all services with a synthetic load in containers: dashboard, Grafana, Prometheus (needs Docker with Compose)
	docker compose --profile demo up --build --detach
	@echo "http://127.0.0.1:8321/?token=$$(cat $${TOKENOMETER_TOKEN_FILE:-deploy/development-token})"

clean: ## remove the virtual environment and everything generated
	rm -rf .venv .venv-sources .venv-engines .site demo live bench/data .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[verify,dashboard]'
	@touch $@

.venv/installed-live: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[verify,rollup,ledger]'
	@touch $@

.venv/installed-dev: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@mkdir -p $(TREE) && ln -sfn $(LINKS) $(TREE)
	@touch $@

# Apart from the others: these packages want versions of their own.
.venv-sources/installed: pyproject.toml
	$(PYTHON) -m venv .venv-sources
	.venv-sources/bin/python -m pip install --quiet --disable-pip-version-check -e '.[sources,verify]' hypothesis
	@touch $@

# Apart, too: DuckDB's extensions are of one version of DuckDB.
.venv-engines/installed: pyproject.toml
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check -e '.[engines,verify]'
	@touch $@

.venv/installed-bench: pyproject.toml | .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]'
	@touch $@
