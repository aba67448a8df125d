"""What is in deploy/ and docker-compose.yml fits the code: metrics, labels, options, ports, files, paragraphs.

No Docker runs here. promtool (Debian: prometheus) checks the rules; CI has it, elsewhere its tests may be skipped.
"""

import ast
import dataclasses
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests import totals_data
from tests.kafka_server import KAFKA_VERSION
from tests.test_health import NOW_MS, A, committed, summary
from tokenometer.kernels.values import PartitionState, Tally
from tokenometer.processor.broker import Offset
from tokenometer.processor.cli import __main__ as cli
from tokenometer.processor.cli.options import token_file
from tokenometer.processor.cli.sources import FileUnusable
from tokenometer.processor.dashboard import metrics
from tokenometer.processor.ledger import serve
from tokenometer.processor.meter.emission import Range
from tokenometer.processor.meter.health import Health

ROOT = pathlib.Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
SCRAPES = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["scrape_configs"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/tokenometer.json").read_text())
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cuda"]
OPERATIONS = ROOT / "docs/OPERATIONS.md"
ALL_RULES = [rule for group in RULES["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
OURS = {name: service for name, service in COMPOSE["services"].items() if "tokenometer" in service["image"]}
# Prometheus adds these to every series.
SCRAPED = {"up": {"job", "instance"}}
_SELECTOR = re.compile(r"\b(tokenometer[a-z0-9_:]*|up)(?:\{([^}]*)\})?")


# --- Prometheus ---


def promtool(*arguments: str, cwd: pathlib.Path, given: str | None = None) -> str:
    if shutil.which("promtool") is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: apt-get install prometheus")
        pytest.skip("promtool is missing: apt-get install prometheus")
    run = subprocess.run(["promtool", *arguments], cwd=cwd, input=given, capture_output=True, text=True, timeout=60,
                         check=False)  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_rules_call_when_they_must_and_only_then():
    promtool("check", "rules", "rules.yml", cwd=DEPLOY / "prometheus")
    promtool("test", "rules", "tests.yml", cwd=DEPLOY / "prometheus")


def test_prometheus_takes_its_configuration(tmp_path):
    """It looks for the token's file, which only a container has."""
    for file in (DEPLOY / "prometheus").glob("*.yml"):
        text = file.read_text().replace("/run/secrets/token", str(DEPLOY / "development-token"))
        (tmp_path / file.name).write_text(text)
    promtool("check", "config", "prometheus.yml", cwd=tmp_path)


def test_the_dashboards_expressions_are_promql(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$(job|instance)", ".+", expr).replace("$__rate_interval", "1m")}
        for number, expr in enumerate(panel_expressions())
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", "panels.yml", cwd=tmp_path)


def panel_expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def registries() -> dict[str, CollectorRegistry]:
    """What a meter, a rollup and a ledger export once they have something to tell."""
    health = Health(lambda: NOW_MS, "cpu")
    ranges = [Range(A, Offset(0), Offset(3), PartitionState(NOW_MS - 100, NOW_MS - 50, 0))]
    told = summary("p", Tally(1, 1, 1, 1), (1,) * 6, {"bad_count": 1})
    health.committed(committed(dataclasses.replace(told, ranges=ranges), ends={A: Offset(3)}))
    totals = json.dumps(totals_data.make()).encode()
    ledger = CollectorRegistry()
    status = dict.fromkeys(("rows_taken", "batches", "rows_ignored", "messages_behind"), 7)
    moments = {"complete_up_to": "2026-11-29T00:00:00Z", "closed_until": "2026-11-29T00:00:00Z"}
    ledger.register(serve._Metrics({**status, **moments, "disputed_parts": []}))
    return {"meter": health.registry, "rollup": metrics.registry(lambda: totals), "ledger": ledger}


@pytest.mark.parametrize("process", ["meter", "rollup", "ledger"])
def test_promtool_has_nothing_to_say_on_our_metrics(process):
    promtool("check", "metrics", cwd=ROOT, given=generate_latest(registries()[process]).decode())


@pytest.fixture(scope="module")
def exported() -> dict[str, dict[str, set[str]]]:
    """Of every metric of a process, and of every recorded one: its labels and their values."""
    found: dict[str, dict[str, set[str]]] = {}
    for registry in registries().values():
        for family in text_string_to_metric_families(generate_latest(registry).decode()):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for key, value in (sample.labels | {"job": "", "instance": ""}).items():
                    labels.setdefault(key, set()).add(value)
    recorded = {rule["record"]: {"job": set(), "instance": set()} for rule in ALL_RULES if "record" in rule}
    return found | recorded | {name: {label: set() for label in labels} for name, labels in SCRAPED.items()}


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Every metric that is asked for, with its matchers."""
    names = re.sub(r'"[^"]*"', lambda text: text[0] if "=" not in text[0] else '""', expression)
    for name, matchers in _SELECTOR.findall(names):
        yield name, re.findall(r'(\w+)(=~|!=|!~|=)"([^"]*)"', matchers)


OPEN_LABELS = ("job", "instance", "topic", "partition")  # whose values are the deployment's


@pytest.mark.parametrize("expression", [*(rule["expr"] for rule in ALL_RULES), *panel_expressions()])
def test_expressions_ask_for_what_is_exported(exported, expression):
    asked = list(selectors(expression))
    assert asked
    for name, matchers in asked:
        assert name in exported, name
        for label, operator, value in matchers:
            assert label in exported[name], (name, label)
            if operator == "=" and label not in OPEN_LABELS:
                assert value in exported[name][label], (name, label, value)


def test_variables_and_test_series_are_exported(exported):
    queries = [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"]]
    tests = yaml.safe_load((DEPLOY / "prometheus/tests.yml").read_text())["tests"]
    series = [each["series"] for test in tests for each in test["input_series"]]
    for name, matchers in (found for text in (*queries, *series) for found in selectors(text)):
        assert name in exported, name
        assert {label for label, _, _ in matchers} <= exported[name].keys(), name


def test_jobs_are_those_that_are_scraped():
    jobs = {scrape["job_name"] for scrape in SCRAPES}
    texts = [rule["expr"] for rule in ALL_RULES]
    asked = {value for text in texts for value in re.findall(r'job(?:=|=~)"([^"]+)"', text)}
    assert asked
    for pattern in asked:
        assert any(re.fullmatch(pattern, job) for job in jobs), pattern


def anchors(document: pathlib.Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_alerts_say_how_bad_what_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    path, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (path, anchor) == ("docs/OPERATIONS.md", rule["alert"].lower())
    assert anchor in anchors(ROOT / path)


def test_the_runbook_has_no_alert_that_is_gone():
    described = re.findall(r"^#+ (Tokenometer\w+)$", OPERATIONS.read_text(), re.MULTILINE)
    assert sorted(described) == sorted(rule["alert"] for rule in ALERTS)


def test_each_alert_has_series_that_fire_it():
    tests = (DEPLOY / "prometheus/tests.yml").read_text()
    firing = set(re.findall(r'alertname="(\w+)"', tests)) | set(re.findall(r"alertname: (\w+)", tests))
    assert firing == {rule["alert"] for rule in ALERTS}


# --- Grafana ---


def test_panels_have_a_place_and_a_source_of_their_own():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not covered & places, panel["title"]
        places |= covered
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    known = {(source["type"], source["uid"]) for source in sources}
    assert {(panel["datasource"]["type"], panel["datasource"]["uid"]) for panel in panels} == known
    [url] = [source["url"] for source in sources]
    assert url == "http://prometheus:9090" and "prometheus" in COMPOSE["services"]


def test_grafana_finds_what_is_mounted():
    [provider] = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/tokenometer.yml").read_text())["providers"]
    grafana = COMPOSE["services"]["grafana"]
    mounted = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])
    assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = pathlib.PurePosixPath(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounted[str(home.parent)] / home.name).is_file()


# --- Images ---


def instructions(dockerfile: pathlib.Path) -> list[tuple[str, str]]:
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_is_there_and_not_ignored(dockerfile):
    _, *kept = (ROOT / ".dockerignore").read_text().replace("!", "").splitlines()[1:]
    copied = [rest.split()[:-1] for word, rest in instructions(dockerfile) if word == "COPY"]
    sources = [source for names in copied if not names[0].startswith("--from=") for source in names]
    assert {"kernels", "processor", "schemas", "pyproject.toml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and source in kept


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_install_extras_that_are_known(dockerfile):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = re.findall(r"/src\[([^]]+)\]", dockerfile.read_text())
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    assert ("gpu-cuda13" in extras) == (dockerfile.name == "Dockerfile.cuda")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_run_any_command_and_not_as_root(dockerfile):
    said = dict(instructions(dockerfile))
    assert json.loads(said["ENTRYPOINT"]) == ["tokenometer"]
    assert int(said["USER"]) > 0
    written = json.loads(said["VOLUME"])
    assert all(path in dockerfile.read_text().split("VOLUME")[0] for path in written)


def test_both_images_are_one_recipe():
    """But for the base, the GPU's packages and its cache."""
    words = ("COPY", "USER", "WORKDIR", "VOLUME", "EXPOSE", "ENTRYPOINT")
    cpu, cuda = ({each for each in instructions(file) if each[0] in words} for file in DOCKERFILES)
    assert cpu == cuda


# --- Compose ---


def test_the_compose_file_is_one():
    subprocess.run(
        ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml"], cwd=ROOT, check=True,
        env={**os.environ, "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
    )  # fmt: skip
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0:
        subprocess.run([docker, "compose", "--profile", "*", "config", "--quiet"], cwd=ROOT, check=True, timeout=60)


def command_of(service: dict[str, Any]) -> list[str]:
    """Without the program, and without what a shell would put in."""
    if "entrypoint" not in service:
        return [interpolated(word) for word in service["command"]]
    assert service["entrypoint"] == ["sh", "-c"]
    [script] = service["command"]
    words = shlex.split(re.sub(r"\$\$\([^)]*\)", "2026-11-26T00:00:00Z", script))
    assert words[:2] == ["exec", "tokenometer"]
    return words[2:]


def interpolated(text: str) -> str:
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


@pytest.mark.parametrize("name", OURS)
def test_services_use_commands_and_options_that_exist(name, capsys):
    token = str(DEPLOY / "development-token")  # the file that is mounted there
    command, *arguments = (word.replace("/run/secrets/token", token) for word in command_of(OURS[name]))
    known = typer.main.get_command(cli.application()).commands
    assert command in known
    with known[command].make_context(command, list(arguments)) as context:
        assert context.params


def option(service: dict[str, Any], name: str) -> str | None:
    return next((word.partition("=")[2] for word in command_of(service) if word.startswith(f"--{name}=")), None)


def test_nothing_is_published_beyond_loopback():
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert ports and all(port.startswith("127.0.0.1:") for port in ports)


def test_who_listens_in_the_network_asks_for_the_token():
    assert option(OURS["rollup"], "listen").startswith("0.0.0.0:")
    for name in ("rollup", "ledger"):
        assert option(OURS[name], "token-file") == "/run/secrets/token" and OURS[name]["secrets"] == ["token"]
    [token] = [word for word in (DEPLOY / "development-token").read_text().split("\n") if word]
    assert "development" in token
    assert token in (ROOT / "docker-compose.yml").read_text()  # of the address to open


def test_ports_are_those_of_images_probes_and_scrapes():
    exposed = set(dict(instructions(DOCKERFILES[0]))["EXPOSE"].split())
    listening = {name: option(service, "listen").rpartition(":")[2] for name, service in OURS.items() if name != "load"}
    assert set(listening.values()) == exposed
    for name, port in listening.items():
        probe = OURS[name]["healthcheck"]["test"]
        assert probe[:3] == ["CMD", "python", "-c"] and f"127.0.0.1:{port}/healthz" in probe[3]
        ast.parse(probe[3])
        for mapping in OURS[name].get("ports", ()):
            assert mapping.split(":")[1:] == [port, port]
    for scrape in SCRAPES:
        for found in scrape.get("dns_sd_configs", ()):
            assert {listening[name] for name in found["names"]} == {str(found["port"])}


def test_containers_may_write_only_where_something_is_mounted():
    written = json.loads(dict(instructions(DOCKERFILES[0]))["VOLUME"])
    for service in OURS.values():
        assert service["read_only"] and service["tmpfs"] == ["/tmp"] and service["cap_drop"] == ["ALL"]
        assert {volume.split(":")[1] for volume in service.get("volumes", ())} <= set(written)
    ledger = OURS["ledger"]["environment"]["TOKENOMETER_LEDGER_DATABASE"]
    assert interpolated(ledger).startswith("/var/lib/tokenometer/")


def test_files_and_services_that_are_named_exist():
    for name, service in COMPOSE["services"].items():
        assert set(service.get("depends_on", ())) <= COMPOSE["services"].keys(), name
        assert not service.get("build") or (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    assert (ROOT / interpolated(COMPOSE["secrets"]["token"]["file"])).is_file()


def test_kafka_is_the_one_that_is_tested():
    for name in ("kafka", "topics"):
        assert COMPOSE["services"][name]["image"] == f"apache/kafka:{KAFKA_VERSION}"


# --- The token's file ---


def test_the_rollups_token_may_stand_in_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("a-token-of-24-characters\n")
    assert token_file(str(file)).reveal() == "a-token-of-24-characters"
    with pytest.raises(FileUnusable, match="cannot be read: No such file"):
        token_file(str(tmp_path / "none"))
