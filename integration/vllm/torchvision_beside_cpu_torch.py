"""Makes PyPI's torchvision, which is linked to CUDA, importable beside a CPU torch. For tests on CPU machines only.

`make` copies this file into the test environment, with a .pth file that imports it in every process. torchvision fails
because its compiled part, which does not load there, would have told torch of two operators. Their schemas are enough:
nothing here calls them. Beside a torchvision for CPUs, which PyTorch's own index has, this file does nothing.
"""

import importlib.abc
import importlib.metadata
import sys

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; it only learns that torchvision is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            _declare()
        return None


def _declare() -> None:
    import torch

    if torch.version.cuda is None and not importlib.metadata.version("torchvision").endswith("+cpu"):
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in OPERATORS:
            library.define(schema)
        _declare.library = library  # the schemas live as long as it does


sys.meta_path.insert(0, _BeforeTorchvision())
