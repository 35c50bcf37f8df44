"""ddcnn: model-parallel training of image classifiers by domain decomposition."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``ddcnn.load``, which brings torch with it only when it is used."""
    if name == "load":
        from ddcnn.assembled import load

        return load
    raise AttributeError(f"module 'ddcnn' has no attribute {name!r}")
