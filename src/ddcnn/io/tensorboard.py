"""Writes the lines of metrics.jsonl for TensorBoard: a curve per training."""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

from ddcnn.errors import InputError, cause
from ddcnn.io.atomic import disk_errors
from ddcnn.io.results_schema import EpochLine
from ddcnn.io.run_folder import RunFolder

logger = logging.getLogger(__name__)
SCALARS = ("loss", "accuracy", "validation_accuracy", "validation_loss", "seconds")


def check_board() -> None:
    """Raises InputError if the package tensorboard is not installed."""
    if find_spec("tensorboard") is None:
        raise InputError("--tensorboard needs the package tensorboard: pip install 'ddcnn[tensorboard]', or leave the option out")


class Board:
    """Writes every epoch of every training once, into a folder that is cleared before; ``now`` returns the seconds since the run began.

    A resumed run gets its earlier epochs from the checkpoints and writes them again, so that no point appears twice.
    """

    def __init__(self, run: RunFolder, now: Callable[[], float]):
        self.folder, self.now = run.tensorboard, now
        self._written: set[tuple[str, int]] = set()  # (training, epoch)
        self._training = ""  # whose writer is open; each writer has a thread and a file
        self._writer: Any = None
        self._broken = False
        with disk_errors(self.folder):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def add(self, lines: Iterable[EpochLine]) -> None:
        """Writes lines that have not been written yet; lines of one training should follow each other. An error ends it, with a warning."""
        if not self._broken:
            self._attempt(lambda: self._add(lines))

    def close(self) -> None:
        self._attempt(self._close)

    def _attempt(self, work: Callable[[], None]) -> None:
        before, threading.excepthook = threading.excepthook, lambda _: None  # a writer's thread raises its error where it is used, too
        try:
            work()
        except Exception as error:
            self._broken, self._writer = True, None
            logger.warning("%s: not written any further (%s)", self.folder, cause(error))
        finally:
            threading.excepthook = before

    def _add(self, lines: Iterable[EpochLine]) -> None:
        begin = time.time() - self.now()
        for line in lines:
            if (line.training, line.epoch) in self._written:
                continue
            self._written.add((line.training, line.epoch))
            if line.training != self._training:
                from torch.utils.tensorboard import SummaryWriter

                self._close()
                self._training, self._writer = line.training, SummaryWriter(self.folder / line.training)
            for name in SCALARS:
                if (value := getattr(line, name)) is not None:
                    self._writer.add_scalar(name, value, line.epoch, walltime=begin + line.time)
        if self._writer:
            self._writer.flush()

    def _close(self) -> None:
        if self._writer:
            self._writer.close()
        self._training, self._writer = "", None
