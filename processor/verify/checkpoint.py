"""What a clean audit leaves to the next one, and the file of it. Bytes in, values out; the file is the only I/O.

    tokenometer checkpoint 1 SHA-256 of the rest     so that a damaged file is never taken for a sound one
    {...}                                            JSON: all but the rows
    ...                                              Arrow: the last row of each key, of parts that may go on

A file is written whole under another name and then renamed, so it is the old one or the new one at any time.
"""

import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import pyarrow as pa

from tokenometer.processor.broker import Offset, Place
from tokenometer.processor.verify.live import SummaryHead
from tokenometer.processor.verify.values import Tally, Totals, UnusableCheckpoint
from tokenometer.schemas import mapping as mappings

_MAGIC = b"tokenometer checkpoint "
_VERSION = 1


class LogState(NamedTuple):
    """Of an input partition: how far it was audited. log_time: the highest time before that. own, before: from which
    offset on log time is in the same generation of request ids, and from which in the one before that at the earliest.
    """

    committed: Offset
    log_time: int
    own: Offset
    before: Offset


@dataclass(frozen=True)
class Stream:
    """What must be the same in the next audit. settings: those that decide a verdict. mappings: digests by topic.
    topics: ids, where they are known."""

    group: str
    settings: dict[str, Any]
    mappings: dict[str, str]
    topics: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """published: where the topics of the meters ended. parts: those that may go on, each with its partition of the live
    topic. rows: theirs, as tasks.USAGE."""

    made_at_ms: int
    stream: Stream
    log: dict[Place, LogState]
    published: dict[Place, Offset]
    parts: list[tuple[Place, SummaryHead]]
    totals: Totals
    rows: pa.Table


# --- The file ---


def read(file: str) -> Checkpoint:
    """Raises UnusableCheckpoint."""
    try:
        data = pathlib.Path(file).read_bytes()
    except FileNotFoundError:
        what = "there is no such file: make the first one with --checkpoint, and without --since"
        raise UnusableCheckpoint(f"{file}: {what}") from None
    except OSError as error:
        raise UnusableCheckpoint(f"{file}: {error.strerror}") from None
    first, _, rest = data.partition(b"\n")
    version, _, digest = first.removeprefix(_MAGIC).partition(b" ")
    if not first.startswith(_MAGIC) or not version.isdigit():
        raise UnusableCheckpoint(f"{file}: this is no checkpoint of verify")
    if int(version) != _VERSION:
        what = f"a checkpoint of version {int(version)}, and this tokenometer reads version {_VERSION}: {_ANEW}"
        raise UnusableCheckpoint(f"{file}: {what}")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise UnusableCheckpoint(f"{file}: the file is damaged: {_ANEW}")
    header, _, rows = rest.partition(b"\n")
    return _from_json(json.loads(header), pa.ipc.open_stream(rows).read_all())


_ANEW = "audit without --since, and leave a new one with --checkpoint"


def check_writable(file: str) -> None:
    """Before a log of hours is read. Raises UnusableCheckpoint."""
    folder = pathlib.Path(file).absolute().parent
    if not folder.is_dir():
        raise UnusableCheckpoint(f"{file}: there is no folder {folder}")
    if not os.access(folder, os.W_OK) or pathlib.Path(file).is_dir():
        raise UnusableCheckpoint(f"{file}: it cannot be written")


def write(file: str, checkpoint: Checkpoint) -> None:
    """Raises UnusableCheckpoint."""
    rows = pa.BufferOutputStream()
    with pa.ipc.new_stream(rows, checkpoint.rows.schema) as stream:
        stream.write_table(checkpoint.rows)
    rest = json.dumps(_to_json(checkpoint)).encode() + b"\n" + rows.getvalue().to_pybytes()
    first = _MAGIC + f"{_VERSION} {hashlib.sha256(rest).hexdigest()}\n".encode()
    path = pathlib.Path(file).absolute()
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent, delete=False) as beside:
            try:
                beside.write(first + rest)
                beside.flush()
                os.fsync(beside.fileno())
                os.replace(beside.name, path)
            except BaseException:
                os.unlink(beside.name)
                raise
    except OSError as error:
        raise UnusableCheckpoint(f"{file}: it cannot be written: {error.strerror}") from None


def _to_json(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "made_at_ms": checkpoint.made_at_ms,
        "stream": asdict(checkpoint.stream),
        "log": [[*place, *state] for place, state in sorted(checkpoint.log.items())],
        "published": [[*place, end] for place, end in sorted(checkpoint.published.items())],
        "parts": [[*place, asdict(replace(part, digest=b"")) | {"digest": part.digest.hex()}]
                  for place, part in checkpoint.parts],
        "totals": asdict(checkpoint.totals),
    }  # fmt: skip


def _from_json(top: dict[str, Any], rows: pa.Table) -> Checkpoint:
    totals = top["totals"] | {"tally": Tally(**top["totals"]["tally"]), "tokens": tuple(top["totals"]["tokens"])}
    return Checkpoint(
        top["made_at_ms"],
        Stream(**top["stream"]),
        {Place(topic, partition): LogState(*state) for topic, partition, *state in top["log"]},
        {Place(topic, partition): Offset(end) for topic, partition, end in top["published"]},
        [(Place(topic, partition), _part(part)) for topic, partition, part in top["parts"]],
        Totals(**totals),
        rows,
    )


def _part(part: dict[str, Any]) -> SummaryHead:
    ranges = tuple((Place(*place), begin, end) for place, begin, end in part["ranges"])
    other = {"ranges": ranges, "tokens": tuple(part["tokens"]), "digest": bytes.fromhex(part["digest"])}
    return SummaryHead(**part | other)


# --- What a mapping says, as one text ---


def digest_of(mapping: mappings.Mapping, schema: bytes | None) -> str:
    """Of all that decides a record's verdict. schema: the content of its file. A member that has its default is left
    out, so that a later version may have more of them."""
    meaning = replace(mapping, name="", description="", source="", value=replace(mapping.value, schema=None))
    text = json.dumps([_plain(meaning), None if schema is None else schema.hex()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        members = {item.name: (item.default, getattr(value, item.name)) for item in fields(value)}
        return {name: _plain(member) for name, (default, member) in members.items() if member != default}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    assert value is None or isinstance(value, (str, int)), type(value)
    return value
