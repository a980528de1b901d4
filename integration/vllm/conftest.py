"""One engine for each setting, shared by all tests of a session; what it kept is written down on the way."""

from __future__ import annotations

import os

# Before vLLM is imported: no network, no statistics, the engine inside this process.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
)

import pytest
from checkpoints import in_chat_format, overflowing, small_random
from engines import Engines

from ptprune.tiny import CHECKPOINT


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The shipped checkpoint in both formats, a broken one, and a random one whose heads two ranks can share."""
    root = tmp_path_factory.mktemp("checkpoints")
    small = small_random(root / "random")
    return {
        "native": str(CHECKPOINT),
        "chat": in_chat_format(CHECKPOINT, root / "chat"),
        "overflowing": overflowing(root / "overflowing"),
        "random": small,
        "random-chat": in_chat_format(small, root / "random-chat"),
    }


@pytest.fixture(scope="session")
def engines(checkpoints: dict[str, str]) -> Engines:
    return Engines(checkpoints)
