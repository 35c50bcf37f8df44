"""What a run leaves in its folder: metrics.jsonl while it goes on, then results.json and details.h5, then the report."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.io.atomic import disk_errors, replacing, write_json, write_text
from ddcnn.io.metrics_log import COLUMNS, Recorded, Records, curve, line, values
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import SCHEMA_VERSION
from ddcnn.io.tensorboard import Board
from ddcnn.parallel.environment import versions
from ddcnn.parallel.groups import Groups
from ddcnn.parallel.timeline import KINDS, PHASES, phases_of, seconds_of, wall, windows
from ddcnn.parallel.world import World
from ddcnn.report.analysis import Decision, small_picture, to_picture, understanding
from ddcnn.report.metrics import scores
from ddcnn.report.run_report import write_report
from ddcnn.training.data_parallel import global_batch_size
from ddcnn.training.loop import Epoch
from ddcnn.training.precision import DevicePolicy

EXAMPLES = 4
KEPT_BYTES = 1 << 28  # of the local classifications after every epoch, of all subdomains
POINTS = 200  # of a curve


class Results:
    """Collects on every rank what happens there, and on rank 0 everything.

    Attributes:
        folder: of the run.
        local_classes: (S_test, N) arg max p_i, on rank 0, if local CNNs have been trained.
    """

    local_classes: np.ndarray | None = None

    def __init__(self, world: World, groups: Groups, settings: RunSettings, store: PartitionedSet, folder: RunFolder):
        self.groups = groups
        self.world, self.settings, self.store, self.folder = world, settings, store, folder
        self._recorded = Recorded()
        self._subdomains: list[tuple[float, ...]] = []  # (index, parameters, those before the DNN, seconds)
        self._methods: dict[str, dict[str, Any]] = {}
        self._classes: dict[str, np.ndarray] = {}  # per method: (S_test,)
        self._probabilities: dict[str, np.ndarray | None] = {}  # per method: (S_test, K)
        self._decisions: dict[str, Decision] = {}
        self._labels = store.labels("test")
        self._subdomains_in_all = len(store.decomposition) * settings.networks_per_subimage
        everything = 2 * self._subdomains_in_all * settings.epochs * len(self._labels) * len(store.class_names)
        self.board = Board(folder, world.timeline.now) if settings.tensorboard and world.rank == 0 else None
        self._stride = 1 + everything // KEPT_BYTES  # of a very large test set, the curve of the average shows a part
        self.tell()

    def tell(self) -> None:
        """Writes rank 0's lines of metrics.jsonl anew."""
        if self.world.rank == 0:
            write_text(self.folder.metrics, "".join(map(line, self._recorded.epochs)))
            self._show(self._recorded.epochs)

    def _show(self, rows: Iterable[Sequence[float]]) -> None:
        """In TensorBoard, if that is asked for."""
        if self.board:
            self.board.add(map(values, rows))

    def epoch(self, phase: str, subdomain: int | None, epoch: Epoch, test_accuracy: float | None) -> None:
        """An epoch has ended: of a subdomain, for whose group the first rank speaks, or of a network of all, for which rank 0 does.

        Rank 0 writes its own lines at once, for those who watch; the other ranks' lines join at the end.
        """
        if not self.speaks(subdomain):
            return
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
        self._recorded.epochs.append(tuple(np.nan if value is None else value for value in row))
        if self.world.rank == 0:
            with disk_errors(self.folder.path), self.folder.metrics.open("a") as file:
                file.write(line(self._recorded.epochs[-1]))
            self._show(self._recorded.epochs[-1:])

    def speaks(self, subdomain: int | None) -> bool:
        """Whether this rank records what all ranks of a network know."""
        return self.world.rank == 0 if subdomain is None else self.groups.leads

    def records(self, phase: str, subdomain: int | None) -> Records:
        return Records(self._recorded, phase, subdomain, self.speaks(subdomain), self.tell)

    def local_classification(self, index: int, probabilities: np.ndarray | None) -> None:
        """p_i (S_test, K) after an epoch of local training, for the curve of the average; nothing is sent before the end."""
        if probabilities is None:
            return
        self._recorded.moments.append((index, self.world.timeline.now()))
        self._recorded.classifications.append(probabilities[:: self._stride].astype(np.float16))

    def subdomain(self, index: int, network: Any, seconds: float) -> None:
        """A local CNN has been trained in this time (not a number if only as a part of the coherent network)."""
        if not self.speaks(index):
            return
        parameters = _parameters(network)
        unused = _parameters(network.classifier) if self.settings.interface == "features" else 0  # by the DNN
        self._subdomains.append((index, parameters, parameters - unused, seconds))

    def method(
        self, name: str, classes: np.ndarray, probabilities: np.ndarray | None = None, network: nn.Module | None = None,
        decision: Decision | None = None,
    ) -> None:  # fmt: skip
        """A method has decided.

        Args:
            classes: (S_test,) its decisions.
            probabilities: (S_test, K) if it has any.
            network: its own, beside the local CNNs.
            decision: how it decides, if out of what local CNNs say.
        """
        self._classes[name], self._probabilities[name] = classes, probabilities
        if decision:
            self._decisions[name] = decision.thinned()
        self._methods[name] = {
            "parameters": _parameters(network) if network else 0,
            "epochs": self.settings.epochs_of(name),
            "batch_size": self.settings.batch_size,
        }
        if self.settings.sees_whole_image(name):
            batch = global_batch_size(self.settings.batch_size, self.store.train_samples, self.world.size)
            self._methods[name]["batch_size"] = batch

    def write(self, policy: DevicePolicy, global_parameters: int | None) -> None:
        """All ranks: gathers what they have collected; rank 0 writes the files and the report.

        Args:
            global_parameters: of the undecomposed CNN of the same width, for comparison, if there can be one.
        """
        sent = self.world.gather(np.array(list(self.world.timeline.sent.values())))  # (ranks, phases)
        spans = self.world.gather_rows(self.world.timeline.array())
        epochs = self.world.gather_rows(np.array(self._recorded.epochs).reshape(-1, len(COLUMNS)))
        subdomains = self.world.gather_rows(np.array(self._subdomains).reshape(-1, 4))
        moments = kept = None
        if self._recorded.classifications:  # on the first rank of every group
            moments = self.groups.across_subdomains.gather(np.array(self._recorded.moments).reshape(-1, 2))
            kept = self.groups.across_subdomains.gather(np.stack(self._recorded.classifications))

        def write() -> None:
            assert sent is not None and spans is not None and epochs is not None and subdomains is not None  # on rank 0 they are
            rows = np.concatenate(epochs)
            rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]  # by phase, subdomain, epoch
            write_text(self.folder.metrics, "".join(map(line, rows.tolist())))
            self._show(rows.tolist())
            if self.board:
                self.board.close()
            self._write_details(spans)
            for name, about in self._methods.items():
                phases = self.settings.phases_of(name)
                found = scores(self._labels, self._classes[name], self._probabilities[name], len(self.store.class_names))
                method = self._methods[name] = found | about
                intervals = windows(spans, phases)
                method["seconds"] = {kind: float(np.mean(seconds_of(spans, phases, kind))) for kind in KINDS}
                method["seconds"]["total"] = wall(intervals)
                method["bytes_communicated"] = self._bytes(name, sent)
                method["curve"] = [(wall(intervals, time), accuracy) for time, accuracy in curve(rows, phases[-1])]
                if name == Method.AVERAGE and moments is not None and kept is not None:
                    points = self._anytime(np.concatenate(moments), np.concatenate(kept))
                    method["curve"] = [(wall(intervals, time), accuracy) for time, accuracy in points]
                if "dnn" in phases and name == Method.TRANSFER and Method.DNN in self._methods:  # where it starts from
                    method["curve"].insert(0, self._methods[Method.DNN]["curve"][-1])
                method["curve"].append((method["seconds"]["total"], method["test_accuracy"]))
            write_json(self.folder.results, self._document(policy, spans, np.concatenate(subdomains), global_parameters))
            write_report(self.folder, show=self.settings.progress != "none", draw=self.settings.figures)

        self.world.on_root(write)

    def _bytes(self, name: str, sent: np.ndarray) -> int:
        """Bytes that all ranks together have sent in the phases of a method; vote and average need less of the gather than the DNN."""
        if name in (Method.VOTE, Method.AVERAGE):
            leading = self.groups.across_subdomains.size
            row = 4 * len(self.store.class_names) * self._subdomains_in_all * (leading - 1) // leading
            return row * self.store.test_samples + int(sent[:, PHASES.index("local")].sum())  # there, within groups
        return int(sum(sent[:, PHASES.index(phase)].sum() for phase in self.settings.phases_of(name)))

    def _anytime(self, moments: np.ndarray, kept: np.ndarray) -> list[tuple[float, float]]:
        """(time, accuracy) of the average of the latest p_i that there are: out of (events, 2) and (events, S', K)."""
        latest: dict[float, np.ndarray] = {}
        labels, found = self._labels[:: self._stride], []
        order = np.argsort(moments[:, 1])
        shown = set(np.linspace(0, len(order) - 1, min(POINTS, len(order))).astype(int).tolist())
        for number, event in enumerate(order):
            latest[moments[event, 0]] = kept[event]
            if number in shown:
                mean = np.mean(list(latest.values()), axis=0, dtype=np.float32)
                found.append((float(moments[event, 1]), float((mean.argmax(1) == labels).mean())))
        return found

    def _document(
        self, policy: DevicePolicy, spans: list[np.ndarray], subdomains: np.ndarray, global_parameters: int | None
    ) -> dict[str, Any]:
        store, world, settings = self.store, self.world, self.settings
        trained = {int(index): (int(parameters), seconds) for index, parameters, _, seconds in subdomains}
        local = []
        for index in range(self._subdomains_in_all):
            place = store.decomposition.subdomains[index // settings.networks_per_subimage]
            parameters, seconds = trained.get(index, (None, np.nan))
            accuracy = None
            if self.local_classes is not None:
                accuracy = float((self.local_classes[:, index] == self._labels).mean())
            local.append({
                "index": index, "start": place.subimage.start, "stop": place.subimage.stop,
                "core_start": place.core.start, "core_stop": place.core.stop, "parameters": parameters,
                "test_accuracy": accuracy, "seconds": None if np.isnan(seconds) else seconds,
            })  # fmt: skip
        for name, method in self._methods.items():
            if not self.settings.sees_whole_image(name):  # these are one network alone
                method["parameters"] += int(subdomains[:, 1 if name in (Method.VOTE, Method.AVERAGE) else 2].sum())
        return {
            "schema_version": SCHEMA_VERSION,
            "data": {
                "source": store.source, "shape": store.shape, "classes": len(store.class_names),
                "train_samples": store.train_samples, "test_samples": store.test_samples, "skipped": store.skipped,
                "class_names": store.class_names,
            },
            "decomposition": {
                "kind": settings.decomposition, "grid": settings.grid if settings.decomposition == "width" else store.grid,
                "overlap": store.overlap,
                "width_divisor": settings.divisor(self._subdomains_in_all), "parameters": int(subdomains[:, 1].sum()),
                "global_parameters": global_parameters, "subdomains": local,
            },
            "methods": {name: self._methods[name] for name in settings.methods},
            "understanding": understanding(self._decisions, self._labels, self._classes, self._probabilities, settings.seed),
            "phases": phases_of(spans),
            "environment": {
                "ranks": world.size, "subdomains_per_rank": self._subdomains_in_all // self.groups.across_subdomains.size,
                "ranks_per_subdomain": self.groups.data_parallel.size,
                "threads_per_rank": torch.get_num_threads(), "device": str(policy.device), "precision": policy.precision,
                "mpi": world.library(), **versions(), "seed": settings.seed, "resumed": world.timeline.resumed,
            },
        }  # fmt: skip

    def _write_details(self, spans: list[np.ndarray]) -> None:
        """details.h5, from which the figures are drawn: decisions, a few images, and the timeline."""
        with replacing(self.folder.details) as temporary, h5py.File(temporary, "w") as file:
            file["labels"] = self._labels
            if self.local_classes is not None:
                file["local_classes"] = self.local_classes
            for name, classes in self._classes.items():
                file[f"classes/{name}"] = classes
            for name, probabilities in self._probabilities.items():
                if probabilities is not None:
                    file[f"confidence/{name}"] = probabilities.max(axis=1).astype(np.float32)
            if len(rows := to_picture(self._labels, self._classes)):
                file["disagreement"] = np.stack([small_picture(self.store.whole("test", rows[k : k + 1])[0]) for k in range(len(rows))])
                file["disagreement"].attrs["rows"] = rows
            rows = np.sort(np.unique(self._labels, return_index=True)[1][:EXAMPLES])  # one of each class
            file["examples"] = self.store.whole("test", rows)
            file["examples"].attrs["rows"] = rows
            file["timeline"] = np.concatenate([np.insert(part, 0, rank, axis=1) for rank, part in enumerate(spans)])
            file["timeline"].attrs["columns"] = "rank, phase, kind, start, stop"
            file["timeline"].attrs["phases"], file["timeline"].attrs["kinds"] = " ".join(PHASES), " ".join(KINDS)
            file.attrs["class_names"] = json.dumps(self.store.class_names)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
