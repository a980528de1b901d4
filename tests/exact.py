"""The one statement of exactness: a pruned model computes what the stock model does that ignores the dropped tokens.

``assert_exact`` says it of a prefill and a generation, ``assert_exact_in_a_second_turn`` of a conversation, and
``assert_untouched`` what is left of it where nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptprune import TokenPruner
from ptprune.attach.static import PrunedStaticLayer
from ptprune.report import PruningReport
from tests.oracle import blocked, language_model
from tests.zoo import Inputs, Specimen
from tests.zoo.pictures import Row

CACHES = {"cache_implementation", "disable_compile", "max_cache_len"}  # how a cache is kept: the stock model has none
SPECULATIVE = {"prompt_lookup_num_tokens", "assistant_model"}  # these change how tokens are found, not which


def recording(method: type[TokenPruner], **settings: Any) -> TokenPruner:
    """A pruner of this method whose ``seen`` lists what it was shown of each image, and what it chose."""

    class Recording(method):  # type: ignore[misc, valid-type]
        def select(self, image: Any) -> Any:
            selection = super().select(image)
            self.__dict__.setdefault("seen", []).append((image, selection))
            return selection

    return Recording(**settings)


@dataclass
class Choice:
    """What was dropped from a prefill, and what was put in the place of kept tokens.

    Attributes:
        layers: before which of them something was dropped.
        stages: for each of them a BoolTensor [batch, prompt], all that was gone from there on.
        states: (row, column) -> the hidden state that the first of the layers got there.
    """

    layers: tuple[int, ...]
    stages: list[Tensor]
    states: dict[tuple[int, int], Tensor]

    @classmethod
    def of(
        cls, pruner: TokenPruner, model: nn.Module, mask: Tensor, copies: int = 1, missing: Tensor | None = None
    ) -> Choice:
        """From what a recording pruner has seen in one prefill.

        Args:
            mask: BoolTensor [batch, prompt], False on padding.
            copies: how often each prompt was repeated, for beams or several returns.
            missing: BoolTensor [batch, prompt], visual tokens that were not encoded: gone before layer 0, so that a
                method sees the columns that are left.
        """
        layers = tuple(pruner.cut_layers(len(language_model(model).layers)))
        seen, stages, left, states = pruner.__dict__["seen"], [], {}, {}
        places = torch.arange(mask.shape[1]).expand(len(mask), -1)
        if missing is not None and missing.any():
            places = columns_left(mask, missing)
        for stage in range(len(layers)):
            gone = stages[-1].clone() if stage else torch.zeros_like(mask)
            for number, (image, selection) in enumerate(entry for entry in seen if entry[0].stage == stage):
                row = image.layout.sample // copies
                where = left[number] if stage else places[row, image.layout.tokens]
                left[number] = where[selection.kept]
                gone[row, where] = True
                gone[row, left[number]] = False
                if selection.states is not None:
                    assert not stage
                    states |= {
                        (row, c): state for c, state in zip(left[number].tolist(), selection.states, strict=True)
                    }
            stages.append(gone & mask)
        if missing is not None and missing.any():
            stages = [stage | missing for stage in stages]
            if layers[0] > 0:
                layers, stages = (0, *layers), [missing, *stages]
        return cls(layers, stages, states)

    def moved(self, before: int, after: int) -> Choice:
        """The same in a longer sequence, with so many columns before the prompt and after it."""
        stages = [F.pad(stage, (before, after)) for stage in self.stages]
        states = {(row, column + before): state for (row, column), state in self.states.items()}
        return Choice(self.layers, stages, states)

    def __or__(self, other: Choice) -> Choice:
        stages = [one | two for one, two in zip(self.stages, other.stages, strict=True)]
        return Choice(self.layers, stages, self.states | other.states)

    def same(self, other: Choice) -> bool:
        return all(map(torch.equal, self.stages, other.stages))


def columns_left(mask: Tensor, missing: Tensor) -> Tensor:
    """LongTensor [batch, longest]: the columns that are left where some are missing; rows of a batch that lose more are
    filled up with the first of those that went, padding among them."""
    gone = missing | ~mask
    gone[:, -1] = False
    length = int((~gone).sum(1).max())
    rows = []
    for row in gone:
        spare = row.nonzero()[:, 0][: length - int((~row).sum())]
        rows.append(torch.cat([(~row).nonzero()[:, 0], spare]).sort().values)
    return torch.stack(rows)


@contextmanager
def ignoring(
    model: nn.Module, choice: Choice, mask: Tensor, ends: Tensor | None = None, compact: bool = False
) -> Iterator[None]:
    """The stock model, made to ignore what was dropped, and given what was merged; see ``tests.oracle.blocked``."""

    def merge(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states = args[0].clone()
        copies = len(states) // len(mask)
        for (row, column), state in choice.states.items():
            states[row * copies : (row + 1) * copies, column] = state.to(states)
        return states, *args[1:]

    with ExitStack() as stack:
        for dropped, layer in zip(choice.stages, choice.layers, strict=True):
            stack.enter_context(blocked(model, dropped, layer, mask, ends, compact))
        if choice.states:
            hook = language_model(model).layers[choice.layers[0]].register_forward_pre_hook(merge)
            stack.callback(hook.remove)
        yield


def assert_exact(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    pruner: TokenPruner,
    tokens: int = 6,
    missing: Tensor | None = None,
    **options: Any,
) -> PruningReport:
    """A prefill and a call of generate() are those of the stock model that ignores what was dropped.

    1. The report names as dropped what the method did not choose, and nothing else.
    2. Logits at kept positions, and in the last column, are the blocked stock model's; dropped positions have none.
    3. This would be noticed: the stock model as it is has other logits, and so it has where what stages drop late is
       gone from the first of them on.
    4. Generated tokens, and where one follows another their logits, are those of the blocked stock model, which has no
       cache; generate() chooses what the prefill chose.
    5. Every layer of the cache holds the longest row's kept tokens and the generated ones but the last.

    Args:
        pruner: a ``recording`` one.
        tokens: how many to generate; none: the prefill alone.
        missing: BoolTensor [batch, prompt], visual tokens that are not encoded.
        options: of generate().
    """
    choice, report = _assert_prefill_exact(model, inputs, pruner, missing)
    if tokens:
        _assert_generation_exact(model, inputs, pruner, choice, report, tokens, missing, options)
    return report


def assert_untouched(
    model: nn.Module, inputs: Mapping[str, Tensor], pruner: TokenPruner, **options: Any
) -> PruningReport:
    """A pruner that keeps everything changes no bit: not of a logit, not of a generated token, not of the cache.

    Args:
        options: of generate().
    """
    asked = {"max_new_tokens": 5, "return_dict_in_generate": True, **options}
    logits, stock = model(**inputs).logits, model.generate(**inputs, **asked)
    with pruner(model):
        assert torch.equal(model(**inputs).logits, logits)
        pruned = model.generate(**inputs, **asked)
    assert torch.equal(pruned.sequences, stock.sequences)
    for mine, theirs in zip(pruned.past_key_values.layers, stock.past_key_values.layers, strict=True):
        assert type(mine) is type(theirs)
        assert torch.equal(mine.keys, theirs.keys)
    report = pruner.report
    assert report is not None
    before, after = report.visual_tokens
    assert before == after > 0
    return report


def dropped_of(report: PruningReport, inputs: Mapping[str, Tensor]) -> Tensor:
    """BoolTensor [batch, prompt], what a report says was dropped, padding not counted."""
    return inputs["attention_mask"].bool() & ~report.kept_mask


def _assert_prefill_exact(
    model: nn.Module, inputs: Mapping[str, Tensor], pruner: TokenPruner, missing: Tensor | None
) -> tuple[Choice, PruningReport]:
    mask, compact = inputs["attention_mask"].bool(), pruner.positions == "compact"
    pruner.__dict__["seen"] = []
    with pruner(model):
        pruned = model(**inputs).logits
    report = pruner.report
    assert report is not None
    choice, kept = Choice.of(pruner, model, mask, missing=missing), report.kept_mask
    dropped = choice.stages[-1]
    assert torch.equal(kept, mask & ~dropped)
    assert dropped.any()
    with ignoring(model, choice, mask, compact=compact):
        stock = model(**inputs).logits
    assert pruned.shape == stock.shape
    assert _difference(pruned, stock, kept) <= 5e-5
    last = kept[:, -1] | (not _sees_less_than(model, mask.shape[1]))  # padding behind a window may see nothing at all
    assert _difference(pruned[:, -1], stock[:, -1], last) <= 5e-5, "generate() reads the last column, be it padding"
    assert not pruned[:, :-1][dropped[:, :-1]].any(), "dropped positions have no logits"
    assert _difference(pruned, model(**inputs).logits, kept) > 1e-3, "the oracle would not notice"
    if len(choice.layers) > 1 and not (missing is not None and torch.equal(choice.stages[0], choice.stages[-1])):
        at_once = Choice(choice.layers[:1], choice.stages[-1:], choice.states)
        with ignoring(model, at_once, mask, compact=compact):
            assert _difference(pruned, model(**inputs).logits, kept) > 1e-4, "the oracle would not notice stages"
    return choice, report


def _difference(one: Tensor, other: Tensor, where: Tensor) -> float:
    return float((one - other)[where].abs().amax().nan_to_num(torch.inf)) if where.any() else 0.0


def _sees_less_than(model: nn.Module, length: int) -> bool:
    """Whether some layers have a window shorter than so many tokens."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and window < length


def _assert_generation_exact(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    pruner: TokenPruner,
    choice: Choice,
    report: PruningReport,
    tokens: int,
    missing: Tensor | None,
    options: Mapping[str, Any],
) -> None:
    mask, compact = inputs["attention_mask"].bool(), pruner.positions == "compact"
    asked = {"max_new_tokens": tokens, "return_dict_in_generate": True, "output_logits": True}
    pruner.__dict__["seen"] = []
    torch.manual_seed(0)
    with pruner(model):
        pruned = model.generate(**inputs, **asked, **options)
    copies = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
    assert Choice.of(pruner, model, mask, copies, missing).same(choice)
    assert pruner.report is not None
    for one, other in zip(pruner.report.images, report.images, strict=True):
        for name, scores in other.scores.items():
            torch.testing.assert_close(one.scores[name], scores, msg="neither copies nor drafts change a score")
    slow = {name: value for name, value in options.items() if name not in SPECULATIVE}
    stock_options = {name: value for name, value in slow.items() if name not in CACHES}
    torch.manual_seed(0)
    with ignoring(model, choice, mask, compact=compact):
        stock = model.generate(**inputs, **asked, **{**stock_options, "use_cache": False})
    assert torch.equal(pruned.sequences, stock.sequences)
    if slow == options and "num_beams" not in options:
        assert (torch.stack(pruned.logits) - torch.stack(stock.logits)).abs().max() <= 1e-4
        if options.get("use_cache", True):
            held = {_held(layer) for layer in pruned.past_key_values.layers}
            longest = max(after for _, after in report.sequence_length)
            assert held == {longest + tokens - 1}, "every layer's cache is cut alike"


def _held(layer: Any) -> int:
    """Tokens that a layer's cache holds. A static one's buffers are as long as in any earlier call of the model."""
    return int(layer.cumulative_length) if isinstance(layer, PrunedStaticLayer) else layer.keys.shape[2]


def assert_exact_in_a_second_turn(
    specimen: Specimen, model: nn.Module, first: Inputs, pruner: TokenPruner, row: Row, **options: Any
) -> None:
    """What is generated for a second turn, on the cache that the first one returned, is what the blocked stock model
    generates for both turns at once.

    Args:
        first: the first turn, one prompt.
        pruner: a ``recording`` one.
        row: the second turn, with a picture or without.
        options: of the first turn's generate().
    """
    mask = first["attention_mask"].bool()
    pruner.__dict__["seen"] = []
    with pruner(model):
        answer = model.generate(**first, max_new_tokens=4, return_dict_in_generate=True, **options)
        choice = Choice.of(pruner, model, mask)
        pruner.__dict__["seen"], report = [], pruner.report
        turn, whole = follow_up(specimen, model, first, answer.sequences, row)
        pruned = model.generate(**turn, past_key_values=answer.past_key_values, max_new_tokens=6)
    length, end = turn["input_ids"].shape[1], mask.shape[1]
    choice = choice.moved(0, length - end)
    ends = torch.full((length,), length)
    ends[:end] = end
    if row[1]:
        assert pruner.report is not report
        assert pruner.report is not None
        kept = pruner.report.kept_mask
        new = Choice.of(pruner, model, torch.ones_like(kept))
        assert torch.equal(kept, ~new.stages[-1])
        choice |= new.moved(length - kept.shape[1], 0)
    with ignoring(model, choice, turn["attention_mask"], ends, pruner.positions == "compact"):
        stock = model.generate(**whole, max_new_tokens=6, use_cache=False)
    assert torch.equal(pruned, stock)


def follow_up(
    specimen: Specimen, model: nn.Module, first: Inputs, sequences: Tensor, row: Row
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inputs of a second turn, and those of both turns at once for a model without a cache."""
    second = specimen.inputs([row])
    new, images = second["input_ids"], bool(row[1])
    turn = {"input_ids": torch.cat([sequences, new], 1)}
    generated = sequences.shape[1] - first["input_ids"].shape[1]
    turn["attention_mask"] = F.pad(first["attention_mask"], (0, generated + new.shape[1]), value=1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in first:
            turn[name] = torch.cat([F.pad(first[name], (0, generated)), second[name]], 1)
    whole = dict(turn)
    for name in first.keys() - turn.keys():
        if not images:
            whole[name] = first[name]
            continue
        turn[name] = second[name]
        parts = [first[name], second[name]]
        if name.startswith("pixel") and specimen.name.startswith("llava"):
            tiles = max(part.shape[1] for part in parts)
            parts = [F.pad(part, (0,) * 7 + (tiles - part.shape[1],)) for part in parts]
        whole[name] = torch.cat(parts, dim=1 if specimen.name in ("idefics3", "smolvlm") else 0)
    return turn, whole
