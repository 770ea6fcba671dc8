"""The schema of a record as JSON Schema, for those who read or write records without Python.

``docs/record.schema.json`` is what this gives. It says all but what two fields say of each other:
that an interval is in order, and that a run which is no whole one names its variant.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from harness.schema import SCHEMA_VERSION, Record


class _WithoutTitles(GenerateJsonSchema):
    """A field's title would only be its name again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The schema, draft 2020-12, with a description of every field."""
    found = Record.model_json_schema(schema_generator=_WithoutTitles)
    for definition in found["$defs"].values():
        definition.pop("title", None)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **_plain(found),
        "title": f"Record of vit-harness, schema {SCHEMA_VERSION}",
    }


def _plain(value: Any) -> Any:
    """Descriptions come from docstrings too: on one line, and with single quotation marks."""
    if isinstance(value, dict):
        return {
            key: " ".join(inner.replace("``", "`").split())
            if key == "description" and isinstance(inner, str)
            else _plain(inner)
            for key, inner in value.items()
        }
    return [_plain(inner) for inner in value] if isinstance(value, list) else value
