"""The words of the table: schemas in a line each, and a route with what it takes and gives.

A field of a request that is not needed may also be null, which says the same as leaving it out; every field of an
answer is there, and null only where the table says `maybe`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from repowire.protocol import IDENTIFIER, MAX_METADATA_BYTES, MAX_TEXT_CHARS
from repowire.wire import MAX_DEPTH

Schema = dict[str, Any]

# -- values ------------------------------------------------------------------


def line(most: int = 1024, about: str = "", *, least: int = 0) -> Schema:
    """A string of `least` to `most` characters."""
    return _said(about, {"type": "string", **({"minLength": least} if least else {}), "maxLength": most})


def free(about: str = "") -> Schema:
    """A string of a query, which the length of a request's first line bounds."""
    return _said(about, {"type": "string"})


def word(*options: str) -> Schema:
    """One of these."""
    return {"type": "string", "enum": list(options)}


def whole(least: int = 0, most: int = 2**53, about: str = "") -> Schema:
    """A whole number."""
    return _said(about, {"type": "integer", "minimum": least, "maximum": most})


def seconds(most: float | None = None, about: str = "") -> Schema:
    """A duration in seconds; a `most` of None is for a route that cuts a longer one to its cap."""
    return _said(about, {"type": "number", "maximum": 1e15 if most is None else most})


def loose(about: str = "") -> Schema:
    """An object whose fields are its maker's own."""
    return _said(about, {"type": "object", "additionalProperties": True})


def listed(item: Schema, *, most: int | None = None, least: int = 0, about: str = "") -> Schema:
    """A list."""
    bounds = {"maxItems": most} if most is not None else {}
    return _said(about, {"type": "array", "items": item, **bounds, **({"minItems": least} if least else {})})


def maybe(schema: Schema) -> Schema:
    """This, or null."""
    if "$ref" in schema or "anyOf" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    made = {**schema, "type": [schema["type"], "null"]}
    return made if "enum" not in made else {**made, "enum": [*made["enum"], None]}


def record(sometimes: Mapping[str, Schema] | None = None, /, **always: Schema) -> Schema:
    """An object: the fields that are always there, and those that are there at times."""
    return {"type": "object", "properties": {**always, **(sometimes or {})}, "required": list(always)}


def both(first: Schema, second: Schema) -> Schema:
    """One record with the fields of two."""
    return {
        "type": "object",
        "properties": {**first["properties"], **second["properties"]},
        "required": first["required"] + second["required"],
    }


def shape(name: str) -> Schema:
    """One of the named shapes, which stand in each module's SHAPES."""
    return {"$ref": f"#/components/schemas/{name}"}


def _said(about: str, schema: Schema) -> Schema:
    return {**schema, "description": about} if about else schema


TEXT = line(MAX_TEXT_CHARS, least=1)
SHOWN: Schema = {"type": "string"}  # in an answer: what is stored kept its bounds when it came
FLAG: Schema = {"type": "boolean"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
MOMENT: Schema = {"type": "string", "format": "date-time", "description": "ISO-8601 in UTC with microseconds"}
IDENTIFIER_TEXT: Schema = {"type": "string", "pattern": f"^{IDENTIFIER.pattern}$"}
PANE = line(64, "a tmux pane, such as %42")
METADATA = {**loose(f"as JSON; nested at most {MAX_DEPTH} deep"), "x-max-bytes": MAX_METADATA_BYTES}
ATTACHMENTS = listed(loose("id, path, filename, size in bytes, content_type; each may be absent"), most=20)
LIMIT = whole(1, 500, "how many at most")
CURSOR = free("the `next` of an earlier page")
NEXT = maybe({"type": "string", "description": "the cursor of the next page; null on the last"})
OK = record(ok=FLAG)

# -- routes ------------------------------------------------------------------


class Route(NamedTuple):
    """A row of the table. `name` is its operationId, and the method of our clients that calls it."""

    method: str
    path: str
    name: str
    about: str
    body: Schema | None = None
    body_needed: bool = True
    query: Mapping[str, Schema] = {}
    answer: Schema | None = None  # None: the media type says what comes
    media: str = "application/json"
    refuses: Mapping[int, str] = {}
    refused: Schema = shape("Refusal")
    keyed: bool = False  # takes an Idempotency-Key
    status: int = 200


def takes(needed: Mapping[str, Schema] | None = None, /, **optional: Schema) -> Schema:
    """The body of a request; unknown fields are ignored."""
    needed = needed or {}
    fields = {**needed, **{name: maybe(schema) for name, schema in optional.items()}}
    return {"type": "object", "properties": fields, **({"required": list(needed)} if needed else {})}
