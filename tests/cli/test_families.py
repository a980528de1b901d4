"""``ptprune run`` on a tiny random checkpoint of every family, against the library and the stock model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import processors as post
from transformers import AutoConfig, AutoModelForImageTextToText

from ptprune import PyramidTokenPruning
from ptprune.asking.chat import make_prompt
from ptprune.checkpoints.processor import load_processor
from ptprune.draw import draw_overlay
from ptprune.families import FAMILIES
from tests.cli.families import save
from tests.command import Command, refused
from tests.zoo import ZOO
from tests.zoo.pictures import picture as make_picture

QUESTION = "what is the red thing"
PLACEHOLDERS = {
    "internvl": ["<IMG_CONTEXT>", "<video>"],
    "llava-next": ["<image>"],
    "llava-onevision": ["<image>", "<video>"],
    "idefics3": ["<image>"],
    "smolvlm": ["<image>", "<video>"],
    "gemma3": ["<start_of_image>", "<image_soft_token>"],
    "aya-vision": ["<image>", "<|IMG_PATCH|>"],
    "cohere2-vision": ["<|IMG_PATCH|>"],
    "qwen2-vl": ["<|image_pad|>", "<|video_pad|>"],
    "qwen2.5-vl": ["<|image_pad|>", "<|video_pad|>"],
    "qwen3-vl": ["<|image_pad|>", "<|video_pad|>"],
    "glm4v": ["<|image|>", "<|video|>"],
}
# --max-tiles -> tiles of a picture of 120 x 40 pixels, thumbnail included
TILES = {
    "internvl": {1: 1, 2: 3, 3: 4},
    "aya-vision": {1: 1, 2: 3, 3: 4},
    "cohere2-vision": {1: 1, 2: 3, 8: 9},  # 4 x 2 enlarge it least
}
WITHOUT_TILES = {
    "llava-next": "grids are listed",
    "llava-onevision": "grids are listed",
    "idefics3": "follow from the picture's size",
    "smolvlm": "follow from the picture's size",
    "qwen2-vl": "has no tiles",
    "qwen2.5-vl": "has no tiles",
    "qwen3-vl": "has no tiles",
    "glm4v": "has no tiles",
}


def test_every_family_is_tested() -> None:
    assert set(ZOO) == set(FAMILIES) == set(PLACEHOLDERS)
    assert {*TILES, *WITHOUT_TILES, "gemma3"} == set(FAMILIES)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save(specimen, root / name) for name, specimen in ZOO.items()}


@pytest.fixture(params=list(ZOO))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def checkpoint(family: str, checkpoints: dict[str, Path]) -> Path:
    return checkpoints[family]


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    make_picture(90, 60).save(path)
    return path


def run_json(ptprune: Command, *arguments: object) -> dict[str, Any]:
    result = ptprune("run", *arguments, "-q", QUESTION, "--max-new-tokens", 6, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def stock_inputs(processor: Any, pictures: list[Image.Image], **image_options: Any) -> Any:
    """In one step, as model cards show it."""
    content = [*({"type": "image", "image": one} for one in pictures), {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"images_kwargs": image_options},
    )


def held(cache: Any) -> int:
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


def test_same_as_the_library(ptprune: Command, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.png"
    document = run_json(ptprune, picture, "--model", checkpoint, "--compare", "--overlay", overlay, "--window", 3)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = load_processor(checkpoint)
    inputs = stock_inputs(processor, [Image.open(picture)])
    length = inputs["input_ids"].shape[1]

    def generate() -> tuple[str, int]:
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        first = model.generate(**inputs, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
        text = processor.tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()
        return text, held(first.past_key_values)

    with torch.no_grad():
        assert generate() == (document["unpruned"]["answer"], document["unpruned"]["kv_bytes"])
        whole = model.config.model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")  # has no tiles
        pruner = PyramidTokenPruning(window=3, **({} if whole else {"tiles": "salient", "left_out": "background"}))
        with pruner(model):
            assert generate() == (document["answer"], document["kv_bytes"]["after"])
    report = pruner.report
    assert report is not None
    image = report.images[0]
    assert document["visual_tokens"] == {"before": image.num_tokens, "after": len(image.kept)}
    assert document["sequence_length"] == {"before": length, "after": length - image.num_tokens + len(image.kept)}
    assert sum(region["tokens"] for region in document["regions"]) == image.num_tokens
    for told, region in zip(document["regions"], image.regions, strict=True):
        assert set(told) == {
            *("image", "row", "column", "is_thumbnail", "tokens", "grid", "box", "budget", "saliency"),
            *("encoded", "tile_score"),
        }
        assert told["tokens"] == len(region.indices) == told["grid"][0] * told["grid"][1]
        assert (told["box"], told["budget"]) == (list(region.box), region.budget)
    drawn = np.asarray(draw_overlay(Image.open(picture), image, QUESTION, document["answer"]))
    assert (np.asarray(Image.open(overlay)) == drawn).all()


def test_cache_before_is_known_without_comparing(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    alone = run_json(ptprune, picture, "--model", checkpoint)["kv_bytes"]
    assert alone == run_json(ptprune, picture, "--model", checkpoint, "--compare")["kv_bytes"]


@pytest.mark.parametrize("family", ["gemma3", "aya-vision", "cohere2-vision"])
def test_cache_of_layers_with_a_sliding_window(ptprune: Command, family: str, picture: Path, tmp_path: Path) -> None:
    """The prompt is longer than the window, so stock layers with one hold less than the others."""
    checkpoint = save(ZOO[family], tmp_path, sliding_window=12)
    alone = run_json(ptprune, picture, "--model", checkpoint)
    compared = run_json(ptprune, picture, "--model", checkpoint, "--compare")
    assert compared["kv_bytes"]["before"] == compared["unpruned"]["kv_bytes"] == alone["kv_bytes"]["before"]
    assert alone["kv_bytes"]["after"] == compared["kv_bytes"]["after"]
    text = AutoConfig.from_pretrained(checkpoint).get_text_config()
    one_token = 2 * text.num_key_value_heads * text.head_dim * 4  # keys and values, float32
    sliding = text.layer_types.count("sliding_attention")
    length = alone["sequence_length"]["before"]
    assert length > 12
    assert sliding
    full = len(text.layer_types) - sliding
    assert alone["kv_bytes"]["before"] == one_token * (full * length + sliding * 11)


def test_pictures_together(ptprune: Command, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    make_picture(40, 100).save(other)
    document = run_json(ptprune, picture, other, "--model", checkpoint, "--together", "--keep-ratio", 1, "--compare")
    assert {region["image"] for region in document["regions"]} == {0, 1}
    assert document["answer"] == document["unpruned"]["answer"]
    processor = load_processor(checkpoint)
    inputs = stock_inputs(processor, [Image.open(picture), Image.open(other)])
    assert document["sequence_length"]["before"] == inputs["input_ids"].shape[1]


def test_half_precision(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    half = run_json(ptprune, picture, "--model", checkpoint, "--dtype", "bfloat16")
    full = run_json(ptprune, picture, "--model", checkpoint)
    assert 2 * half["kv_bytes"]["after"] == full["kv_bytes"]["after"]


def test_placeholders_in_the_question(ptprune: Command, family: str, checkpoint: Path, picture: Path) -> None:
    for token in PLACEHOLDERS[family]:
        message = refused(ptprune("run", picture, "--model", checkpoint, "-q", f"what is {token} here"))
        assert f"{token!r} stands for a picture" in message


def test_a_prompt_that_is_too_long(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    message = refused(ptprune("run", picture, "--model", checkpoint, "-q", QUESTION, "--max-new-tokens", 4096))
    assert "the model takes 4096 in all" in message


@pytest.fixture(scope="session")
def strip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "strip.png"
    make_picture(120, 40).save(path)
    return path


@pytest.mark.parametrize("family", TILES)
def test_max_tiles(ptprune: Command, family: str, checkpoints: dict[str, Path], strip: Path) -> None:
    for most, tiles in TILES[family].items():
        document = run_json(ptprune, strip, "--model", checkpoints[family], "--max-tiles", most)
        assert len(document["regions"]) == tiles


def test_max_tiles_switches_cropping_on(
    ptprune: Command, checkpoints: dict[str, Path], strip: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints["cohere2-vision"], tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    settings["image_processor"]["crop_to_patches"] = False
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    assert len(run_json(ptprune, strip, "--model", tmp_path)["regions"]) == 1
    assert len(run_json(ptprune, strip, "--model", tmp_path, "--max-tiles", 2)["regions"]) == 3


def test_max_tiles_of_gemma3(ptprune: Command, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Pan and scan is off by default, on from two crops; its crops are 256 pixels at the least."""
    wide = tmp_path / "wide.png"
    make_picture(1200, 300).save(wide)
    checkpoint = checkpoints["gemma3"]
    for arguments, regions in [((), 1), ((1,), 1), ((2,), 3), ((3,), 4), ((8,), 5)]:
        extra = ("--max-tiles", *arguments) if arguments else ()
        document = run_json(ptprune, wide, "--model", checkpoint, *extra)
        assert len(document["regions"]) == regions
    inputs = stock_inputs(
        load_processor(checkpoint), [Image.open(wide)], do_pan_and_scan=True, pan_and_scan_max_num_crops=3
    )
    again = run_json(ptprune, wide, "--model", checkpoint, "--max-tiles", 3)
    assert again["sequence_length"]["before"] == inputs["input_ids"].shape[1]


@pytest.mark.parametrize(("family", "reason"), WITHOUT_TILES.items())
def test_max_tiles_where_there_is_no_such_choice(
    ptprune: Command, family: str, reason: str, checkpoints: dict[str, Path], picture: Path
) -> None:
    message = refused(ptprune("run", picture, "--model", checkpoints[family], "-q", QUESTION, "--max-tiles", 2))
    assert f"--max-tiles 2: not with {family}: " in message
    assert reason in message


@pytest.mark.parametrize("written", [True, False], ids=["by the template", "by the tokenizer"])
def test_one_first_token(family: str, checkpoint: Path, written: bool) -> None:
    processor = load_processor(checkpoint)
    tokenizer = processor.tokenizer
    tokenizer.add_special_tokens({"bos_token": "filler100"})
    first = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = post.TemplateProcessing(
        single="filler100 $A", special_tokens=[("filler100", first)]
    )
    if written:
        processor.chat_template = "{{ bos_token }} " + processor.chat_template
    model = ZOO[family].build(layers=1)
    ids = make_prompt(model, processor, [make_picture(90, 60)], QUESTION, {})["input_ids"][0].tolist()
    assert ids.count(first) == 1
    assert ids[0] == first
