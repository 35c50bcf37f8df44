"""Records on every rank what a run does there, gathers it at the end, and writes the files of the run and its report."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ddcnn.config.methods import Method
from ddcnn.errors import cause
from ddcnn.experiment.phase_sizes import who_solves
from ddcnn.experiment.problem import Problem
from ddcnn.experiment.results import Decided, Gathered, results_of
from ddcnn.io.atomic import disk_errors, write_json, write_text
from ddcnn.io.details import Details
from ddcnn.io.metrics_log import COLUMNS, Recorded, Records, line, text
from ddcnn.io.results_schema import Environment, dump
from ddcnn.io.rows import Table
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.tensorboard import Board
from ddcnn.networks.layers import count_parameters
from ddcnn.parallel.devices import ranks_on
from ddcnn.parallel.environment import about_gpu, versions
from ddcnn.parallel.timeline import KINDS, PHASES
from ddcnn.report.analysis import small_picture, to_picture
from ddcnn.report.run_report import write_report
from ddcnn.training.state import Epoch

logger = logging.getLogger(__name__)
EXAMPLES = 4  # test images in details.h5
KEPT_BYTES = 1 << 26  # of the local classifications after every epoch, of all subdomains; rank 0 has them several times at the end


def try_all(*steps: Callable[[], None]) -> None:
    """Takes all steps, and then raises the error of the first one that had one: what still fits on a full disk is written."""
    errors = []
    for step in steps:
        try:
            step()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]


def try_report(folder: RunFolder, write: Callable[[], None]) -> None:
    """Writes the report of a run that has all of its results, which can be done again at any time."""
    try:
        write()
    except Exception as error:
        logger.warning("%s; the run is complete but for its report: python -m ddcnn report %s", cause(error), folder)


class Recorder:
    """What happens on this rank and, on rank 0, the decisions of the methods.

    Attributes:
        folder: of the run.
        local_classes: (S, N) arg max p_i of the validation and test images, on rank 0, if local CNNs have been trained.
    """

    def __init__(self, problem: Problem, folder: RunFolder):
        self.local_classes: dict[str, np.ndarray] = {}
        self.problem, self.folder = problem, folder
        self.world, self.groups, self.settings, self.store = problem.world, problem.groups, problem.settings, problem.store
        self._recorded = Recorded()
        self._subdomains: list[tuple[float, ...]] = []  # (index, parameters, those before the DNN, seconds)
        self._decided: dict[Method, Decided] = {}
        self._labels = problem.labels["test"]
        everything = 2 * problem.networks.subdomains * self.settings.epochs * self.store.validation_samples * problem.networks.classes
        self._stride = 1 + everything // KEPT_BYTES  # of a very large validation set, the curve of the average shows a part
        self._board = Board(folder, self.world.timeline.now) if self.settings.tensorboard and self.world.rank == 0 else None
        self.rewrite_metrics()

    # Recording

    def epoch(self, phase: str, subdomain: int | None, epoch: Epoch) -> None:
        """Records an epoch of a subdomain on the first rank of its group, of a network of all subdomains on rank 0.

        Rank 0 writes its lines at once, for ``report --follow``; those of other ranks are added at the end.
        """
        if not self._records_for(subdomain):
            return
        now, score = self.world.timeline.now(), epoch.validation
        validation = (score.accuracy, score.loss) if score else (None, None)
        values = (PHASES.index(phase), subdomain, epoch.epoch, epoch.loss, epoch.accuracy, *validation, epoch.seconds, now)
        row = tuple(np.nan if value is None else value for value in values)
        self._recorded.epochs.append(row)
        if self.world.rank == 0:
            with disk_errors(self.folder.metrics), self.folder.metrics.open("a", encoding="utf-8") as file:
                file.write(text(row))
            if self._board:
                self._board.add([line(row)])

    def records(self, phase: str, subdomain: int | None) -> Records:
        """What one training has recorded, to be kept with its checkpoints."""
        return Records(self._recorded, phase, subdomain, self._records_for(subdomain), self.world.timeline, self.rewrite_metrics)

    def epochs_made(self, phase: str, subdomain: int) -> int:
        """Epochs that the training of a local CNN has had, on the first rank of its group; 0 on the others."""
        return max((int(row[2]) for row in self._recorded.epochs if row[:2] == (PHASES.index(phase), subdomain)), default=0)

    def local_classification(self, index: int, probabilities: Table | None) -> None:
        """p_i (S_validation, K) after an epoch of local training, for the curve of the average."""
        if probabilities is not None:
            self._recorded.moments.append((index, self.world.timeline.now()))
            some = probabilities.read(np.arange(0, len(probabilities), self._stride))
            self._recorded.classifications.append(some.astype(np.float16))

    def subdomain(self, index: int, network: Any, seconds: float) -> None:
        """A local CNN has been trained in so many seconds (NaN if only as a part of the coherent network)."""
        if self._records_for(index):
            parameters = count_parameters(network)
            unused = count_parameters(network.classifier) if self.settings.interface == "features" else 0  # by the DNN
            self._subdomains.append((index, parameters, parameters - unused, seconds))

    def method(self, name: Method, decided: Decided) -> None:
        """The decisions of a method, on rank 0."""
        self._decided[name] = decided

    def rewrite_metrics(self) -> None:
        """Writes the metrics of rank 0 anew, after a training has brought back those of an earlier attempt."""
        if self.world.rank == 0:
            self._write_metrics()
            if self._board:
                self._board.add(map(line, self._recorded.epochs))

    def _write_metrics(self) -> None:
        write_text(self.folder.metrics, "".join(map(text, self._recorded.epochs)))

    def _finish_board(self) -> None:
        if self._board:
            self._board.add(map(line, self._recorded.epochs))
            self._board.close()

    def _records_for(self, subdomain: int | None) -> bool:
        """Whether this rank records what all ranks of a network know."""
        return self.world.rank == 0 if subdomain is None else self.groups.leads

    # Gathering

    def _gather(self) -> Gathered | None:
        """All ranks together; on rank 0 what all have recorded."""
        whole = self.problem.networks.global_parameters
        sent = self.world.gather(np.array(list(self.world.timeline.sent.values())))
        peaks = self.world.gather(self.world.timeline.take_peaks())
        spans = self.world.gather_rows(self.world.timeline.array())
        epochs = self.world.gather_rows(np.array(self._recorded.epochs).reshape(-1, len(COLUMNS)))
        subdomains = self.world.gather_rows(np.array(self._subdomains).reshape(-1, 4))
        latest = self._gather_classifications() if self.groups.leads else None
        if sent is None or peaks is None or spans is None or epochs is None or subdomains is None:
            return None
        rows = np.concatenate(epochs)
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]  # by phase, subdomain, epoch
        return Gathered(sent, spans, rows, np.concatenate(subdomains), latest, self._stride, self.local_classes, whole, peaks)

    def _gather_classifications(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The first ranks of all groups: moments (events, 2) and p_i (events, S', K) on rank 0, if there are any.

        Trainings that end early have fewer events, which are filled up with NaN on the way.
        """
        ranks, recorded = self.groups.across_subdomains, self._recorded
        events = ranks.largest(len(recorded.moments))
        if not events:
            return None
        shape = (-(-self.store.validation_samples // self._stride), self.problem.networks.classes)
        moments, classifications = np.full((events, 2), np.nan), np.full((events, *shape), np.nan, np.float16)
        moments[: len(recorded.moments)] = np.array(recorded.moments).reshape(-1, 2)
        classifications[: len(recorded.moments)] = np.array(recorded.classifications, np.float16).reshape(-1, *shape)
        all_moments, all_classifications = ranks.gather(moments), ranks.gather(classifications)
        if all_moments is None or all_classifications is None:
            return None
        there = ~np.isnan(all_moments[..., 0])
        return all_moments[there], all_classifications[there]

    def _gpu(self) -> dict[str, str] | None:
        """All ranks: their GPUs, each kind once, with driver and libraries of rank 0."""
        device = self.problem.policy.device
        if device.type != "cuda":
            return None
        own = about_gpu(device)
        names, ranks = self.world.gather_values(own["name"]) or [], ranks_on(self.world, device)
        backend = self.world.timeline.backend
        return own | {"name": ", ".join(dict.fromkeys(names)), "ranks_on_it": str(ranks)} | ({"backend": backend} if backend else {})

    # Writing

    def write(self) -> None:
        """All ranks: gathers what they have recorded; rank 0 writes the files and the report."""
        gathered, policy, gpu = self._gather(), self.problem.policy, self._gpu()
        environment = Environment(
            ranks=self.world.size, subdomains_per_rank=len(self.problem.owned),
            ranks_per_subdomain=self.groups.data_parallel.size, threads_per_rank=torch.get_num_threads(), device=str(policy.device),
            precision=policy.precision, mpi=self.world.library(), **versions(), gpu=gpu, seed=self.settings.seed,
            resumed=self.world.timeline.resumed, coarse_solve=who_solves(self.problem),
        )  # fmt: skip

        def write() -> None:
            assert gathered is not None
            self._recorded.epochs = gathered.epochs.tolist()
            results = results_of(gathered, self._decided, self.settings, self.store, environment)
            try_all(
                self._write_metrics,  # before the results, which tell readers that all is there
                lambda: write_json(self.folder.results, dump(results)),
                lambda: self._details(gathered.spans).write(self.folder.details),
                self._finish_board,
            )
            try_report(self.folder, lambda: write_report(self.folder, Console(), self.settings.figures))

        self.world.on_root(write)

    def _details(self, spans: list[np.ndarray]) -> Details:
        classes: dict[str, np.ndarray] = {name: decided.classes for name, decided in self._decided.items()}
        rows = np.sort(np.unique(self._labels, return_index=True)[1][:EXAMPLES])  # one of each class
        differ = to_picture(self._labels, classes)
        pictures = [small_picture(self.store.whole("test", differ[k : k + 1])[0]) for k in range(len(differ))]
        return Details(
            labels=self._labels,
            classes=classes,
            confidence={name: decided.probable.confidence for name, decided in self._decided.items() if decided.probable},
            class_names=list(self.store.class_names),
            examples=self.store.whole("test", rows),
            example_rows=rows,
            pictures=np.stack(pictures) if pictures else np.empty((0, 1, 1, 1)),
            picture_rows=differ,
            timeline=np.concatenate([np.insert(part, 0, rank, axis=1) for rank, part in enumerate(spans)]),
            phases=PHASES,
            kinds=KINDS,
            local_classes=self.local_classes.get("test"),
        )
