"""Mappings of format 2 for the fuzz: each feature alone, upon one base, and all of them together.

A mapping is written as the dict that tomllib would make of it; `text` makes the file. `tests/test_fuzz.py` holds every
feature against the base on the same lines: a feature that changed no verdict would not be tested at all.
"""

import copy
import json
import random
from typing import Any

BASE: dict[str, Any] = {
    "format": 2,
    "name": "base",
    "description": "Plain fields, read as under format 1.",
    "input_tokens_are": "inclusive",
    "output_tokens_are": "inclusive",
    "fields": {
        "request_id": {"path": ["meta", "id"], "scope": "source"},
        "timestamp": {"path": "time", "formats": ["epoch_ms", "rfc3339"]},
        "user": {"path": ["meta", "user"], "aliases": ["user"], "default": "unknown"},
        "model": {"path": "model"},
        "chip": {"path": "chip", "default": "none"},
        "prefill_chip": {"path": "prefill"},
        "input_tokens": {"path": ["usage", "in"]},
        "cached_input_tokens": {"path": ["usage", "cached"]},
        "cache_write_tokens": {"path": ["usage", "written"]},
        "output_tokens": {"path": ["usage", "out"], "default": 0},
        "reasoning_tokens": {"path": ["usage", "more", "reasoning"], "aliases": [["usage", "thinking"]]},
    },
}
TOTAL = {"fields": {"total_tokens": {"path": ["usage", "total"]}}}
BY_PROVIDER = {"path": "provider", "inclusive": ["openai", ""], "additive": ["anthropic", "bedrock"]}

FEATURES: dict[str, dict[str, Any]] = {
    "skip-in": {"skip": [{"path": "kind", "in": ["chat", "", True, 7, -1]}, {"path": ["meta", "kind"], "in": ["é"]}]},
    "skip-not-in": {
        "skip": [
            {"path": "kind", "not_in": ["chat", False, 0], "absent": True},
            {"path": ["meta", "op"], "not_in": ["x", 1]},
        ]
    },
    "skip-presence": {"skip": [{"path": "error", "present": True}, {"path": ["meta", "sent"], "absent": True}]},
    "skip-objects": {
        "skip": [
            {"path": "usage", "absent": True},
            {"path": ["usage", "more"], "absent": True, "and": [{"path": "kind", "in": ["chat"]}]},
        ]
    },
    "skip-and": {
        "skip": [
            {"path": "model", "in": ["qwen3"], "and": [{"path": "chip", "absent": True}]},
            {
                "path": "kind",
                "in": ["chat", 8],
                "and": [{"path": "cached", "in": [True, False], "absent": True}, {"path": "error", "present": True}],
            },
        ]
    },
    "total": TOTAL,
    "total-required": {"fields": {"total_tokens": {"path": ["usage", "total"], "required": True}}},
    "by-total": TOTAL | {"input_tokens_are": "by_total", "output_tokens_are": "by_total"},
    "by-total-additive": TOTAL
    | {"input_tokens_are": {"by_total": "additive"}, "output_tokens_are": {"by_total": "additive"}},
    "by-total-of-parts": TOTAL
    | {"cached_input_tokens_are": "by_total", "reasoning_tokens_are": {"by_total": "additive"}},
    "own-conventions": {"cache_write_tokens_are": "additive", "reasoning_tokens_are": "additive"},
    "by-provider": {"input_tokens_are": BY_PROVIDER | {"otherwise": "inclusive"}, "output_tokens_are": "additive"},
    "by-provider-or-total": TOTAL
    | {"input_tokens_are": BY_PROVIDER | {"otherwise": "by_total"}, "output_tokens_are": "by_total"},
    "by-provider-or-total-of-parts": TOTAL
    | {
        "cached_input_tokens_are": BY_PROVIDER | {"otherwise": "by_total"},
        "reasoning_tokens_are": {"path": "kind", "additive": ["chat"], "inclusive": [True], "otherwise": "by_total"},
    },
    "refuse": {
        "refuse": [
            {"path": "kind", "in": ["chat", 8], "and": [{"path": "error", "absent": True}]},
            {"path": ["meta", "op"], "in": ["é*"]},
        ]
    },
    "refuse-what-is-not-skipped": {
        "skip": [{"path": "kind", "in": ["chat"], "and": [{"path": "error", "present": True}]}],
        "refuse": [{"path": "kind", "in": ["chat", "x*", True]}],
    },
    "scope-of-aliases": {
        "fields": {"request_id": {"aliases": [["usage", "id"], "trace"], "scope_of": "aliases", "numbers": True}}
    },
    "scope-of-aliases-empty": {
        "fields": {
            "request_id": {"aliases": ["trace"], "scope_of": "aliases", "empty": "absent", "with": ["model"]},
            "model": {"aliases": ["source2"]},
        }
    },
    # 60 keys: those of the base, and 43 more. The last ones have no marks (layout.h).
    "sixty-keys": {
        "skip": [
            {
                "path": f"k{n}",
                "in": ["x", 1],
                "and": [
                    {"path": f"k{k}", "absent": True}
                    if k % 2
                    else {"path": f"k{k}", "not_in": ["y", 7], "absent": True}
                    for k in range(n + 1, n + 7)
                ],
            }
            for n in range(0, 42, 7)
        ],
        "labels": {"team": {"path": "team"}},
    },
    "by-provider-only": {"cached_input_tokens_are": BY_PROVIDER, "reasoning_tokens_are": BY_PROVIDER},
    "by-alias": {
        "input_tokens_are": {
            "path": "kind",
            "aliases": [["meta", "op"], "cached"],
            "additive": [True, "chat"],
            "otherwise": "inclusive",
        },
        "output_tokens_are": {"path": "provider", "aliases": ["model"], "inclusive": ["openai"], "additive": ["g*"]},
    },
    "by-flag": {
        "input_tokens_are": {"path": "cached", "additive": [True], "otherwise": "inclusive"},
        "output_tokens_are": {"path": "kind", "inclusive": [True, ""], "additive": [False, "chat"]},
    },
    "skip-beginnings": {
        "skip": [
            {"path": "kind", "in": ["cha*", "a\\*b", 7]},
            {"path": ["meta", "op"], "not_in": ["é*", "x", "other*"]},
        ]
    },
    "by-beginning": {
        "input_tokens_are": {
            "path": "model",
            "additive": ["gpt*", "qwen3", "g*"],
            "inclusive": ["gpt-x*", "gpt", "a\\*"],
            "otherwise": "inclusive",
        },
    },
    "plus": {
        "fields": {
            "input_tokens": {"plus": [["usage", "tools"], "system"]},
            "output_tokens": {"plus": [["usage", "thoughts"]]},
            "cached_input_tokens": {"plus": [["usage", "cached2"]], "digits": True},
            "total_tokens": {"path": ["usage", "total"], "plus": [["usage", "total2"]]},
        }
    },
    "whole-numbers": {
        "fields": {
            "input_tokens": {"whole_numbers": True},
            "output_tokens": {"whole_numbers": True, "digits": True},
            "reasoning_tokens": {"whole_numbers": True},
        }
    },
    "strings": {
        "fields": {
            "request_id": {"empty": "absent", "numbers": True},
            "user": {"empty": "absent", "numbers": True},
            "model": {"numbers": True},
            "chip": {"empty": "absent"},
        }
    },
    "iso8601": {"fields": {"timestamp": {"formats": ["iso8601", "epoch_ms"], "zone": "+08:00", "digits": True}}},
    "iso8601-utc": {"fields": {"timestamp": {"formats": ["iso8601"], "zone": "UTC"}}},
    "iso8601-with-a-zone": {"fields": {"timestamp": {"formats": ["iso8601", "epoch_s_decimal"]}}},
    "digits-of-epochs": {"fields": {"timestamp": {"formats": ["epoch_ns"], "digits": True}}},
    "digits-of-seconds": {"fields": {"timestamp": {"formats": ["epoch_s_decimal", "rfc3339"], "digits": True}}},
    "identity": {"fields": {"request_id": {"with": ["user", "prefill_chip"]}}},
    "shared-paths": {
        "skip": [{"path": "model", "in": ["gpt-x"]}, {"path": ["usage", "out"], "absent": True}],
        "reasoning_tokens_are": {"path": "model", "additive": ["qwen3"], "otherwise": "inclusive"},
        "fields": {
            "chip": {"aliases": ["model"]},
            "prefill_chip": {"path": "chip", "empty": "absent"},
            "output_tokens": {"plus": [["usage", "thinking"]]},
        },
    },
    "labels": {
        "labels": {
            "team": {"path": ["meta", "team"], "aliases": ["team"]},
            "tier": {"path": "tier", "empty": "absent"},
            "key": {"path": "api_key", "numbers": True, "default": "none"},
            "region": {"constant": "eu"},
            "family": {"path": "model"},
        }
    },
    "labels-in-place": {
        "labels": {
            "a": {"path": ["meta", "a"], "required": True},
            "b": {"path": ["meta", "b"], "default": "b" * 256},
            "c": {"path": ["meta", "c"]},
            "d": {"path": ["meta", "d"], "empty": "absent", "default": "none"},
            **{name: {"path": name} for name in ("e", "f", "g", "h")},
        }
    },
    "brackets": {
        "labels": {
            "context": {"bracket_of": "input_tokens", "edges": [100, 32_000]},
            "length": {"bracket_of": "output_tokens", "edges": [0, *(10**k for k in range(1, 12)), 2**40 - 1]},
            "thought": {"bracket_of": "reasoning_tokens", "edges": list(range(0, 1600, 100))},
        },
        "input_tokens_are": "additive",
    },
    "further": {
        "fields": {
            "cache_write_1h_tokens": {"path": ["usage", "written_1h"]},
            "audio_input_tokens": {"path": ["usage", "audio"], "digits": True},
            "image_input_tokens": {"path": ["usage", "more", "image"]},
            "audio_cached_input_tokens": {"path": ["usage", "audio_cached"]},
            "audio_output_tokens": {"path": ["usage", "more", "audio_out"]},
        }
    },
    "further-by-rules": {
        "fields": {
            "cache_write_1h_tokens": {"path": ["usage", "written"], "whole_numbers": True},
            "audio_input_tokens": {"path": ["usage", "audio"], "plus": [["usage", "audio2"]], "digits": True},
            "image_input_tokens": {"path": ["usage", "image"], "aliases": ["image"]},
            "audio_output_tokens": {"path": ["usage", "audio_out"], "required": True},
        }
    },
    "grow-with-labels": {
        "repeats": "grow",
        "labels": {
            "team": {"path": ["meta", "team"]},
            "context": {"bracket_of": "input_tokens", "edges": [10, 1000]},
        },
        "fields": {
            "audio_input_tokens": {"path": ["usage", "audio"]},
            "audio_output_tokens": {"path": ["usage", "audio_out"]},
        },
    },
}


def spelt(rng: random.Random, listed: Any) -> Any:
    """A value of a record that fits one that a condition or a convention lists."""
    if not isinstance(listed, str):
        return listed
    text = listed.removesuffix("*") if not listed.endswith("\\*") else listed
    more = rng.choice(["", "", "t", "-x", "*", "é"]) if text != listed else ""
    return text.replace("\\*", "*").replace("\\\\", "\\") + more


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables are merged, and everything else is replaced."""
    result = copy.deepcopy(below)
    for key, value in above.items():
        tables = ("fields", *BASE["fields"], "total_tokens", "labels")
        both = key in tables and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else copy.deepcopy(value)
    return result


def _together() -> dict[str, Any]:
    mapping = BASE
    for name in (
        "plus", "whole-numbers", "strings", "iso8601", "identity", "by-total-of-parts", "labels", "further-by-rules",
    ):  # fmt: skip
        mapping = merged(mapping, FEATURES[name])
    skip = [
        *FEATURES["skip-in"]["skip"][:1],
        *FEATURES["skip-and"]["skip"],
        {"path": "error", "present": True},
    ]
    return merged(mapping, {"skip": skip, "cache_write_tokens_are": BY_PROVIDER | {"otherwise": "additive"}})


MAPPINGS: dict[str, dict[str, Any]] = {
    "base": BASE,
    **{name: merged(BASE, feature) | {"name": name} for name, feature in FEATURES.items()},
    "together": _together() | {"name": "together"},
}


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def text(mapping: dict[str, Any]) -> str:
    """The mapping as TOML."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in mapping.items())
