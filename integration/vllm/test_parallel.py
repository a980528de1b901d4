"""Two ranks keep the tokens that one keeps, whichever heads each of them has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engines import HIGH, WIDE, Engines, turn

QUESTIONS = ["which digit is blue?", "what colour is the 7?", "how many letters are there?"]


@pytest.mark.parametrize("tiles", [{}, {"tiles": 3, "tile_score": "attention"}], ids=["all", "some"])
@pytest.mark.parametrize("checkpoint", ["random", "random-chat"])
def test_two_ranks_keep_what_one_keeps(
    engines: Engines, checkpoint: str, tiles: dict[str, object], tmp_path: Path
) -> None:
    chat = checkpoint == "random-chat"
    setting = {"keep_ratio": 0.4, "instruction": "attention", **tiles}
    prompts = [(turn(question, chat=chat), image) for question in QUESTIONS for image in ("WIDE", "HIGH")]
    result = tmp_path / "result.json"
    job = {"model": engines.checkpoints[checkpoint], "setting": setting, "prompts": prompts, "result": str(result)}
    # a process of its own, which may start others
    subprocess.run(
        [sys.executable, Path(__file__).with_name("two_ranks.py"), json.dumps(job)],
        env=os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    pictures = {"WIDE": WIDE, "HIGH": HIGH}
    alone = engines.ask(engines.get(checkpoint, setting), *((text, [pictures[image]]) for text, image in prompts))
    assert json.loads(result.read_text()) == [[answer.prompt, answer.tokens] for answer in alone]
