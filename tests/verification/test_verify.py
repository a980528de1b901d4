"""``ptprune verify``: it passes where pruning is exact, and tells where it is not."""

from __future__ import annotations

import pytest
import torch

import ptprune
from ptprune import PyramidTokenPruning
from ptprune.attach import layers
from ptprune.attach.cut import Cut
from ptprune.attach.forward import Pass
from ptprune.errors import Refused, UnsupportedModel
from ptprune.selection import Selection
from ptprune.verification import checks, stock
from tests.cli.families import savable
from tests.command import command, refused
from tests.zoo import ZOO
from tests.zoo.pictures import picture

PICTURES = [picture(90, 60), picture(36, 100)]


def verified(name="internvl", processor=None, keep_ratio=0.5, **build):
    specimen = ZOO[name]
    processor = savable(specimen) if processor is None else processor
    options = {"image_options": specimen.image_options, "new_tokens": 3, "keep_ratio": keep_ratio}
    return ptprune.verify(specimen.build(**build), processor, PICTURES, **options)


def results(found):
    return {check.name: check.result for check in found.checks}


def failed(found):
    return {check.name.split(",")[0] for check in found.checks if check.result == "FAIL"}


@pytest.mark.parametrize("keep_ratio", [0.5, 0.2])  # one cut, two cuts
@pytest.mark.parametrize("name", ZOO)
def test_every_family_passes(name, keep_ratio):
    found = verified(name, keep_ratio=keep_ratio)
    assert found.passed, found.checks
    assert {*results(found).values()} == {"ok"}
    assert len(found.noise) == 3
    assert len(found.checks) == 13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_have_other_yardsticks(dtype):
    found = verified(dtype=dtype)
    assert not failed(found), found.checks
    bounds = [check.bound for check in found.checks if check.bound]
    assert all(bound > 1e-3 for bound in bounds) if dtype == torch.bfloat16 else all(bound < 1e-4 for bound in bounds)


def test_eager_attention_passes():
    found = verified(attention="eager")
    assert found.passed
    assert found.attention == "eager"
    assert "eager against sdpa" in found.noise


# --- it fails where something is wrong --------------------------------------------------------------------------------


def another_token(monkeypatch):
    """The report says one thing, the cut does another."""
    real = Cut.of.__func__

    def wrong(cls, valid, dropped, *rest):
        dropped = dropped.clone()
        first = dropped[0].nonzero()[0, 0]
        dropped[0, first] = False
        return real(cls, valid, dropped, *rest)

    monkeypatch.setattr(Cut, "of", classmethod(wrong))


def one_more(monkeypatch):
    real = PyramidTokenPruning.num_kept
    monkeypatch.setattr(PyramidTokenPruning, "num_kept", lambda self, tokens: min(real(self, tokens) + 1, tokens))


def uncut_cache(monkeypatch):
    monkeypatch.setattr(layers, "gather_new", lambda layer, past, index: None)
    monkeypatch.setattr(layers, "check_end", lambda *_: None)


def shifted_positions(monkeypatch):
    real = layers.cut_layer_call

    def wrong(cut, call, *rest):
        call = real(cut, call, *rest)
        call.rotary = tuple(part.roll(1, dims=1) for part in call.rotary)
        return call

    monkeypatch.setattr(layers, "cut_layer_call", wrong)


def left_hook(monkeypatch):
    monkeypatch.setattr(Pass, "close", lambda self: self._undo.pop_all())


def never_exact(monkeypatch):
    """What has to keep every token drops one all the same."""
    real = PyramidTokenPruning.steps

    def wrong(self, image):
        found = yield from real(self, image)
        return Selection(found.kept[1:], scores=found.scores) if self.coverage == 1 else found

    monkeypatch.setattr(PyramidTokenPruning, "steps", wrong)


@pytest.mark.parametrize(
    ("breakage", "noticed_by"),
    [
        (another_token, {"logits", "greedy answer", "batch of two with padding", "second turn"}),
        (one_more, {"exact budgets and caches"}),
        (uncut_cache, {"exact budgets and caches", "greedy answer", "second turn"}),
        (shifted_positions, {"logits", "greedy answer", "batch of two with padding", "second turn"}),
        (left_hook, {"the model is left as it was"}),
        (never_exact, {"ratio 1: bit-identical"}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_broken_fails(monkeypatch, breakage, noticed_by):
    breakage(monkeypatch)
    found = verified()
    assert not found.passed
    assert noticed_by <= failed(found), results(found)
    assert all(check.reason or check.deviation is not None for check in found.checks if check.result == "FAIL")


def test_an_oracle_that_would_not_notice_is_no_proof(monkeypatch):
    """Where dropping tokens hardly changes anything, agreement means nothing."""
    monkeypatch.setattr(checks, "bound", lambda *_: 1e9)
    found = verified()
    assert not found.passed
    assert results(found)["logits, layer 0"] == "inconclusive"


def test_a_method_that_refuses_everything_does_not_pass(monkeypatch):
    def refuse(self, image):
        raise Refused("not today")

    monkeypatch.setattr(PyramidTokenPruning, "steps", refuse)
    found = verified()
    assert not found.passed
    assert {"ratio 1: bit-identical", "logits", "greedy answer"} <= failed(found)


def test_flash_attention_takes_no_mask_of_ours(monkeypatch):
    monkeypatch.setattr(checks, "implementation", lambda model: "flash_attention_2")
    found = verified()
    assert found.passed
    assert results(found)["logits, layer 0"] == "not supported"
    assert results(found)["ratio 1: bit-identical, layer 0"] == "ok"


def test_a_processor_that_makes_no_batch():
    processor = savable(ZOO["internvl"])

    class Single:
        tokenizer, apply_chat_template = processor.tokenizer, processor.apply_chat_template
        chat_template = processor.chat_template

        def __call__(self, text, **options):
            if len(text) > 1:
                raise ValueError("one at a time")
            return processor(text=text, **options)

    found = verified(processor=Single())
    assert found.passed
    assert results(found)["batch of two with padding, layer 0"] == "not supported"
    assert "one at a time" in next(check.reason for check in found.checks if check.result == "not supported")


def test_unsupported_models_are_refused():
    with pytest.raises(UnsupportedModel):
        ptprune.verify(torch.nn.Linear(1, 1), None)


def test_the_oracle_hides_dropped_tokens():
    """Changing one changes nothing elsewhere; where the cut comes behind the last layer, it does."""
    model = ZOO["internvl"].build()
    ids, dropped = torch.arange(10, 30)[None], torch.zeros(1, 16, dtype=torch.bool)
    dropped[0, 5] = True
    other = ids.clone()
    other[0, 5] = 9
    with torch.no_grad():
        for layer, hidden in ((0, True), (99, False)):
            with stock.blocked(model, dropped, torch.ones_like(ids, dtype=torch.bool), layer):
                one, two = model(input_ids=ids).logits, model(input_ids=other).logits
            assert torch.equal(one[0, 6:], two[0, 6:]) is hidden


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def verify(capsys):
    return command(capsys, "verify")


def test_the_shipped_checkpoint(verify):
    found = verify("--json").document
    assert found["passed"]
    assert found["checkpoint"] == "ptprune-tiny"
    assert set(found) == {
        *("checkpoint", "model", "versions", "device", "dtype", "attention", "noise", "checks", "passed")
    }
    assert {check["result"] for check in found["checks"]} == {"ok"}
    assert {"torch", "transformers", "python", "ptprune"} == set(found["versions"])


def test_a_failure_ends_with_status_one(verify, monkeypatch):
    one_more(monkeypatch)
    result = verify("--picture", "examples/scene.png")
    assert result.code == 1
    assert "NOT exact on this machine" in result.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--keep-ratio", "1"], "--keep-ratio 1.0"),
        (["--picture", "nowhere.png"], "nowhere.png"),
        (["--picture", "a.png", "--picture", "b.png", "--picture", "c.png"], "two at most"),
        (["--attention", "flex_attention"], "--attention flex_attention: unknown; give sdpa"),
    ],
)
def test_bad_usage(verify, arguments, says):
    refused(verify(*arguments), says)
