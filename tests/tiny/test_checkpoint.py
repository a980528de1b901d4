"""The shipped checkpoint: any Hugging Face tool can read it, and it answers questions about unseen scenes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from ptprune.checkpoints.processor import load_processor
from ptprune.tiny import CHECKPOINT, world


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(CHECKPOINT)


def prompt(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def test_stock_loader_takes_every_weight() -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, output_loading_info=True)
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.vision_feature_layer == -1
    assert model.config.vision_feature_select_strategy == "default"


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 20e6
    assert (CHECKPOINT / "model.safetensors").exists()


def test_configurations_name_stock_classes_only() -> None:
    for path in CHECKPOINT.glob("*.json"):
        if path.name != "tokenizer.json":
            text = path.read_text()
            assert "ImageOnly" not in text
            json.loads(text)


def test_words_of_the_world_are_single_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    for word in (*world.COLOURS, *world.DIGITS, *world.LETTERS, *world.SHAPES, *world.KINDS, "yes", "no", "which"):
        ids = tokenizer(" " + word)["input_ids"]
        assert len(ids) == 1
        assert tokenizer.decode(ids) == " " + word


@pytest.mark.parametrize("text", [" which digit is red?", "Grüße, 東京! <b>\n\t7 + 8", "", " zebra  zebra"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_takes_several_turns_and_both_kinds_of_content(processor: Any) -> None:
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "which digit is red?"}]}
    answer, next_question = (
        {"role": "assistant", "content": "7"},
        {"role": "user", "content": "how many digits are there?"},
    )
    messages = [question, answer, next_question]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == (
        "<|user|><IMG_CONTEXT> which digit is red?<|end|><|assistant|> 7<|end|>"
        "<|user|> how many digits are there?<|end|><|assistant|>"
    )


def test_processor_cuts_tiles_and_counts_tokens(processor: Any, model: Any) -> None:
    inputs = processor(
        text=prompt(processor, "which digit is red?"), images=[Image.new("RGB", (256, 192))], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (13, 3, 64, 64)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 13 * 16


def test_image_processor_is_found_by_the_auto_class() -> None:
    assert type(AutoImageProcessor.from_pretrained(CHECKPOINT)).__name__.startswith("GotOcr2ImageProcessor")


def test_processor_survives_saving(processor: Any, tmp_path: Any) -> None:
    processor.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    text = prompt(processor, "which digit is red?")
    picture = Image.effect_noise((192, 128), 60).convert("RGB")
    one, two = (p(text=text, images=[picture], return_tensors="pt") for p in (processor, again))
    for key in one:
        assert torch.equal(one[key], two[key])


def test_it_answers_unseen_scenes_far_above_chance(model: Any, processor: Any) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("skimage")
    pytest.importorskip("matplotlib")
    from ptprune.tiny.questions import ask
    from ptprune.tiny.scenes import generate_scene

    right = total = 0
    for seed in range(200, 206):
        scene = generate_scene("dev", seed)
        questions = ask(scene, 8)
        inputs = processor(
            text=[prompt(processor, q.text) for q in questions],
            images=[[scene.image]] * len(questions),
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=4)
        new = output[:, inputs["input_ids"].shape[1] :]
        assert (new[:, 1] == model.generation_config.eos_token_id).all()  # one word, then it stops
        given = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        right += sum(a == q.answer for a, q in zip(given, questions, strict=True))
        total += len(questions)
    assert right / total > 0.8
