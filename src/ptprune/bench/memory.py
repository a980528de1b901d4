"""Peak memory of one run on the CPU, measured in a process of its own: ``python -m ptprune.bench.memory``.

The peak of the resident set can only be read per process, and what other arms left behind would count in it. Reads a
``Setup``, an arm and a number of tokens as JSON from standard input, writes ``{"growth": bytes or null}``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ptprune.bench.arms import PRUNED, Arm, run_arm
from ptprune.bench.subject import Setup, prepare
from ptprune.errors import PtpruneError
from ptprune.pruner import TokenPruner

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
    task = {"setup": setup.to_dict(), "arm": _arm_to_dict(arm), "new_tokens": new_tokens, "threads": threads}
    # Freed memory goes back to the system at once, so that what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**17), "MALLOC_TRIM_THRESHOLD_": "0"}
    child = subprocess.run(
        [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        env=environment,
    )
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or [f"exit status {child.returncode}"])[-1]
        raise PtpruneError(f"the process that measures the memory of {arm.label} failed: {reason}")
    growth: int | None = json.loads(child.stdout.splitlines()[-1])["growth"]
    return growth


def growth(task: dict[str, Any]) -> int | None:
    """Run the task in this process."""
    import torch

    torch.set_num_threads(task["threads"])
    setup, arm = Setup.from_dict(task["setup"]), _arm_from_dict(task["arm"])
    subject = prepare(setup)
    run_arm(subject, arm, task["new_tokens"], setup.device)  # kernels and buffers that a first call sets up
    try:
        RESET.write_text("5")  # the peak starts again from here
    except OSError:
        return None
    before = resident("VmRSS")
    run_arm(subject, arm, task["new_tokens"], setup.device)
    peak = resident("VmHWM")
    return None if before is None or peak is None else peak - before


def resident(name: str) -> int | None:
    """A field of this process's status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), flags=re.MULTILINE)
    return 1024 * int(found.group(1)) if found else None


def _arm_to_dict(arm: Arm) -> dict[str, Any]:
    settings = None if arm.pruner is None else asdict(arm.pruner)
    return {"name": arm.name, "method": arm.method, "length": arm.length, "settings": settings}


def _arm_from_dict(values: dict[str, Any]) -> Arm:
    from ptprune.methods import METHODS

    pruner: TokenPruner | None = None
    if values["name"] == PRUNED:
        pruner = METHODS[values["method"]](**values["settings"])
    return Arm(values["name"], values["method"], pruner, values["length"])


if __name__ == "__main__":
    print(json.dumps({"growth": growth(json.load(sys.stdin))}))
