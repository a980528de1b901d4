"""The Hugging Face Hub: whether it can be reached, and downloads of checkpoints."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from ptprune.errors import SettingError

TIMEOUT = 10.0  # seconds until a hub that does not answer counts as out of reach
OFFLINE = "HF_HUB_OFFLINE"
CONFIGURATION = ["config.json"]
EVERYTHING = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # no pickles, no other frameworks' weights


def download(name: str, patterns: list[str]) -> Path:
    """The checkpoint's directory in the local cache, brought up to date where the Hub can be reached.

    Raises:
        SettingError: where there is no such checkpoint, or the Hub is out of reach and no copy is in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    refusals: dict[type[Exception], str] = {
        HFValidationError: "neither a directory nor a Hub name 'owner/name'",
        GatedRepoError: "access is restricted; ask for it on the Hub and run `hf auth login`",
        RepositoryNotFoundError: "no such model on the Hugging Face Hub, and no such directory",
    }
    try:
        # One quick question first: a download that cannot reach the hub tries again for half a minute.
        HfApi().model_info(name, timeout=TIMEOUT)
    except tuple(refusals) as error:
        told = next(told for kind, told in refusals.items() if isinstance(error, kind))
        raise SettingError(f"model {name}: {told}") from None
    except Exception:  # any way a network can fail; a copy from an earlier download will do
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except Exception:
            raise SettingError(
                f"model {name}: no such directory, and the Hugging Face Hub is out of reach; "
                "give a local directory, or leave it out for the checkpoint that ships"
            ) from None
    return Path(snapshot_download(name, allow_patterns=patterns))


def offline_where_unreachable() -> bool:
    """Make the Hub's libraries use local files if the Hub is out of reach. Call it before importing them.

    Returns:
        Whether they will.
    """
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:  # an answer, if not a friendly one
        return False
    except (OSError, ValueError):
        os.environ[OFFLINE] = "1"
        return True
    return False
