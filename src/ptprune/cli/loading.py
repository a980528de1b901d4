"""Finds and loads a checkpoint: a directory, a name on the Hugging Face Hub, or the small one that ships."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptprune.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ptprune.families import Family

SHIPPED = "ptprune-tiny"
HUB_TIMEOUT = 10.0  # seconds until a hub that does not answer counts as out of reach
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # no pickles, no other frameworks' weights
WITH_TWIN = ("InternVLChatModel", "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM")
"""Models with code of their own, published once more for transformers."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def find(model: str | None) -> Path:
    """The directory of a supported checkpoint with its weights; an unsupported one is not downloaded.

    Raises:
        UserError: where there is none, or its family is not supported.
    """
    directory = locate(model, weights=False)
    check_family(directory, model or SHIPPED)
    return locate(model)


def locate(model: str | None, *, weights: bool = True) -> Path:
    """The directory of a checkpoint, downloaded if it has to be.

    Args:
        model: directory, Hub name ("owner/name"), or None for the checkpoint inside the package.
        weights: whether the weights are needed too, not only the configuration.

    Raises:
        UserError: where there is no such checkpoint, or the hub is out of reach.
    """
    if model is None:
        from ptprune.tiny import CHECKPOINT

        return _checked(CHECKPOINT, SHIPPED)
    path = Path(model).expanduser()
    if path.is_dir():
        return _checked(path, model)
    if path.exists():
        raise UserError(
            f"--model {model}: a file; give the directory of a checkpoint, or a name on the Hugging Face Hub"
        )
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise UserError(
            f"--model {model}: no such directory; give a checkpoint's directory, or a Hub name 'owner/name'"
        )
    return _checked(_download(model, WANTED if weights else ["config.json"]), model)


def _checked(directory: Path, model: str) -> Path:
    if not (directory / "config.json").is_file():
        raise UserError(f"--model {model}: no config.json in that directory; give one that save_pretrained() wrote")
    return directory


def _download(name: str, patterns: list[str]) -> Path:
    """The checkpoint's directory in the local cache, brought up to date where the hub can be reached."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        # One quick question first: a download that cannot reach the hub tries again for half a minute.
        HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except HFValidationError:
        raise UserError(f"--model {name}: neither a directory nor a Hub name 'owner/name'") from None
    except GatedRepoError:
        raise UserError(
            f"--model {name}: access is restricted; ask for it on the Hub and run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"--model {name}: no such model on the Hugging Face Hub, and no such directory") from None
    except Exception:  # any way a network can fail; a copy from an earlier download will do
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except Exception:
            raise UserError(
                f"--model {name}: no such directory, and the Hugging Face Hub is out of reach; "
                "give a local directory, or leave --model away for the checkpoint that ships"
            ) from None
    return Path(snapshot_download(name, allow_patterns=patterns))


def check_family(directory: Path, model: str) -> type[Family]:
    """The family of a checkpoint by its configuration, before its weights are read.

    Raises:
        UserError: for a model of no supported family, with the reason where it is known, and the list of families.
    """
    from ptprune.families import FAMILIES, UNSUPPORTED

    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        classes = config.get("architectures") or [config.get("model_type")]
    except (OSError, ValueError, AttributeError):
        raise UserError(f"--model {model}: config.json cannot be read; it must be a JSON object") from None
    name = classes[0] if isinstance(classes, list) else None
    if not isinstance(name, str):
        raise UserError(f"--model {model}: config.json does not name the model's class; it must list architectures")
    for family in FAMILIES.values():
        if family.model_class == name:
            return family
    reason = f": {UNSUPPORTED[name]}" if name in UNSUPPORTED else ""
    hint = "; use the checkpoint whose name ends in -hf" if name in WITH_TWIN else ""
    raise UserError(f"--model {model}: {name} is not supported{reason}{hint}; supported: {', '.join(FAMILIES)}")


def load_processor(directory: Path, model: str) -> Any:
    """The checkpoint's processor.

    Raises:
        UserError: for files that are missing or cannot be read.
    """
    from ptprune import processors

    with _complete(model):
        return processors.load_processor(directory)


def load_model(
    directory: Path, model: str, device: torch.device, dtype: str, attention: str | None = None
) -> PreTrainedModel:
    """The checkpoint's model, in evaluation mode on its device.

    Args:
        attention: attention implementation; None: the model's own choice.

    Raises:
        UserError: for files that are missing or cannot be read.
    """
    from transformers import AutoModelForImageTextToText

    with _complete(model):
        outcome: Any = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=dtype, local_files_only=True, output_loading_info=True, attn_implementation=attention
        )
    loaded, notes = outcome
    if missing := sorted(notes["missing_keys"]):  # the loader filled them with random numbers
        raise UserError(f"--model {model}: {len(missing)} weights are missing, such as {missing[0]}; give all of them")
    return loaded.to(device).eval()


@contextmanager
def _complete(model: str) -> Iterator[None]:
    """Whatever broken files lead the loaders to becomes one line."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        raise UserError(f"--model {model}: cannot be loaded ({reason}); give a complete checkpoint") from error


def choose_dtype(name: str) -> str:
    """ "auto" is the checkpoint's own.

    Raises:
        UserError: for a name that is none of ``DTYPES``.
    """
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: unknown; give one of {', '.join(DTYPES)}")
    return name


def choose_device(name: str) -> torch.device:
    """ "auto" is the GPU where there is one.

    Raises:
        UserError: for a device that torch does not know or this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"--device {name}: not available here; give auto, cpu, or a device that torch can use"
        ) from None
    return device


def quiet_libraries() -> None:
    """Keep the libraries' notices and bars off the terminal: a command speaks for itself."""
    import warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
