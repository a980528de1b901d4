"""`ptprune bench speed`: what it measures and says. How fast anything is, no test asks."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ptprune.bench import arms, encoders, encodings, memory, speed
from ptprune.bench.picture import Picture, cut, draw
from ptprune.bench.subject import Setup, grid_of, prepare, shortened
from ptprune.budget import halfway
from ptprune.cost import Encoding, Prompt, pruned_cost, unpruned_cost
from ptprune.errors import BrokenPass
from ptprune.methods import METHODS
from ptprune.shapes import SHAPES, ModelShape, TextShape, VisionShape
from ptprune.tiny.scenes import generate_scene
from tests.cli import conftest as command_line
from tests.command import Command, command, refused

checkpoint = command_line.checkpoint

TILES, TEXT = 4, 9
TEXT_SHAPE = TextShape(4, 32, 56, 4, 2, 8, 200, decoder="qwen2")
TINY = {
    "tiny-internvl": ModelShape("tiny-internvl", VisionShape(4, 64, 96, 1, 16, 3 * 64), TEXT_SHAPE, tile_tokens=4),
    "tiny-llava": ModelShape(
        "tiny-llava", VisionShape(4, 64, 96, 1, 16, 3 * 64), TEXT_SHAPE, tile_tokens=16, family="llava_next"
    ),
}
SMALL = ("--shape", "tiny-internvl", "--tiles", TILES, "--text-tokens", TEXT, "--device", "cpu")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, with tiny shapes."""
    for name, shape in TINY.items():
        monkeypatch.setitem(SHAPES, name, shape)
    return command(capsys, "bench", "speed")


def setup_of(name: str, **changes: Any) -> Setup:
    values: dict[str, Any] = {
        "shape": TINY[name],
        "directory": None,
        "tiles": TILES,
        "text_tokens": TEXT,
        "batch": 1,
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
    }
    return Setup(**{**values, **changes})


def measured(run: Command, *arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    document: dict[str, Any] = json.loads(result.out)
    return document


def test_the_document(run: Command, tmp_path: Path) -> None:
    options = ("--methods", "ptp,random", "--rounds", 3, "--layers", 2, "--batch", 2, "--new-tokens", 3)
    document = measured(run, *SMALL, *options, "--out", tmp_path / "speed.json")
    assert json.loads((tmp_path / "speed.json").read_text()) == document
    said = {key: document[key] for key in ("shape", "device", "dtype", "attention", "batch", "rounds", "new_tokens")}
    assert said == {
        "shape": "tiny-internvl",
        "device": "cpu",
        "dtype": "float32",
        "attention": "sdpa",
        "batch": 2,
        "rounds": 3,
        "new_tokens": 3,
    }
    assert (document["layers"], document["layers_of_shape"]) == (2, 4)
    assert (document["vision_layers"], document["vision_layers_of_shape"]) == (2, 4)
    assert document["threads"] == torch.get_num_threads()
    [origin] = document["runs"]
    assert origin["machine"]
    assert origin["identity"] == {"model": "tiny-internvl"}
    assert document["tokens"] == {"visual": 20, "other": 9, "before": 29, "after": {"ptp": 19, "random": 19}}

    rows = document["rows"]
    assert [(row["arm"], row["method"], row["tokens"]) for row in rows] == [
        ("unpruned", None, 29),
        ("pruned", "ptp", 19),
        ("pruned", "random", 19),
        ("ideal", None, 19),
    ]
    for row in rows:
        for phase in speed.PHASES:
            assert row[phase]["min"] <= row[phase]["median"] <= row[phase]["max"]
        parts = row["vision_s"]["min"] + row["select_s"]["min"] + row["prefill_s"]["min"]
        assert 0 < parts <= row["ttft_s"]["min"]
        assert (row["vision_s"]["min"] > 0) == (row["arm"] != "ideal")
        assert (row["select_s"]["min"] > 0) == (row["arm"] == "pruned")
    assert [(row["keep_ratio"], row["layer"]) for row in rows] == [(None, None), (0.5, 0), (0.5, 0), (None, None)]
    one_token = 2 * 2 * 2 * 2 * 8 * 4  # batch, layers, keys and values, heads, width, float32
    assert [row["kv_bytes"] // one_token for row in rows] == [29, 19, 19, 19]
    assert all(row["peak_bytes"] > row["kv_bytes"] for row in rows)

    shape, prompt = shortened(TINY["tiny-internvl"], 2, None), Prompt(TILES, TEXT)
    macs = [row["macs"]["first_token"] for row in rows]
    assert macs[0] == 2 * unpruned_cost(shape, prompt).first_token
    assert macs[1] == 2 * pruned_cost(shape, prompt, 0.5, 0).first_token
    assert macs[2] == 2 * pruned_cost(shape, prompt, 0.5, 0, instruction=0, patch_rows=0).first_token
    assert macs[3] == 2 * (pruned_cost(shape, prompt, 0.5, 0).prefill + pruned_cost(shape, prompt, 0.5, 0).lm_head)

    assert len(document["samples"]) == 3
    for method in ("ptp", "random"):
        ratios = document["ratios"][method]
        assert ratios["kv"] == 19 / 29
        by_round = [each[method]["prefill_s"] / each["unpruned"]["prefill_s"] for each in document["samples"]]
        assert ratios["prefill_vs_unpruned"] == arms.spread(by_round).model_dump()
        by_round = [each[method]["prefill_s"] / each["ideal 19"]["prefill_s"] for each in document["samples"]]
        assert ratios["prefill_vs_ideal"] == arms.spread(by_round).model_dump()
        by_round = [each[method]["select_s"] / each["unpruned"]["prefill_s"] for each in document["samples"]]
        assert ratios["select_share"] == arms.spread(by_round).model_dump()
        by_round = [each[method]["ttft_s"] / each["unpruned"]["ttft_s"] for each in document["samples"]]
        assert ratios["ttft_vs_unpruned"] == arms.spread(by_round).model_dump()


def test_people_get_tables(run: Command) -> None:
    result = run(*SMALL, "--rounds", 1, "--layers", 2)
    assert result.code == 0, result.err
    assert "2 of 4 decoder layers" in result.out
    assert "batch 1; 1 round\n" in result.out
    for told in ("unpruned", "ptp", "ideal", "select", "prefill", "first token", "peak", "KV cache"):
        assert told in result.out
    assert "…" not in result.out


def test_arms_take_turns(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def watched(subject: Any, arm: arms.Arm, new_tokens: int, device: str) -> arms.Sample:
        if new_tokens > speed.WARM_UP_TOKENS:
            order.append(arm.label)
        return arms.run_arm(subject, arm, new_tokens, device)

    monkeypatch.setattr(speed, "run_arm", watched)
    measured(run, *SMALL, "--rounds", 4, "--new-tokens", 3)
    first, second, third = "unpruned", "ptp", "ideal 19"
    assert order == [first, second, third, second, third, first, third, first, second, first, second, third]


@pytest.mark.parametrize("layer", [0, 2])
def test_a_llava_next_at_any_layer(run: Command, layer: int) -> None:
    """Its newlines are never pruned: two rows of tiles, four patches tall each."""
    document = measured(run, "--shape", "tiny-llava", *SMALL[2:], "--rounds", 1, "--layer", layer)
    newlines = 2 * 4
    assert document["tokens"] == {
        "visual": 80,
        "other": newlines + TEXT,
        "before": 80 + newlines + TEXT,
        "after": {"ptp": 40 + newlines + TEXT},
    }
    prompt = Prompt(TILES, newlines + TEXT)
    cost = pruned_cost(TINY["tiny-llava"], prompt, 0.5, layer, instruction=TEXT)
    assert document["rows"][1]["macs"]["first_token"] == cost.first_token
    assert document["rows"][2]["tokens"] == 40 + newlines + TEXT


def test_what_drops_in_stages_is_counted(run: Command) -> None:
    document = measured(run, *SMALL, "--rounds", 1, "--layer", 0, "--keep-ratio", 0.2)
    unpruned, pruned, ideal = document["rows"]
    shape = TINY["tiny-internvl"]
    stages = [(0, 5), (halfway(0, shape.text.layers), 4)]
    cost = pruned_cost(shape, Prompt(TILES, TEXT), 0.2, 0, stages=stages)
    assert pruned["macs"]["first_token"] == cost.first_token
    assert pruned["tokens"] == ideal["tokens"] < unpruned["tokens"]


# --- what is encoded --------------------------------------------------------------------------------------------------

FIXED = ("--rounds", 1, "--new-tokens", 2)
SCENE = ("--picture", "scene", "--fill", ".5,.5", "--seed", 1)


def arm_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in document["rows"] if row.get("label", row["method"]) == name)


def test_arms_of_what_is_encoded(run: Command) -> None:
    """Of four tiles and a thumbnail with four tokens each, two hold something."""
    settings = ("--set", "vision_layer=1", "--set", "tiles=2", "--set", "vision_margin=1", "--set", "tile_batch=2")
    document = measured(run, *SMALL, *FIXED, *SCENE, "--encoder", "all", "--keep-ratio", ".5,.25", *settings)
    assert document["picture"] == {"kind": "scene", "seed": 1, "background": "waves", "filled_tiles": 2}
    names = [f"ptp {encoder} {ratio}" for ratio in ("0.5", "0.25") for encoder in encodings.ENCODERS]
    assert [row["label"] for row in document["rows"] if row["arm"] == "pruned"] == names
    assert list(document["ratios"]) == list(document["tokens"]["after"])
    assert set(document["ratios"]) == set(names)

    encoded = {name: arm_of(document, name)["encoded_tiles"] for name in names}
    assert encoded == {
        f"ptp {encoder} {ratio}": tiles
        for ratio in ("0.5", "0.25")
        for encoder, tiles in
        {"llm": 5, "salient": 3, "patches": 5, "both": 3, "random": 3, "fewer": 3}.items()
    }  # fmt: skip
    tokens = {name: arm_of(document, name)["encoded_tokens"] for name in names}
    # ceil(4 * 10 / 20) groups of each of five tiles, ceil(4 * 10 / 12) of each of three; then with 5 instead of 10
    assert [tokens[f"ptp {name} 0.5"] for name in ("llm", "patches", "salient", "both")] == [20, 10, 12, 12]
    assert [tokens[f"ptp {name} 0.25"] for name in ("llm", "patches", "salient", "both")] == [20, 5, 12, 6]
    assert {name: arm_of(document, name)["tokens"] - TEXT for name in names} == {
        name: 10 if name.endswith("0.5") else 5 for name in names
    }
    assert arm_of(document, "ptp both 0.25")["settings"] == {
        "tiles": 2, "tile_batch": 2, "vision_layer": 1, "vision_margin": 1.0,
    }  # fmt: skip
    assert arm_of(document, "ptp llm 0.5")["settings"] == {"tile_batch": 2, "vision_margin": 1.0}
    assert arm_of(document, "ptp random 0.5")["settings"]["tile_score"] == "random"
    assert arm_of(document, "ptp fewer 0.25")["settings"]["keep_tokens"] == 5

    shape, prompt = TINY["tiny-internvl"], Prompt(TILES, TEXT)
    for name, prompted, ratio, encoding in [
        ("ptp llm 0.5", prompt, 0.5, Encoding()),
        ("ptp salient 0.5", prompt, 0.5, Encoding(2)),
        ("ptp random 0.25", prompt, 0.25, Encoding(2)),
        ("ptp patches 0.25", prompt, 0.25, Encoding(None, 1, 1.0)),
        ("ptp both 0.25", prompt, 0.25, Encoding(2, 1, 1.0)),
        ("ptp fewer 0.5", Prompt(2, TEXT), 10 / 12, Encoding()),
    ]:
        counted = pruned_cost(shape, prompted, ratio, 0, encoding=encoding)
        assert arm_of(document, name)["macs"]["first_token"] == counted.first_token, name
    vision = document["ratios"]["ptp both 0.25"]["vision_vs_unpruned"]
    [sample] = document["samples"]
    assert vision["median"] == sample["ptp both 0.25"]["vision_s"] / sample["unpruned"]["vision_s"]


def test_settings_alone_make_arms_too(run: Command) -> None:
    """And copies of a picture in a batch are not encoded once for all."""
    document = measured(run, *SMALL, *FIXED, *SCENE[-2:], "--set", "tiles=salient", "--batch", 2)
    assert document["picture"]["kind"] == "scene"
    row = arm_of(document, "ptp")
    assert "label" not in row
    assert row["encoded_tiles"] == 3
    assert row["macs"]["first_token"] == 2 * pruned_cost(
        TINY["tiny-internvl"], Prompt(TILES, TEXT), 0.5, 0, encoding=Encoding(2)
    ).first_token  # fmt: skip
    assert measured(run, *SMALL, *FIXED)["picture"] == {"kind": "noise", "seed": 0}


def test_tiles_that_are_background_count(run: Command) -> None:
    """The projector and the language model get their tokens, though the tower encodes only the quietest of them."""
    settings = ("--set", "left_out=background", "--set", "vision_layer=1", "--set", "vision_margin=1")
    document = measured(run, *SMALL, *FIXED, *SCENE, "--encoder", "salient,both", "--keep-ratio", ".25", *settings)
    shape, prompt = TINY["tiny-internvl"], Prompt(TILES, TEXT)
    for name, encoding in (("salient", Encoding(3, background=True)), ("both", Encoding(3, 1, 1.0, background=True))):
        row = arm_of(document, f"ptp {name}")
        assert (row["encoded_tiles"], row["tokens"] - TEXT) == (4, 5), "two salient tiles, the quietest, the thumbnail"
        assert row["macs"]["first_token"] == pruned_cost(shape, prompt, 0.25, 0, encoding=encoding).first_token


@pytest.mark.parametrize("source", ["llava", "checkpoint"])
def test_fewer_tiles_of_other_models(run: Command, checkpoint: Path, source: str) -> None:
    """LLaVA-NeXT ends each row of its grid with a newline: one row of two tiles instead of two rows."""
    model = ("--shape", "tiny-llava", *SMALL[2:]) if source == "llava" else ("--model", checkpoint, "--tiles", TILES)
    arguments = (*FIXED, "--encoder", "salient,fewer,random", "--set", "tiles=2", "--dtype", "float32")
    document = measured(run, *model, *arguments)
    salient, random, fewer = (row for row in document["rows"] if row["arm"] == "pruned")
    assert [row["encoder"] for row in (salient, random, fewer)] == ["salient", "random", "fewer"]
    assert [row["encoded_tiles"] for row in (salient, random, fewer)] == [3, 3, 3]
    assert salient["tokens"] - fewer["tokens"] == (4 if source == "llava" else 0)
    assert fewer["macs"]["vision"] == salient["macs"]["vision"]


def test_what_is_encoded_is_checked() -> None:
    """The report, the settings and the tower's own work have to agree."""
    setup = setup_of("tiny-internvl", picture=Picture("scene", seed=1))
    subject = prepare(setup)
    pruners = {name: METHODS["ptp"](layer=0, tiles=tiles) for name, tiles in (("two", 2), ("all", "all"))}
    found = {}
    for name, pruner in pruners.items():
        with encoders.counted_tiles(subject.model) as rows:
            arms.run_arm(subject, arms.Arm(arms.PRUNED, name, pruner), 2, "cpu")
        assert pruner.report is not None
        found[name] = pruner.report.images, rows
    arm = {name: arms.Arm(arms.PRUNED, name, pruner) for name, pruner in pruners.items()}
    assert encoders.check_encoded(arm["two"], *found["two"]) == 3
    assert encoders.check_encoded(arm["all"], *found["all"]) == 5
    assert encoders.check_encoded(arm["all"], found["all"][0], []) is None  # no tower of tiles
    for name, images, rows in [
        ("all", *found["two"]),
        ("two", *found["all"]),
        ("two", found["two"][0], [4]),
        ("all", found["all"][0], [4]),
    ]:
        with pytest.raises(BrokenPass, match=f"^{name}: "):
            encoders.check_encoded(arm[name], images, rows)


def test_a_scene_is_enlarged_tile_by_tile() -> None:
    scene = generate_scene("dev", 5, grid=(3, 2), fill=(0.5, 0.5))
    drawn = draw(Picture("scene", seed=5), (2, 3), 128)
    assert drawn.image.size == (3 * 128, 2 * 128)
    assert drawn.filled == len({(thing.row, thing.column) for thing in scene.objects}) == 3
    tiles = cut(drawn.image, (2, 3), 128, "last")
    assert tiles.shape == (7, 3, 128, 128)
    small = torch.tensor(np.array(scene.image)).float() / 255
    for row in range(2):
        for column in range(3):
            part = small[row * 64 : (row + 1) * 64, column * 64 : (column + 1) * 64].mean(dim=(0, 1))
            shown = tiles[3 * row + column].mean(dim=(1, 2)) * 0.225 + 0.45
            assert torch.allclose(part, shown, atol=0.02)
    assert torch.equal(cut(drawn.image, (2, 3), 128, "first"), tiles.roll(1, 0))
    assert not torch.equal(tiles[0], cut(draw(Picture("scene", seed=6), (2, 3), 128).image, (2, 3), 128, None)[0])


def test_the_ideal_arm_reads_a_prompt_that_is_as_short() -> None:
    subject = prepare(setup_of("tiny-internvl", batch=2))
    shapes = []
    hook = subject.model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args: shapes.append(tuple(args[0].shape))
    )
    sample = arms.run_arm(subject, arms.Arm(arms.IDEAL, length=19), 2, "cpu")
    hook.remove()
    assert shapes == [(2, 19, 32), (2, 1, 32)]
    assert {tokens for tokens, _ in sample.kv} == {19}
    assert sample.vision_s == sample.select_s == 0


@pytest.mark.parametrize("method", ["ptp", "random"])
def test_a_cache_of_another_size_is_an_error(method: str) -> None:
    subject = prepare(setup_of("tiny-internvl"))
    pruner = METHODS[method](keep_ratio=0.5, layer=2)
    arm = arms.Arm(arms.PRUNED, method, pruner)
    unpruned, pruned = (arms.run_arm(subject, each, 2, "cpu") for each in (arms.Arm(arms.UNPRUNED), arm))
    assert (subject.length, arms.kept_length(pruner)) == (29, 19)
    arms.check_kept(arm, pruned, unpruned, 29, 19)
    with pytest.raises(RuntimeError, match="layer 0 holds 19 tokens"):
        arms.check_kept(arm, pruned, unpruned, 29, 20)
    one_layer_full = arms.Sample(**{**vars(pruned), "kv": (*pruned.kv[:3], unpruned.kv[3])})
    with pytest.raises(RuntimeError, match="layer 3 holds 29 tokens"):
        arms.check_kept(arm, one_layer_full, unpruned, 29, 19)
    wide = arms.Sample(**{**vars(pruned), "kv": tuple((tokens, 2 * size) for tokens, size in pruned.kv)})
    with pytest.raises(RuntimeError, match="layer 0"):
        arms.check_kept(arm, wide, unpruned, 29, 19)
    window = arms.Sample(**{**vars(unpruned), "kv": ((7, 7 * 128), *unpruned.kv[1:])})  # sliding: bytes say nothing
    arms.check_kept(arm, pruned, window, 29, 19)
    with pytest.raises(RuntimeError, match="layer 0 holds 19 tokens"):
        arms.check_kept(arm, pruned, window, 29, 20)


def test_a_checkpoint(run: Command, checkpoint: Path) -> None:
    """More tiles than its processor cuts unless told."""
    document = measured(run, "--model", checkpoint, "--tiles", 14, "--rounds", 1, "--dtype", "float32")
    assert document["shape"] == str(checkpoint)
    assert (document["layers"], document["layers_of_shape"]) == (None, None)
    assert document["tokens"]["visual"] == (14 + 1) * 4
    assert document["rows"][1]["macs"] is not None


def test_peak_memory_is_what_tensors_hold() -> None:
    assert memory.peak_bytes(lambda: (torch.zeros(1000) + 1).sum()) >= 8000
    assert memory.peak_bytes(lambda: [torch.zeros(1000).sum() for _ in range(9)]) < 8000


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("keep_ratio", [0.5, 0.8])
def test_peak_memory_is_never_above_unpruned(batch: int, layer: int, keep_ratio: float) -> None:
    """Where the prefill decides. (At 0.95 the layer of the cut holds its input twice, whole and cut, and wins less.)"""
    wide = replace(TINY["tiny-internvl"], text=replace(TEXT_SHAPE, width=256, ffn=1024, head_dim=64))
    setup = setup_of("tiny-internvl", shape=wide, tiles=20, batch=batch)
    subject = prepare(setup)
    peaks = []
    for arm in (
        arms.Arm(arms.UNPRUNED),
        arms.Arm(arms.PRUNED, "ptp", METHODS["ptp"](layer=layer, keep_ratio=keep_ratio)),
    ):
        arms.run_arm(subject, arm, 2, "cpu")
        peaks.append(memory.peak_bytes(functools.partial(arms.run_arm, subject, arm, 2, "cpu")))
    assert peaks[1] <= peaks[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shape", "gpt-5"], "--shape gpt-5: unknown; give one of internvl2-2b"),
        (["--methods", "ptp,guess"], "--methods ptp,guess: 'guess'"),
        (["--methods", ","], "--methods"),
        (["--attention", "flash"], "--attention flash: unknown; give one of sdpa, eager, flash_attention_2"),
        (["--layer", "4"], "--layer 4: too deep, 4 decoder layers run; give 0 to 3"),
        (["--layers", "2", "--layer", "2"], "--layer 2: too deep, 2 decoder layers run; give 0 to 1"),
        (["--layer", "-1"], "'--layer'"),
        (["--layers", "5"], "--layers 5: tiny-internvl has 4; give 1 to 4"),
        (["--vision-layers", "0"], "--vision-layers"),
        (["--keep-ratio", "0"], "--keep-ratio 0: 0 is out of range"),
        (["--dtype", "int8"], "--dtype int8"),
        (["--device", "abacus"], "--device abacus"),
        (["--rounds", "0"], "--rounds"),
        (["--new-tokens", "1"], "--new-tokens"),
        (["--out", "nowhere/speed.json"], "--out nowhere/speed.json"),
        (["--encoder", "llm,half"], "--encoder llm,half: 'half' is unknown; give all or some of llm, salient"),
        (["--encoder", "fewer"], "--encoder fewer: has as many tiles as salient"),
        (["--set", "vision_layer=4"], "--set vision_layer=4: too deep, 4 vision layers run; give 1 to 3"),
        (["--picture", "sky"], "--picture sky: unknown; give noise or scene"),
        (["--picture", "noise", "--fill", "0,1"], "--fill"),
        (["--fill", ".5"], "--fill .5: give two shares"),
        (["--fill", ".7,.3"], "--fill .7,.3: out of range"),
        (["--fill", "nan,nan"], "--fill nan,nan: out of range"),
        (["--seed", "-1"], "--seed"),
        (["--keep-ratio", ".5,x"], "--keep-ratio .5,x: 'x' is no number"),
        (["--model", "nowhere"], "--shape and --model"),
        (["--shape", "tiny-llava", "--tiles", "1"], "--tiles 1"),
    ],
)
def test_wrong_usage_is_one_line(run: Command, arguments: list[str], says: str) -> None:
    refused(run(*SMALL, *arguments), says)


def test_a_checkpoint_that_is_not_there_is_one_line(run: Command, checkpoint: Path) -> None:
    for arguments, says in [
        (("--model", "./nowhere"), "no such directory"),
        (("--model", checkpoint, "--layer", "4"), "--layer 4: too deep"),
        (("--model", checkpoint, "--layers", "2"), "--layers"),
    ]:
        result = run(*arguments)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert says in result.err


@pytest.mark.parametrize(
    ("tiles", "grid"), [(1, (1, 1)), (2, (1, 2)), (4, (2, 2)), (7, (1, 7)), (12, (3, 4)), (16, (4, 4))]
)
def test_grids(tiles: int, grid: tuple[int, int]) -> None:
    assert grid_of(tiles) == grid


def test_depths_shrink_in_proportion() -> None:
    for layers, vision, expected in [(None, None, (24, 24)), (6, None, (6, 6)), (1, None, (1, 2)), (6, 24, (6, 24))]:
        shape = shortened(SHAPES["internvl3-1b"], layers, vision)
        assert (shape.text.layers, shape.vision.layers) == expected
    shape = shortened(SHAPES["internvl2-8b"], 8, None)
    assert (shape.text.layers, shape.vision.layers) == (8, 6)


def test_laps_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laps that are inside others stop the outer ones; milliseconds become seconds, once all has run."""
    ticks = iter(range(0, 10_000, 1000))
    waited: list[bool] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(ticks)

        def elapsed_time(self, end: Event) -> int:
            assert waited
            return end.at - self.at

    synchronize: Callable[[], None] = lambda: waited.append(True)  # noqa: E731
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    clock = arms.EventClock()
    with clock.lap("prefill"):
        with clock.lap("vision"), clock.lap("select"):
            pass
        with clock.lap("select"):
            pass
    assert not clock.seconds
    clock.settle()
    assert clock.seconds == {"prefill": 3.0, "vision": 2.0, "select": 2.0}
