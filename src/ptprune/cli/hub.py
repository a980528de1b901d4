"""Whether the Hugging Face Hub can be reached, asked before its libraries decide how long to wait for it."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from ptprune.cli.loading import HUB_TIMEOUT

OFFLINE = "HF_HUB_OFFLINE"


def offline_where_unreachable() -> bool:
    """Tell the Hub's libraries to use what is on the disk, where the Hub is out of reach. Before they are imported.

    Returns:
        Whether they will.
    """
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        return True
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except urllib.error.HTTPError:  # an answer, if not a friendly one
        return False
    except (OSError, ValueError):
        os.environ[OFFLINE] = "1"
        return True
    return False
