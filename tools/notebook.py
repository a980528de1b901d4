"""Runs a notebook and stores its new outputs in it: ``python tools/notebook.py examples/notebook.ipynb``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from ipykernel.kernelspec import install
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient


def executed(path: Path) -> Any:
    """The notebook after all of its cells ran with this Python. Raises CellExecutionError where one fails."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as prefix:  # the kernel of this environment, whatever else is installed
        install(prefix=prefix, kernel_name="python3")
        specs = KernelSpecManager(kernel_dirs=[f"{prefix}/share/jupyter/kernels"])
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
        NotebookClient(notebook, km=manager, timeout=600, record_timing=False).execute()
    return notebook


if __name__ == "__main__":
    [name] = sys.argv[1:]
    nbformat.write(executed(Path(name)), name)
