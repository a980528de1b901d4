"""``ptprune run`` against the library and the stock model used directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from ptprune import PyramidTokenPruning
from ptprune.asking.first_token import at_scale
from ptprune.checkpoints.processor import load_processor
from ptprune.cli import main
from ptprune.clock import Clock
from ptprune.cost import Encoding, Prompt, pruned_cost, unpruned_cost
from ptprune.explain import draw_explanation, levels
from ptprune.methods import METHODS
from ptprune.report import PruningReport
from ptprune.scores.region import region_weights
from ptprune.shapes import SHAPES
from tests.command import Command
from tests.test_draw import partly

QUESTION = "w5 w6 w7"


def run_json(ptprune: Command, *arguments: object) -> dict[str, Any]:
    result = ptprune("run", *arguments, "-q", QUESTION, "--max-new-tokens", 6, "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)  # one object, and nothing else on standard output
    assert result.err == ""
    return document


def stock_inputs(checkpoint: Path, picture: Path) -> tuple[Any, Any, Any]:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    processor = load_processor(checkpoint)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return model, processor, processor(images=[Image.open(picture)], text=[text], return_tensors="pt")


def test_same_answer_and_numbers_as_the_library(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    document = run_json(ptprune, picture, "--model", checkpoint, "--keep-ratio", 0.25, "--layer", 1)
    model, processor, inputs = stock_inputs(checkpoint, picture)
    pruner = PyramidTokenPruning(keep_ratio=0.25, layer=1)
    with pruner(model), torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
    report = pruner.report
    assert report is not None
    length = inputs["input_ids"].shape[1]
    assert (
        document["answer"] == processor.tokenizer.decode(output.sequences[0, length:], skip_special_tokens=True).strip()
    )
    assert document["visual_tokens"] == {"before": 28, "after": 7}
    assert document["sequence_length"] == {"before": length, "after": length - 21}
    regions = document["regions"]
    assert [region["budget"] for region in regions] == [region.budget for region in report.images[0].regions]
    assert [(r["row"], r["column"]) for r in regions] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (-1, -1)]
    assert [region["is_thumbnail"] for region in regions] == [False] * 6 + [True]
    assert all(region["tokens"] == 4 for region in regions)
    # five generated tokens stand in the returned cache behind the prompt
    held = sum(part.nbytes for layer in output.past_key_values.layers for part in (layer.keys, layer.values))
    assert document["kv_bytes"]["after"] * (length - 21 + 5) == held * (length - 21)


def test_compare_is_the_stock_model(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    document = run_json(ptprune, picture, "--model", checkpoint, "--compare", "--keep-ratio", 0.1)
    model, processor, inputs = stock_inputs(checkpoint, picture)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        cache = model(**inputs).past_key_values
    length = inputs["input_ids"].shape[1]
    unpruned = document["unpruned"]
    assert unpruned["answer"] == processor.tokenizer.decode(output[0, length:], skip_special_tokens=True).strip()
    assert unpruned["kv_bytes"] == sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert unpruned["kv_bytes"] == document["kv_bytes"]["before"]
    assert set(unpruned["seconds"]) == {"vision", "select", "prefill", "decode", "total"}
    assert unpruned["seconds"]["select"] == 0


def test_cache_before_is_known_without_comparing(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    alone = run_json(ptprune, picture, "--model", checkpoint)
    compared = run_json(ptprune, picture, "--model", checkpoint, "--compare")
    assert alone["kv_bytes"] == compared["kv_bytes"]


def test_keep_ratio_one_answers_as_unpruned(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    document = run_json(ptprune, picture, "--model", checkpoint, "--compare", "--keep-ratio", 1)
    assert document["answer"] == document["unpruned"]["answer"]
    assert document["visual_tokens"] == {"before": 28, "after": 28}


@pytest.mark.parametrize("extra", [(), ("--layer", 0), ("--method", "random"), ("--compare",)])
def test_phases_add_up(ptprune: Command, checkpoint: Path, picture: Path, extra: tuple[object, ...]) -> None:
    document = run_json(ptprune, picture, "--model", checkpoint, *extra)
    seconds = document["seconds"]
    assert all(seconds[phase] > 0 for phase in ("vision", "select", "prefill", "decode"))
    assert sum(seconds[phase] for phase in ("vision", "select", "prefill", "decode")) < seconds["total"]


def test_several_pictures_apart_and_together(ptprune: Command, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    square = tmp_path / "square.png"
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(square)
    apart = run_json(ptprune, picture, square, "--model", checkpoint)
    assert [one["visual_tokens"]["before"] for one in apart["images"]] == [28, 4]
    assert apart["images"][0]["pictures"] == [str(picture)]
    assert apart["images"][1]["regions"][0]["saliency"] is None
    alone = run_json(ptprune, picture, "--model", checkpoint)
    assert alone["answer"] == apart["images"][0]["answer"]
    together = run_json(ptprune, picture, square, "--model", checkpoint, "--together")
    assert together["visual_tokens"] == {"before": 32, "after": 16}
    assert [region["image"] for region in together["regions"]] == [0] * 7 + [1]
    assert together["pictures"] == [str(picture), str(square)]


def test_max_tiles(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    assert run_json(ptprune, picture, "--model", checkpoint, "--max-tiles", 1)["visual_tokens"]["before"] == 4
    assert run_json(ptprune, picture, "--model", checkpoint, "--max-tiles", 2)["visual_tokens"]["before"] == 12


def test_overlay_shows_what_the_report_says(ptprune: Command, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    document = run_json(ptprune, picture, "--model", checkpoint, "--overlay", target, "--keep-ratio", 0.99)
    assert document["overlay"] == [str(target)]
    clear = np.asarray(Image.open(target)).astype(int)
    run_json(ptprune, picture, "--model", checkpoint, "--overlay", target, "--keep-ratio", 0.1)
    dark = np.asarray(Image.open(target)).astype(int)
    assert clear.shape == dark.shape
    assert dark.mean() < 0.7 * clear.mean()


def test_an_overlay_a_picture(ptprune: Command, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    run_json(ptprune, picture, picture, "--model", checkpoint, "--overlay", tmp_path / "out.png", "--together")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-1.png", "out-2.png"]


@pytest.mark.parametrize(
    ("given", "encodes"),
    [
        ([], {"tiles": "salient", "left_out": "background"}),
        (["--method", "random"], {"tiles": "salient", "left_out": "background"}),
        (["--tiles", "all"], {}),
        (["--set", "tiles=all"], {}),
        (["--set", "left_out=drop"], {}),
        (["--tiles", "salient"], {"tiles": "salient"}),
        (["--set", "tile_batch=2"], {"tile_batch": 2}),
        (["--keep-ratio", 1], {}),
    ],
    ids=str,
)
def test_what_is_encoded_unless_told(
    ptprune: Command, checkpoint: Path, tmp_path: Path, given: list[Any], encodes: dict[str, Any]
) -> None:
    """A picture with one tile of noise: the others need not be encoded, but are where everything is asked for."""
    pixels = np.full((96, 96, 3), 90, np.uint8)
    pixels[:32, :32] = np.random.default_rng(0).integers(0, 255, (32, 32, 3))
    Image.fromarray(pixels).save(tmp_path / "corner.png")
    document = run_json(ptprune, tmp_path / "corner.png", "--model", checkpoint, *given)
    assert document["encoder_settings"] == encodes
    before, after = document["encoded_tiles"].values()
    assert (after < before) == ("tiles" in encodes)


def test_explain_draws_the_levels(ptprune: Command, checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    """The figure of the command is that of the library, of the same pass."""
    target = tmp_path / "why.png"
    document = run_json(
        ptprune, picture, "--model", checkpoint, "--explain", target, "--layer", 1, "--set", "region=cls-similarity"
    )
    assert document["explain"] == [str(target)]
    model, _, inputs = stock_inputs(checkpoint, picture)
    pruner = PyramidTokenPruning(layer=1, region="cls-similarity", tiles="salient", left_out="background")
    with pruner(model), torch.no_grad():
        model(**inputs)
    assert pruner.report is not None
    [report] = pruner.report.images
    assert levels(report) == ["tile", "region", "token", "instruction", "fused"]
    wanted = draw_explanation(Image.open(picture), report)
    assert Image.open(target).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("mode", ["plain", "compare"])
def test_for_people(ptprune: Command, checkpoint: Path, picture: Path, mode: str) -> None:
    extra = ["--compare"] if mode == "compare" else []
    result = ptprune("run", picture, "--model", checkpoint, "-q", QUESTION, "--max-new-tokens", 3, *extra)
    assert result.code == 0
    assert "28 -> 14 visual tokens in 7 regions" in result.out
    assert QUESTION in result.out
    if extra:
        rows = [line.split() for line in result.out.splitlines()]
        assert ["visual", "tokens", "28", "14", "0.50"] in rows
        for name in ("vision", "language", "choosing", "first"):
            assert any(row[:1] == [name] for row in rows)


def test_the_shipped_checkpoint_needs_nothing(ptprune: Command, picture: Path) -> None:
    document = run_json(ptprune, picture)
    assert document["model"] == "ptprune-tiny"
    before = document["visual_tokens"]["before"]
    assert document["visual_tokens"]["after"] == round(before / 2)


def test_laps_do_not_overlap() -> None:
    now = 0.0

    class Scripted(Clock):
        @staticmethod
        def _now() -> float:
            return now

    clock = Scripted()
    with clock.lap("rest"):
        now += 1
        with clock.lap("prefill"):
            now += 10
            with clock.lap("select"):
                now += 100
            now += 1000
            with clock.lap("select"):
                now += 10000
    assert dict(clock.seconds) == {"rest": 1, "prefill": 1010, "select": 10100}


def test_only_deliberate_refusals_become_one_line(monkeypatch, capsys):
    """What the package refuses is one line; an error from a library keeps its traceback."""

    def leave(what):
        monkeypatch.setattr("ptprune.cli.app", lambda **_: what())
        main([])

    with pytest.raises(SystemExit) as left:
        leave(lambda: region_weights(torch.tensor([float("nan"), 1.0]), 1))
    assert left.value.code == 2
    assert "NaN" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="must match"):
        leave(lambda: torch.zeros(3) + torch.zeros(4))


def test_what_was_encoded_is_told(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    given = ("--model", checkpoint, "--tiles", 2, "--compare")
    document = run_json(ptprune, picture, *given)
    model, _, inputs = stock_inputs(checkpoint, picture)
    pruner = PyramidTokenPruning(tiles=2)
    with pruner(model), torch.no_grad():
        model(**inputs)
    assert pruner.report is not None
    [report] = pruner.report.images
    assert document["encoded_tiles"] == {"before": 7, "after": 3}
    assert document["encoded_tokens"] == {"before": 28, "after": 12}
    assert document["encoder_settings"] == {"tiles": 2}
    for name in ("encoded", "tile_score"):
        assert [one[name] for one in document["regions"]] == [getattr(one, name) for one in report.regions]
    assert (document["visual_tokens"]["after"], document["capped_from"]) == (12, 14)
    scale = document["first_token"]["at_scale"]
    assert (scale["encoded_tiles"], scale["vision_layer"]) == (5, None)  # a third of twelve, and the thumbnail
    shown = ptprune("run", picture, *given, "-q", QUESTION, "--max-new-tokens", 3).out
    assert "3 of 7 tiles encoded (tiles=2), 12 of 28 tokens" in shown
    assert "14 were asked for" in " ".join(shown.split())
    rows = [line.split() for line in shown.splitlines()]
    assert ["tiles", "encoded", "7", "3", "0.43"] in rows
    assert ["tokens", "encoded", "28", "12", "0.43"] in rows


def test_nothing_is_told_where_all_was_encoded(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    document = run_json(ptprune, picture, "--model", checkpoint, "--set", "tile_batch=2")
    assert document["encoded_tiles"] == {"before": 7, "after": 7}
    assert document["encoded_tokens"] == {"before": 28, "after": 28}
    assert "capped_from" not in document
    result = ptprune("run", picture, "--model", checkpoint, "-q", QUESTION, "--max-new-tokens", 3, "--compare")
    assert " encoded" not in result.out


def test_fewer_tokens_than_were_encoded_are_no_cap(ptprune: Command, checkpoint: Path, picture: Path) -> None:
    for extra in (("--keep-ratio", 0.2), ("--set", "coverage=1")):
        document = run_json(ptprune, picture, "--model", checkpoint, "--tiles", 2, *extra)
        assert "capped_from" not in document


def test_scale_counts_what_is_left_out() -> None:
    """As ``ptprune cost`` counts twelve tiles, with the vision layer as deep as in the model's own tower."""
    report = PruningReport([partly([0, 40])], torch.ones(1, 1, dtype=torch.bool), [(1, 1)])
    shape, prompt, whole = SHAPES["internvl2-2b"], Prompt(12, 64), unpruned_cost(SHAPES["internvl2-2b"], Prompt(12, 64))
    for settings, layer, encoding in (
        ({"tiles": "salient"}, 4, Encoding(10)),
        ({"tiles": "salient", "left_out": "background"}, 4, Encoding(10, background=True)),
        ({"vision_layer": 1, "vision_margin": 2.0}, 4, Encoding(10, 6, 2.0)),
        ({"vision_layer": 1, "vision_floor": 0.8}, 4, Encoding(10, 6, floor=0.8)),
        ({"vision_layer": 5}, None, Encoding(10, 5)),
    ):
        pruner = PyramidTokenPruning(layer=2, **settings)
        found = at_scale(pruner, report, layer)
        assert found is not None
        counted = pruned_cost(shape, prompt, 2 / 112, 2, encoding=encoding)
        assert found["ratio"] == counted.first_token / whole.first_token
        assert (found["encoded_tiles"], found["vision_layer"]) == (11, encoding.layer)
    assert at_scale(PyramidTokenPruning(vision_layer=40), report) is None
    assert at_scale(PyramidTokenPruning(layer=40), report) is None
    assert at_scale(PyramidTokenPruning(keep_ratio=0.1, second_layer=40), report) is None
    assert at_scale(METHODS["pyramiddrop"](layer=22), report) is None  # its three cuts need three layers
