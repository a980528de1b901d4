"""Peak memory of one run on the CPU, measured in a process of its own: ``python -m ptprune.bench.memory``.

The peak of the resident set can only be read per process, and what other arms left behind would count in it. The
process reads its pickled arguments from standard input, and writes the bytes, or None, as its last line.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ptprune.bench.arms import Arm, run_arm
from ptprune.bench.subject import Setup, prepare
from ptprune.errors import PtpruneError

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured_apart(setup: Setup, arm: Arm, new_tokens: int, threads: int) -> int | None:
    """By how many bytes the resident set of a fresh process grows at most during one run.

    Returns:
        None where the system does not tell (other than Linux).

    Raises:
        PtpruneError: where that process fails, with its last words.
    """
    if not RESET.exists():
        return None
    if arm.pruner is not None:
        arm = replace(arm, pruner=replace(arm.pruner))  # its settings, without the report of its last pass
    # Freed memory goes back to the system at once, so that what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": "0"}
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((setup, arm, new_tokens, threads)),
        capture_output=True,
        env=environment,
    )
    if child.returncode:
        reason = (child.stderr.decode().strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise PtpruneError(f"the process that measures the memory of {arm.label} failed: {reason}")
    grown = child.stdout.decode().splitlines()[-1]
    return None if grown == "None" else int(grown)


def _growth(setup: Setup, arm: Arm, new_tokens: int, threads: int) -> int | None:
    torch.set_num_threads(threads)
    subject = prepare(setup)
    run_arm(subject, arm, new_tokens, setup.device)  # kernels and buffers that a first call sets up
    try:
        RESET.write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = _resident("VmRSS")
    run_arm(subject, arm, new_tokens, setup.device)
    peak = _resident("VmHWM")
    return None if before is None or peak is None else peak - before


def _resident(name: str) -> int | None:
    """A field of this process's status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), flags=re.MULTILINE)
    return 1024 * int(found.group(1)) if found else None


if __name__ == "__main__":
    print(_growth(*pickle.load(sys.stdin.buffer)))
