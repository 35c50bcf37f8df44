"""What a run leaves in its folder: metrics.jsonl while it goes on, then results.json and details.h5, then the report."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import nn

from ddcnn.config import RunSettings
from ddcnn.data.store import PartitionedSet
from ddcnn.files import disk_errors, replacing, write_json, write_text
from ddcnn.info import versions
from ddcnn.parallel import World
from ddcnn.report import SCHEMA_VERSION, write_report
from ddcnn.timeline import KINDS, PHASES
from ddcnn.training import Engine, Epoch

PHASES_OF = {"vote": ("local", "gather"), "average": ("local", "gather"), "dnn": ("local", "folds", "gather", "dnn")}
COLUMNS = ("phase", "subdomain", "epoch", "loss", "accuracy", "test_accuracy", "seconds", "time")
EXAMPLES = 4


class Results:
    """Collects on every rank what happens there, and on rank 0 everything.

    Attributes:
        output: the run's folder.
        local_classes: (S_test, N) arg max p_i, on rank 0.
    """

    local_classes: np.ndarray

    def __init__(self, world: World, settings: RunSettings, store: PartitionedSet, output: Path):
        self.world, self.settings, self.store, self.output = world, settings, store, output
        self._epochs: list[tuple[float, ...]] = []  # rows of COLUMNS; NaN for none
        self._subdomains: list[tuple[float, ...]] = []  # (index, parameters, seconds)
        self._methods: dict[str, dict[str, Any]] = {}
        self._classes: dict[str, np.ndarray] = {}  # per method: (S_test,)
        self._labels = store.labels("test")
        if world.rank == 0:
            write_text(output / "metrics.jsonl", "")

    def epoch(self, phase: str, subdomain: int | None, epoch: Epoch, test_accuracy: float | None) -> None:
        """An epoch has ended. Rank 0 writes its own lines at once, for those who watch; the other ranks' lines join at the end."""
        row = (
            PHASES.index(phase),
            subdomain,
            epoch.epoch,
            epoch.loss,
            epoch.accuracy,
            test_accuracy,
            epoch.seconds,
            self.world.timeline.now(),
        )
        self._epochs.append(tuple(np.nan if value is None else value for value in row))
        if self.world.rank == 0:
            with disk_errors(self.output), (self.output / "metrics.jsonl").open("a") as file:
                file.write(_line(self._epochs[-1]))

    def subdomain(self, index: int, network: nn.Module, seconds: float) -> None:
        """A local CNN has been trained in this time."""
        self._subdomains.append((index, _parameters(network), seconds))

    def method(self, name: str, classes: np.ndarray, probabilities: np.ndarray | None = None, network: nn.Module | None = None) -> None:
        """A method's decisions (S_test,), its probabilities (S_test, K) if it has any, and its network beside the local CNNs."""
        self._classes[name] = classes
        loss = None
        if probabilities is not None:
            of_label = probabilities[np.arange(len(classes)), self._labels]
            loss = float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())
        self._methods[name] = {
            "test_accuracy": float((classes == self._labels).mean()),
            "test_loss": loss,
            "parameters": _parameters(network) if network else 0,
            "epochs": self.settings.epochs + (self.settings.dnn_epochs if name == "dnn" else 0),
        }

    def write(self, engine: Engine, dnn_samples: int) -> None:
        """All ranks: gathers what they have collected; rank 0 writes the files and the report."""
        spans = self.world.gather_rows(self.world.timeline.array())
        epochs = self.world.gather_rows(np.array(self._epochs).reshape(-1, len(COLUMNS)))
        subdomains = self.world.gather_rows(np.array(self._subdomains).reshape(-1, 3))

        def write() -> None:
            assert spans is not None and epochs is not None and subdomains is not None  # on rank 0 they are
            rows = np.concatenate(epochs)
            rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]  # by phase, subdomain, epoch
            write_text(self.output / "metrics.jsonl", "".join(map(_line, rows.tolist())))
            self._write_details(spans)
            write_json(self.output / "results.json", self._document(engine, dnn_samples, spans, np.concatenate(subdomains)))
            write_report(self.output, show=self.settings.progress != "none")

        self.world.on_root(write)

    def _document(self, engine: Engine, dnn_samples: int, spans: list[np.ndarray], subdomains: np.ndarray) -> dict[str, Any]:
        store, world, settings = self.store, self.world, self.settings
        local = []
        for place, (_, parameters, seconds) in zip(store.decomposition.subdomains, subdomains, strict=True):
            local.append({
                "index": place.index, "start": place.subimage.start, "stop": place.subimage.stop,
                "core_start": place.core.start, "core_stop": place.core.stop, "parameters": int(parameters),
                "test_accuracy": float((self.local_classes[:, place.index] == self._labels).mean()), "seconds": seconds,
            })  # fmt: skip
        phases = {phase: _phase(spans, phase) for phase in PHASES[1:] if len(_of(np.concatenate(spans), (phase,)))}
        row = 4 * len(store.class_names) * len(store.decomposition) * (world.size - 1) // world.size  # bytes per gathered sample
        for name, method in self._methods.items():
            method["parameters"] += sum(subdomain["parameters"] for subdomain in local)
            method["seconds"] = _seconds(spans, PHASES_OF[name]) | {"total": _wall(spans, PHASES_OF[name])}
            method["bytes_communicated"] = row * (store.test_samples + (dnn_samples if name == "dnn" else 0))
        return {
            "schema_version": SCHEMA_VERSION,
            "data": {
                "source": store.source, "shape": store.shape, "classes": len(store.class_names),
                "train_samples": store.train_samples, "test_samples": store.test_samples,
            },
            "decomposition": {"grid": store.grid, "overlap": store.overlap, "subdomains": local},
            "methods": {name: self._methods[name] for name in settings.methods},
            "phases": phases,
            "environment": {
                "ranks": world.size, "subdomains_per_rank": len(store.decomposition) // world.size,
                "threads_per_rank": world.threads(settings.threads), "device": str(engine.device), "precision": engine.precision,
                "mpi": world.library(), **versions(), "seed": settings.seed,
            },
        }  # fmt: skip

    def _write_details(self, spans: list[np.ndarray]) -> None:
        """details.h5, from which the figures are drawn: decisions, a few images, and the timeline."""
        with replacing(self.output / "details.h5") as temporary, h5py.File(temporary, "w") as file:
            file["labels"] = self._labels
            file["local_classes"] = self.local_classes
            for name, classes in self._classes.items():
                file[f"classes/{name}"] = classes
            file["examples"] = self.store.whole("test", min(EXAMPLES, self.store.test_samples))
            file["timeline"] = np.concatenate([np.insert(part, 0, rank, axis=1) for rank, part in enumerate(spans)])
            file["timeline"].attrs["columns"] = "rank, phase, kind, start, stop"
            file["timeline"].attrs["phases"], file["timeline"].attrs["kinds"] = " ".join(PHASES), " ".join(KINDS)
            file.attrs["class_names"] = json.dumps(self.store.class_names)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _line(row: tuple[float, ...]) -> str:
    values: dict[str, Any] = {name: None if value != value else value for name, value in zip(COLUMNS, row, strict=True)}
    values["phase"] = PHASES[int(row[0])]
    values["subdomain"], values["epoch"] = None if row[1] != row[1] else int(row[1]), int(row[2])
    return json.dumps(values) + "\n"


def _of(part: np.ndarray, phases: tuple[str, ...]) -> np.ndarray:
    return part[np.isin(part[:, 0], [PHASES.index(phase) for phase in phases])]


def _wall(spans: list[np.ndarray], phases: tuple[str, ...]) -> float:
    """Seconds that lie between the first rank's start and the last one's end of any of the phases.

    Phases may overlap, since a rank waits in the next one for the others; such seconds count once.
    """
    found = [_of(np.concatenate(spans), (phase,)) for phase in phases]
    windows = sorted((float(part[:, 2].min()), float(part[:, 3].max())) for part in found if len(part))
    seconds, end = 0.0, 0.0
    for start, stop in windows:
        seconds += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return seconds


def _phase(spans: list[np.ndarray], phase: str) -> dict[str, float]:
    """Wall seconds from the first rank's start to the last one's end, waiting included; seconds of computing: the busiest rank's, mean."""
    parts = [_of(part, (phase,)) for part in spans]
    busy = [float((part[:, 3] - part[:, 2])[part[:, 1] == KINDS.index("compute")].sum()) for part in parts]
    return {"seconds": _wall(spans, (phase,)), "max_rank_seconds": max(busy), "mean_rank_seconds": sum(busy) / len(busy)}


def _seconds(spans: list[np.ndarray], phases: tuple[str, ...]) -> dict[str, float]:
    """Seconds of each kind in these phases, mean over the ranks."""
    parts = [_of(part, phases) for part in spans]
    return {
        kind: sum(float((part[:, 3] - part[:, 2])[part[:, 1] == number].sum()) for part in parts) / len(parts)
        for number, kind in enumerate(KINDS)
    }
