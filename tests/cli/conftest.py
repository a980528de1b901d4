"""A checkpoint directory, pictures, and the command line called in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, PreTrainedTokenizerFast

from ptprune.checkpoints.image_only import image_only
from tests.command import Command, command
from tests.internvl import END, IMAGE, PAD, START, TOKENS_PER_TILE, VOCAB, tiny_internvl

VIDEO = 63
SPECIAL = {PAD: "<pad>", IMAGE: "<IMG_CONTEXT>", START: "<img>", END: "</img>", VIDEO: "<video>"}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %} answer :"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words "w5", "w6", ... by their number; anything else is one unknown word."""
    vocabulary = {SPECIAL.get(number, f"w{number}"): number for number in range(VOCAB)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token=SPECIAL[PAD],
        extra_special_tokens={
            "start_image_token": SPECIAL[START],
            "end_image_token": SPECIAL[END],
            "context_image_token": SPECIAL[IMAGE],
            "video_token": SPECIAL[VIDEO],
        },
        chat_template=TEMPLATE,
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random InternVL as save_pretrained() writes it."""
    directory = tmp_path_factory.mktemp("checkpoint")
    tiny_internvl().save_pretrained(directory)
    processor = image_only(InternVLProcessor)(
        GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=12),
        tokenizer(),
        image_seq_length=TOKENS_PER_TILE,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of 96 x 64 pixels: 3 x 2 tiles and a thumbnail, 28 visual tokens."""
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


@pytest.fixture
def ptprune(capsys: pytest.CaptureFixture[str]) -> Command:
    """``ptprune("run", ...)``."""
    return command(capsys)
