"""What training feeds the model is what the stock processor and chat template give. Runs in a checkout only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training import stage_worlds
from training.data import (
    IDENTITIES,
    KIND_NAMES,
    NONE,
    cut_tiles,
    normalise,
    print_labels,
    scaled_pixels,
    token_labels,
    training_scene,
)
from training.language import Packer, conversations, hidden_states
from training.model import build_model, build_tokenizer, deepen, grow, shallow
from training.muon import StackedMuon
from training.stage_worlds import Options, Training, train_worlds
from training.stream import Stream
from training.worlds import maker, pack_arrays, picture_arrays
from transformers import AutoModelForImageTextToText, AutoTokenizer

from ptprune.checkpoints.processor import load_processor
from ptprune.tiny import CHECKPOINT
from ptprune.tiny.documents import generate_document
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


def test_labels_of_print_lie_where_the_words_are() -> None:
    page = generate_document("train", 3)
    labels = print_labels(page)
    for e in page.entries:
        tile = e.row * page.columns + e.column
        for text, other, box in ((e.key, e.value, e.key_box), (e.value, e.key, e.value_box)):
            column = (box[0] + box[2]) // 2 % 64 // 16
            token = e.line * 4 + column
            assert labels.identity[tile, token] == IDENTITIES.index(text)
            assert labels.beside[tile, token] == IDENTITIES.index(other)
            assert KIND_NAMES[labels.centre[tile, token]] == ("value" if text == e.value else "key")
        below = [o.key for o in page.entries if (o.column, o.row, o.line) == (e.column, e.row, e.line + 1)]
        told = labels.below[tile, e.line * 4 + (e.key_box[0] + e.key_box[2]) // 2 % 64 // 16]
        assert told == (IDENTITIES.index(below[0]) if below else NONE)
    assert (labels.centre != NONE).sum() == 2 * len(page.entries)


def test_pixels_on_the_device_are_those_of_the_processor() -> None:
    tiles = cut_tiles(training_scene(3))
    torch.testing.assert_close(scaled_pixels(torch.from_numpy(tiles)), normalise(tiles), atol=1e-5, rtol=1e-5)


def test_gaps_move_tiles_and_what_follows_but_nothing_within_a_tile() -> None:
    packer = Packer(build_tokenizer())
    page = generate_document("train", 3, grid=(2, 1))
    talks = conversations(page, 1, 2, captions=False, long=False)
    plain, gaps = packer.pack([page], [talks]), np.array([5, 0, 7])
    moved = packer.pack([page], [talks], gaps=[gaps])
    assert (plain.ids == moved.ids).all()
    jumps = (moved.position - plain.position)[0]
    assert jumps[:2].tolist() == [0, 0]
    assert jumps[2:50].tolist() == [0] * 16 + [5] * 16 + [5] * 16
    assert (jumps[50:] == 12).all()


def test_stacked_muon_is_muon() -> None:
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in ((6, 4), (4, 6), (6, 4), (5, 5))]
    stock = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    one = StackedMuon(ours, lr=0.02, momentum=0.95, weight_decay=0.01, ns_steps=4)
    two = torch.optim.Muon(stock, lr=0.02, momentum=0.95, weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for a, b in zip(ours, stock, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        one.step()
        two.step()
    for a, b in zip(ours, stock, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)  # bfloat16 inside


def test_growing_and_deepening_keep_what_the_model_computes(processor: Any) -> None:
    old, tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT), build_tokenizer()
    stock = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    layers = stock.config.text_config.num_hidden_layers
    grown = grow(stock.state_dict(), old, tokenizer)
    model = build_model(tokenizer, layers=layers + 1).eval()
    model.load_state_dict(deepen(grown, 1))
    scene = generate_scene("dev", 3, grid=(2, 1))
    blocks = conversations(scene, 1, 3, captions=False, long=False)
    with torch.no_grad():
        tokens = stock.model.get_image_features(normalise(cut_tiles(scene)), return_dict=True).pooler_output
        states = [
            hidden_states(m, Packer(t).pack([scene], [blocks]), tokens) for m, t in ((stock, old), (model, tokenizer))
        ]
    torch.testing.assert_close(states[0], states[1], atol=1e-4, rtol=1e-4)
    without = shallow(deepen(grown, 1), 1)
    assert without.keys() == grown.keys()
    assert all(torch.equal(without[name], grown[name]) for name in grown)


def test_items_hold_what_the_two_roads_need(processor: Any) -> None:
    """The fast road (pictures of one size, places of targets) gives the hidden states of the plain one."""
    packer = Packer(AutoTokenizer.from_pretrained(CHECKPOINT))
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT).eval()
    scenes = [generate_scene("train", seed, grid=(2, 1)) for seed in range(3)]
    item = picture_arrays(scenes)
    assert item["overview"].tolist() == [2, 5, 8]
    arrays = pack_arrays(packer, scenes, 0, 3, np.random.default_rng(0))
    pack = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert pack["ids"].shape[1] % 16 == 0
    with torch.no_grad():
        pixels = scaled_pixels(torch.from_numpy(item["pixels"]))
        tokens = model.model.get_image_features(pixels, return_dict=True).pooler_output
        fast = stage_worlds.hidden_states(model, pack, tokens)
        plain = hidden_states(model, _as_pack(arrays), tokens)
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=1e-4)
    loss, counts = stage_worlds.answer_losses(model.lm_head(fast.flatten(0, 1)[pack["where"]]), pack)
    asked, right = counts.reshape(2, -1)
    assert asked.sum() == len(pack["target"])
    assert (right <= asked).all()
    assert 0 < loss.item() < 20


def _as_pack(arrays: dict[str, np.ndarray]) -> Any:
    from training.language import Pack

    none = np.full_like(arrays["ids"], -1)
    return Pack(*(arrays[name].astype(np.int64) for name in ("ids", "position", "block")), none, none)


def test_a_stream_gives_every_item_once_and_whole() -> None:
    def make(number: int, progress: float) -> dict[str, np.ndarray]:
        return {"number": np.array([number]), "body": np.full((number % 5 + 1, 100), number, np.int16)}

    stream = Stream(make, first=7, workers=2, slots=2, slot_bytes=4096)
    try:
        seen = [stream.next(True, lambda a: (int(a["number"][0]), a["body"].copy())) for _ in range(40)]
    finally:
        stream.close()
    numbers = [number for number, _ in filter(None, seen)]
    assert len(set(numbers)) == 40
    assert min(numbers) == 7
    for number, body in filter(None, seen):
        assert body.shape == (number % 5 + 1, 100)
        assert (body == number).all()


def test_items_mix_worlds(tmp_path: Path) -> None:
    make = maker(Packer(build_tokenizer()), Options(out=tmp_path, tiles=96, questions=2, uses=1))
    one, two = make(3, 1.0), make(3, 1.0)
    assert all((one[name] == two[name]).all() for name in one)
    items = [make(number, 1.0) for number in range(4)]
    names, colours = (np.concatenate([item[name] for item in items]).sum(axis=1) for name in ("names", "colours"))
    assert ((names >= 4) & (colours == 0)).any()  # a table of a page
    assert (colours > 0).any()
    assert ((names > 0) == (colours > 0))[colours > 0].all()


def test_the_stage_runs_goes_on_and_writes_a_checkpoint(tmp_path: Path) -> None:
    options = Options(
        tmp_path, CHECKPOINT, 0.05, deepen=0.1, tiles=8, questions=2, uses=1, dev=0, warmup=2, heads_first=1
    )
    train_worlds(options)
    told = [json.loads(line) for line in (tmp_path / "worlds.jsonl").read_text().splitlines()]
    steps = told[-1]["step"]
    assert steps > 0
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "checkpoint")
    shipped = AutoModelForImageTextToText.from_pretrained(CHECKPOINT)
    assert model.config.text_config.num_hidden_layers == shipped.config.text_config.num_hidden_layers + 1
    assert load_processor(tmp_path / "checkpoint").tokenizer(" fox")["input_ids"]
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state["model"].items())
    train_worlds(replace(options, minutes=state["seconds"] / 60 + 0.05))  # a busy machine took longer than it was given
    again = torch.load(tmp_path / "state.pt", weights_only=True)
    assert again["step"] > state["step"]
    assert again["seconds"] > state["seconds"] > 0
    assert again["deeper"] == 1
    assert any(not torch.equal(again["model"][name], value) for name, value in state["model"].items())


def test_a_loss_that_is_no_number_goes_back(tmp_path: Path) -> None:
    options = Options(tmp_path, CHECKPOINT, minutes=0.0, dev=0, tiles=8)
    tokenizer = build_tokenizer()
    training = Training(options, tokenizer, Packer(tokenizer), stream=None, state=None)  # type: ignore[arg-type]
    good = {name: value.clone() for name, value in training.model.state_dict().items()}
    peak = training.optimiser.peaks[0][0]
    with torch.no_grad():
        next(training.model.parameters()).fill_(float("nan"))
    training.keep()  # nothing that is broken is written
    training._go_back()
    assert all(torch.equal(value, good[name]) for name, value in training.model.state_dict().items())
    assert training.optimiser.peaks[0][0] == peak / 2
