"""What the shipped mappings leave for a copy: keys to add, and the remedies that their heads and SOURCES.md name."""

import random

import orjson
import pytest

from tests import harness
from tests.test_producers import BEDROCK, OPENLIT, TIME, _attribute, otlp, span
from tests.test_samples import counted, counters
from tokenometer.schemas import mapping as mappings
from tokenometer.schemas.mapping_model import PLACES_MAX


def copy_of(tmp_path, name: str, *changes: tuple[str, str]) -> str:
    """A shipped mapping with other text in some places, as a file."""
    text = (harness.MAPPINGS / f"{name}.toml").read_text().replace(f'name = "{name}"', 'name = "mine"')
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    (tmp_path / "mine.toml").write_text(text)
    return str(tmp_path / "mine.toml")


def without_openlit(text: str) -> list[tuple[str, str]]:
    entries = text.split("\n\n")
    return [(f"\n\n{entry}", "") for entry in entries if "[[refuse]]" in entry and "openlit" in entry]


def log_of(tmp_path, records) -> object:
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(map(orjson.dumps, records)))
    return tmp_path / "log.jsonl"


@pytest.mark.parametrize("name", mappings.shipped())
def test_a_copy_can_add_four_keys(name):
    places = {path[:end] for path in mappings.resolve(name).paths for end in range(1, len(path) + 1)}
    assert len(places) + 4 <= PLACES_MAX


def test_a_copy_of_otlp_counts_the_log_records_of_a_service_that_sends_no_spans(make_engine, tmp_path):
    mine = copy_of(
        tmp_path,
        "otlp",
        ('aliases = ["start_time"]', 'aliases = ["start_time", "time"]'),
        (
            "[labels.service]",
            '[labels.team]\npath = "team"\n\n[labels.region]\npath = "resource.region"\n\n[labels.service]',
        ),
    )
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 9,
                  "gen_ai.usage.output_tokens": 3}  # fmt: skip
    log = [{"resourceLogs": [{"scopeLogs": [{"logRecords": [
        {"timeUnixNano": str(TIME * 10**6), "spanId": f"{number:016x}", "attributes": [
            _attribute(key, value) for key, value in attributes.items()]} for number in (1, 2)]}]}]}]  # fmt: skip
    assert counters(counted(make_engine, log_of(tmp_path, log), mine, whole=False)) == (2, 18, 0, 0, 6, 0)


def test_a_copy_of_otlp_counts_what_openlit_says_of_one_provider(make_engine, tmp_path):
    text = (harness.MAPPINGS / "otlp.toml").read_text()
    added = 'additive = [\n  "openlit.otel.tracing",'
    mine = copy_of(tmp_path, "otlp", *without_openlit(text), ("additive = [", added))
    log = otlp(span("1", scope=OPENLIT, gen_ai__provider__name="anthropic", **BEDROCK))
    assert counters(counted(make_engine, log_of(tmp_path, log), mine, whole=False)) == (1, 13_062, 3962, 100, 50, 0)


# --- Ids that are not unique ---


def ollama_bodies() -> list[dict]:
    """Of 3,000 calls, one a second, that no gateway gave an id."""
    draw, log = random.Random(1), []
    for number in range(3000):
        usage = {"prompt_tokens": 10 + number % 7, "completion_tokens": 5, "total_tokens": 15 + number % 7}
        body = {"id": f"chatcmpl-{draw.randrange(999)}", "object": "chat.completion", "created": TIME // 1000 + number,
                "model": "llama3.2", "system_fingerprint": "fp_ollama", "usage": usage}  # fmt: skip
        log.append({"timestamp": TIME + 1000 * number, "user": "u1", "chip": "L40S", "response": body})
    return log


def test_calls_of_ollama_with_one_id_are_many_and_a_record_twice_is_one(make_engine, tmp_path):
    log = ollama_bodies()
    summary = counted(make_engine, log_of(tmp_path, [*log, *log[:500]]), "openai-chat", whole=False)
    prompts = sum(record["response"]["usage"]["prompt_tokens"] for record in log)
    assert counters(summary) == (3000, prompts, 0, 0, 15_000, 0)
    assert (summary.tally.duplicates, summary.tally.conflicts) == (500, 0)


def test_a_copy_of_otlp_counts_each_span_of_ollama(make_engine, tmp_path):
    remedy = ('path = "gen_ai.response.id"\naliases = ["span_id"]', 'path = "span_id"')
    spans = [
        span(f"{number:x}", gen_ai__request__model="m", gen_ai__response__id=f"chatcmpl-{number % 3}",
             gen_ai__usage__input_tokens=10 + number, gen_ai__usage__output_tokens=5)
        for number in range(1, 10)
    ]  # fmt: skip
    log = log_of(tmp_path, otlp(*spans))
    summary = counted(make_engine, log, "otlp", whole=False)
    assert (counters(summary)[:2], summary.tally.conflicts) == ((3, 36), 6)  # reported, and not counted
    assert counters(counted(make_engine, log, copy_of(tmp_path, "otlp", remedy), whole=False)) == (9, 135, 0, 0, 45, 0)
