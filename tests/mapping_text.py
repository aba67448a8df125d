"""The text of small mapping files for tests, and how errors about them begin."""

PATH = "expected a string or a list of 1 to 6 strings, found "
FORMATS = "expected a list of at most one epoch format"

HEAD = {
    "format": "1",
    "name": '"example"',
    "description": '"One line for people."',
    "input_tokens_are": '"inclusive"',
    "output_tokens_are": '"inclusive"',
}
TABLES = {
    "timestamp": 'path = "time"\nformats = ["epoch_ms"]',
    "user": 'path = "user"',
    "model": 'path = "model"',
    "chip": 'path = "chip"',
    "input_tokens": 'path = "in"',
    "output_tokens": 'path = "out"',
}
EVENT = """
path = ["data", "tokens"]
by = ["data", "type"]
to = { input = "input_tokens", output = "output_tokens" }
"""


def toml(head: dict[str, str | None] | None = None, **tables: str | None) -> str:
    """A valid mapping with some lines and tables replaced, or left out where the replacement is None."""
    lines = [f"{key} = {value}" for key, value in {**HEAD, **(head or {})}.items() if value is not None]
    for name, body in {**TABLES, **tables}.items():
        if body is not None:
            lines += [f"[fields.{name}]", body]
    return "\n".join(lines) + "\n"


def toml2(head: dict[str, str | None] | None = None, end: str = "", **tables: str | None) -> str:
    """The same under format 2, which has longer ids; `end` is appended."""
    return toml({"format": "2", **(head or {})}, **tables) + end


def token_events(tokens: str = EVENT, **tables: str | None) -> str:
    return toml(input_tokens=None, output_tokens=None, tokens=tokens, **tables)
