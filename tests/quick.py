"""What keeps the runs of the tests short, and the mark of what the quick suite leaves to the Full one (``ctest -C Full``)."""

import pytest

QUICK = {
    "network": "vgg3", "threads": 1, "progress": "none", "no_figures": True, "train_samples": 200, "epochs": 2, "dnn_epochs": 2,
    "transfer_epochs": 1,
}  # fmt: skip


def quick(**changes: object) -> tuple[str, ...]:
    """Options of a short run: those above and ``changes``, in which None takes an option away."""
    options = {name.replace("_", "-"): value for name, value in (QUICK | changes).items() if value is not None}
    return tuple(f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items())


def full(*values: object, id: str | None = None):
    """Values of a parametrized test that run in the Full suite alone."""
    return pytest.param(*values, marks=pytest.mark.full, id=id)
