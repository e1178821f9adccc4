"""Result files: JSON of a documented schema (schema.json), written so that a stop at any moment loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from animdetail_trt.bench.machine import SCHEMA_VERSION
from animdetail_trt.errors import InputError
from animdetail_trt.media.staging import staged_file

JSON_NAME, HTML_NAME, PARTIAL_NAME = "bench.json", "bench.html", "bench.partial.json"
SCHEMA_PATH = Path(__file__).with_name("schema.json")
OUT_OF_TIME = "too little of the suite's time was left"
"""How the reason begins where a scenario was left out for time."""


def write_text(path: Path, text: str) -> None:
    """The whole file or none: what was there stays until the new one is complete. Raises MediaError."""
    with staged_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, document: dict[str, Any]) -> None:
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """A result of this schema version. Raises InputError with what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}. Name a bench.json") from error
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}). Name a bench.json that `animdetail-trt bench` wrote") from error
    if not isinstance(document, dict) or document.get("benchmark") != "suite":
        raise InputError(
            f"{path} is no result of a benchmark suite. Name a bench.json that `animdetail-trt bench` wrote"
        )
    version = document.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema_version {version!r}, and this version compares {SCHEMA_VERSION}. Measure it again"
        )
    if fault := next(_faults(document, json.loads(SCHEMA_PATH.read_text(encoding="utf-8"))), None):
        raise InputError(f"{path} does not follow the schema: {fault}. Measure it again")
    return document


_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict, "array": list, "string": str, "number": (int, float), "integer": int, "boolean": bool,
    "null": type(None),
}  # fmt: skip


def _faults(value: Any, schema: dict[str, Any], where: str = "", root: dict[str, Any] | None = None) -> Iterator[str]:
    """What lacks or has another type: as much of JSON Schema as keeps what reads the file from failing. The whole is
    jsonschema's, which only the tests need."""
    root = root or schema
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    if types and not any(isinstance(value, _TYPES[name]) for name in types):
        yield f"{where or 'it'} is no {' or '.join(types)}"
        return
    if "exclusiveMinimum" in schema and not value > schema["exclusiveMinimum"]:
        yield f"{where} is {value}"
    for part in schema.get("allOf", []):
        yield from _faults(value, part, where, root)
    if isinstance(value, dict):
        yield from (f"{where or 'it'} lacks {key!r}" for key in schema.get("required", []) if key not in value)
        parts, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, item in value.items():
            part = parts.get(key, others if isinstance(others, dict) else {})
            yield from _faults(item, part, f"{where}.{key}".lstrip("."), root)
    if isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            yield f"{where} has {len(value)} items"
        for i, item in enumerate(value):
            yield from _faults(item, schema.get("items", {}), f"{where}[{i}]", root)
