"""What training feeds the model is what the stock processor and chat template give. Runs in a checkout only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from training.data import IDENTITIES, NONE, cut_tiles, normalise, token_labels
from training.language import Packer, conversations, hidden_states
from transformers import AutoModelForImageTextToText, AutoTokenizer

from ptprune.checkpoints.processor import load_processor
from ptprune.tiny import CHECKPOINT
from ptprune.tiny.scenes import generate_scene


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(CHECKPOINT)


@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (4, 3), (2, 5)])
def test_pixels_are_those_of_the_processor(processor: Any, grid: tuple[int, int]) -> None:
    scene = generate_scene("train", 11, grid=grid)
    stock = processor(text="<IMG_CONTEXT>", images=[scene.image], return_tensors="pt")["pixel_values"]
    assert torch.equal(stock, normalise(cut_tiles(scene)))


def test_packed_questions_equal_single_conversations(processor: Any) -> None:
    packer = Packer(AutoTokenizer.from_pretrained(CHECKPOINT))
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    scene = generate_scene("dev", 3, grid=(3, 2))
    blocks = conversations(scene, 1, 3, captions=True, long=True)
    pack = packer.pack([scene], [blocks])
    with torch.no_grad():
        tokens = model.model.get_image_features(normalise(cut_tiles(scene)), return_dict=True).pooler_output
        packed = model.lm_head(hidden_states(model, pack, tokens))[0]
    for number, questions in enumerate(blocks, start=1):
        messages: list[dict[str, Any]] = []
        for turn, question in enumerate(questions):
            picture = [{"type": "image"}] if turn == 0 else []
            messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question.text}]})
            messages.append({"role": "assistant", "content": question.answer})
        text = processor.apply_chat_template(messages)
        inputs = processor(text=text, images=[scene.image], return_tensors="pt")
        where = np.isin(pack.block[0], (0, number))
        assert inputs["input_ids"][0].tolist() == pack.ids[0][where].tolist()
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        torch.testing.assert_close(packed[torch.from_numpy(where)], logits, atol=1e-4, rtol=1e-4)


def test_labels_lie_where_the_objects_are() -> None:
    scene = generate_scene("train", 2)
    labels = token_labels(scene)
    for o in scene.objects:
        x, y = (int(v) for v in o.centre)
        tile = o.row * scene.columns + o.column
        token = (y % 64) // 16 * 4 + (x % 64) // 16
        assert labels.identity[tile, token] == IDENTITIES.index(o.name)
    assert (labels.centre != NONE).sum() == len(scene.objects)
    used = {o.row * scene.columns + o.column for o in scene.objects}
    for tile in range(scene.tiles):
        if tile not in used:
            assert (labels.identity[tile] == NONE).all()
