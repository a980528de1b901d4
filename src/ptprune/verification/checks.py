"""The guarantees, one check each: a pruned model against the stock one that is made to ignore the same tokens.

Greedy answers need no second generation: the stock model reads the pruned model's answer in one pass, and each of its
tokens must be the one that the stock model would have written there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ptprune.conventions import MASK, cache_of, keep_cache
from ptprune.families import family_of
from ptprune.families.base import Model
from ptprune.methods import PyramidTokenPruning
from ptprune.report import PruningReport
from ptprune.verification.prompts import FOLLOW_UP, IDS, grown, real
from ptprune.verification.stock import apart, blocked, bound, implementation, logits

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what was compared.
        result: "inconclusive" where the oracle would not notice if nothing were dropped.
        deviation: the largest difference of two logits, where logits are compared.
        bound: the largest one that passes.
        reason: why it is not "ok", or what else is worth knowing.
    """

    name: str
    result: Literal["ok", "FAIL", "not supported", "inconclusive"]
    deviation: float | None = None
    bound: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Verification:
    """All checks of a model, in plain types.

    Attributes:
        model: its class.
        versions: of python, torch, transformers and this package.
        noise: differences between logits of the stock model itself, by what was varied; see ``stock``.
    """

    model: str
    versions: dict[str, str]
    device: str
    dtype: str
    attention: str
    noise: dict[str, float]
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether no check failed or was inconclusive, and at least one was ok."""
        results = {check.result for check in self.checks}
        return "ok" in results and not results & {"FAIL", "inconclusive"}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "passed": self.passed}


@dataclass
class Examination:
    """What all checks of a model share; ``noise`` is the stock model's own, ``new_tokens`` the length of answers."""

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
                    found.append(_run(title, check, inputs, layer))
        return [*found, _run("the model is left as it was", self._untouched, one, before, stock)]

    def _generate(self, inputs: Inputs, **more: Any) -> Any:
        options = {"max_new_tokens": self.new_tokens, "do_sample": False, "num_beams": 1}
        with torch.no_grad():
            return self.model.generate(**inputs, **options, return_dict_in_generate=True, output_logits=True, **more)

    def _pruned(self, layer: int, compute: Callable[[], Any]) -> tuple[Any, PruningReport]:
        """What is computed while the model is pruned, and the report of its prefill."""
        pruner = self._pruner(layer)
        with pruner(self.model):
            result = compute()
        if pruner.report is None:
            raise ValueError("the prompt was not pruned: no picture was recognised in it")
        return result, pruner.report

    def _identity(self, inputs: Inputs, layer: int) -> Check:
        stock, answer = logits(self.model, inputs), self._generate(inputs)
        limit = apart(logits(self.model, inputs), stock)  # 0, but for kernels that do not repeat
        # this one scores and chooses too; at ratio 1 there would be nothing to check but that nothing is done
        with PyramidTokenPruning(coverage=1.0, coverage_bounds=(1.0, 1.0), layer=layer)(self.model):
            deviation = apart(logits(self.model, inputs), stock)
        with PyramidTokenPruning(keep_ratio=1.0, layer=layer)(self.model):
            deviation = max(deviation, apart(logits(self.model, inputs), stock))
            same = self._generate(inputs)
        if not deviation <= limit:
            return Check("", "FAIL", deviation, limit, "the logits differ")
        if limit > 0:
            return Check("", "ok", deviation, limit, "the stock model does not repeat itself to the last bit either")
        if not torch.equal(same.sequences, answer.sequences):
            return Check("", "FAIL", reason="the generated tokens differ")
        return Check("", "ok", 0.0, 0.0)

    def _sizes(self, inputs: Inputs, layer: int) -> Check:
        answer, report = self._pruned(layer, lambda: self._generate(inputs))
        for number, image in enumerate(report.images):
            wanted = max(1, round(self.keep_ratio * image.num_tokens))
            if len(image.kept) != wanted:
                reason = f"{len(image.kept)} of {image.num_tokens} tokens of picture {number + 1} stay, not {wanted}"
                return Check("", "FAIL", reason=reason)
        cache = cache_of(answer)
        held = {part.keys.shape[2] for part in cache.layers}
        right = int(report.kept_mask.sum()) + cache.get_seq_length() - inputs[IDS].shape[1]
        if held != {right}:
            return Check("", "FAIL", reason=f"layers of the cache hold {sorted(held)} tokens, not {right}")
        return Check("", "ok", reason=str(report))

    def _prefill(self, inputs: Inputs, layer: int) -> Check:
        pruned, report = self._pruned(layer, lambda: logits(self.model, inputs))
        kept = report.kept_mask[:, -pruned.shape[1] :].to(pruned.device)
        stock = self._stock(inputs, report, layer)
        return self._compare(pruned[kept], stock[kept], logits(self.model, inputs)[kept])

    def _answer(self, inputs: Inputs, layer: int) -> Check:
        answer, report = self._pruned(layer, lambda: self._generate(inputs))
        return self._follow(inputs, answer, report, layer)

    def _second_turn(self, inputs: Inputs, layer: int) -> Check:
        question = self.processor.tokenizer(FOLLOW_UP, add_special_tokens=False, return_tensors="pt")[IDS]

        def two_turns() -> tuple[Inputs, Any]:
            first = self._generate(inputs)
            asked = question.to(first.sequences).expand(len(first.sequences), -1)
            turn = grown(inputs, torch.cat([first.sequences, asked], dim=1))
            text = {name: value for name, value in turn.items() if name in (IDS, MASK) or name.endswith("type_ids")}
            return turn, self._generate(text, **keep_cache(self.model, cache_of(first)))

        (turn, second), report = self._pruned(layer, two_turns)
        return self._follow(turn, second, report, layer)

    def _stock(self, inputs: Inputs, report: PruningReport, layer: int) -> Tensor:
        """Logits of the stock model that ignores what was dropped."""
        if "flash" in (name := implementation(self.model)):
            raise _NotSupported(f"{name} takes no mask that hides single tokens: verify with --attention sdpa too")
        layers = self._pruner(layer).cut_layers(len(family_of(self.model).decoder(self.model).layers))
        masks = [mask.to(inputs[IDS].device) for mask in (*report.earlier_masks, report.kept_mask)]
        dropped = [real(inputs)[:, : mask.shape[1]] & ~mask for mask in masks]
        if not bool(dropped[-1].any()):
            raise ValueError("nothing was dropped, so there is nothing to compare")
        with ExitStack() as cuts:
            for gone, before in zip(dropped, layers, strict=False):  # a cut that has nothing to drop leaves no mask
                cuts.enter_context(blocked(self.model, gone, real(inputs), before))
            return logits(self.model, inputs)

    def _pruner(self, layer: int) -> PyramidTokenPruning:
        return PyramidTokenPruning(keep_ratio=self.keep_ratio, layer=layer)

    def _follow(self, inputs: Inputs, answer: Any, report: PruningReport, layer: int) -> Check:
        """Compare the steps of what generate() returned for a prompt, with all its earlier turns, with the stock model
        that reads prompt and answer at once."""
        whole = grown(inputs, answer.sequences)
        stock, free = self._stock(whole, report, layer), logits(self.model, whole)
        pruned = torch.stack([step.float() for step in answer.logits], dim=1)
        # the last step's logits foretell the last column, which the stock model's do for the one after it
        expected, unpruned = (seen[:, -1 - pruned.shape[1] : -1] for seen in (stock, free))
        found = self._compare(pruned, expected, unpruned)
        other = pruned.argmax(-1) != expected.argmax(-1)
        if found.result != "ok" or not bool(other.any()):
            return found
        top = expected.topk(2, dim=-1).values
        margin = (top[..., 0] - top[..., 1])[other].max().item()
        if found.bound is not None and margin > 2 * found.bound:
            return replace(found, result="FAIL", reason="another token is the likeliest")
        return replace(found, reason="two tokens tie within the noise")

    def _compare(self, pruned: Tensor, stock: Tensor, free: Tensor) -> Check:
        """Logits against the stock model's that ignores tokens; ``free`` are those of the one that does not."""
        limit = bound(self.noise, stock, next(self.model.parameters()).dtype)
        deviation, effect = apart(pruned, stock), apart(stock, free)
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
        deviation, limit = apart(now, stock), apart(logits(self.model, inputs), now)
        return Check("", "ok" if deviation <= limit else "FAIL", deviation, limit)


class _NotSupported(Exception):
    """This model, or what it runs on, has no way to do what a check needs."""


def _run(name: str, check: Callable[..., Check], *what: Any) -> Check:
    """The check's row, whatever happens in it. What the pruner refuses fails: these calls it has to take."""
    try:
        return replace(check(*what), name=name)
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
