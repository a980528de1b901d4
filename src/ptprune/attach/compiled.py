"""Refuses compiled models: hooks, and a prompt that gets shorter half-way, do not work in a compiled graph.

Attaching detects parts and wrappers that are compiled by then; a call detects later ones. Each check raises
``AttachError``, naming the first part.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ptprune.attach.cache import Pruned
from ptprune.attach.static import PrunedStaticLayer, needs_pass
from ptprune.conventions import CACHE, ENCODED, MASK, PIXELS
from ptprune.errors import AttachError

REFUSAL = "the model is compiled while a pruner is attached: detach it, or call the model uncompiled"


def check_not_compiled(model: nn.Module) -> None:
    """Refuse a model if a part of it is compiled, or if a compiled model wraps it."""
    check_parts(model.named_modules())
    utils: Any = sys.modules.get("torch._dynamo.utils")
    compiled = utils is not None and bool(utils.counters.get("frames"))
    # the search for wrappers takes tens of milliseconds: it is skipped where this process compiled nothing
    if compiled and any(
        isinstance(holder, dict) and holder.get("_orig_mod") is model for holder in gc.get_referrers(model)
    ):
        raise AttachError(
            f"{type(model).__name__} is compiled: torch.compile made a wrapper around it. Delete the wrapper, or "
            "attach to a model that is not compiled"
        )


def check_parts(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """Refuse parts that are compiled by themselves."""
    for name, module in modules:
        if getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule":
            raise AttachError(
                f"{name or type(module).__name__} is compiled: hooks do not run inside a compiled graph. Attach to a "
                "model that is not compiled"
            )


def check_not_compiling() -> None:
    """Refuse a call inside a compiled model that fell back to eager mode."""
    frames: Any = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    callback = getattr(frames, "get_eval_frame_callback", lambda: None)()  # set where new Python frames are intercepted
    if callback not in (None, False):
        raise AttachError(REFUSAL)


def check_outer(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Nothing: the multimodal part is called by the model, and checks more."""


def check_traced(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a call of the multimodal part in a graph that is traced, if it needs hooks. Plain enough to be traced."""
    if len(args) > 1 or kwargs.get(PIXELS) is not None or (kwargs.get(ENCODED) or {}).get("image") is not None:
        raise AttachError(REFUSAL)
    cache: Any = None
    for name in CACHE:
        if kwargs.get(name) is not None:
            cache = kwargs[name]
    if cache is None or len(cache.layers) == 0 or not isinstance(cache.layers[0], Pruned):
        return
    if not isinstance(cache.layers[0], PrunedStaticLayer):
        raise AttachError(REFUSAL)
    if needs_pass(cache, kwargs.get(MASK)):
        raise AttachError(
            "a compiled step over a pruned static cache takes the mask that prepare_inputs_for_generation() makes, or "
            "none where prompts are not padded and the model has no sliding window"
        )
