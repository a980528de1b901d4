"""The guarantees, one check each: a pruned model against the stock one that is made to ignore the same tokens.

Greedy answers need no second generation: the stock model reads the pruned model's answer in one pass, and each of its
tokens must be the one that the stock model would have written there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ptprune.conventions import MASK, cache_of, keep_cache
from ptprune.families.base import Model
from ptprune.methods import PyramidTokenPruning
from ptprune.report import PruningReport
from ptprune.verification.noise import bound, implementation, logits
from ptprune.verification.outcome import Check
from ptprune.verification.prompts import IDS, follow_up, grown, real
from ptprune.verification.stock import blocked

Inputs = dict[str, Tensor]


@dataclass
class Examination:
    """What all checks of a model share.

    Attributes:
        noise: of the stock model, see ``noise``.
        new_tokens: length of answers.
    """

    model: Model
    processor: Any
    noise: dict[str, float]
    new_tokens: int
    keep_ratio: float

    def checks(self, one: Inputs, two: Inputs | None, why_no_two: str) -> list[Check]:
        """All checks, each for itself: one that fails does not stop the others.

        Args:
            one: a prompt with a picture.
            two: a batch of two with padding; None where ``why_no_two`` says why there is none.
        """
        before, stock = traces(self.model), logits(self.model, one)
        found = []
        for name, check, inputs in (
            ("ratio 1: bit-identical", self._identity, one),
            ("exact budgets and caches", self._sizes, one),
            ("logits", self._prefill, one),
            ("greedy answer", self._answer, one),
            ("batch of two with padding", self._answer, two),
            ("second turn", self._second_turn, one),
        ):
            for layer in (0, PyramidTokenPruning().layer):
                title = f"{name}, layer {layer}"
                if inputs is None:
                    found.append(Check(title, "not supported", reason=why_no_two))
                else:
                    found.append(_run(title, functools.partial(check, inputs, layer)))
        found.append(_run("the model is left as it was", functools.partial(self._untouched, one, before, stock)))
        return found

    def _generate(self, inputs: Inputs, **more: Any) -> Any:
        options = {"max_new_tokens": self.new_tokens, "do_sample": False, "num_beams": 1}
        with torch.no_grad():
            return self.model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True, **more)

    def _pruner(self, layer: int, keep_ratio: float | None = None) -> PyramidTokenPruning:
        return PyramidTokenPruning(keep_ratio=self.keep_ratio if keep_ratio is None else keep_ratio, layer=layer)

    def _identity(self, inputs: Inputs, layer: int) -> Check:
        stock, answer = logits(self.model, inputs), self._generate(inputs)
        limit = (logits(self.model, inputs) - stock).abs().max().item()  # 0, but for kernels that do not repeat
        with self._pruner(layer, 1.0)(self.model):
            pruned, same = logits(self.model, inputs), self._generate(inputs)
        deviation = (pruned - stock).abs().max().item()
        if not deviation <= limit:
            return Check("", "FAIL", deviation, limit, "the logits differ")
        if limit > 0:
            return Check("", "ok", deviation, limit, "the stock model does not repeat itself to the last bit either")
        if not torch.equal(same.sequences, answer.sequences):
            return Check("", "FAIL", reason="the generated tokens differ")
        return Check("", "ok", 0.0, 0.0)

    def _sizes(self, inputs: Inputs, layer: int) -> Check:
        pruner = self._pruner(layer)
        with pruner(self.model):
            cache = cache_of(self._generate(inputs))
        report = _report_of(pruner)
        for number, image in enumerate(report.images):
            wanted = max(1, round(self.keep_ratio * image.num_tokens))
            if len(image.kept) != wanted:
                reason = f"{len(image.kept)} of {image.num_tokens} tokens of picture {number + 1} stay, not {wanted}"
                return Check("", "FAIL", reason=reason)
        held = [part.keys.shape[2] for part in cache.layers]
        seen, before = cache.get_seq_length(), inputs[IDS].shape[1]
        right = int(report.kept_mask.sum()) + seen - before
        if {*held} != {right}:
            return Check("", "FAIL", reason=f"layers of the cache hold {sorted({*held})} tokens, not {right}")
        return Check("", "ok", reason=str(report))

    def _prefill(self, inputs: Inputs, layer: int) -> Check:
        pruner = self._pruner(layer)
        with pruner(self.model):
            pruned = logits(self.model, inputs)
        report = _report_of(pruner)
        kept = report.kept_mask[:, -pruned.shape[1] :].to(pruned.device)
        stock = self._stock(inputs, report, layer)
        return self._compare(pruned[kept], stock[kept], logits(self.model, inputs)[kept])

    def _answer(self, inputs: Inputs, layer: int) -> Check:
        pruner = self._pruner(layer)
        with pruner(self.model):
            answer = self._generate(inputs)
        whole = grown(inputs, answer.sequences)
        return self._follow(whole, _report_of(pruner), layer, inputs[IDS].shape[1], answer)

    def _second_turn(self, inputs: Inputs, layer: int) -> Check:
        pruner = self._pruner(layer)
        with pruner(self.model):
            first = self._generate(inputs)
            report = _report_of(pruner)
            turn = grown(inputs, follow_up(self.processor, first.sequences))
            text = {name: value for name, value in turn.items() if name in (IDS, MASK) or name.endswith("type_ids")}
            second = self._generate(text, **keep_cache(self.model, cache_of(first)))
        whole = grown(inputs, second.sequences)
        return self._follow(whole, report, layer, turn[IDS].shape[1], second)

    def _stock(self, inputs: Inputs, report: PruningReport, layer: int) -> Tensor:
        """Logits of the stock model that ignores what was dropped."""
        if "flash" in (name := implementation(self.model)):
            raise _NotSupported(f"{name} takes no mask that hides single tokens: verify with --attention sdpa too")
        dropped = real(inputs)[:, : report.kept_mask.shape[1]] & ~report.kept_mask.to(inputs[IDS].device)
        if not bool(dropped.any()):
            raise ValueError("nothing was dropped, so there is nothing to compare")
        with blocked(self.model, dropped, real(inputs), layer):
            return logits(self.model, inputs)

    def _follow(self, whole: Inputs, report: PruningReport, layer: int, start: int, answer: Any) -> Check:
        """Compare the steps of an answer with the stock model that reads prompt and answer at once.

        Args:
            start: the column of the answer's first token.
            answer: what generate() returned.
        """
        stock, free = self._stock(whole, report, layer), logits(self.model, whole)
        first = start - 1 - (whole[IDS].shape[1] - stock.shape[1])  # where the first token was foretold
        pairs = [(step, stock[:, at], free[:, at]) for at, step in enumerate(answer.logits, start=first)]
        pruned, expected, unpruned = (torch.stack([pair[place].float() for pair in pairs]) for place in range(3))
        found = self._compare(pruned, expected, unpruned)
        if found.result != "ok":
            return found
        other = pruned.argmax(-1) != expected.argmax(-1)
        if not bool(other.any()):
            return found
        top = expected.topk(2, dim=-1).values
        margin = (top[..., 0] - top[..., 1])[other].max().item()
        if found.bound is not None and margin > 2 * found.bound:
            return Check("", "FAIL", found.deviation, found.bound, "another token is the likeliest")
        return Check("", "ok", found.deviation, found.bound, "two tokens tie within the noise")

    def _compare(self, pruned: Tensor, stock: Tensor, free: Tensor) -> Check:
        """Logits against the stock model's that ignores tokens; ``free`` are those of the one that does not."""
        limit = bound(self.noise, stock, next(self.model.parameters()).dtype)
        deviation, effect = (pruned - stock).abs().max().item(), (stock - free).abs().max().item()
        if not deviation <= limit:  # NaN fails too
            return Check("", "FAIL", deviation, limit, "the pruned model computes something else")
        if effect <= 2 * limit:
            reason = f"ignoring the tokens changes the stock model by {effect:.2g} only, which would not be noticed"
            return Check("", "inconclusive", deviation, limit, reason)
        return Check("", "ok", deviation, limit)

    def _untouched(self, inputs: Inputs, before: dict[str, Any], stock: Tensor) -> Check:
        if traces(self.model) != before:
            return Check("", "FAIL", reason="attributes or hooks were left behind")
        now = logits(self.model, inputs)
        deviation, limit = (now - stock).abs().max().item(), (logits(self.model, inputs) - now).abs().max().item()
        return Check("", "ok" if deviation <= limit else "FAIL", deviation, limit)


class _NotSupported(Exception):
    """This model, or what it runs on, has no way to do what a check needs."""


def _run(name: str, check: Callable[[], Check]) -> Check:
    """The check's row, whatever happens in it. What the pruner refuses fails: these calls it has to take."""
    try:
        return replace(check(), name=name)
    except _NotSupported as error:
        return Check(name, "not supported", reason=str(error))
    except Exception as error:  # it is what the user would meet
        return Check(name, "FAIL", reason=" ".join(f"{type(error).__name__}: {error}".split()))


def traces(model: nn.Module) -> dict[str, Any]:
    """Everything that a pruner could leave behind: attributes, configurations and hooks of every module."""
    return {
        name: (
            frozenset(key for key in module.__dict__ if not key.startswith("_")),
            id(module.__dict__.get("config")),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    }


def _report_of(pruner: PyramidTokenPruning) -> PruningReport:
    report = pruner.report
    if report is None:
        raise ValueError("the prompt was not pruned: no picture was recognised in it")
    return report
