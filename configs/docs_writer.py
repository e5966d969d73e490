"""Writes what documents the keys: the JSON schema for editors, and docs/config.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from common.paths import ROOT
from configs.schema import Config

SCHEMA_FILE = Path(__file__).with_name("config.schema.json")
TABLE_FILE = ROOT / "docs" / "config.md"


def write_docs() -> None:
    """Write the JSON schema and the table of keys."""
    SCHEMA_FILE.write_text(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    TABLE_FILE.write_text(config_table(), encoding="utf-8")


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file."""
    schema = Config.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "A training recipe"
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    return schema


def config_table() -> str:
    """Return the text of docs/config.md: every key with its default and meaning."""
    rows = ["# The keys of a config", "", "Written by `python -m configs.schema`.", ""]
    rows += ["| key | default | meaning |", "| --- | --- | --- |"]
    for key, field in Config.model_fields.items():
        default = "required" if field.is_required() else f"`{json.dumps(field.default, ensure_ascii=False)}`"
        choices = _choices(field.annotation)
        rows.append(f"| `{key}` | {default} | {field.description}{f' ({choices})' if choices else ''} |")
    return "\n".join(rows) + "\n"


def _choices(annotation: Any) -> str:
    """Return the values that a Literal allows."""
    options = get_args(annotation) if get_origin(annotation) is Literal else ()
    return ", ".join(f"`{json.dumps(option)}`" for option in options)


if __name__ == "__main__":
    write_docs()
