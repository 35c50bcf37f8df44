"""What a resumed run shares with the run that it goes on with: the images, and the module of the user's network.

Nothing here imports torch, so that errors come at once.
"""

import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ddcnn.config.settings import RunSettings
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import is_path
from ddcnn.errors import InputError
from ddcnn.io.atomic import write_text
from ddcnn.io.checkpoints import saved
from ddcnn.io.origin import Images, Origin, digest_of_file, moved_with, relocated
from ddcnn.io.run_folder import RunFolder
from ddcnn.networks.user_code import Place, place_of
from ddcnn.parallel.timeline import PHASES

logger = logging.getLogger(__name__)


def images_of(store: PartitionedSet) -> Images:
    return Images(**{name: getattr(store, name) for name in Images.model_fields})


def keep_origin(settings: RunSettings, store: PartitionedSet, folder: RunFolder, weights: str) -> None:
    """Keeps what the next attempt needs; of a run that goes on without its source, what is kept already says where that was.

    Args:
        weights: SHA-256 of the trained weights; empty without them.
    """
    kept = Origin.read(folder.origin)
    if kept and kept.data_is_path and not os.path.exists(settings.data):
        return
    start = RunFolder(settings.start_from).results if settings.start_from else None
    origin = Origin(
        folder=os.getcwd(), output=str(folder.path.resolve()), data_is_path=is_path(settings.data), images=images_of(store),
        partitioned=os.path.abspath(store.path),
        network=place_of(settings.network), start=digest_of_file(start), weights=weights,
    )  # fmt: skip
    write_text(folder.origin, origin.model_dump_json(indent=1) + "\n")


def what_is_done(folder: RunFolder, settings: RunSettings, subdomains: int) -> str:
    """How far the trainings of a run are that is gone on with, by their newest checkpoints, in a line."""
    several = {"local": subdomains, "folds": subdomains * settings.folds}
    phases: dict[str, list[tuple[int, int]]] = {}
    for training in sorted(folder.training.glob("*")):
        about = saved(training)
        with suppress(LookupError, TypeError):
            phase = "folds" if "-without-fold-" in training.name else training.name.partition("-")[0]
            epochs = int(about["recipe"]["epochs"])
            phases.setdefault(phase, []).append((min(int(about["epoch"]) - 1, epochs), epochs))
    told = []
    for phase in filter(phases.get, PHASES):
        done, epochs = map(sum, zip(*phases[phase], strict=True))
        if phase in several:  # those that have not been saved have as many
            epochs = epochs // len(phases[phase]) * several[phase]
        elif phase == "transfer":  # of two trainings, the first with frozen local CNNs
            epochs = settings.frozen_epochs + settings.transfer_epochs
        told.append(f"{phase} {done} of {epochs}")
    return f"going on with {folder}; epochs done and saved: {', '.join(told) or 'none'}"


@dataclass(frozen=True)
class Resumed:
    """The run in a folder, before it is gone on with.

    Attributes:
        stored: its settings as they are stored.
        data: where its ``--data`` leads now.
    """

    folder: RunFolder
    origin: Origin | None
    stored: RunSettings
    data: str

    @classmethod
    def of(cls, settings: RunSettings) -> "Resumed | None":
        """None if there is no run to go on with."""
        if not settings.resume or settings.output is None or not RunFolder(settings.output).is_run:
            return None
        folder = RunFolder(settings.output)
        origin, stored = Origin.read(folder.origin), folder.settings()
        return cls(folder, origin, stored, relocated(stored, folder.path, origin).data)

    @property
    def module_places(self) -> list[Place]:
        return self.origin.module_places(self.stored, self.folder.path) if self.origin else []

    def replacement(self, settings: RunSettings, error: InputError) -> Path:
        """The run's partitioned set, if its source cannot be opened; raises the error if another source was named, or there is none."""
        if settings.data != self.data:
            raise InputError(f"{error}; the run in {self.folder} has {self.data}: leave --data out, or name another --output") from None
        found = self.partitioned(settings)
        if not found:
            raise InputError(f"{error}; bring it back, or give --data the path where it, or a partitioned set of it, lies now") from None
        logger.info("note: %s; going on with its partitioned set %s", error, found)
        return found

    def partitioned(self, settings: RunSettings) -> Path | None:
        """A partitioned set of the run's images that is still there."""
        if not self.origin:
            return None
        recorded = Path(self.origin.partitioned)
        moved = moved_with(recorded, self.stored.output, self.folder.path, self.origin)
        for path in dict.fromkeys([recorded, *([moved] if moved else []), *sorted(settings.partitions.glob("*.h5"))]):
            with suppress(InputError):
                store = PartitionedSet.open(path)
                fits = (store.overlap, store.margin) == (settings.overlap, settings.margin) if settings.splitting.cuts_images else True
                if store.source_sha256 == self.origin.images.source_sha256 and fits and (path == recorded or store.grid == settings.grid):
                    return path
        return None

    def check_weights(self, path: Path, sha256: str) -> None:
        """Raises InputError if the trained weights are others than those that the run began with."""
        if self.origin and self.origin.weights and self.origin.weights != sha256:
            raise InputError(
                f"--weights {path}: not the file that the run in {self.folder} began with; bring that back, or begin anew with --overwrite "
                "instead of --resume"
            )

    def check(self, settings: RunSettings, now: Images) -> None:
        """Raises InputError if the images are others than those that the run began with."""
        difference = self.origin.images.difference(now) if self.origin else ""
        if not difference:
            return
        if settings.data != self.data:
            raise InputError(
                f"--data {settings.data}: the run in {self.folder} has {self.data}, of other images (here: {difference}); "
                "leave --data out, or name another --output"
            )
        kept = self.partitioned(settings)
        raise InputError(
            f"{self.folder} is of a run with data that have changed: {self.data} has {difference}; bring the images back"
            f"{f', go on with those of the run by --data {kept}' if kept else ''}, or begin anew with --overwrite instead of --resume"
        )
