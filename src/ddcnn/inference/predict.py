"""``ddcnn predict``: classifies new images with a finished run, block by block, on any number of ranks.

The ranks divide the samples: rank r of P classifies every P-th block. Where a network is too large for one process they divide its
subdomains instead: every rank reads every block, and rank 0 combines the interface values of all local CNNs, as in a run.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from ddcnn.config.methods import Method
from ddcnn.config.trained_settings import PredictSettings
from ddcnn.data.partition import Block, blocks, read_block
from ddcnn.data.prediction_source import Selection, Wanted, open_images
from ddcnn.data.sources import SourceOptions, Split
from ddcnn.data.stored import to_tensor
from ddcnn.errors import InputError
from ddcnn.inference.network import Assembled, assemble
from ddcnn.inference.trained_run import TrainedRun
from ddcnn.inference.writers import WRITERS, Columns, check_output, writing
from ddcnn.io.progress import Progress
from ddcnn.method.interface import gather_interface
from ddcnn.parallel.devices import choose_device
from ddcnn.parallel.environment import threads_per_rank
from ddcnn.parallel.heartbeat import beat
from ddcnn.parallel.world import World
from ddcnn.training.evaluation import EVALUATION_SAMPLES as BATCH
from ddcnn.training.evaluation import at_least_single
from ddcnn.training.precision import DevicePolicy

logger = logging.getLogger(__name__)
ROWS_BYTES = 1 << 25  # of the predictions of a block at most


def predict(world: World, settings: PredictSettings) -> None:
    """Classifies the images on all ranks together, writes the predictions, and prints the accuracy if labels are known.

    Raises:
        InputError: the settings do not fit the run or the images.
    """
    torch.set_num_threads(threads_per_rank(world, settings.threads))
    shared, device = settings.divide == "subdomains", choose_device(world, settings.device)
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        run = TrainedRun.open(settings.run)
        method = run.choose(settings.method, settings.without, settings.local or shared)
        check(settings, run, method)
        precision = run.results.environment.precision if settings.precision == "run" else settings.precision
        policy = DevicePolicy.choose(device, precision)
        part = (world.rank, world.size) if shared else (0, 1)
        network = assemble(run, method, settings.without, *part).eval()
        policy.place(network)
    if settings.download:
        world.on_root(lambda: len(select_images(settings, run, download=True).chosen))
    with world.raise_on_all_ranks(), world.timeline.span("compute"):
        selection = select_images(settings, run)
        images, chosen = selection.images, selection.chosen

    labelled = bool((images.labels[chosen] >= 0).any())
    columns = Columns(run.images.class_names, labelled, method != Method.VOTE, network.present if settings.local else ())
    classifier = Classifier(world, network, policy, columns, settings.source, images, settings.skip_damaged, shared)
    work = blocks(images, chosen, min(BATCH, ROWS_BYTES // (8 * columns.width)))
    attributes = {
        "run": str(settings.run),
        "method": str(method),
        "without": ",".join(map(str, settings.without)),
        "split": selection.split,
    }
    counts = np.zeros(3, dtype=int)  # on rank 0: images classified, with a known label, and classified correctly
    style = settings.progress if world.rank == 0 else "none"
    with ExitStack() as stack:
        with world.raise_on_all_ranks():
            writer = stack.enter_context(writing(settings.output, columns, images.name, attributes)) if world.rank == 0 else None
        progress = stack.enter_context(Progress("predict", classifier.rounds(work), style, seconds=5))
        for rows in classifier.classify(work):
            with world.raise_on_all_ranks():
                if writer and rows is not None and len(rows):
                    writer.write(rows)
                    labels, classes = rows[:, 1], rows[:, 2]
                    counts += len(rows), (labels >= 0).sum(), (labels == classes).sum()
            progress.advance(f"{counts[0]} of {len(chosen)} images")
        with world.raise_on_all_ranks():
            if world.rank == 0 and not counts[0]:
                raise InputError(f"{settings.source}: all {len(chosen)} images are damaged")
            stack.close()  # which may fail, too
    if world.rank == 0:
        logger.info("%s", _summary(settings, run, method, selection, *counts.tolist()))


def select_images(settings: PredictSettings, run: TrainedRun, download: bool = False) -> Selection:
    """The images to classify."""
    options = SourceOptions(settings.source, settings.data_root, download, nan=settings.nan or "", follow_links=settings.follow_links)
    wanted = Wanted(settings.split, settings.samples, settings.unlabelled, partial(run.was_tested_on, settings.source))
    return open_images(options, run.images, wanted)


def check(settings: PredictSettings, run: TrainedRun, method: Method) -> None:
    """Refuses a file that must not be written, and options that the method does not know."""
    if settings.output.suffix not in WRITERS:
        raise InputError(f"--output {settings.output}: the name must end in {' or '.join(WRITERS)}")
    check_output(settings.output, settings.overwrite, settings.run, Path(settings.source))
    if run.settings.sees_whole_image(method) and (settings.local or settings.divide == "subdomains"):
        option = "--local" if settings.local else "--divide subdomains"
        raise InputError(f"{option}: the network of {method} sees the whole image and has no subdomains; leave it out")
    learnt = run.settings.local_cnns_classify or run.settings.auxiliary
    if settings.local and Method(method).joint and not learnt:
        raise InputError(f"--local: in {method} of this run local CNNs hand on no classifications; take another --method or leave it out")


def _summary(
    settings: PredictSettings, run: TrainedRun, method: Method, selection: Selection, samples: int, labelled: int, correct: int
) -> str:  # fmt: skip
    without = f" without {', '.join(map(str, settings.without))}" if settings.without else ""
    text = f"{settings.output}: {samples} image{'s' * (samples != 1)} classified by {method}{without}"
    if labelled:
        some = f" on the {labelled} with a label" if labelled < samples else ""
        in_run = f"in the run {run.results.methods[method].test_accuracy:.6g} on {run.results.data.test_samples} test images"
        text += f"; split {selection.split}: accuracy {correct / labelled:.6g}{some} ({in_run})"
    if skipped := len(selection.chosen) - samples:
        text += f"; {skipped} damaged one{'s' * (skipped != 1)} left out"
    if selection.others and not settings.split:
        text += f"; {selection.others} other images are not of split {selection.split}, --split all takes them too"
    return text if settings.method else f"{text}; {run.why(method)}"


@dataclass(frozen=True)
class Classifier:
    """Passes blocks of images through a network."""

    world: World
    network: Assembled  # the whole network on every rank, or this rank's part of it if ``shared``
    policy: DevicePolicy
    columns: Columns
    source: str
    images: Split
    skip_damaged: bool
    shared: bool  # whether the ranks divide the subdomains; else they divide the samples

    def rounds(self, work: list[Block]) -> int:
        """Number of blocks of the rank that has the most."""
        return -(-len(work) // (1 if self.shared else self.world.size))

    def classify(self, work: list[Block]) -> Iterator[np.ndarray | None]:
        """Predictions round by round, on all ranks: rows (n, columns), see ``Columns``, of ascending samples on rank 0; None elsewhere."""
        own = work if self.shared else work[self.world.rank :: self.world.size]
        padded = [*own, *[None] * (self.rounds(work) + 1 - len(own))]
        ahead = ThreadPoolExecutor(1)  # reads a block while the previous one passes through the network
        reading = ahead.submit(self._read, padded[0])
        try:
            for block, following in pairwise(padded):
                with self.world.raise_on_all_ranks():
                    if block:
                        beat(f"sample {block.samples[0]}")
                    samples, images = reading.result()
                reading = ahead.submit(self._read, following)
                rows = self._rows(samples, images)
                if self.shared:
                    yield rows
                    continue
                gathered = self.world.gather_rows(np.empty((0, self.columns.width)) if rows is None else rows)
                yield None if gathered is None else np.concatenate(gathered)
        finally:
            ahead.shutdown(wait=False)  # an interrupt does not wait for a block

    def _read(self, block: Block | None) -> tuple[np.ndarray, np.ndarray]:
        """Samples (B,) and images (B, *spatial, C) of a block; empty arrays without one."""
        if not block:
            return np.empty(0, np.int64), np.empty(0)
        quiet = self.shared and self.world.rank > 0
        return read_block(self.source, self.images, "", block.samples, self.skip_damaged, quiet)

    def _rows(self, samples: np.ndarray, images: np.ndarray) -> np.ndarray | None:
        """Predictions (B, columns) of samples (B,); None on ranks other than 0 if ``shared``."""
        if not len(samples):
            return None
        with self.world.timeline.span("compute"):
            predictions = self._predict(samples, to_tensor(images).to(self.policy.device).movedim(-1, 1))
        return None if predictions is None else self.columns.rows(samples, self.images.labels[samples], *predictions)

    @torch.inference_mode()
    def _predict(self, samples: np.ndarray, images: torch.Tensor) -> list[np.ndarray] | None:
        """(B, C, *spatial) -> classes (B,), probabilities (B, K), p_i (B, n, K), as ``columns`` needs them; None on ranks > 0 if shared."""
        network, averaged, wants_local = self.network, self.network.method.combines_probabilities, bool(self.columns.subdomains)
        with self.policy.autocast():
            values = network.interface_values(images)
        values = at_least_single(values)  # as they are gathered in a run
        local = network.classify(values) if averaged or wants_local else values
        gathered = self._gather(local if averaged else values)
        local_probabilities = self._gather(local) if wants_local else None
        beat()
        if gathered is None:
            return None
        with self.policy.autocast() if network.dnn is not None and network.dnn.half_precision else nullcontext():
            scores = network.combine(gathered)
        scores = at_least_single(scores)
        if len(wrong := scores.isnan().any(1).nonzero()):
            hint = "" if self.policy.precision == "fp32" else ", or try --precision fp32"
            name = self.images.name(int(samples[int(wrong[0])]))
            raise InputError(f"{self.source}: the network's output for {name} is NaN: check its pixels{hint}")
        results = [scores.argmax(1), scores.softmax(1) if self.columns.probable else None, local_probabilities]
        return [result.cpu().numpy() for result in results if result is not None]

    def _gather(self, values: torch.Tensor) -> torch.Tensor | None:
        """Values of this rank's local CNNs (B, n, C) -> those of all (B, N, C) on rank 0, if the ranks divide the subdomains."""
        if not self.shared:
            return values
        gathered = gather_interface(self.world, values.movedim(1, 0).cpu().numpy())
        return None if gathered is None else torch.from_numpy(gathered).to(values.device)
