"""Lets torchvision be imported by anybody, also where torchvision was built for CUDA and torch was not.

Such a torchvision lacks its own operators, and its import fails unless their schemas exist. Whoever imports it first, a user's network,
timm or ddcnn, gets them: ``import ddcnn`` puts a finder before Python's own, which does nothing but for torchvision.
"""

import sys
from collections.abc import Sequence
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class TorchvisionLoader(SourceFileLoader):
    """Executes torchvision's ``__init__``; if operators are missing, once more with their schemas."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except RuntimeError as error:
            if "torchvision::" not in str(error):  # defining an existing operator again ends the process
                raise
            for name in [name for name in sys.modules if name.startswith("torchvision.")]:
                del sys.modules[name]
            _define_operators()
            super().exec_module(module)


class TorchvisionFinder(MetaPathFinder):
    """Finds torchvision itself, not its modules, where Python would, with the loader above."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "torchvision" else None
        if spec and type(spec.loader) is SourceFileLoader:
            spec.loader = TorchvisionLoader(name, spec.loader.path)
        return spec


@cache
def _define_operators() -> object:
    """The library, which is kept: without it the operators would go again."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def import_torchvision() -> ModuleType:
    """torchvision with its ``datasets`` and ``models``."""
    import torchvision

    return torchvision


def install() -> None:
    """Puts the finder first, once."""
    if not any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchvisionFinder())
