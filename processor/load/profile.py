"""What a made-up log looks like: sizes, shares and names."""

from dataclasses import dataclass, fields

START_MS = 1_795_392_000_000  # 2026-11-23T00:00:00Z
COUNT_LIMIT = 1 << 40  # RECORDS.md: counts are below it
TIME_LIMIT_MS = 253_402_300_800_000  # RECORDS.md: the year 10000
STRING_BYTES_MAX = 256  # RECORDS.md

BLOCK_RECORDS = 16_384  # about 5 MB of lines: enough to hide what each numpy call costs
RESEND_RECORDS_MAX = 4_096  # a client retries within seconds; must not exceed BLOCK_RECORDS
LATE_MS = (60_000, 3 * 86_400_000)  # from a slow shipper to a laptop that was closed over a weekend
FUTURE_MS = (2 * 3_600_000, 7 * 86_400_000)  # beyond the default max_future_skew of 1 hour
LATENCY_MS_MAX = 600_000  # gateways give up after ten minutes
INPUT_TOKENS_MAX = 1_000_000  # the longest context windows on offer
OUTPUT_TOKENS_MAX = 128_000
NAMES_MAX = 65_536  # models or chips; their names are held in a table
USERS_MAX = 1_000_000_000  # user names are rendered from their number and need no table
RATE_MIN = 1e-3  # records/s
RATE_MAX = 1e9

MODEL_NAMES = (
    "gpt-4o-mini", "claude-sonnet-4-5", "gemini-2.5-flash", "llama-3.3-70b-instruct", "deepseek-r1", "qwen3-235b-a22b",
    "gpt-4.1", "mistral-large-2411", "claude-haiku-4-5", "gemini-2.5-pro", "deepseek-v3.1", "gpt-oss-120b",
    "llama-4-maverick", "kimi-k2-instruct", "glm-4.6", "qwen3-coder-480b", "gemma-3-27b-it", "phi-4", "command-r-plus",
    "mixtral-8x22b-instruct",
)  # fmt: skip
CHIP_NAMES = (
    "H100-SXM5-80GB", "H200-SXM-141GB", "A100-SXM4-80GB", "B200-SXM-192GB", "MI300X-192GB", "L40S-48GB", "GB200-NVL72",
    "TPU-v5p", "TPU-v6e", "Trainium2", "H100-PCIe-80GB", "A10G-24GB", "Gaudi3-128GB", "MI325X-256GB", "L4-24GB",
    "H20-96GB",
)  # fmt: skip
REGIONS = ("us-east-1", "us-west-2", "eu-west-1", "eu-central-1", "ap-northeast-1", "ap-southeast-2")
ENDPOINTS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages")


@dataclass(frozen=True)
class Profile:
    """What a synthetic log looks like. A share is a part of all records, from 0 to 1."""

    records: int
    seed: int = 1
    users: int = 50_000
    models: int = 8
    chips: int = 6
    user_skew: float = 1.1  # Zipf exponent: user k of n sends in proportion to k ** -skew; 0 is uniform
    start_ms: int = START_MS
    rate: float = 20_000.0  # records/s of log time, averaged over a day and over bursts
    day_curve: bool = False  # busy at 15:00 UTC (1.6 times the rate), quiet at 03:00 (0.4 times)
    bursts: float = 0.05  # share of time in bursts, which are 4 times as busy as the rest
    input_median: int = 800
    output_median: int = 160
    token_sigma: float = 1.2  # of the log-normal distribution of both
    cached_share: float = 0.4  # requests with a cache hit
    cache_write_share: float = 0.05
    reasoning_share: float = 0.15
    duplicates: float = 0.001  # re-sent records
    late: float = 0.002  # event time minutes to days before the record's place in the log
    future: float = 0.0  # event time hours to days ahead of it
    malformed: float = 0.0005  # rejected by RECORDS.md, whatever the reason
    escaped: float = 0.001  # needed strings or keys spelled with JSON escapes
    prefill: float = 0.05  # requests with a prefill_chip
    compact: bool = False  # only the needed fields, request_id and prefill_chip: about 200 bytes instead of 330
    lines_per_message: int = 1  # for `messages`; the lines stay the same

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "records", 0, COUNT_LIMIT)
        _check_range(self, "seed", 0, (1 << 64) - 1)
        _check_range(self, "users", 1, USERS_MAX)
        _check_range(self, "models", 1, NAMES_MAX)
        _check_range(self, "chips", 1, NAMES_MAX)
        _check_range(self, "user_skew", 0, 5)
        _check_range(self, "rate", RATE_MIN, RATE_MAX)
        _check_range(self, "input_median", 1, INPUT_TOKENS_MAX)
        _check_range(self, "output_median", 1, OUTPUT_TOKENS_MAX)
        _check_range(self, "token_sigma", 0, 5)
        _check_range(self, "lines_per_message", 1, 1_000_000)
        for share in ("bursts", "cached_share", "cache_write_share", "reasoning_share", "duplicates", "late", "future",
                      "malformed", "escaped", "prefill"):  # fmt: skip
            _check_range(self, share, 0, 1)
        if self.duplicates + self.malformed > 1:
            raise ValueError("duplicates + malformed must be at most 1: a record is one or the other")
        if self.late + self.future > 1:
            raise ValueError("late + future must be at most 1: a record is one or the other")
        _check_range(self, "start_ms", LATE_MS[1] + LATENCY_MS_MAX, TIME_LIMIT_MS)
        longest_ms = 10_000 * (self.records / self.rate + 1_000)  # as if the whole log were the quietest hour
        if self.start_ms + longest_ms + FUTURE_MS[1] >= TIME_LIMIT_MS:
            raise ValueError("start_ms, records and rate put the end of the log past the year 9999")


def _check_types(profile: Profile) -> None:
    """Checks types, because settings come from command lines and files, and a wrong type fails far from its cause."""
    for field in fields(profile):
        value = getattr(profile, field.name)
        wanted = {int: "an integer", float: "a number", bool: "true or false"}[field.type]  # type: ignore[index]
        numeric = isinstance(value, int) or (isinstance(value, float) and field.type is float)
        if isinstance(value, bool) != (field.type is bool) or not numeric:
            raise ValueError(f"{field.name} must be {wanted}, not {value!r}")


def _check_range(profile: Profile, name: str, low: float, high: float) -> None:
    value = getattr(profile, name)
    if not low <= value <= high:  # also refuses a NaN
        raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")
