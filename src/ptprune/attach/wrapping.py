"""Put a wrapper around a method of one instance, and take it off again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn

from ptprune.errors import AttachError


class Wrapped:
    """Stands in an instance for a method of its: calls ``wrapper(original, *args, **kwargs)``.

    Signature and docstring are those of the original, because generate() reads them. A copy of the instance would share
    this object, and through it call the instance that it was copied from: copying and pickling are refused.
    """

    def __init__(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        self._owner, self._name, self._wrapper = owner, name, wrapper
        self._original, self._own = getattr(owner, name), owner.__dict__.get(name)
        self._at_work = True
        functools.update_wrapper(self, self._original)
        self.__signature__ = inspect.signature(self._original)  # worked out once: generate() asks in every call
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._at_work:
            return self._original(*args, **kwargs)
        return self._wrapper(self._original, *args, **kwargs)

    def remove(self) -> None:
        """Take the wrapper off. Where somebody has wrapped the method again since, it cannot be taken out of the
        middle: it stays, and only calls the original."""
        self._at_work = False
        outermost = self._owner.__dict__.get(self._name) is self
        if outermost and self._own is not None:
            setattr(self._owner, self._name, self._own)
        elif outermost:
            delattr(self._owner, self._name)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise AttachError(
            f"{type(self._owner).__name__} has a pruner attached: detach it before you copy, quantize or save the "
            "whole model (state_dict() and save_pretrained() are fine)"
        )


def wrap(owner: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Put a wrapper around a method of an instance. Returns a function that takes it off."""
    return Wrapped(owner, name, wrapper).remove
