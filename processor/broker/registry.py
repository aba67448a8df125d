"""A Schema Registry: the schemas of values by the ids that stand before them, through Confluent's client.

Owns: what its settings are called, and which of its answers mean what.
Promises: a schema that came once is kept, for it never changes under its id. What comes out stands for itself: schemas
that it refers to are in it.

    404, "schema not found"                          UnregisteredSchema: the message is a dead letter
    no answer, 5xx, 429, any other answer            RegistryAway: ask again later, and count nothing meanwhile
    401, 403; settings that the client refuses       Refused
"""

import base64
import binascii
import contextlib
import importlib
import importlib.util
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from tokenometer.processor import secret
from tokenometer.processor.broker import BrokerError, Refused

Reference = int | str  # an id or a GUID

_NOT_FOUND = (40401, 40402, 40403)  # no such subject, version (of a reference), schema
_PREFIX = "schema.registry."  # of settings where they stand among Kafka's
_NUMBERS = ("timeout", "cache.capacity", "max.retries", "retries.wait.ms", "retries.max.wait.ms")
_DEFAULTS: dict[str, Any] = {
    "timeout": 5,  # s; the client's own is none, and a registry that is silent must not hang a meter
    "max.retries": 0,  # who asks asks again, and says so meanwhile
}
_UNKNOWN_SECONDS = 30  # that an unknown id is not asked for again: its schema may come to a replica a little later
_UNKNOWN_MAX = 10_000
_REFERENCES_MAX = 1_000  # of one schema, all together


class UnregisteredSchema(LookupError):
    """The registry answers that there is no such schema."""


class RegistryAway(BrokerError):
    """The registry does not answer, or not as one does; the message says which one and why."""


class Registry:
    """settings: Confluent's names, with or without `schema.registry.` before them; secrets revealed. Raises Refused."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        given = {name.removeprefix(_PREFIX): value for name, value in settings.items()}
        if "url" not in given:
            raise Refused("the Schema Registry's settings lack schema.registry.url")
        self._name = f"the Schema Registry at {secret.url(given['url'])}"
        self._client = _client({**_DEFAULTS, **{name: _typed(name, value) for name, value in given.items()}})
        self._known: dict[tuple[str, Reference], str | bytes] = {}
        self._unknown: dict[tuple[str, Reference], float] = {}

    def check(self) -> None:
        """Does it answer? Raises RegistryAway or Refused."""
        self._ask(self._client.get_schema_types)

    def schemas(self, encoding: str) -> "RegistrySchemas":
        """The schemas of "avro" (JSON) or of "protobuf" (a descriptor set). Raises Refused."""
        if encoding == "protobuf" and importlib.util.find_spec("google.protobuf") is None:
            raise Refused('encoding = "protobuf" needs the package protobuf: pip install "tokenometer[registry]"')
        return RegistrySchemas(self, encoding)

    def schema(self, encoding: str, reference: Reference) -> str | bytes:
        """Raises UnregisteredSchema, RegistryAway, Refused."""
        key, now = (encoding, reference), time.monotonic()
        if key in self._known:
            return self._known[key]
        if now - self._unknown.get(key, -_UNKNOWN_SECONDS) < _UNKNOWN_SECONDS:
            raise UnregisteredSchema(reference)
        try:
            self._known[key] = self._avro(reference) if encoding == "avro" else self._protobuf(reference)
        except UnregisteredSchema:
            if len(self._unknown) >= _UNKNOWN_MAX:
                self._unknown.clear()
            self._unknown[key] = now
            raise
        return self._known[key]

    def _avro(self, reference: Reference) -> str:
        schema = self._get(reference, None)
        if schema.schema_type != "AVRO":
            raise UnregisteredSchema(reference)
        named = {name: json.loads(text) for name, text in self._referred(schema, None)}
        return str(schema.schema_str) if not named else json.dumps(_inlined(json.loads(schema.schema_str), named))

    def _protobuf(self, reference: Reference) -> bytes:
        schema = self._get(reference, "serialized")
        if schema.schema_type != "PROTOBUF":
            raise UnregisteredSchema(reference)
        return _descriptor_set([*self._referred(schema, "serialized"), ("value.proto", str(schema.schema_str))])

    def _get(self, reference: Reference, form: str | None) -> Any:
        if isinstance(reference, int):
            return self._ask(lambda: self._client.get_schema(reference, fmt=form))
        return self._ask(lambda: self._client.get_schema_by_guid(reference, fmt=form))

    def _referred(self, schema: Any, form: str | None) -> list[tuple[str, str]]:
        """Names and texts of all that a schema refers to, each after those that itself refers to."""
        found: dict[str, str] = {}

        def visit(references: Any, above: tuple[str, ...]) -> None:
            for one in references or ():
                if one.name in found or one.name in above or len(found) + len(above) > _REFERENCES_MAX:
                    continue
                version = self._ask(partial(self._client.get_version, one.subject, one.version, True, form))
                visit(version.schema.references, (*above, one.name))
                found[one.name] = str(version.schema.schema_str)

        visit(schema.references, ())
        return list(found.items())

    def _ask(self, question: Callable[[], Any]) -> Any:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return question()
        except SchemaRegistryError as error:
            if error.http_status_code == 404 and error.error_code in _NOT_FOUND:
                raise UnregisteredSchema(str(error)) from None
            if error.http_status_code in (401, 403):
                raise Refused(f"{self._name} refuses: {error}; set basic.auth.user.info, or what it wants") from None
            raise RegistryAway(f"{self._name} answers: {error}") from None
        except Exception as error:  # of the HTTP library, of TLS, of JSON that is none: it is not there
            raise RegistryAway(f"{self._name} gives no answer: {error or type(error).__name__}") from None


class RegistrySchemas:
    """A registry's schemas of one kind, to be called or looked up with an id or a GUID."""

    def __init__(self, registry: Registry, encoding: str) -> None:
        self._registry, self._encoding = registry, encoding

    def __call__(self, reference: Reference) -> str | bytes:
        """Raises UnregisteredSchema, RegistryAway, Refused."""
        return self._registry.schema(self._encoding, reference)

    __getitem__ = __call__


def _client(settings: dict[str, Any]) -> Any:
    try:
        from confluent_kafka.schema_registry import SchemaRegistryClient
    except ImportError as error:
        raise Refused(
            f'a Schema Registry needs the package {error.name}: pip install "tokenometer[registry]"'
        ) from None
    try:
        return SchemaRegistryClient(settings)
    except (ValueError, TypeError, OSError) as error:  # OSError: of a certificate's file
        raise Refused(f"the Schema Registry's settings: {error}") from None


def _typed(name: str, value: str) -> str | float:
    if name not in _NUMBERS:
        return value
    try:
        return float(value) if name == "timeout" else int(value)
    except ValueError:
        raise Refused(f"the Schema Registry's setting {name}: expected a number, found {value!r}") from None


# --- Avro: named types of other schemas ---


def _inlined(schema: Any, named: dict[str, Any], namespace: str = "", known: set[str] | None = None) -> Any:
    """The schema with the types of `named` in it, each where it is first used."""
    known = set() if known is None else known
    if isinstance(schema, list):
        return [_inlined(branch, named, namespace, known) for branch in schema]
    if isinstance(schema, str):
        full = next((name for name in (f"{namespace}.{schema}", schema) if name in named), None)
        if full is None or full in known:
            return schema
        return _inlined(named[full], named, "", known)
    if not isinstance(schema, dict):
        return schema
    schema, name = dict(schema), schema.get("name")
    if isinstance(name, str) and schema.get("type") in ("record", "enum", "fixed", "error"):
        namespace = name.rpartition(".")[0] if "." in name else schema.get("namespace", namespace)
        known.add(name if "." in name or not namespace else f"{namespace}.{name}")
    for key in ("type", "items", "values"):
        if key in schema and not (key == "type" and schema["type"] in ("record", "enum", "fixed", "error")):
            schema[key] = _inlined(schema[key], named, namespace, known)
    if isinstance(schema.get("fields"), list):
        schema["fields"] = [
            {**field, "type": _inlined(field.get("type"), named, namespace, known)} for field in schema["fields"]
        ]
    return schema


# --- Protobuf: files that import one another ---


def _descriptor_set(files: list[tuple[str, str]]) -> bytes:
    """files: names and contents, dependencies first; a content is a FileDescriptorProto in base64, as Confluent's
    registry answers, or the text of a .proto file, as others do. Raises UnregisteredSchema, Refused."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
    from google.protobuf.message import DecodeError

    found = FileDescriptorSet()
    try:
        for name, content in files:
            found.file.append(FileDescriptorProto.FromString(base64.b64decode(content, validate=True)))
            found.file[-1].name = name
    except (binascii.Error, ValueError, DecodeError):
        return _compiled(files)
    have, wanted = {name for name, _ in files}, list(_imports(found.file))
    own = FileDescriptorSet()
    for name in wanted:
        _add_built_in(own, name, have)
    own.file.extend(found.file)
    return own.SerializeToString()


def _imports(files: Any) -> Iterator[str]:
    for file in files:
        yield from file.dependency


def _add_built_in(to: Any, name: str, have: set[str]) -> None:
    """A file that the library brings: google/protobuf/timestamp.proto and its like; Confluent's own as well."""
    from google.protobuf import descriptor_pool

    if name in have:
        return
    have.add(name)
    module = name.removesuffix(".proto").replace("/", ".") + "_pb2"
    for package in (module, f"confluent_kafka.schema_registry.{module}"):
        with contextlib.suppress(ImportError):
            importlib.import_module(package)
    try:
        file = descriptor_pool.Default().FindFileByName(name)
    except KeyError:
        raise UnregisteredSchema(f"an import of {name}, which the registry does not have") from None
    for dependency in file.dependencies:
        _add_built_in(to, dependency.name, have)
    file.CopyToProto(to.file.add())


def _compiled(files: list[tuple[str, str]]) -> bytes:
    try:
        from grpc_tools import protoc
    except ImportError:
        raise Refused(
            "this Schema Registry answers with the text of .proto files, which needs a compiler: "
            "pip install grpcio-tools"
        ) from None
    with tempfile.TemporaryDirectory(prefix="tokenometer-protoc-") as name:
        folder = pathlib.Path(name)
        for file, content in files:
            path = (folder / file).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise UnregisteredSchema(f"an import of {file}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        well_known = pathlib.Path(protoc.__file__).with_name("_proto")
        to = folder / "descriptor.set"
        arguments = ["protoc", f"-I{folder}", f"-I{well_known}", "--include_imports", f"-o{to}", files[-1][0]]
        if protoc.main(arguments):
            raise UnregisteredSchema("protoc does not take the schema: its message is on standard error")
        return to.read_bytes()
