"""Runs that are interrupted and resumed, and what they come to."""

import json
from pathlib import Path

import h5py
import numpy as np
from launching import on_ranks
from quick import quick

SHORT = quick(
    transfer_epochs=2, frozen_epochs=1, batch_size=32, train_samples=300, augment="flip+shift+erase+mixup", shift=1,
    interface="logits", checkpoint_every=1, partitions="partitions", clip_norm=1, ema=0.9, warmup=0.5,
    schedule="cosine",
)  # fmt: skip

MEASURED = ("seconds", "curve", "bytes_communicated", "peak_memory_bytes")  # of a method


def start(ranks: int, folder: Path, *options: str, interrupted: tuple[str, int, int, str] | None = None, **environment: str):
    folder.mkdir(exist_ok=True)
    return on_ranks(ranks, "run", "--output", "run", *options, cwd=folder, interrupted=interrupted, **environment)


def parameters(folder: Path) -> dict[str, np.ndarray]:
    """Of all trained networks of the run in ``folder``/run."""
    found = {}
    for path in sorted((folder / "run" / "checkpoints").glob("*.h5")):
        with h5py.File(path) as file:
            found |= {f"{path.name} {name}": tensor[...] for name, tensor in file["parameters"].items()}
    return found


def outcome(folder: Path) -> dict:
    """Parameters bit by bit, and everything in the results that is not a time."""
    found: dict = {name: tensor.tobytes() for name, tensor in parameters(folder).items()}
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    for name, method in results["methods"].items():
        found[name] = {key: value for key, value in method.items() if key not in MEASURED}
        found[f"{name} curve"] = [accuracy for _, accuracy in method["curve"][-2:]]  # before, the average depends on who was faster
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    found["metrics"] = [{key: value for key, value in line.items() if key not in ("seconds", "time")} for line in lines]
    with h5py.File(folder / "run" / "details.h5") as file:
        if "local_classes" in file:
            found["local classes"] = file["local_classes"][...].tobytes()
    return found


def assert_same(found: dict, expected: dict) -> None:
    assert len(expected) > 20
    differing = [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    assert not differing, differing
