"""One file of results: written whole after every row, so that a killed run goes on from it; read and checked."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from ptprune.errors import UserError
from ptprune.results.rows import KINDS, VERSION, Results, Run

R = TypeVar("R", bound=Results)


def read(path: Path) -> Results:
    """A file of any kind.

    Raises:
        UserError: for a file that cannot be read, is of no known kind or of another version, or does not hold what its
            kind has to; names the place.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a file of results") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise UserError(f"{path}: cannot be read ({reason}); give a file of results") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); give a file of results") from None
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f'{path}: no file of results, which says its "kind", one of {known}; give one')
    model = KINDS[kind]
    if (version := document.get("version")) != VERSION:
        raise UserError(
            f"{path}: of version {version} of the format, but this ptprune reads version {VERSION}; write it again "
            f"with {model.WRITTEN_BY}"
        )
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = f"{where}: {first['msg']}" if where else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {what}; give the file as {model.WRITTEN_BY} wrote it") from None


def resume(path: Path, kind: type[R]) -> R | None:
    """What an earlier run left in a file; None where there is no file yet.

    Raises:
        UserError: where the file holds anything else, or could not be written later.
    """
    check_writable(path, "--out")
    if not path.exists():
        return None
    results = read(path)
    if not isinstance(results, kind):
        raise UserError(f"--out {path}: not a file of {kind.WRITTEN_BY}; give another file")
    return results


def as_json(results: Results) -> dict[str, Any]:
    """Plain JSON types, in the order in which the fields are declared, ``kind`` and ``version`` first."""
    document = results.model_dump(mode="json")
    return {name: document[name] for name in ("kind", "version")} | document


def save(path: Path, results: Results) -> None:
    """Write a file in one step.

    Raises:
        UserError: where that cannot be.
    """
    write(path, json.dumps(as_json(results), indent=1) + "\n")


def check_writable(path: Path, option: str) -> None:
    """Refuse, before anything is computed, a file that could not be written.

    Raises:
        UserError: naming the option.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{option} {path}: cannot be written there; give a file in a directory that exists")


def write(path: Path, text: str) -> None:
    """Write a text with ``write_whole``.

    Raises:
        UserError: where that cannot be.
    """
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"--out {path}: cannot be written ({error.strerror or error})") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file in one step: a reader sees the old one or the new one, never a part.

    Raises:
        OSError: where it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


SAMPLES, CHUNK = 64, 1 << 16  # how much of a weight file is read to recognise it
PACKAGES = ("torch", "transformers", "ptprune")


def run_of(identity: dict[str, Any], device: str, *packages: str) -> Run:
    """The run that is being made now.

    Args:
        identity: what has to agree for rows to be comparable.
        packages: whose versions matter besides those of ``PACKAGES``.
    """
    versions = {}
    for name in (*PACKAGES, *packages):
        try:
            versions[name] = torch.__version__ if name == "torch" else version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return Run(machine=machine(device), versions=versions, identity=identity)


def machine(device: str) -> str:
    """What the processor or the GPU is called, and nothing else about the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def fingerprint(directory: Path) -> str:
    """Tells two checkpoints apart: all of the small files, and samples of the weights."""
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.suffix in (".json", ".jinja", ".model", ".txt"):
            digest.update(file.name.encode() + file.read_bytes())
        elif file.suffix == ".safetensors":
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as weights:
                for sample in range(SAMPLES):
                    weights.seek(max(0, size - CHUNK) * sample // (SAMPLES - 1))
                    digest.update(weights.read(CHUNK))
    return digest.hexdigest()
