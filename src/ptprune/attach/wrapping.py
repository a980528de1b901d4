"""Put a wrapper around a method of one instance, and take it off again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn
from weakref import WeakKeyDictionary, ref

import torch

from ptprune.errors import AttachError

Traced = Callable[[tuple[Any, ...], dict[str, Any]], None]


class Wrapped:
    """Stands in an instance for a method of its: calls ``wrapper(original, *args, **kwargs)``.

    Signature and docstring are those of the original, because generate() reads them. A copy of the instance would share
    this object, and through it call the instance that it was copied from: copying and pickling are refused.

    In a graph that is traced only a check is made, and the original is called. A graph knows this object by its
    identity: the one that was taken off an instance is put on it again, or each ``with`` block compiles anew. Until
    then it holds nothing of the instance.
    """

    __signature__: inspect.Signature
    _resting: WeakKeyDictionary[Any, dict[str, Wrapped]] = WeakKeyDictionary()

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = ref(owner), name
        self._traced: Traced | None = None
        self._own: Any = None
        self._work: tuple[Any, Any] | None = None  # the original and the wrapper, in one: threads may call meanwhile

    @classmethod
    def on(cls, owner: Any, name: str, wrapper: Callable[..., Any], traced: Traced | None) -> Wrapped:
        """Put one on an instance."""
        self = cls._resting.get(owner, {}).pop(name, None) or cls(owner, name)
        original = getattr(owner, name)
        self._own, self._traced, self._work = owner.__dict__.get(name), traced, (original, wrapper)
        functools.update_wrapper(self, original)
        self.__signature__ = inspect.signature(original)  # worked out once: generate() asks in every call
        setattr(owner, name, self)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._traced is not None and torch.compiler.is_compiling():
            assert self._work is not None
            self._traced(args, kwargs)
            return self._work[0](*args, **kwargs)
        original, wrapper = self._work or (getattr(self._owner(), self._name), None)
        return original(*args, **kwargs) if wrapper is None else wrapper(original, *args, **kwargs)

    def remove(self) -> None:
        """Take the wrapper off. Where somebody has wrapped the method again since, it cannot be taken out of the
        middle: it stays, and only calls the original."""
        owner = self._owner()
        if owner is None or self._work is None:
            return
        if owner.__dict__.get(self._name) is not self:
            self._work = self._work[0], None
            return
        if self._own is not None:
            setattr(owner, self._name, self._own)
        else:
            delattr(owner, self._name)
        self._work = self._work[0], None
        if self._traced is not None:
            self._work = self._own = None
            del self.__wrapped__
            self._resting.setdefault(owner, {})[self._name] = self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise AttachError(
            f"{type(self._owner()).__name__} has a pruner attached: detach it before you copy, quantize or save the "
            "whole model (state_dict() and save_pretrained() are fine)"
        )


def wrap(owner: Any, name: str, wrapper: Callable[..., Any], traced: Traced | None = None) -> Callable[[], None]:
    """Put a wrapper around a method of an instance. Returns a function that takes it off.

    Args:
        traced: what checks the positional and keyword arguments of a call in a graph that is traced, where the wrapper
            is passed by; None: the wrapper is not passed by.
    """
    return Wrapped.on(owner, name, wrapper, traced).remove
