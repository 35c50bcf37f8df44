"""``ddcnn predict``: a finished run on new images, block by block, on any number of ranks, into a CSV or an HDF5 file.

The ranks share the samples: rank r classifies every P-th block. Where a network is too large for one process they share its
subdomains instead: every rank reads every block, and rank 0 decides out of what all local CNNs hand over, as in a run.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ddcnn.config.methods import Method
from ddcnn.config.trained_settings import PredictSettings
from ddcnn.data.batches import to_tensor
from ddcnn.data.partition import Block, blocks, read_block
from ddcnn.data.prediction_source import Wanted, open_images
from ddcnn.data.sources import SourceOptions, Split
from ddcnn.errors import InputError
from ddcnn.inference.network import Assembled, assemble
from ddcnn.inference.trained_run import TrainedRun
from ddcnn.inference.writers import WRITERS, Columns, check_output, writing
from ddcnn.io.progress import Progress
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.world import World
from ddcnn.training.precision import DevicePolicy, choose_device

BATCH = 512  # images of a block at most: what passes through the network at once where a run is evaluated, too
ROWS_BYTES = 1 << 25  # of their predictions at most, of many classes and subdomains


def predict(world: World, settings: PredictSettings) -> None:
    """Classifies the images, all ranks together, and says how many are right if their labels are known.

    Raises:
        InputError: what is asked for cannot be done.
    """
    torch.set_num_threads(threads_per_rank(world, settings.threads))
    shared = settings.divide == "subdomains"
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        run = TrainedRun.open(settings.run)
        method = run.choose(settings.method, settings.without)
        check(settings, run, method)
        precision = run.precision if settings.precision == "run" else settings.precision
        policy = DevicePolicy.choose(choose_device(world.local_rank, settings.device), precision)
        part = (world.rank, world.size) if shared else (0, 1)
        network = assemble(run, method, settings.without, *part).eval()
        policy.place(network)
    if settings.download:
        world.on_root(lambda: len(opened(settings, run, settings.download)[1]))
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        images, chosen = opened(settings, run)

    known = bool((images.labels[chosen] >= 0).any())
    columns = Columns(run.images.class_names, known, method != Method.VOTE, network.present if settings.local else ())
    classifier = Classifier(world, network, policy, columns, settings.source, images, settings.skip_damaged, shared)
    work = blocks(images, chosen, min(BATCH, ROWS_BYTES // (8 * columns.width)))
    about = {"run": str(settings.run), "method": str(method), "without": ",".join(map(str, settings.without))}
    count = Count()
    style = settings.progress if world.rank == 0 else "none"
    with ExitStack() as stack:
        writer = stack.enter_context(writing(settings.output, columns, images.name, about)) if world.rank == 0 else None
        told = stack.enter_context(Progress("predict", classifier.rounds(work), style, seconds=5))
        for rows in classifier.classify(work):
            with world.raise_on_all_ranks():
                if writer and rows is not None and len(rows):
                    writer.write(rows)
                    count.add(rows)
            told.advance(f"{count.samples} of {len(chosen)} images")
        with world.raise_on_all_ranks():
            if world.rank == 0 and not count.samples:
                raise InputError(f"{settings.source}: all of its {len(chosen)} images are damaged")
    if world.rank == 0:
        print(count.text(settings, run, method))


def opened(settings: PredictSettings, run: TrainedRun, download: bool = False) -> tuple[Split, np.ndarray]:
    options = SourceOptions(settings.source, settings.data_root, download)
    return open_images(options, run.images, Wanted(settings.split, settings.samples, settings.unlabelled))


def check(settings: PredictSettings, run: TrainedRun, method: Method) -> None:
    """Refuses what does not fit together."""
    if settings.output.suffix not in WRITERS:
        raise InputError(f"--output {settings.output}: the name of the predictions ends in {' or '.join(WRITERS)}")
    check_output(settings.output, settings.overwrite, settings.run, Path(settings.source))
    if run.is_whole(method) and (settings.local or settings.divide == "subdomains"):
        option = "--local" if settings.local else "--divide subdomains"
        raise InputError(f"{option}: the network of {method} sees the whole image and has no subdomains; leave it out")


@dataclass
class Count:
    """On rank 0: images that have been classified, those whose label is known, and those that are right."""

    samples: int = 0
    labelled: int = 0
    correct: int = 0

    def add(self, rows: np.ndarray) -> None:
        labels, classes = rows[:, 1], rows[:, 2]
        self.samples += len(rows)
        self.labelled += int((labels >= 0).sum())
        self.correct += int((labels == classes).sum())

    def text(self, settings: PredictSettings, run: TrainedRun, method: Method) -> str:
        without = f" without {', '.join(map(str, settings.without))}" if settings.without else ""
        text = f"{settings.output}: {self.samples} image{'s' * (self.samples != 1)} classified by {method}{without}"
        if not self.labelled:
            return text
        before = f"in the run {run.accuracies[method]:.6g} on {run.test_samples} test images"
        return f"{text}; split {settings.split}: accuracy {self.correct / self.labelled:.6g} ({before})"


@dataclass(frozen=True)
class Classifier:
    """A network on images that come block by block.

    Attributes:
        network: on every rank, or if ``shared`` its own part of it.
        columns: what is wanted.
        source: the name of the images.
    """

    world: World
    network: Assembled
    policy: DevicePolicy
    columns: Columns
    source: str
    images: Split
    skip_damaged: bool
    shared: bool

    def rounds(self, work: list[Block]) -> int:
        return -(-len(work) // (1 if self.shared else self.world.size))

    def classify(self, work: list[Block]) -> Iterator[np.ndarray | None]:
        """All ranks, one round after the other: on rank 0 rows (n, columns) of samples that ascend, as ``Columns`` says."""
        own = work if self.shared else work[self.world.rank :: self.world.size]
        every = [*own, *[None] * (self.rounds(work) + 1 - len(own))]
        ahead = ThreadPoolExecutor(1)  # reads a block while the one before it passes through the network
        reading = ahead.submit(self._read, every[0])
        try:
            for block, following in pairwise(every):
                with self.world.raise_on_all_ranks():
                    if block:
                        beat(f"sample {block.samples[0]}")
                    samples, images = reading.result()
                reading = ahead.submit(self._read, following)
                rows = self._rows(samples, images)
                if self.shared:
                    yield rows
                    continue
                everyone = self.world.gather_rows(np.empty((0, self.columns.width)) if rows is None else rows)
                yield None if everyone is None else np.concatenate(everyone)
        finally:
            ahead.shutdown(wait=False)  # whoever interrupts does not wait for a block

    def _read(self, block: Block | None) -> tuple[np.ndarray, np.ndarray]:
        """Samples (B,) and images (B, *spatial, C) of a block, or of none."""
        if not block:
            return np.empty(0, np.int64), np.empty(0)
        quiet = self.shared and self.world.rank > 0
        return read_block(self.source, self.images, "", block.samples, self.skip_damaged, quiet)

    def _rows(self, samples: np.ndarray, images: np.ndarray) -> np.ndarray | None:
        """Of samples (B,); if the ranks share the subdomains on rank 0 alone."""
        if not len(samples):
            return None
        with self.world.timeline.span("compute"):
            decided = self._decide(samples, to_tensor(images).to(self.policy.device).movedim(-1, 1))
        return None if decided is None else self.columns.rows(samples, self.images.labels[samples], *decided)

    @torch.inference_mode()
    def _decide(self, samples: np.ndarray, images: torch.Tensor) -> list[np.ndarray] | None:
        """(B, C, *spatial) -> classes (B,) and, as far as wanted, probabilities (B, K), p_i (B, n, K); on rank 0 if shared."""
        network, averaged, wanted = self.network, self.network.method in (Method.VOTE, Method.AVERAGE), bool(self.columns.subdomains)
        with self.policy.autocast():
            values = network.interface_values(images)
        local = network.classify(values) if averaged or wanted else values
        handed = self._of_all(local if averaged else values)
        shown = self._of_all(local) if wanted else None
        beat()
        if handed is None:
            return None
        scores = network.combine(handed)
        if len(wrong := scores.isnan().any(1).nonzero()):
            hint = "" if self.policy.precision == "fp32" else ", or try --precision fp32"
            name = self.images.name(int(samples[int(wrong[0])]))
            raise InputError(f"{self.source}: of {name} the network makes no numbers: look at its pixels{hint}")
        found = [scores.argmax(1), scores.softmax(1) if self.columns.probable else None, shown]
        return [values.cpu().numpy() for values in found if values is not None]

    def _of_all(self, values: torch.Tensor) -> torch.Tensor | None:
        """What the ranks' local CNNs say, put together: (B, n, C) -> (B, N, C) on rank 0 if the ranks share the subdomains."""
        if not self.shared:
            return values
        everyone = self.world.gather(values.movedim(1, 0).cpu().numpy())  # (P, n, B, C)
        return None if everyone is None else torch.from_numpy(np.concatenate(everyone)).movedim(0, 1).to(values.device)
