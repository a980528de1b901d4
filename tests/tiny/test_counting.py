"""Stage E of the training adds background to pictures and changes nothing else. Runs in a checkout only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training import optimise
from training.counts import counted
from training.language import Pack, Packer, attention_mask, conversations
from training.model import is_language_layer
from training.stage_counting import (
    Counting,
    Example,
    counting,
    example,
    forward,
    talk,
    train_counting,
    with_background,
)
from transformers import AutoModelForImageTextToText, AutoTokenizer

from ptprune.asking.chat import make_prompt
from ptprune.asking.loaded import LoadedModel
from ptprune.checkpoints import Checkpoint
from ptprune.methods import make_pruner
from ptprune.tiny import CHECKPOINT
from ptprune.tiny.documents import generate_document
from ptprune.tiny.questions import Question
from ptprune.tiny.scenes import generate_scene

END = 2 + 16 * 7  # where the pictures of six tiles end


@pytest.fixture(scope="module")
def packer() -> Packer:
    return Packer(AutoTokenizer.from_pretrained(CHECKPOINT))


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(CHECKPOINT, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def some(model: torch.nn.Module) -> list[Example]:
    scenes = [generate_scene("train", seed, grid=(3, 2), fill=(0.5, 0.5)) for seed in (3, 4)]
    return [example(model, scene) for scene in scenes]


@pytest.fixture
def pack(packer: Packer, some: list[Example]) -> Pack:
    return packer.pack([one.picture for one in some], [talk(one.picture, 5, 3, 0) for one in some])


def test_marks_say_what_tokens_show(some: list[Example], model: torch.nn.Module) -> None:
    for one in some:
        assert len(one.tokens) == len(one.empty) == len(one.middle) == END - 2
        assert one.middle.sum() == len(one.picture.objects)
        assert one.empty.any()
        assert not (one.empty & one.middle).any()
        assert not one.empty[-16:].any()
    page = example(model, generate_document("train", 3, grid=(3, 2)))
    assert page.middle.sum() == 2 * len(page.picture.entries)


@pytest.mark.parametrize("extra", [0, 1, 50, 300])
def test_background_is_added_and_nothing_lost(pack: Pack, some: list[Example], extra: int) -> None:
    wide, tokens, middle = with_background(pack, some, extra, np.random.default_rng(extra))
    assert tokens.shape[1] == END - 2 + extra
    assert (middle.sum(1) == [one.middle.sum() for one in some]).all()
    for row, one in enumerate(some):
        nothing = {bytes(token) for token in one.tokens[one.empty]}
        left = [bytes(token) for token in tokens[row]]
        shown = [token for token in left if token not in nothing]
        assert shown == [bytes(token) for token in one.tokens if bytes(token) not in nothing]  # in order, once
        before = [token for token in map(bytes, one.tokens) if token in nothing]
        assert len(left) - len(shown) - len(before) == extra
        assert not set(before) - set(left)
        moved = np.flatnonzero(middle[row]) - np.flatnonzero(one.middle)
        assert len(set(moved)) > 1 or extra < 50  # not all at one place
    for name in ("ids", "block", "target", "kind"):
        assert (getattr(wide, name)[:, END + extra :] == getattr(pack, name)[:, END:]).all()
        assert (getattr(wide, name)[:, : END + extra] == getattr(pack, name)[:, [0, 1] + [2] * (END - 2 + extra)]).all()


def test_without_more_background_and_jumps_nothing_changes(pack: Pack, some: list[Example]) -> None:
    found = set()
    for seed in range(8):
        wide, tokens, _ = with_background(pack, some, 0, np.random.default_rng(seed))
        assert (tokens == np.stack([one.tokens for one in some])).all()
        for row in range(len(some)):
            steps = np.diff(wide.position[row, : END + 1])
            assert (steps >= 1).all()
            assert wide.position[row, 0] == 0
            texts = pack.position[row, END + 1 :] - pack.position[row, END]
            assert (wide.position[row, END + 1 :] - wide.position[row, END] == texts).all()
            found.add(bool((steps == 1).all()))
    assert found == {False, True}  # jumps in some sequences, not in all


def test_a_full_picture_can_be_made_longer(pack: Pack, some: list[Example]) -> None:
    full = [Example(one.picture, one.tokens, np.zeros_like(one.empty), one.middle) for one in some]
    _, tokens, _ = with_background(pack, full, 5, np.random.default_rng(0))
    assert tokens.shape[1] == END + 3


def test_questions_that_only_count(packer: Packer) -> None:
    scene = generate_scene("train", 3, grid=(3, 2))
    count = Question("count", "how many digits are there?", "2")
    other = Question("exists", "is there a red star?", "no")
    pack = packer.pack([scene, scene], [[[count], [other], [other, count]], [[other]]])
    found = counting(pack)
    assert (found == ((pack.block == 1) & np.array([[True], [False]]))).all()


def test_attention_that_is_paid_to_what_is_no_middle(model: torch.nn.Module, pack: Pack, some: list[Example]) -> None:
    """By loops, over what the layers' own attention says."""
    wide, tokens, middle = with_background(pack, some, 7, np.random.default_rng(1))
    with torch.no_grad():
        hidden, paid = forward(model, wide, torch.from_numpy(tokens), torch.from_numpy(middle))
        words = model.get_input_embeddings()(torch.from_numpy(wide.ids))
        end = 2 + tokens.shape[1]
        words[:, 2:end] = torch.from_numpy(tokens)
        said = model.model.language_model(
            inputs_embeds=words,
            attention_mask=attention_mask(torch.from_numpy(wide.block)),
            position_ids=torch.from_numpy(wide.position),
            output_attentions=True,
        )
    assert torch.equal(hidden, said.last_hidden_state)
    asking = counting(wide)
    questions, ends = [], []
    for layer in said.attentions:
        for row in range(len(some)):
            others = 2 + np.flatnonzero(~middle[row])
            for head in layer[row]:
                questions += [float(head[at, others].sum()) for at in np.flatnonzero(asking[row])]
                ends.append(float(head[end, others].sum()))
    assert float(paid) == pytest.approx(np.mean(questions) + np.mean(ends), rel=1e-4)


def test_pages_pay_nothing(model: torch.nn.Module, packer: Packer) -> None:
    page = example(model, generate_document("train", 3, grid=(3, 2)))
    pack = packer.pack([page.picture], [talk(page.picture, 5, 3, 0)])
    wide, tokens, middle = with_background(pack, [page], 7, np.random.default_rng(1))
    with torch.no_grad():
        _, paid = forward(model, wide, torch.from_numpy(tokens), torch.from_numpy(middle))
    assert middle.any()
    assert paid == 0


def test_the_stage_trains_the_language_model_goes_on_and_writes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimise, "RUNS", tmp_path)
    monkeypatch.setattr(optimise, "LOGS", tmp_path)
    options = Counting(CHECKPOINT, tmp_path / "counting", steps=1, pictures=12, batch=2, questions=1)
    train_counting(options)
    first = AutoModelForImageTextToText.from_pretrained(tmp_path / "counting").state_dict()
    shipped = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).state_dict()
    assert {name for name, value in shipped.items() if not torch.equal(value, first[name])} == {
        name for name in shipped if is_language_layer(name) and ".layers.0." not in name and ".layers.1." not in name
    }
    options.steps = 2
    train_counting(options)
    second = AutoModelForImageTextToText.from_pretrained(tmp_path / "counting").state_dict()
    assert any(not torch.equal(value, first[name]) for name, value in second.items())
    told = [json.loads(line)["step"] for line in (tmp_path / "counting.jsonl").read_text().splitlines()]
    assert told == [0, 1, 0, 2]


def test_every_scene_is_asked_to_count() -> None:
    scene = generate_scene("train", 3, grid=(3, 2))
    kinds = [questions[0].kind for questions in talk(scene, 1, 2, 1)]
    assert kinds.count("count") >= 3
    assert len(kinds) >= 5
    page = generate_document("train", 3)
    assert talk(page, 1, 2, 1) == conversations(page, 1, 2, False, True)


def test_what_counts_and_what_is_kept_of_it() -> None:
    """Against the scene's own objects, and the model's answers one by one."""
    loaded = LoadedModel.load(Checkpoint.find(None), torch.device("cpu"), "float32")
    scene = generate_scene("dev", 5003, grid=(3, 2), fill=(0.9, 1.0))
    pruner = make_pruner("random", {"keep_ratio": 0.5, "layer": 2})
    right, middles, stay = [], 0, 0
    for kind in ("digit", "letter", "shape"):
        text = f"how many {kind}s are there?"
        inputs = make_prompt(loaded.model, loaded.processor, [scene.image], text, {})
        objects = [o for o in scene.objects if o.kind == kind]
        with pruner(loaded.model), torch.no_grad():
            said = loaded.processor.tokenizer.decode(loaded.model(**inputs).logits[0, -1].argmax()).strip()
        right.append(said == str(len(objects)))
        kept = set(pruner.report.images[0].kept.tolist())
        for o in objects:
            x, y = (int(place) // 16 for place in o.centre)  # 16 pixels a token, 4 x 4 tokens a tile, tile by tile
            tile = y // 4 * scene.columns + x // 4
            middles += 1
            stay += tile * 16 + y % 4 * 4 + x % 4 in kept
    found = counted(loaded, [scene], pruner)
    assert found["right"] == round(100 * np.mean(right), 1)
    assert found["right"] + found["low"] + found["high"] == pytest.approx(100, abs=0.2)
    assert found["middles kept"] == round(100 * stay / middles, 1)
    assert 20 < found["tokens kept"] < 80
    assert set(counted(loaded, [scene], None)) == {"right", "low", "high"}
