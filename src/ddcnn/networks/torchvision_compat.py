"""Imports torchvision, also where torchvision was built for CUDA and torch was not."""

import sys
from functools import cache
from types import ModuleType


@cache
def import_torchvision() -> ModuleType:
    """torchvision with its ``datasets`` and ``models``.

    With a CPU build of torch, torchvision's CUDA build lacks its own operators, and its import fails unless their schemas exist.
    """
    import torch

    try:
        import torchvision
    except RuntimeError:  # only then: defining an existing operator again ends the process
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in ("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
                       "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"):  # fmt: skip
            library.define(schema)
        import torchvision

    return torchvision
