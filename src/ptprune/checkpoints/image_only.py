"""Processors without their video part, which is what needs torchvision."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn, TypeAlias

from ptprune.errors import UnsupportedModel

#: A class of transformers' processors, and one of them. Their attributes have no useful static types.
ProcessorClass: TypeAlias = Any
Processor: TypeAlias = Any

VIDEO = "video_processor"


@cache
def image_only(processor_class: ProcessorClass) -> ProcessorClass:
    """A processor class without its video part; the class itself if it has none.

    Same inputs and same outputs for pictures and text, and the same name, under which it saves itself. All parameters
    of the constructor stay; give None for ``video_processor`` or leave it out.

    Raises:
        UnsupportedModel: for a class whose video part is not the last of its parts.
    """
    parts = processor_class.get_attributes()
    if VIDEO not in parts:
        return processor_class
    if parts[-1] != VIDEO:  # the base class takes its parts by place
        raise UnsupportedModel(
            f"{processor_class.__name__}: the video processor must be the last of {', '.join(parts)}"
        )

    class ImageOnly(processor_class):
        video_processor = NoVideo()

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

        @classmethod
        def from_args_and_dict(cls, args: Sequence[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Processor:
            rest = {name: value for name, value in processor_dict.items() if name != VIDEO}
            with _without_num2words(processor_class):
                return super().from_args_and_dict([*args, None], rest, **kwargs)

    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(ImageOnly, attribute, getattr(processor_class, attribute))
    return ImageOnly


class NoVideo:
    """Stands where a video processor would: processors look up its settings even where there is no video."""

    num_frames = fps = None

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError("videos need torchvision: this processor was loaded without its video part")


@contextmanager
def _without_num2words(processor_class: ProcessorClass) -> Iterator[None]:
    """SmolVLM's constructor asks for this package, which only writes out how many frames a video has."""
    module: Any = sys.modules[processor_class.__module__]
    if getattr(module, "num2words", True) is not None:
        yield
        return
    module.num2words = NoVideo()
    try:
        yield
    finally:
        module.num2words = None
