"""Result files: JSON of a documented schema (schema.json), written so that a stop at any moment loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from animdetail_trt.bench.machine import SCHEMA_VERSION
from animdetail_trt.errors import InputError
from animdetail_trt.media.staging import staged_file

JSON_NAME, HTML_NAME, PARTIAL_NAME = "bench.json", "bench.html", "bench.partial.json"
SCHEMA_PATH = Path(__file__).with_name("schema.json")


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
    return document
