"""The recipes run as they stand, and give what the library gives when it is used directly."""

from __future__ import annotations

import runpy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ptprune import PyramidTokenPruning
from ptprune.asking.answer import ask
from ptprune.asking.chat import make_prompt
from ptprune.attach.cache import pruned
from ptprune.checkpoints import Checkpoint
from tests.oracle import blocked

RECIPES = Path(__file__).parents[2] / "examples/recipes"
PICTURE = RECIPES.parent / "scene.png"
BLUE = "which digit is blue?"


@pytest.fixture(scope="module")
def stock() -> tuple[Any, Any]:
    """A model and a processor that no recipe has touched."""
    checkpoint = Checkpoint.find(None)
    return checkpoint.model(torch.device("cpu"), "auto"), checkpoint.processor()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(name: str) -> dict[str, Any]:
    return runpy.run_path(str(RECIPES / f"{name}.py"))


def direct(stock: tuple[Any, Any], question: str, keep_ratio: float = 0.5) -> str:
    """The answer of ``ptprune run``'s own code."""
    model, processor = stock
    inputs = make_prompt(model, processor, [Image.open(PICTURE).convert("RGB")], question, {})
    return ask(model, processor, inputs, PyramidTokenPruning(keep_ratio=keep_ratio), 8).text


def test_every_recipe_is_run_here() -> None:
    own = Path(__file__).read_text()
    names = [path.stem for path in RECIPES.glob("*.py")]
    assert len(names) >= 6
    assert [name for name in names if f'run("{name}")' not in own] == []


def test_pipelines(stock: tuple[Any, Any]) -> None:
    names = run("pipelines")
    assert names["single"]["generated_text"].strip() == direct(stock, BLUE)
    answers = [answer["generated_text"].strip() for [answer] in names["batch"]]
    assert answers == [direct(stock, question) for question in names["questions"]]
    assert [report.visual_tokens for report in names["reports"]] == [(416, 208), (208, 104)]


def test_streaming(stock: tuple[Any, Any]) -> None:
    names = run("streaming")
    assert "".join(names["pieces"]).strip() == direct(stock, BLUE)
    assert names["pruner"].report.visual_tokens == (208, 104)


def test_chat(stock: tuple[Any, Any]) -> None:
    """The second answer is that of a stock model without a cache that ignores the dropped tokens from the cut on."""
    names = run("chat")
    first, whole, report = names["first"], names["whole"], names["pruner"].report
    assert pruned(names["answer"].past_key_values)
    dropped = torch.zeros_like(whole, dtype=torch.bool)
    dropped[0, : report.kept_mask.shape[1]] = ~report.kept_mask[0]
    assert dropped.sum() == 104
    model, _ = stock
    length, prompt = whole.shape[1], first["input_ids"].shape[1]
    ends = torch.full((length,), length)
    ends[:prompt] = prompt
    mask = torch.ones_like(whole)
    with torch.no_grad(), blocked(model, dropped, names["pruner"].layer, mask, ends):
        seen = {"input_ids": whole, "attention_mask": mask, "pixel_values": first["pixel_values"]}
        logits = model(**seen, use_cache=False).logits
    assert logits[0, -1].argmax() == names["second"][0, length]


def test_server(stock: tuple[Any, Any]) -> None:
    names = run("server")
    for question, found in zip(names["questions"], names["answers"], strict=True):
        assert found == {"answer": direct(stock, question), "visual_tokens": (208, 104)}
    assert len(names["refused"]) == 2
    for question, ratio, found in zip(names["questions"], (0.5, 0.25, 1.0), names["at_ratios"], strict=False):
        assert found == {"answer": direct(stock, question, ratio), "visual_tokens": (208, round(208 * ratio))}


def test_custom_generate() -> None:
    names = run("custom_generate")
    model, options, pruner = names["model"], names["options"], names["pruner"]
    unpruned = model.generate(**options)
    with pruner(model):
        plain = model.generate(**options)
    assert torch.equal(names["folder"], plain)
    assert torch.equal(names["function"], plain)
    assert names["report"].visual_tokens == (208, 104)
    assert "around generate()" in names["refused"]
    assert torch.equal(model.generate(**options), unpruned)  # nothing is left on the model


def test_quantised(stock: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    names = run("quantised")
    assert names["answers"]["as it is"] == direct(stock, BLUE)
    said = capsys.readouterr().out
    assert ("int8" in names["answers"]) == (find_spec("torchao") is not None)
    assert ("int8 skipped" in said) == (find_spec("torchao") is None)
    if "int8" in names["answers"]:
        assert names["reports"]["int8"].visual_tokens == (208, 104)
        assert any("Int8" in type(weight.data).__name__ for weight in names["model"].parameters())
    on_gpu = torch.cuda.is_available() and find_spec("bitsandbytes") is not None
    assert ("4-bit" in names["answers"]) == on_gpu
