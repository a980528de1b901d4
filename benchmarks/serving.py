"""Time to first token and requests per second of vLLM, stock and with the plugin, in one process on the CPU.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/serving.py --out benchmarks/results/serving-cpu.json

Engines of the same weights answer in turns, and each round begins with another one: stock; the plugin, which encodes
every tile; and the plugin with half of the tiles, chosen by their pixels or by the thumbnail's attention. Every request
brings a picture of its own, so that no cache helps. Ratios are taken round by round: quote those, not the seconds.

``--layers`` cuts both towers to the same share, so that the vision tower has its share of the work at any depth.
``--layers 24 --tiles 12`` is InternVL3-1B whole, with 12 tiles and a thumbnail: 4 GB for each of the four engines, and
minutes for each request.
"""

from __future__ import annotations

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
)

import argparse
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from vllm import LLM, SamplingParams

from ptprune.bench.arms import rotated, spread
from ptprune.bench.subject import Setup, grid_of, random_model, shortened
from ptprune.results.file import as_json, run_of, save
from ptprune.results.rows import ServingResults, ServingRow
from ptprune.shapes import SHAPES
from ptprune.tiny import CHECKPOINT

TEXT = "which digit is blue?"


@dataclass(frozen=True)
class Case:
    """What is served, and with what load.

    Attributes:
        side: pixels of a tile.
        requests: at a time, where requests per second are counted.
        rounds: short ones take more of them.
    """

    name: str
    directory: str
    side: int
    tiles: int
    requests: int
    rounds: int

    def picture(self, seed: int) -> Image.Image:
        """Noise that is cut into the wanted tiles."""
        rows, columns = grid_of(self.tiles)
        shape = (rows * self.side, columns * self.side, 3)
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def random_checkpoint(directory: Path, name: str, layers: int) -> str:
    """Random weights at a published model's widths, both towers cut to the same share of their depth; the shipped
    tokenizer, whose words are among its vocabulary."""
    shape = shortened(SHAPES[name], layers, None)
    setup = Setup(shape, None, 1, 1, 1, "cpu", "float32", "sdpa")
    torch.manual_seed(0)
    random_model(setup).save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "video_preprocessor_config.json"):
        shutil.copy(CHECKPOINT / file, directory)
    processor = json.loads((CHECKPOINT / "processor_config.json").read_text())
    processor["image_processor"]["size"] = {"height": 448, "width": 448}
    processor["image_seq_length"] = shape.tile_tokens
    (directory / "processor_config.json").write_text(json.dumps(processor))
    return str(directory)


def arms_of(case: Case, ratio: float) -> dict[str, dict[str, Any] | None]:
    """What each engine is told under "ptprune"; None is stock."""
    half = {"keep_ratio": ratio, "tiles": max(1, case.tiles // 2)}
    return {
        "stock": None,
        "all tiles": {"keep_ratio": ratio},
        "by pixels": {**half, "tile_score": "detail"},
        "by attention": {**half, "tile_score": "attention"},
    }


def engine(case: Case, setting: dict[str, Any] | None) -> LLM:
    """Without prefix cache and processor cache."""
    overrides = {} if setting is None else {"hf_overrides": {"ptprune": setting}}
    return LLM(
        case.directory,
        dtype="float32",
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=case.requests,
        kv_cache_memory_bytes=2**30,
        enforce_eager=True,
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
        limit_mm_per_prompt={"image": 1, "video": 0},
        disable_log_stats=True,
        **overrides,
    )


def answer(llm: LLM, pictures: list[Image.Image], tokens: int) -> tuple[float, int]:
    """(Seconds for all, tokens of one prompt)."""
    prompt = f"<|user|><IMG_CONTEXT> {TEXT}<|end|><|assistant|>"
    prompts = [{"prompt": prompt, "multi_modal_data": {"image": picture}} for picture in pictures]
    start = time.perf_counter()
    outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), use_tqdm=False)
    return time.perf_counter() - start, len(outputs[0].prompt_token_ids)


def measure(case: Case, ratio: float, new_tokens: int) -> list[ServingRow]:
    """A row for each way to prune."""
    settings = arms_of(case, ratio)
    arms = {name: engine(case, setting) for name, setting in settings.items()}
    seeds = iter(range(10**6))
    lengths, measured = {}, []
    for name, llm in arms.items():  # once unmeasured
        lengths[name] = answer(llm, [case.picture(next(seeds))], 2)[1]
    for number in range(case.rounds):
        round_: dict[str, dict[str, float]] = {}
        for name in rotated(list(arms), number):
            first, _ = answer(arms[name], [case.picture(next(seeds))], 1)
            load = [case.picture(next(seeds)) for _ in range(case.requests)]
            seconds, _ = answer(arms[name], load, new_tokens)
            round_[name] = {"ttft_s": first, "requests_per_s": case.requests / seconds}
        measured.append(round_)
        print(case.name, json.dumps(round_), flush=True)
    return [
        _row(case, ratio, new_tokens, name, setting, lengths, measured) for name, setting in settings.items() if setting
    ]


def _row(
    case: Case,
    ratio: float,
    new_tokens: int,
    name: str,
    setting: dict[str, Any],
    lengths: dict[str, int],
    measured: list[dict[str, dict[str, float]]],
) -> ServingRow:
    rounds = [{"stock": each["stock"], "plugin": each[name]} for each in measured]
    return ServingRow(
        case=case.name,
        tiles=case.tiles,
        requests=case.requests,
        new_tokens=new_tokens,
        keep_ratio=ratio,
        settings={key: value for key, value in setting.items() if key != "keep_ratio"} or None,
        prompt_tokens={"stock": lengths["stock"], "plugin": lengths[name]},
        plugin_vs_stock={
            key: spread([row["plugin"][key] / row["stock"][key] for row in rounds]) for key in rounds[0]["stock"]
        },
        rounds=rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep-ratio", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=list(SHAPES), default="internvl3-1b")
    parser.add_argument("--layers", type=int, default=2, help="decoder layers of the random model")
    parser.add_argument("--tiles", type=int, default=2, help="of the random model's pictures, thumbnail not counted")
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        wide = random_checkpoint(Path(directory), options.shape, options.layers)
        cases = [
            Case("ptprune-tiny", str(CHECKPOINT), 64, 12, 32, 4 * options.rounds),
            Case(f"{options.shape}, {options.layers} decoder layers", wide, 448, options.tiles, 3, options.rounds),
        ]
        rows = [row for case in cases for row in measure(case, options.keep_ratio, options.new_tokens)]
    identity = {"models": [case.name for case in cases]}
    results = ServingResults(
        runs=[run_of(identity, "cpu", "vllm")], dtype="float32", threads=torch.get_num_threads(), rows=rows
    )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        save(options.out, results)
    print(json.dumps(as_json(results), indent=1))


if __name__ == "__main__":
    main()
