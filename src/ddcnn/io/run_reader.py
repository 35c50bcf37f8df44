"""A finished run, read from the files in its folder and checked."""

from dataclasses import dataclass

import numpy as np

from ddcnn.config.settings import RunSettings
from ddcnn.io.details import Details
from ddcnn.io.hdf5 import DAMAGED, Damaged, opened, reading
from ddcnn.io.results_schema import EpochLine, RunResults, parse
from ddcnn.io.run_folder import RunFolder


@dataclass(frozen=True)
class FinishedRun:
    """A finished run with one seed."""

    folder: RunFolder
    results: RunResults
    settings: RunSettings
    epochs: list[EpochLine]
    details: Details

    @property
    def test_accuracy(self) -> dict[str, float]:
        return {name: method.test_accuracy for name, method in self.results.methods.items()}

    @property
    def curve_ends(self) -> dict[str, float]:
        """The accuracy of the methods on the split that their curves show, if that is not the training split."""
        methods = self.results.methods if self.results.curves_on != "training" else ()
        return {name: self.results.accuracy_of(name) for name in methods}

    @property
    def cores(self) -> np.ndarray:
        """(N, 2, d) start and stop of the cores of the subdomains."""
        return np.array([[box.core_start, box.core_stop] for box in self.results.decomposition.subdomains])

    @property
    def subimages(self) -> np.ndarray:
        """(N, 2, d) start and stop of the subimages."""
        return np.array([[box.start, box.stop] for box in self.results.decomposition.subdomains])

    @property
    def map_shape(self) -> tuple[int, ...]:
        """Shape of a map of one number per subdomain."""
        return self.results.decomposition.splitting.map_shape(self.results.decomposition.grid)

    @property
    def local_accuracy(self) -> np.ndarray | None:
        """(*grid) test accuracies of the local CNNs, None if none was trained on its own."""
        accuracies = [box.test_accuracy for box in self.results.decomposition.subdomains]
        return None if None in accuracies else np.array(accuracies, dtype=float).reshape(self.map_shape)

    @property
    def spans_by_rank(self) -> list[np.ndarray]:
        """A list over ranks of arrays (spans, 4), as ``timeline`` takes them."""
        timeline = self.details.timeline
        return [timeline[timeline[:, 0] == rank, 1:] for rank in range(self.results.environment.ranks)]


def curves_of(results: RunResults) -> dict[str, np.ndarray]:
    """Per method (points, 2): seconds, accuracy."""
    return {name: np.array(method.curve or (), dtype=float).reshape(-1, 2) for name, method in results.methods.items()}


def load(run: RunFolder) -> FinishedRun:
    """Reads the files of a run's folder; InputError if the run has not finished, or a file is damaged."""
    results, settings = load_results(run), run.settings()
    with reading(run.metrics, *DAMAGED):
        epochs = [parse(EpochLine, line) for line in run.metrics.read_bytes().splitlines()]
        if not epochs and not settings.start_from:
            raise Damaged("no epochs")
    with opened(run.details, *DAMAGED) as file:
        details = Details.read(file, results)
    return FinishedRun(run, results, settings, epochs, details)


def load_results(run: RunFolder) -> RunResults:
    """The results of a run, also of one with several seeds; InputError if it has not finished, or the file is damaged."""
    run.check_has_results()
    with reading(run.results, *DAMAGED):
        return parse(RunResults, run.results.read_bytes())
