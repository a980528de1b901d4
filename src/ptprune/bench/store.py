"""Results in a file that survives a kill: written whole after every row, read again by the next run."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ptprune.errors import UserError

SAMPLES, CHUNK = 64, 1 << 16  # how much of a weight file is read to recognise it
TOLD = {"model": "another model", "items": "other items"}


def load(path: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run; none where there was no run.

    Args:
        identity: of this run: what has to agree for rows to be comparable.

    Raises:
        UserError: where the file is something else, belongs to another run, or could not be written later.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--out {path}: cannot be written there; give a file in a directory that exists")
    if not path.exists():
        return []
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        earlier, rows = document["identity"], document["results"]
        keys = [key(row) for row in rows if row["right"] and row["kept_tokens"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--out {path}: holds no results of this command; give another file") from None
    for name, value in identity.items():
        if earlier.get(name) != value:
            what = TOLD.get(name, f"{name} {earlier.get(name)}, not {value}")
            raise UserError(f"--out {path}: holds results of {what}; give another file, or delete it")
    return [row for number, row in enumerate(rows) if keys[number] not in keys[:number]]


def key(row: dict[str, Any]) -> str:
    """What a row was computed from."""
    return json.dumps([row["method"], row["keep_ratio"], row["settings"]], sort_keys=True)


def save(path: Path, document: dict[str, Any]) -> None:
    """Write a document in one step."""
    write(path, json.dumps(document, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file with ``write_whole``.

    Raises:
        UserError: where that cannot be.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it sees the old one or the new one, never a part.

    Raises:
        OSError: where it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def fingerprint(directory: Path) -> str:
    """Tells two checkpoints apart: all of the small files, and samples of the weights."""
    told = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.suffix in (".json", ".jinja", ".model", ".txt"):
            told.update(file.name.encode() + file.read_bytes())
        elif file.suffix == ".safetensors":
            size = file.stat().st_size
            told.update(f"{file.name} {size}".encode())
            with file.open("rb") as weights:
                for sample in range(SAMPLES):
                    weights.seek(max(0, size - CHUNK) * sample // (SAMPLES - 1))
                    told.update(weights.read(CHUNK))
    return told.hexdigest()
