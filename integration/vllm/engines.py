"""Engines of vLLM, one for each setting, and this package's own path through transformers: the oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from vllm import LLM, SamplingParams
from vllm.model_executor.models.interns1_vit import InternS1VisionModel
from vllm.transformers_utils.processors.internvl import image_to_pixel_values_internvl

from ptprune import PyramidTokenPruning
from ptprune.checkpoints.processor import load_processor
from ptprune.tiny import CHECKPOINT
from ptprune.vllm import model as served

SCENE = Image.open(Path(__file__).parent / "scene.png").convert("RGB")
ANSWER_LENGTH = 12  # behind the end of the answer too: nonsense, but the same nonsense
IMAGE_TOKEN, START, END, TILE = 6, 4, 5, 16


def picture(width: int, height: int, turn: int = 0) -> Image.Image:
    """A part of the example scene."""
    return SCENE.rotate(90 * turn).crop((40, 40, 40 + width, 40 + height))


WHOLE = SCENE  # 12 tiles, some of them empty
BY_SCORE = {"choose": "top", "ranking": "tile", "region": "cls-similarity"}
"""Where tokens are compared with those of transformers one by one. In tiles of plain background that are all alike,
which token ranks before the others is a matter of rounding."""
WIDE, HIGH, SQUARE, SMALL = picture(300, 200), picture(130, 280, 1), picture(200, 200, 2), picture(60, 60, 3)


@dataclass
class Answer:
    """What an engine or the oracle made of one prompt.

    Attributes:
        kept: for each image that was encoded and pruned, the indices of the tokens that stayed.
        cached: prompt tokens that the prefix cache had.
        tiles: those of each call of the native format's vision encoder.
    """

    prompt: list[int]
    tokens: list[int]
    kept: list[list[int]] = field(default_factory=list)
    cached: int = 0
    tiles: list[int] = field(default_factory=list)


class Engines:
    """Engines by checkpoint and setting, made when first asked for."""

    def __init__(self, checkpoints: dict[str, str]) -> None:
        self.checkpoints = checkpoints
        self._engines: dict[str, LLM] = {}
        self._kept: list[tuple[served.ServedImage, torch.Tensor]] = []
        self._tiles: list[int] = []
        self._watch()

    def _watch(self) -> None:
        """Write down what is kept."""
        select, encode = served.PrunedModel._select, InternS1VisionModel.forward

        def watched_select(model: Any, images: Any, language: Any) -> Any:
            kept = select(model, images, language)
            # read later: what test_overhead.py counts is not to be disturbed
            self._kept.extend((image, some) for image, some in zip(images, kept, strict=True))
            return kept

        def watched_encode(tower: Any, pixel_values: Any) -> Any:
            self._tiles.append(len(pixel_values))
            return encode(tower, pixel_values)

        served.PrunedModel._select, InternS1VisionModel.forward = watched_select, watched_encode

    def get(self, checkpoint: str, setting: dict[str, Any] | None, **options: Any) -> LLM:
        """The engine, its caches empty; ``setting`` None is stock vLLM."""
        name = f"{checkpoint} {setting} {options}"
        if name not in self._engines:
            overrides = {} if setting is None else {"hf_overrides": {"ptprune": setting}}
            self._engines[name] = start(self.checkpoints[checkpoint], **overrides, **options)
        engine = self._engines[name]
        engine.reset_mm_cache()
        engine.reset_prefix_cache()
        engine.llm_engine.reset_encoder_cache()
        return engine

    def ask(
        self, engine: LLM, *prompts: tuple[str, Sequence[Image.Image]], ratio: float | None = None, **asked: Any
    ) -> list[Answer]:
        """Greedy answers to prompts of a batch; ``kept`` of all of them is in the first."""
        request = asked if ratio is None else {"keep_ratio": ratio, **asked}
        return self.ask_each(engine, [(text, images, request) for text, images in prompts])

    def ask_each(self, engine: LLM, prompts: Sequence[tuple[str, Any, Any]]) -> list[Answer]:
        """Prompts with their pictures and what each request asks for: settings, a ratio, or None."""
        self._kept.clear(), self._tiles.clear()
        inputs = []
        for text, images, asked in prompts:
            data = images if isinstance(images, dict) else {"image": list(images)} if images else {}
            item: dict[str, Any] = {"prompt": text} | ({"multi_modal_data": data} if data else {})
            if asked:
                item["mm_processor_kwargs"] = {"ptprune": asked if isinstance(asked, dict) else {"keep_ratio": asked}}
            inputs.append(item)
        outputs = engine.generate(inputs, greedy(), use_tqdm=False)
        answers = [
            Answer(
                list(output.prompt_token_ids), list(output.outputs[0].token_ids), cached=output.num_cached_tokens or 0
            )
            for output in outputs
        ]
        answers[0].kept = [in_whole(image, kept.tolist()) for image, kept in self._kept]
        answers[0].tiles = list(self._tiles)
        return answers


def in_whole(image: served.ServedImage, kept: list[int]) -> list[int]:
    """Indices among the tokens of the tiles that were encoded, as indices among those of all tiles."""
    plan = image.plan.tiles
    if plan is None:
        return kept
    rows, columns = plan.grid
    tiles = [place.row * columns + place.column for place in image.prompt_image.encoded.places()[: plan.number]]
    numbers = [*tiles, rows * columns]
    return [numbers[token // TILE] * TILE + token % TILE for token in kept]


def greedy() -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=ANSWER_LENGTH, ignore_eos=True)


def start(checkpoint: str, **options: Any) -> LLM:
    defaults = {
        "dtype": "float32",
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "enforce_eager": True,
        "trust_remote_code": True,
        "limit_mm_per_prompt": {"image": 3, "video": 1},
        "kv_cache_memory_bytes": 2**26,
        "block_size": 32,  # the smallest: prefixes are cached by whole blocks
        "disable_log_stats": True,
    }
    return LLM(checkpoint, **{**defaults, **options})


# --- the oracle -----------------------------------------------------------------------------------------------------


@cache
def stock_model(directory: str) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(directory, dtype="float32").eval()
    model.generation_config.eos_token_id = None
    return model


def in_transformers(
    text: str,
    images: Sequence[Image.Image],
    setting: dict[str, Any] | None,
    chat: str | None = None,
    weights: str = str(CHECKPOINT),
) -> Answer:
    """The same prompt through transformers, pruned by this package, tokens dropped before the language model.

    Args:
        setting: of ``PyramidTokenPruning``; None does not prune.
        chat: the checkpoint in OpenGVLab's format whose prompt is given; ``weights`` are the same in the native one.
    """
    model = stock_model(weights)
    inputs = _chat_inputs(text, images, chat) if chat else _native_inputs(text, images)
    length = inputs["input_ids"].shape[1]

    def generate() -> list[int]:
        output = model.generate(**inputs, max_new_tokens=ANSWER_LENGTH, do_sample=False)
        return output[0, length:].tolist()

    if setting is None:
        return Answer(inputs["input_ids"][0].tolist(), generate())
    pruner = PyramidTokenPruning(layer=0, first_ratio=0, positions="compact", **setting)
    with pruner(model):
        tokens = generate()
    report = pruner.report
    prompt = inputs["input_ids"][0][report.kept_mask[0]].tolist()
    return Answer(prompt, tokens, [image.kept.tolist() for image in report.images])


def _native_inputs(text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    inputs = load_processor(CHECKPOINT)(text=text, images=list(images), return_tensors="pt")
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}


def _chat_inputs(text: str, images: Sequence[Image.Image], chat: str) -> dict[str, Any]:
    """Tokens put together by hand; pixels as vLLM's own processor, the only one of this format here, has them."""
    tokenizer = AutoTokenizer.from_pretrained(chat)
    pixels = [
        image_to_pixel_values_internvl(image, input_size=64, min_num=1, max_num=12, use_thumbnail=True)
        for image in images
    ]
    ids: list[int] = []
    for number, part in enumerate(text.split("<image>")):
        ids += [START, *[IMAGE_TOKEN] * (TILE * len(pixels[number - 1])), END] if number else []
        ids += tokenizer.encode(part, add_special_tokens=False)
    input_ids = torch.tensor([ids])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "pixel_values": torch.cat(pixels)}


def turn(question: str, images: int = 1, chat: bool = False, before: str = "") -> str:
    """A user's turn and the beginning of the answer."""
    places = ("<image>\n" if chat else "<IMG_CONTEXT>") * images
    return f"<|user|>{before}{places}{question if chat else ' ' + question}<|end|><|assistant|>"


def video(frames: int = 2) -> np.ndarray:
    return np.stack([np.asarray(picture(64, 64, frame)) for frame in range(frames)])
