"""The pieces of an API's description, in OpenAPI 3.1. The room of each API says what the API answers.

Promises: it is pure, and the description is the same for every caller, so that it can be built once.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

SCHEMAS = "#/components/schemas/"
Schema = dict[str, Any]


def document(title: str, description: str, paths: Schema, schemas: Schema, in_query: bool = False) -> Schema:
    """in_query: a token may also come as ?token=."""
    schemes: Schema = {"bearer": {"type": "http", "scheme": "bearer"}}
    if in_query:
        schemes["query"] = {"type": "apiKey", "in": "query", "name": "token"}
    refused = {"description": "A missing or wrong token (401), or a Host header that names another machine (403)."}
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "version": importlib.metadata.version("tokenometer"), "description": description},
        "paths": paths,
        "security": [{}, *({name: []} for name in schemes)],
        "components": {
            "securitySchemes": schemes,
            "responses": {"Refused": {**refused, "content": json_of(ref("Error"))}},
            "schemas": {"Error": object_of(error={"type": "string"}), **schemas},
        },
    }


def operation(
    summary: str,
    content: Schema,
    errors: Mapping[str, str] | None = None,
    parameters: Sequence[Schema] = (),
    guarded: bool = True,
    error_content: Schema | None = None,
    body: Schema | None = None,
    headers: Schema | None = None,
) -> Schema:
    """One operation. errors: by status. guarded: a token may be needed. error_content: of errors that are no Error."""
    ok: Schema = {"description": "OK", "content": content}
    responses: Schema = {"200": {**ok, "headers": headers} if headers else ok}
    if guarded:
        responses |= {status: {"$ref": "#/components/responses/Refused"} for status in ("401", "403")}
    for status, text in (errors or {}).items():
        responses[status] = {"description": text, "content": error_content or json_of(ref("Error"))}
    found: Schema = {"summary": summary, "responses": responses}
    if parameters:
        found["parameters"] = list(parameters)
    if body is not None:
        found["requestBody"] = {"required": True, "content": json_of(body)}
    if not guarded:
        found["security"] = []
    return found


def parameter(name: str, schema: Schema, text: str, required: bool = False, place: str = "query") -> Schema:
    found: Schema = {"name": name, "in": place, "description": text, "schema": schema}
    return {**found, "required": True} if required else found


def choice(*values: str) -> Schema:
    """A parameter that is one of these values; without it, the first one holds."""
    return {"type": "string", "enum": list(values), "default": values[0]}


def json_of(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def ref(name: str) -> Schema:
    return {"$ref": f"{SCHEMAS}{name}"}


def object_of(optional: Sequence[str] = (), /, **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def array_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}
