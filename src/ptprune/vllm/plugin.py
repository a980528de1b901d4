"""vLLM's door to this package: the entry point of ``vllm.general_plugins``, called in every process of a server."""

from __future__ import annotations

import functools
from typing import Any

from ptprune.vllm.settings import SETTING, pruner_of

# The architectures that a checkpoint may name; "Pruned" and the name is the class that serves it pruned.
SERVED = ("InternVLForConditionalGeneration", "InternVLChatModel")


def register() -> None:
    """Let models whose configuration holds "ptprune" be served by their pruned class. May be called repeatedly.

    The stock classes stay where they are: without the setting vLLM finds what it would find without this package.
    """
    from vllm import ModelRegistry

    inspect = ModelRegistry.inspect_model_cls
    if hasattr(inspect, "ptprune"):
        return
    for architecture in SERVED:  # imported where it is needed
        ModelRegistry.register_model(f"Pruned{architecture}", f"ptprune.vllm.internvl:Pruned{architecture}")

    # The first that vLLM asks of a configuration it has read, and the only place that it passes for every model: here
    # the architecture is replaced, or refused.
    @functools.wraps(inspect)
    def inspect_model_cls(architectures: Any, model_config: Any) -> Any:
        settings = getattr(model_config.hf_config, SETTING, None)
        if settings is None:
            return inspect(architectures, model_config)
        chosen = pruned_class(settings, model_config)
        model_config.hf_config.architectures = [chosen]  # what the model loader reads
        return inspect([chosen], model_config)

    inspect_model_cls.ptprune = True  # type: ignore[attr-defined]
    ModelRegistry.inspect_model_cls = inspect_model_cls


def pruned_class(settings: Any, model_config: Any) -> str:
    """The registered name of the class that serves a model pruned.

    Raises:
        ValueError: on settings that cannot be served, or a model that cannot be pruned here.
    """
    pruner_of(settings)
    architectures = model_config.hf_config.architectures or []
    for architecture in architectures:
        if architecture.removeprefix("Pruned") in SERVED:
            if architecture not in SERVED:
                return str(architecture)
            if model_config.model_impl not in ("auto", "vllm"):
                raise ValueError(
                    f"ptprune: --model-impl {model_config.model_impl} cannot be pruned, leave it at 'auto' or 'vllm'"
                )
            return f"Pruned{architecture}"
    raise ValueError(
        f"ptprune: {', '.join(architectures) or 'a model without architecture'} cannot be pruned in vLLM. "
        f"Supported: {', '.join(SERVED)}"
    )
