"""The supported model families by name."""

from __future__ import annotations

from ptprune.families.base import Family, Model
from ptprune.families.internvl import InternVL

FAMILIES: dict[str, type[Family]] = {family.name: family for family in (InternVL,)}

# Known, and why they are not there.
UNSUPPORTED = {
    "MllamaForConditionalGeneration": "its language model reads the image through cross-attention, so there are no "
    "visual tokens in the prompt to drop",
    "OptimizedModule": "the model is wrapped by torch.compile: attach to the model itself (`compiled._orig_mod`)",
    "DistributedDataParallel": "attach to the wrapped model (`model.module`)",
    "DataParallel": "attach to the wrapped model (`model.module`)",
}


def family_of(model: Model) -> type[Family]:
    """The family of a model.

    Raises:
        TypeError: where no family supports the model, with the list of those that are supported.
    """
    classes = [cls.__name__ for cls in type(model).__mro__]
    for family in FAMILIES.values():
        if family.model_class in classes:
            return family
    reason = next((f": {UNSUPPORTED[name]}" for name in classes if name in UNSUPPORTED), "")
    supported = ", ".join(family.model_class for family in FAMILIES.values())
    raise TypeError(f"{classes[0]} is not supported{reason}. Supported: {supported}")


__all__ = ["FAMILIES", "Family", "family_of"]
