"""Finds, recognises and loads a checkpoint, with one clear error for whatever is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ptprune.checkpoints.hub import CONFIGURATION, EVERYTHING, download
from ptprune.errors import SettingError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ptprune.families import Family

SHIPPED = "ptprune-tiny"
DTYPES = ("auto", "float32", "bfloat16", "float16")
WITH_TWIN = ("InternVLChatModel", "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM")
"""Models with code of their own that were published a second time for transformers."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a supported family."""

    name: str  # as the user wrote it, or ``SHIPPED``
    directory: Path
    family: type[Family]  # that its configuration names

    @classmethod
    def find(cls, model: str | None, *, weights: bool = True) -> Checkpoint:
        """The checkpoint, downloaded if necessary. The weights of an unsupported model are not downloaded.

        Args:
            model: directory, Hub name ("owner/name"), or None or ``SHIPPED`` for the one inside the package.
            weights: whether the weights are needed, or the configuration alone.

        Raises:
            SettingError: where there is no such checkpoint, or its family is not supported.
        """
        name = model or SHIPPED
        directory = locate(model, weights=False)
        family = family_in(directory, name)
        return cls(name, locate(model) if weights else directory, family)

    def config(self) -> Any:
        """Its configuration. Raises SettingError for a file that is missing or cannot be read."""
        from transformers import AutoConfig

        with self._readable():
            return AutoConfig.from_pretrained(self.directory, local_files_only=True)

    def processor(self) -> Any:
        """Its processor. Raises SettingError for files that are missing or cannot be read."""
        from ptprune.checkpoints.processor import load_processor

        with self._readable():
            return load_processor(self.directory)

    def model(self, device: torch.device, dtype: str, attention: str | None = None) -> PreTrainedModel:
        """Its model, in evaluation mode on its device.

        Args:
            dtype: one of ``DTYPES``.
            attention: attention implementation; None: the model's own choice.

        Raises:
            SettingError: for files that are missing or cannot be read, or an attention that is not available.
        """
        from transformers import AutoModelForImageTextToText

        with self._readable():
            outcome: Any = AutoModelForImageTextToText.from_pretrained(
                self.directory, dtype=dtype, local_files_only=True, output_loading_info=True
            )
        loaded, notes = outcome
        if missing := sorted(notes["missing_keys"]):  # the loader filled them with random numbers
            lacking = f"{len(missing)} weights are missing, such as {missing[0]}"
            raise SettingError(f"model {self.name}: {lacking}; give all of them")
        if attention is not None:
            try:
                loaded.set_attn_implementation(attention)
            except (ImportError, ValueError) as error:  # attention kernels are packages of their own
                raise SettingError(
                    f"attention {attention}: not available here ({first_line(error)}); give sdpa, eager, or "
                    "flash_attention_2 where it is installed"
                ) from None
        return loaded.to(device).eval()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Broken files lead the loaders to all kinds of exceptions: each becomes one line."""
        try:
            yield
        except Exception as error:
            why = f"cannot be loaded ({first_line(error)}); give a complete checkpoint"
            raise SettingError(f"model {self.name}: {why}") from error


def locate(model: str | None, *, weights: bool = True) -> Path:
    """The directory of a checkpoint, see ``Checkpoint.find``. Raises SettingError where it cannot be had."""
    if model in (None, SHIPPED) and not Path(SHIPPED).is_dir():
        from ptprune.tiny import CHECKPOINT

        return CHECKPOINT
    assert model is not None
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise SettingError(f"model {model}: a file; give a checkpoint's directory, or a name on the Hugging Face Hub")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise SettingError(f"model {model}: no such directory; give a checkpoint's, or a Hub name 'owner/name'")
    return download(model, EVERYTHING if weights else CONFIGURATION)


def family_in(directory: Path, model: str) -> type[Family]:
    """The family of a checkpoint by its configuration, before its weights are read.

    Raises SettingError for any other model, with the reason where it is known, and the list of families.
    """
    from ptprune.families import FAMILIES, UNSUPPORTED

    if not (directory / "config.json").is_file():
        raise SettingError(f"model {model}: no config.json in that directory; give one that save_pretrained() wrote")
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        classes = config.get("architectures") or [config.get("model_type")]
    except (OSError, ValueError, AttributeError):
        raise SettingError(f"model {model}: config.json cannot be read; it must be a JSON object") from None
    name = classes[0] if isinstance(classes, list) else None
    if not isinstance(name, str):
        raise SettingError(f"model {model}: config.json does not name the model's class; it must list architectures")
    for family in FAMILIES.values():
        if family.model_class == name:
            return family
    reason = f": {UNSUPPORTED[name]}" if name in UNSUPPORTED else ""
    hint = "; use the checkpoint whose name ends in -hf" if name in WITH_TWIN else ""
    raise SettingError(f"model {model}: {name} is not supported{reason}{hint}; supported: {', '.join(FAMILIES)}")


def choose_dtype(name: str) -> str:
    """The name of a precision; "auto" is the checkpoint's own. Raises SettingError if it is none of ``DTYPES``."""
    if name not in DTYPES:
        raise SettingError(f"dtype {name}: unknown; give one of {', '.join(DTYPES)}")
    return name


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" is the GPU if there is one. Raises SettingError if it is not available here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        allowed = "auto, cpu, or a device that torch can use"
        raise SettingError(f"device {name}: not available here; give {allowed}") from None
    return device
