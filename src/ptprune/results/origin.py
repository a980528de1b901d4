"""Where results come from: the machine, the versions, and fingerprints of models."""

from __future__ import annotations

import hashlib
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ptprune.results.rows import Run

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
