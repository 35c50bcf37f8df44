"""ddcnn: model-parallel training of image classifiers by domain decomposition.

In scripts and notebooks ``decompose`` begins, and ``load`` brings back what a run has trained. What is here is imported, and torch
with it, only when it is used.
"""

from importlib import import_module
from typing import Any

from ddcnn.networks.torchvision_compat import install

__version__ = "0.2.0"

PUBLIC = {
    "decompose": "experiment.api",
    "DecomposedProblem": "experiment.api",
    "load": "inference.network",
    "World": "parallel.world",
    "Decomposition": "decomposition",
    "PartitionedSet": "data.partitioned_set",
    "vote": "method.aggregate",
    "average": "method.aggregate",
    "InputError": "errors",
}  # name -> module
install()  # before a script, or the network that it brings, imports torchvision


def __getattr__(name: str) -> Any:
    if name in PUBLIC:
        return getattr(import_module(f"ddcnn.{PUBLIC[name]}"), name)
    raise AttributeError(f"module 'ddcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *PUBLIC]
