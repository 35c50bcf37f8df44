"""Settings of the commands that take a finished run: ``predict`` and ``export``."""

from pathlib import Path
from typing import ClassVar, Literal

from ddcnn.config.methods import PREFERRED, Method
from ddcnn.config.settings import SOURCES, ImageSettings, Settings
from ddcnn.config.types import Subdomains, option


class TrainedSettings(Settings):
    """Which network of a finished run, as one; what its images were is taken from there."""

    from_file: ClassVar[bool] = True

    run: Path = option(..., "folder of a finished run (of several seeds: of one of them, RUN/seed-K)", "RUN", positional=True)
    method: Method | None = option(None, f"one of the run's methods (default: the first of {', '.join(PREFERRED)} that it has)", "NAME")
    without: Subdomains = option((), "answer without these subdomains, as if they were lost: their numbers, such as 1,3", "I,J")
    overwrite: bool = option(False, "replace the file --output")


class PredictSettings(TrainedSettings, ImageSettings):
    """Settings of ``ddcnn predict``."""

    source: str = option(
        ..., f"{SOURCES}; a partitioned .h5; an image, a NIfTI volume, or a folder of such files", "SOURCE", positional=True
    )
    output: Path = option(..., "the predictions: a line a sample, or arrays", "FILE.csv|FILE.h5")
    split: Literal["test", "train", "all"] = option("test", "of a source with labels: which of its images")
    samples: int | None = option(None, "class-balanced subset of them, as --test-samples makes it", "S", ge=1)
    unlabelled: bool = option(False, "all images in a folder and below, whatever its folders are called")
    local: bool = option(False, "also what every local CNN says: the class in a CSV file, the probabilities in HDF5")
    divide: Literal["samples", "subdomains"] = option(
        "samples", "what the ranks share; subdomains: of a network too large for one process, every rank has its local CNNs"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute")
    precision: Literal["run", "fp32", "bf16", "fp16"] = option("run", "of the arithmetic; run: as the run was evaluated")
    threads: int | None = option(None, "threads per rank (default: $OMP_NUM_THREADS, else cores divided by ranks)", "T", ge=1)


class ExportSettings(TrainedSettings):
    """Settings of ``ddcnn export``."""

    format: Literal["torch-export", "onnx", "state-dict"] = option(
        ..., "torch-export: a program for torch.export.load; onnx; state-dict: parameters for torch.load(…, weights_only=True)"
    )
    output: Path = option(..., "the file to write", "FILE")
