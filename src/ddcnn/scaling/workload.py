"""The workload of a scaling study on any number of ranks: sizes of subdomains and networks, by the rules of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from ddcnn.config.methods import Method
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import Decomposition, grid_of
from ddcnn.errors import InputError
from ddcnn.io.run_reader import FinishedRun
from ddcnn.method.costs import halos, networks
from ddcnn.method.work import SECONDS, Sizes, divides
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape
from ddcnn.parallel.timeline import PHASES
from ddcnn.scaling.measurements import Kind


@dataclass(frozen=True)
class Workload:
    """What the runs of a study solve, from one of them.

    Attributes:
        shape: of that run's images, (*spatial, channels).
        subdomains: of that run; in a weak study, as many for each of its ``ranks``.
        samples: of every split.
        phases: that took place in the study, beside the decomposed ones always ``global``, for comparison.
    """

    kind: Kind
    settings: RunSettings
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    ranks: int
    samples: Mapping[str, int]
    classes: int
    phases: tuple[str, ...]
    bytes_a_value: int
    device: str

    @classmethod
    def of(cls, run: FinishedRun, kind: Kind, phases: set[str]) -> "Workload":
        """
        Raises:
            InputError: the study is of a kind that is not modelled.
        """
        settings, data = run.settings, run.results.data
        if not settings.splitting.cuts_images or settings.start_from:
            raise InputError(f"{run.folder}: only trainings of a decomposition of the image, from scratch, are modelled")
        if settings.dnn_data == "holdout" and "dnn" in phases:
            raise InputError(f"{run.folder}: --dnn-data holdout is not modelled; study train or out-of-fold")
        shape, grid = data.shape, run.results.decomposition.grid
        ordered = tuple(phase for phase in PHASES if phase in phases | {"global"})
        return cls(
            kind, settings, shape, grid, run.results.environment.ranks,
            {"train": data.train_samples, "validation": data.validation_samples, "test": data.test_samples},
            data.classes, ordered, run.details.examples.dtype.itemsize, run.results.environment.device,
        )  # fmt: skip

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods in the tables: of the two-step ones, which differ by little, the last; joint ones; and the global CNN."""
        decomposed = [method for method in Method if method in self.settings.methods and not method.whole_image]
        two_step = [method for method in decomposed if not method.joint][-1:]
        spatial = [Method.SPATIAL] if "spatial" in self.phases else []
        return (*two_step, *(method for method in decomposed if method.joint), Method.GLOBAL, *spatial)

    def in_all(self, method: str, seconds: Mapping[str, float]) -> float | None:
        """Seconds of the phases that a method needs; None if one of those that take place in the study is not among them."""
        needed = [phase for phase in self.settings.phases_of(method) if phase in self.phases]
        return sum(seconds[phase] for phase in needed) if set(needed) <= set(seconds) else None

    def at(self, ranks: int) -> Sizes:
        """The sizes on so many ranks.

        Raises:
            InputError: the subimages are too small for the network, or the ranks do not fit the subdomains.
        """
        *spatial, channels = self.shape
        if self.kind == "weak":
            each = prod(self.grid) // self.ranks
            side = [pixels // parts for pixels, parts in zip(spatial, self.grid, strict=True)]
            grid = grid_of(each * ranks, (1,) * len(side))
            spatial = [pixels * parts for pixels, parts in zip(side, grid, strict=True)]
        elif ranks <= prod(self.grid):
            grid = self.grid
            if prod(grid) % ranks:
                raise InputError(f"{ranks} ranks do not fit {prod(grid)} subdomains")
        else:
            grid = grid_of(ranks, spatial)  # a finer one, since a rank has a subdomain at least
        settings, subdomains = self.settings, prod(grid)
        decomposition = Decomposition(tuple(spatial), grid, settings.overlap)
        shapes = {one.subimage.shape for one in decomposition.subdomains}
        subimage = max(shapes, key=prod)
        for spatial_size in shapes:
            registry.check(settings.local_design(subdomains), Shape(spatial_size, channels, self.classes))
        costs = networks(settings, decomposition, channels, self.classes)
        exchanged = None
        if Method.SPATIAL in settings.methods:
            exchanged = halos(settings.global_design(Method.SPATIAL), Shape(tuple(spatial), channels, self.classes), ranks)
        images = self.bytes_a_value * channels * sum(self.samples.values())
        sizes = Sizes(
            settings, ranks, subdomains, self.phases, self.samples, self.classes, subimage, *costs,
            local_bytes=images * prod(subimage), global_bytes=images * prod(spatial), halos=exchanged,
        )  # fmt: skip
        return replace(sizes, divided=divides(sizes, SECONDS["cpu" if self.device == "cpu" else "cuda"]))
