"""One file of results: written whole after every row, so that a killed run goes on from it; read and checked."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
from codecs import BOM_UTF8
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from ptprune.errors import UserError
from ptprune.files import check_writable, write_whole, writing
from ptprune.results.rows import KINDS, VERSION, AnyResults, Results, Run

R = TypeVar("R", bound=Results)
LARGEST = 1 << 27  # bytes of a file of results
KNOWN: TypeAdapter[Results] = TypeAdapter(AnyResults)


def read(path: Path) -> Results:
    """Read a file of any kind.

    Raises:
        UserError: in one line, for a file that cannot be read, is of no known kind or of another version, or does not
            hold what its kind must; names the place in the file, and the command that writes such files.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; give a file of results")
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path}: larger than {LARGEST >> 20} MiB; give a file of results")
        results = KNOWN.validate_json(path.read_bytes().removeprefix(BOM_UTF8))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give a file of results") from None
    except ValidationError as error:
        # an error in the version explains all others
        first = min(error.errors(include_url=False), key=lambda one: one["loc"][1:] != ("version",))
        kind, *place = first["loc"] or [""]
        where = f"{'.'.join(map(str, place))}: " if place else ""
        told = first["msg"].removeprefix("Value error, ")
        if first["type"].startswith("union_tag"):
            told = f'does not say of which "kind" it is, one of {", ".join(KINDS)}'
        elif place == ["version"]:
            told = f"the format of this file is {first['input']}, but this ptprune reads version {VERSION}"
        writer = f"the file as {KINDS[str(kind)].WRITTEN_BY} writes it" if kind in KINDS else "a file of results"
        raise UserError(f"{path}: {where}{told}; give {writer}") from None
    if "version" not in results.model_fields_set:
        raise UserError(f"{path}: version: missing; give the file as {results.WRITTEN_BY} writes it")
    return results


def go_on(path: Path, results: R) -> R | None:
    """``resume``, and the runs of that file before the one of ``results``, unless it is one of them."""
    earlier = resume(path, type(results))
    if earlier is not None:
        results.runs = [*earlier.runs, *(run for run in results.runs if run not in earlier.runs)]
    return earlier


def resume(path: Path, kind: type[R]) -> R | None:
    """Read the file of an earlier run; None where there is no file yet.

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
    """Write a file in one step. Raises UserError where that cannot be."""
    write(path, json.dumps(as_json(results), indent=1) + "\n")


def write(path: Path, text: str) -> None:
    """``write_whole`` for the file of ``--out``: raises UserError where it cannot be written."""
    with writing(f"--out {path}"):
        write_whole(path, text)


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
        except PackageNotFoundError:  # vLLM's build for CPUs is installed under another name
            versions[name] = getattr(sys.modules.get(name), "__version__", "not installed")
    return Run(machine=machine(device), versions=versions, identity=identity)


def machine(device: str) -> str:
    """Name of the processor or the GPU, and nothing else about the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def fingerprint(directory: Path) -> str:
    """Hash that identifies a checkpoint: SHA-256 over its small files, and samples of its weights."""
    digest = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if not file.is_file():  # a pipe would never end
            continue
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
