"""What a finished run has left in its folder, read again and checked: results.json, config.toml, metrics.jsonl, details.h5."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.io.hdf5 import DAMAGE, attribute, own_dataset
from ddcnn.io.run_folder import RunFolder

SCHEMA_VERSION = 1  # of results.json
METRICS = ("phase", "subdomain", "epoch", "loss", "accuracy", "test_accuracy")


@dataclass(frozen=True)
class Influence:
    """Of the subdomains on a method: on so many test samples, the accuracy that is lost if what a subdomain says is exchanged between
    samples (*grid), and the accuracy without it (*grid), None if it cannot be without."""

    samples: int
    reliance: np.ndarray
    without: np.ndarray | None


@dataclass(frozen=True)
class Understanding:
    """What the decisions rest on.

    Attributes:
        influence: per method that decides out of what local CNNs say.
        calibration_error, confidence: per method with probabilities; (S,) those of its decisions.
        disagreement: how many samples vote and DNN decide differently, by who is right; empty without both.
        pictures: (n, h, w, C) some of these, and their rows (n,) in the test set.
    """

    influence: dict[str, Influence]
    calibration_error: dict[str, float]
    confidence: dict[str, np.ndarray]
    disagreement: dict[str, int]
    pictures: np.ndarray
    picture_rows: np.ndarray


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left in its folder.

    Attributes:
        results, settings: of results.json and config.toml.
        epochs: the lines of metrics.jsonl.
        cores, subimages: (N, 2, d) start and stop of the boxes.
        accuracies: (*grid) of the local CNNs, None if none have been trained on their own.
        labels: (S,) of the test samples; ``classes``: (S,) per method, its decisions.
        class_names: K names.
        examples: (n, *spatial, C) test images, and their rows (n,) in the test set.
        spans: (spans, 5) rank, phase, kind, start, stop; ``phases`` and ``kinds`` are the names of their numbers.
        understanding: None of a run of an older version.
    """

    folder: RunFolder
    results: dict[str, Any]
    settings: RunSettings
    epochs: list[dict[str, Any]]
    cores: np.ndarray
    subimages: np.ndarray
    accuracies: np.ndarray | None
    labels: np.ndarray
    classes: dict[str, np.ndarray]
    class_names: list[str]
    examples: np.ndarray
    example_rows: np.ndarray
    spans: np.ndarray
    phases: list[str]
    kinds: list[str]
    understanding: Understanding | None

    @property
    def test_accuracy(self) -> dict[str, float]:
        return {name: method["test_accuracy"] for name, method in self.results["methods"].items()}

    @property
    def spans_by_rank(self) -> list[np.ndarray]:
        """A list over ranks of arrays (spans, 4), as ``timeline`` takes them."""
        return [self.spans[self.spans[:, 0] == rank, 1:] for rank in range(self.results["environment"]["ranks"])]

    @property
    def best(self) -> str:
        return max(self.test_accuracy, key=lambda name: self.test_accuracy[name])


def load(run: RunFolder) -> FinishedRun:
    """Reads the files of a run's folder.

    Raises:
        InputError: the run has not finished, or a file is damaged.
    """
    run.check_has_results()
    values: dict[str, Any] = {"folder": run}
    with reading(run.results):
        results = json.loads(run.results.read_text())
        if results["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {results['schema_version']}, where this program reads {SCHEMA_VERSION}")
        subdomains = results["decomposition"]["subdomains"]
        values["results"] = results
        values["cores"] = np.array([[place["core_start"], place["core_stop"]] for place in subdomains], dtype=int)
        values["subimages"] = np.array([[place["start"], place["stop"]] for place in subdomains], dtype=int)
        found = [place["test_accuracy"] for place in subdomains]
        grid = results["decomposition"]["grid"] if results["decomposition"]["kind"] == "image" else (1, -1)  # thin networks: a row
        values["accuracies"] = None if None in found else np.array(found, dtype=float).reshape(grid)
        told = results.get("understanding")
        understood = told and {
            "influence": {name: _influence(told["influence"][name], grid) for name in results["methods"] if name in told["influence"]},
            "calibration_error": {name: float(error) for name, error in told["calibration_error"].items()},
            "disagreement": {kind: int(samples) for kind, samples in told["disagreement"].items()},
        }
    values["settings"] = run.settings()
    with reading(run.metrics):
        lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
        values["epochs"] = [_epoch(line) for line in lines]
        if not lines and not values["settings"].start_from:
            raise ValueError("no epochs")
    with reading(run.details), h5py.File(run.details, "r") as file:
        values["labels"] = own_dataset(file, "labels")[...]
        values["classes"] = {name: own_dataset(file, f"classes/{name}")[...] for name in results["methods"]}
        examples = own_dataset(file, "examples")
        values["examples"] = examples[:1] if examples.ndim == 5 else examples[...]  # one volume is enough, and may be large
        values["example_rows"] = np.array(attribute(examples, "rows"), dtype=int)[: len(values["examples"])]
        timeline = own_dataset(file, "timeline")
        values["spans"] = timeline[...]
        values["phases"], values["kinds"] = attribute(timeline, "phases").split(), attribute(timeline, "kinds").split()
        values["class_names"] = json.loads(attribute(file, "class_names"))
        values["understanding"] = understood and _understanding(file, understood, len(values["labels"]))
        _check_shapes(values)
    return FinishedRun(**values)


def _epoch(line: dict[str, Any]) -> dict[str, Any]:
    found = {name: line[name] for name in METRICS}
    if not isinstance(found["phase"], str) or not all(isinstance(found[name], int | float | None) for name in METRICS[1:]):
        raise ValueError(f"an epoch with {found}")
    return found


def _influence(told: dict[str, Any], grid: Sequence[int]) -> Influence:
    reliance, without = (told[name] and np.array(told[name], dtype=float).reshape(grid) for name in ("reliance", "without"))
    return Influence(int(told["samples"]), reliance, without)


def _understanding(file: h5py.File, told: dict[str, Any], samples: int) -> Understanding:
    """Out of what results.json tells and of details.h5."""
    confidence = {name: own_dataset(file, f"confidence/{name}", (samples,))[...] for name in told["calibration_error"]}
    pictures, rows = np.empty((0, 1, 1, 1)), np.empty(0, dtype=int)
    if any(told["disagreement"].values()):
        pictures = own_dataset(file, "disagreement")
        rows = np.array(attribute(pictures, "rows"), dtype=int)
    if pictures.ndim != 4 or len(pictures) != len(rows) or not set(rows) <= set(range(samples)):
        raise ValueError("pictures that do not fit their rows")
    return Understanding(**told, confidence=confidence, pictures=pictures[...], picture_rows=rows)


def _check_shapes(values: dict[str, Any]) -> None:
    """The figures take it for granted that these files belong to one run."""
    data, samples = values["results"]["data"], values["labels"].shape
    boxes = np.stack([values["cores"], values["subimages"]])  # (2, N, 2, d)
    start, stop = boxes[:, :, 0], boxes[:, :, 1]
    if (start < 0).any() or (stop <= start).any() or (stop > np.array(data["shape"][:-1])).any():
        raise ValueError("subdomains beyond the image")
    if (
        samples != (data["test_samples"],)
        or any(classes.shape != samples for classes in values["classes"].values())
        or values["examples"].shape[1:] != tuple(data["shape"])
        or values["example_rows"].shape != values["examples"].shape[:1]
        or not set(values["example_rows"]) <= set(range(data["test_samples"]))
        or len(values["class_names"]) != data["classes"]
        or values["spans"].shape[1:] != (5,)
        or len(values["spans"]) == 0
    ):
        raise ValueError("its arrays do not fit the results")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what a missing or damaged file leads to into an InputError that names it."""
    try:
        yield
    except DAMAGE as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path.parent}: {path.name} is missing, damaged or foreign ({what}); bring it back, or run again") from None


def curves_of(results: dict[str, Any]) -> dict[str, np.ndarray]:
    """Per method (points, 2): seconds, test accuracy."""
    return {name: np.array(method["curve"], dtype=float).reshape(-1, 2) for name, method in results["methods"].items()}
