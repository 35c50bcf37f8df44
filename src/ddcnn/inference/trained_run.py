"""A finished run to classify with: its settings, its checkpoints, and the images that it was trained on."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ddcnn.config.methods import PREFERRED, PREFERRED_IN_PART, Method
from ddcnn.config.settings import RunSettings
from ddcnn.data.image_spec import TrainedOn
from ddcnn.data.sources import SourceOptions, Split, balanced_subset
from ddcnn.errors import InputError, did_you_mean
from ddcnn.io.hdf5 import attribute, checked_dataset, opened, parsing
from ddcnn.io.origin import Origin, relocated
from ddcnn.io.results_schema import RunResults
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load_results
from ddcnn.networks.user_code import look_in, module_locations
from ddcnn.report.intervals import percent


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with one seed."""

    folder: RunFolder
    settings: RunSettings
    results: RunResults

    @classmethod
    def open(cls, folder: Path) -> "TrainedRun":
        """Reads settings and results; InputError if it is not the folder of a finished run."""
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give the folder of a finished run, its --output")
        run = RunFolder(folder)
        if seeds := run.seeds():
            raise InputError(f"{run} is a run with several seeds: give the folder of one of them, such as {seeds[0]}")
        results, settings = load_results(run), run.settings()
        if ":" in settings.network:
            origin = Origin.read(run.origin)
            look_in(settings.network, origin.module_places(settings, folder) if origin else [])
            check_own_network(folder, settings.network, origin)
        return cls(run, settings, results)

    def choose(self, method: str | None, without: tuple[int, ...] = (), in_parts: bool = False) -> Method:
        """The requested method, or the best-suited one: if ``in_parts``, one that has subdomains if the run has such.

        Raises:
            InputError: the run has not that method, or it is one network, of which no part can be missing.
        """
        methods = self.results.methods
        if method is not None and method not in methods:
            raise InputError(
                f"--method {method}: {self.folder} has no such method{did_you_mean(method, methods)}; it has {', '.join(methods)}"
            )
        chosen = None if method is None else Method(method)
        if not without:
            return chosen or self._best([name for name in PREFERRED if not (in_parts and self.settings.sees_whole_image(name))])
        able = [name for name in PREFERRED_IN_PART if name in methods and not self._needs_all(name)]
        if chosen is None and not able:
            reasons = "; ".join(f"{name} needs all of its network, {self._needs_all(Method(name))}" for name in methods)
            run = f"ddcnn run --config {self.folder.config} --start-from {self.folder} --methods vote --output NEW"
            remedy = f"; {run} makes a run that can" if self.settings.needs("local") else ""
            raise InputError(f"--without: {self.folder} has no method that could answer without a subdomain: {reasons}{remedy}")
        if chosen and (reason := self._needs_all(chosen)):
            raise InputError(f"--without: {method} needs all of its network, {reason}{f'; take --method {able[0]}' if able else ''}")
        robust = [name for name in able if name != Method.COHERENT]  # whose local CNNs have never learnt to decide alone
        return chosen or self._best(robust or able)

    def _best(self, order: Sequence[Method]) -> Method:
        """The best method on the validation images, as of ``RunResults.best_of``; without such, the first in the order."""
        able = [name for name in order if name in self.results.methods] or list(self.results.methods)
        return self.results.best_of(able) if self.results.data.validation_samples else able[0]

    def why(self, method: Method) -> str:
        """Why a method is taken that has not been asked for."""
        accuracy = self.results.methods[method].validation_accuracy
        if accuracy is None:
            return f"{method} is the first of the usual order, since the run had no validation images"
        able = "" if method == self._best(PREFERRED) else " that can do this, those first whose local CNNs decide alone as well,"
        as_good = [name for name, other in self.results.methods.items() if name != method and other.validation_accuracy == accuracy]
        equal = f", as {' and '.join(as_good)}, with the smallest loss" if as_good and not able else ""
        best = percent(accuracy, self.results.data.validation_samples)
        return f"{method} is the best of the run's methods{able} on its validation images ({best} %{equal})"

    def _needs_all(self, method: Method) -> str:
        """Why a method cannot classify without a subdomain; empty if it can."""
        if self.settings.sees_whole_image(method):
            return "which sees the whole image"
        if method.has_dnn and not self.settings.decides_in_part:
            values = "features" if self.settings.interface == "features" else "maps, on which its DNN has dense layers"
            return f"since the run has --interface {values}: these mean something else in every subdomain, and nothing can stand for them"
        return ""

    def checkpoint(self, name: str) -> Path:
        path = self.folder.parameters(name)
        if not path.is_file():
            others = "; subdomains that are lost are named with --without I,J" if "-" in name and name[-4:].isdigit() else ""
            raise InputError(f"{path} is missing: bring it back, or take another --method of the run{others}")
        return path

    def was_tested_on(self, source: str, images: Split, of: int) -> bool:
        """Whether these, ``of`` so many, are the test images of the run: by the examples that it has kept, else by the source's name."""
        if self._examples is None:
            located = relocated(self.settings, self.folder.path, Origin.read(self.folder.origin))
            return os.path.realpath(located.data) == os.path.realpath(source)
        rows, examples, data = *self._examples, self.results.data
        some = (
            self.settings.train_samples
            or self.settings.validation_samples
            or self.settings.test_samples
            or self.settings.data.lower().endswith(".h5")
        )  # maybe
        if not some and of != data.train_samples + data.validation_samples + data.test_samples:
            return False
        seed = SourceOptions("", Path()).as_before(self.images.preprocessing).seed
        try:
            subset = balanced_subset(images.labels, data.test_samples, seed, "test")
            return np.array_equal(images.read(subset[rows]), examples)
        except InputError:  # fewer images, or other ones
            return False

    @cached_property
    def _examples(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Some test images (n, *spatial, C) and their ascending rows (n,); None if they are gone, or rows are not those of the source."""
        if self.results.data.skipped:
            return None
        with suppress(InputError), opened(self.folder.details) as file:
            dataset = checked_dataset(file, "examples")
            with parsing():
                rows = np.array(attribute(dataset, "rows"), dtype=int)
                order = np.argsort(rows)
                return rows[order], dataset[...][order]
        return None

    @cached_property
    def images(self) -> TrainedOn:
        """The images that it was trained on, as any of its checkpoints says."""
        paths = sorted(self.folder.checkpoints.glob("*.h5"))
        if not paths:
            raise InputError(f"{self.folder}: no checkpoints/*.h5 in it, and so no network to classify with; bring them back, or run again")
        return TrainedOn.read(paths[0])


def check_own_network(folder: Path, name: str, origin: Origin | None = None) -> None:
    """Raises InputError if the module of the user's network is not found, or lies in the run's folder, whose code must not be executed."""
    locations = module_locations(name)
    if not locations:
        began = f" (the run imported it from {origin.network.folder})" if origin and origin.network else ""
        raise InputError(
            f"{folder}: its network {name} cannot be found: start where its module lies, or name its folder in PYTHONPATH{began}"
        )
    if any(place.is_relative_to(folder.resolve()) for place in locations):
        raise InputError(
            f"{folder}: its network {name} is a program in the run's own folder, and is not started; if you trust it, "
            "bring the module elsewhere"
        )
