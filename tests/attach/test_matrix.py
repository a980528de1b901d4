"""One matrix of exactness: methods, families, prompts, attention implementations, padding, layers, modes of generate().

Every two values occur together in a case. ``tests.exact`` tells what a case states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ptprune import TokenPruner
from ptprune.methods import METHODS, PyramidTokenPruning
from ptprune.scores.evidence import ImageEvidence
from ptprune.selection import Selection, keep_best
from tests.exact import assert_exact, assert_exact_in_a_second_turn, assert_untouched, recording
from tests.methods.slow import SLOW, check, check_ptp, ptp_scores, ptp_scores_again
from tests.oracle import language_model, slow_ptp
from tests.pairs import Case, all_pairs, identity
from tests.versions import repeats_tiles
from tests.zoo import SLIDING, ZOO, Inputs, inputs_of, model_of

WINDOW = 3  # tokens a side, for pictures of at most 40 tokens
PROMPTS = list(ZOO["internvl"].prompts)
ONE_ROW = ["one picture", "small picture", "no text after", "several pictures"]

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, two returns": {"num_beams": 4, "num_return_sequences": 2},
    "sampling, three returns": {"do_sample": True, "num_return_sequences": 3},
    "repetition penalty": {"repetition_penalty": 1.3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {"assistant_model": None},
    "no cache": {"use_cache": False},
    "second turn": {},
    "second turn with a picture": {},
}
REPEATING = {"num_beams", "num_return_sequences"}


@dataclass(kw_only=True)
class Staged(TokenPruner):
    """Drops in stages of every second layer, from 0 too, by the last token's attention."""

    def cut_layers(self, num_layers):
        return tuple(range(self.layer, num_layers, 2))

    @property
    def needs(self):
        return frozenset({"last_attention"})

    def select(self, image):
        share = min(1, self.keep_ratio * (1.75, 1)[image.stage])
        kept = keep_best(image.last_attention, max(1, round(share * image.layout.num_unpruned)))
        return Selection(kept, scores={"instruction": image.last_attention})


TWICE = "ptp in two cuts"
ALL_METHODS = {**METHODS, "staged": Staged, TWICE: PyramidTokenPruning}

AXES = {
    "family": [*ZOO, *(f"{name}, window {size}" for name in SLIDING for size in (6, 30))],
    "method": list(ALL_METHODS),
    "mode": list(MODES),
    "prompt": PROMPTS,
    "layer": [0, 1, 2, 3],
    "attention": ["sdpa", "eager"],
    "side": ["left", "right"],
    "positions": ["original", "compact"],
}


def parsed(family: str) -> tuple[str, int | None]:
    """A family's name and the size of its sliding window, where the case sets one."""
    name, _, window = family.partition(", window ")
    return name, int(window) if window else None


def possible(case: Case) -> bool:
    """Whether there is such a case; see ``all_pairs``."""
    name, _ = parsed(case.get("family", "internvl"))
    method, layer, mode, prompt = (case.get(axis) for axis in ("method", "layer", "mode", "prompt"))
    in_stages = method in ("pyramiddrop", "tops", "staged", TWICE)
    rules = [
        not (ZOO[name].native and case.get("positions") == "compact"),
        not (method == "visionzip" and layer not in (0, None)),  # merges before the language model
        not (method == "pyramiddrop" and layer == 0),  # needs a layer before
        not (mode == "no cache" and (layer not in (0, None) or in_stages)),  # refused
        # drafts, and a conversation, are of one prompt
        not (mode in ("prompt lookup", "assisted") and prompt not in (*ONE_ROW, None)),
        not (mode and mode.startswith("second turn") and prompt not in (*ONE_ROW, None)),
        # stock cannot compute the positions of a second picture without the first where positions are a grid
        not (ZOO[name].native and mode == "second turn with a picture"),
        # stock mixes up the pictures of a prompt that is repeated
        not (name == "glm4v" and REPEATING & set(MODES[mode or "greedy"]) and "several" in (prompt or "")),
    ]
    return all(rules)


def items(cases: list[Case], smoke: Sequence[Case] = ()) -> list[Any]:
    """Cases as parameters of a test, those of the smoke set marked."""
    parameters = []
    for case in cases:
        marks = [repeats_tiles] if REPEATING & set(MODES[case["mode"]]) else []
        marks += [pytest.mark.smoke] if case in smoke else []
        parameters.append(pytest.param(case, id=identity(case), marks=marks))
    return parameters


def quick(cases: list[Case]) -> list[Case]:
    """A few cases in which every family and every method occurs, without windows, greedy ones before others."""

    def new(case: Case) -> set[str]:
        return {case["family"], case["method"]} & missing

    missing, chosen = {*ZOO, *ALL_METHODS}, []
    while missing:
        chosen.append(max(cases, key=lambda case: (len(new(case)), case["mode"] == "greedy")))
        missing -= new(chosen[-1])
    return chosen


def pruner_of(case: Case, **settings: Any) -> TokenPruner:
    """A recording pruner."""
    method, layer = case["method"], case["layer"]
    if method == "pyramiddrop":
        settings["stages"] = min(4, 5 - layer)
    elif method == "tops":
        settings["stages"] = min(3, 4 - layer)
    elif method == "visionzip":
        settings["contextual_ratio"] = 0.4
    elif method == TWICE:
        settings["first_ratio"] = 0.7
    return recording(ALL_METHODS[method], layer=layer, positions=case["positions"], window=WINDOW, **settings)


def assert_chosen_as_slowly(case: Case, model: PreTrainedModel, inputs: Inputs, pruner: TokenPruner) -> None:
    """The method's slow twin chooses the same tokens from the same evidence; the paper's is given the model itself."""
    firsts: list[tuple[ImageEvidence, list[int]]] = []
    seconds = 0
    if case["method"] in ("ptp", TWICE):
        cuts = len(pruner.cut_layers(len(language_model(model).layers)))
        for image, selection in pruner.seen:
            if image.stage == 0:
                firsts.append((image, selection.kept.tolist()))
                scores = ptp_scores(image)
            else:
                scores = ptp_scores_again(*firsts[seconds], image)
                seconds += 1
            ratio = pruner.keep_ratio if image.stage == cuts - 1 else 0.7
            assert len(selection.kept) == max(1, round(ratio * image.layout.num_unpruned))
            check_ptp(image, scores, selection.kept.tolist())
        assert seconds == (len(firsts) if cuts == 2 else 0)
    if case["method"] == "ptp-paper":
        specimen, layer = ZOO[parsed(case["family"])[0]], case["layer"]
        kept = slow_ptp(specimen, model, inputs, keep_ratio=pruner.keep_ratio, layer=layer, window=WINDOW)
        assert [image.kept.tolist() for image in pruner.report.images] == kept
    merged = any(selection.states is not None for _, selection in pruner.seen)
    assert merged == (case["method"] == "visionzip")
    if case["method"] in SLOW:
        more = {"contextual_ratio": pruner.contextual_ratio} if case["method"] == "visionzip" else {}
        for image, selection in pruner.seen:
            total = max(1, round(pruner.keep_ratio * image.layout.num_tokens))
            check(selection, image, *SLOW[case["method"]](image, total, **more))


CASES = all_pairs(AXES, possible)


@pytest.mark.parametrize("case", items(CASES, quick(CASES)))
@torch.no_grad()
def test_what_was_dropped_is_ignored_and_nothing_else(case):
    (name, window), mode, prompt = parsed(case["family"]), case["mode"], case["prompt"]
    specimen, model = ZOO[name], model_of(name, case["attention"], window)
    inputs, pruner = inputs_of(name, prompt, case["side"]), pruner_of(case, keep_ratio=0.4)
    options = dict(MODES[mode])
    if mode == "assisted":
        options["assistant_model"] = specimen.build(seed=3)
    in_turns = mode.startswith("second turn")
    meaningless = (
        window is not None and not inputs["attention_mask"][:, -1].all()
    )  # generated from padding that sees nothing
    assert_exact(model, inputs, pruner, 0 if in_turns or meaningless else 6, **options)
    assert_chosen_as_slowly(case, model, inputs, pruner)
    if in_turns:
        row = specimen.prompts["batch"][0] if mode.endswith("picture") else ("tell me what you see", [])
        assert_exact_in_a_second_turn(specimen, model, inputs, pruner, row)


SHORT = {**AXES, "mode": ["greedy", "beams"], "side": ["left"]}


@pytest.mark.parametrize("case", items(all_pairs(SHORT, possible)))
@torch.no_grad()
def test_nothing_dropped_is_bit_identical(case):
    (name, window), mode = parsed(case["family"]), case["mode"]
    model, inputs = model_of(name, case["attention"], window), inputs_of(name, case["prompt"])
    assert_untouched(model, inputs, pruner_of(case, keep_ratio=1), **MODES[mode])
