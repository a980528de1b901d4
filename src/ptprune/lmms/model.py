"""``lmms_eval --model ptprune --model_args pretrained=...,keep_ratio=0.5,method=ptp``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmms_eval.api.instance import Instance
from loguru import logger

from ptprune.asking.loaded import LoadedModel
from ptprune.bench.candidates import NO_PRUNING
from ptprune.bounds import MAX_BATCH, MAX_TILES
from ptprune.checkpoints import Checkpoint, choose_dtype
from ptprune.errors import PtpruneError, SettingError
from ptprune.lmms.processes import own_device, processes
from ptprune.lmms.respondent import Respondent
from ptprune.methods import make_pruner
from ptprune.pruner import TokenPruner

NAMES = {"model": "pretrained", "attention": "attn_implementation", "batch_size": "--batch_size"}
"""Names of settings on lmms-eval's command line, where they differ from ours."""


class Failed(BaseException):
    """An error while loading or answering. No Exception: lmms-eval's command catches those and leaves with status 0."""


class LmmsModel(Respondent):
    """The model that lmms-eval builds from ``--model_args``.

    Raises:
        SystemExit: status 2 after one line on standard error, where something is wrong with these.
    """

    def __init__(
        self,
        pretrained: str | None = None,  # checkpoint directory or Hub name; None for the small one that ships
        method: str = "ptp",  # a name of ``METHODS``, or "none"
        keep_ratio: float | None = None,  # share of visual tokens that stay; None for the method's default
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str = "auto",  # or "float32", "bfloat16", "float16"
        attn_implementation: str | None = None,  # None for the model's own choice
        max_tiles: int | None = None,  # most a picture, thumbnail not counted; None for the checkpoint's own choice
        **settings: Any,  # any other field of the method
    ) -> None:
        with loudly():
            for name, value, most in (("batch_size", batch_size, MAX_BATCH), ("max_tiles", max_tiles, MAX_TILES)):
                if value is not None and str(value) not in map(str, range(1, most + 1)):
                    raise SettingError(f"{name} {value}: give a whole number from 1 to {most}")
            pruner = choose_pruner(method, {"keep_ratio": keep_ratio, **settings})
            loaded = LoadedModel.load(
                Checkpoint.find(pretrained),
                own_device(device or "auto"),
                choose_dtype(dtype),
                attention=attn_implementation,
                batch=int(batch_size),
                max_tiles=max_tiles and int(max_tiles),
            )
            loaded.check_pruners([pruner])
            super().__init__(loaded, pruner)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        with loudly():
            answers = super().generate_until(requests)
        tally = self.tally
        logger.info(
            f"ptprune: {tally.questions} questions, {tally.kept_tokens} of {tally.visual_tokens} visual tokens kept, "
            f"{tally.seconds:.1f} s in generate() on process {processes().process_index}"
        )
        return answers


def choose_pruner(method: str, settings: dict[str, Any]) -> TokenPruner | None:
    """The method with its settings; None for "none". Raises SettingError for what is unknown or out of range."""
    if method != NO_PRUNING:
        return make_pruner(method, settings)
    given = [name for name, value in settings.items() if value is not None and (name, value) != ("keep_ratio", 1)]
    if given:
        raise SettingError(f"{given[0]}: the unpruned model (method none) has no such setting; leave it out")
    return None


@contextmanager
def loudly() -> Iterator[None]:
    """Errors leave lmms-eval's command with a status that says so; a user's with one line in the words of its options.

    Raises:
        SystemExit: status 2 for an error of this package.
        Failed: for any other.
    """
    try:
        yield
    except PtpruneError as error:
        setting, separator, rest = re.split(r"(:? )", str(error), maxsplit=1)
        name = NAMES.get(setting, setting) if isinstance(error, SettingError) else setting
        print(f"ptprune: {name}{separator}{rest}", file=sys.stderr)
        raise SystemExit(2) from error
    except Exception as error:
        raise Failed("the run failed; the cause is above") from error
