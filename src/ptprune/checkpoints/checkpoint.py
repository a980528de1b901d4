"""Finds, recognises and loads a checkpoint, with one clear error for whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ptprune.checkpoints import inspection
from ptprune.checkpoints.hub import CONFIGURATION, EVERYTHING, download
from ptprune.errors import SettingError, first_line
from ptprune.files import read_json

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
        found = cls(name, directory, family_in(directory, name))
        found._clean()
        return replace(found, directory=locate(model)) if weights else found

    def config(self) -> Any:
        """Its configuration, of the family's own class. Raises SettingError where it cannot be read or asks
        for more than data."""
        with self._readable():
            config = inspection.model_class(self.family).config_class.from_dict(self._clean())
            config.name_or_path = str(self.directory)
            return config

    def _clean(self) -> dict[str, Any]:
        """What its configuration says, without names of code. Raises SettingError where it asks for more than data."""
        with self._readable():
            return inspection.clean_configuration(inspection.of_files(self.directory / inspection.CONFIG), self.family)

    def processor(self) -> Any:
        """Its processor. Raises SettingError for files that are missing or cannot be read."""
        from ptprune.checkpoints.processor import load_processor

        with self._readable():
            return load_processor(self.directory)

    def model(self, device: torch.device, dtype: str, attention: str | None = None) -> PreTrainedModel:
        """Its model, in evaluation mode on its device.

        Args:
            dtype: one of ``DTYPES``.
            attention: one of ``inspection.ATTENTION``; None: the model's own choice.

        Raises:
            SettingError: for files that are missing or cannot be read, weights that are not those of the configuration,
                or an attention that is not available.
        """
        check_attention(attention)
        config = self.config()
        with self._readable():
            inspection.check_generation(self.directory)
            weights = inspection.count_weights(self.directory, getattr(config, "quantization_config", None) is not None)
            with inspection.at_most(weights):
                outcome: Any = inspection.model_class(self.family).from_pretrained(
                    self.directory,
                    config=config,
                    dtype=dtype,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
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
        except inspection.Unfit as error:
            raise SettingError(f"model {self.name}: {error}") from None
        except Exception as error:
            why = f"cannot be loaded ({first_line(error)}); give a complete checkpoint"
            if "trust_remote_code" in str(error):  # the loaders' advice is to run it
                why = "it wants to run code of its own, which is never done; give one for transformers' own classes"
            raise SettingError(f"model {self.name}: {why}") from error


def check_attention(name: str | None) -> None:
    """Raises SettingError for an attention implementation that is not installed; nothing is fetched to have it."""
    from transformers.utils import is_flash_attn_2_available

    allowed = " or ".join(inspection.ATTENTION)
    if name is not None and name not in inspection.ATTENTION:
        raise SettingError(f"attention {name}: unknown; give {allowed}")
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise SettingError(f"attention {name}: not available here, flash-attn is not installed; give sdpa or eager")


def locate(model: str | None, *, weights: bool = True) -> Path:
    """The directory of a checkpoint, see ``Checkpoint.find``. Raises SettingError where it cannot be had."""
    if model is None or (model == SHIPPED and not Path(SHIPPED).is_dir()):
        from ptprune.tiny import CHECKPOINT

        return CHECKPOINT
    missing = SettingError(f"model {model}: no such directory; give a checkpoint's, or a Hub name 'owner/name'")
    try:
        path = Path(model).expanduser()
        is_folder, is_there = path.is_dir(), path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, no name of a file, the home of nobody
        raise missing from None
    if is_folder:
        return path
    if is_there:
        raise SettingError(f"model {model}: a file; give a checkpoint's directory, or a name on the Hugging Face Hub")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise missing
    return download(model, EVERYTHING if weights else CONFIGURATION)


def family_in(directory: Path, model: str) -> type[Family]:
    """The family of a checkpoint by its configuration, before its weights are read.

    Raises SettingError for any other model, with the reason where it is known, and the list of families.
    """
    from ptprune.families import FAMILIES, UNSUPPORTED

    if not (directory / "config.json").is_file():
        raise SettingError(f"model {model}: no config.json in that directory; give one that save_pretrained() wrote")
    try:
        config = read_json(directory / "config.json")
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
