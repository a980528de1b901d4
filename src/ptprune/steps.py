"""How methods run: in steps, so that what the images of a batch wait for is done once for all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ptprune.selection import Selection


@dataclass(frozen=True, eq=False)
class Joint:
    """Work on the tensors of one image that costs no more operations for several images.

    Attributes:
        function: takes the tensors and the settings and returns a Tensor or a tuple of Tensors. For several images
            each tensor, as each result, is [images, ...]; no image may change what another one gets.
        tensors: of this image. Images whose tensors have the same shapes, and whose settings are equal, are joined.
    """

    function: Callable[..., Any]
    tensors: Sequence[Tensor]
    settings: Mapping[str, Any]

    @property
    def alike(self) -> tuple[Any, ...]:
        shapes = ((tensor.shape, tensor.dtype, tensor.device) for tensor in self.tensors)
        return (self.function, *shapes, *sorted(self.settings.items()))


Steps = Generator[Sequence[Tensor] | Joint, Any, Selection]
"""See ``TokenPruner.steps``."""


def joint(function: Callable[..., Any], *tensors: Tensor, **settings: Any) -> Generator[Joint, Any, Any]:
    """A part of ``TokenPruner.steps`` (``yield from``): the function's result for this image, see ``Joint``."""
    return (yield Joint(function, tensors, settings))


def finish(runs: Sequence[Steps]) -> list[Selection]:
    """Run generators side by side: joint work first, then one read from the device for all that need numbers."""
    done: dict[int, Selection] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(runs)))
    while answers:
        waiting: dict[int, Sequence[Tensor]] = {}
        while answers:
            joints: dict[int, Joint] = {}
            for number, answer in answers.items():
                try:
                    asked = runs[number].send(answer)
                except StopIteration as stop:
                    done[number] = stop.value
                    continue
                if isinstance(asked, Joint):
                    joints[number] = asked
                else:
                    waiting[number] = asked
            answers = _together(joints)
        tensors = [tensor for wanted in waiting.values() for tensor in wanted]
        read = iter(torch.cat(tensors).tolist() if tensors else ())
        answers = {number: [list(islice(read, len(tensor))) for tensor in wanted] for number, wanted in waiting.items()}
    return [done[number] for number in range(len(runs))]


def _together(joints: Mapping[int, Joint]) -> dict[int, Any]:
    """Each image's result, from one call of the function for all that are alike."""
    groups = defaultdict(list)
    for number, each in joints.items():
        groups[each.alike].append(number)
    answers: dict[int, Any] = {}
    for numbers in groups.values():
        first = joints[numbers[0]]
        if len(numbers) == 1:
            answers[numbers[0]] = first.function(*first.tensors, **first.settings)
            continue
        columns = zip(*(joints[number].tensors for number in numbers), strict=True)
        results = first.function(*map(torch.stack, columns), **first.settings)
        single = isinstance(results, Tensor)
        parts = results if single else zip(*results, strict=True)
        answers.update(zip(numbers, parts, strict=True))
    return answers
