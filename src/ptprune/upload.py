"""Arrays of the host on a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray, device: torch.device) -> Tensor:
    """An array as a tensor on a device.

    A plain copy to a GPU waits until all work that is queued there is done, and the host could launch nothing
    meanwhile. CUDA's asynchronous copy has read pageable memory when it returns, so the array may go away at once.
    """
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=device.type == "cuda")
