"""Settings of the commands that take a finished run: ``predict`` and ``export``."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from ddcnn.config.data_settings import SOURCES, ImageSettings
from ddcnn.config.methods import PREFERRED, Method
from ddcnn.config.settings import THREADS
from ddcnn.config.types import Device, Group, Settings, Subdomains, option


class TrainedSettings(Settings):
    """Which network of a finished run."""

    from_file: ClassVar[bool] = True
    run: Path = option(
        Group.NETWORK, ..., "folder of a finished run; of a run with several seeds, the folder of one, RUN/seed-K", "RUN", positional=True
    )
    method: Method | None = option(
        Group.NETWORK,
        None,
        "one of the run's methods (default: that with the best validation accuracy; without validation images, the first of "
        f"{', '.join(PREFERRED)} that it has)",
        "NAME",
    )
    without: Subdomains = option(Group.NETWORK, (), "answer without these subdomains, such as 1,3 (default: none is left out)", "I,J")
    overwrite: bool = option(Group.OUTPUT, False, "replace the file --output")


class PredictSettings(TrainedSettings, ImageSettings):
    """Settings of ``ddcnn predict``."""

    source: str = option(
        Group.DATA,
        ...,
        f"{SOURCES}; a partitioned .h5 file; an image or a volume (NIfTI, a DICOM or TIFF stack), or a folder of them",
        "SOURCE",
        positional=True,
    )
    output: Path = option(Group.OUTPUT, ..., "file of the predictions: a line per sample, or arrays", "FILE.csv|FILE.h5")
    split: Literal["test", "validation", "train", "all"] | None = option(
        Group.DATA, None, "which images of a source with labels (default: test, where it has test images or is the run's own; else "
        "validation; else all)", "test|validation|train|all",
    )  # fmt: skip
    samples: int | None = option(Group.DATA, None, "class-balanced subset of S of them, as --test-samples of run (default: all)", "S", ge=1)
    nan: Literal["run", "refuse", "zero", "lowest"] = option(Group.DATA, "run", "values that are NaN or infinite; run: as in the run")
    unlabelled: bool = option(Group.DATA, False, "ignore labels: all images in a folder and below it, whatever its folders are called")
    local: bool = option(Group.OUTPUT, False, "also write what each local CNN says: classes in a CSV file, probabilities in HDF5")
    divide: Literal["samples", "subdomains"] = option(
        Group.RUN, "samples", "what the ranks divide among them; subdomains: for a network too large for one process"
    )
    device: Device = option(Group.RUN, "auto", "device of the computation")
    precision: Literal["run", "fp32", "bf16", "fp16"] = option(Group.RUN, "run", "floating-point precision; run: that of the run")
    threads: int | None = option(Group.RUN, None, THREADS, "T", ge=1)


FORMAT_OF = {".pt2": "torch-export", ".onnx": "onnx", ".pt": "state-dict", ".pth": "state-dict", ".safetensors": "state-dict"}


class ExportSettings(TrainedSettings):
    """Settings of ``ddcnn export``."""

    format: Literal["torch-export", "onnx", "state-dict"] | None = option(
        Group.OUTPUT, None,
        "torch-export: for torch.export.load; onnx; state-dict: parameters, in .safetensors or for torch.load(…, weights_only=True) "
        f"(default: by the suffix of --output, {', '.join(FORMAT_OF)})", "torch-export|onnx|state-dict",
    )  # fmt: skip
    output: Path = option(Group.OUTPUT, ..., "the file to write", "FILE")

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        if self.format is None and self.output.suffix.lower() not in FORMAT_OF:
            *formats, last = dict.fromkeys(FORMAT_OF.values())
            raise ValueError(f"--format is required: {', '.join(formats)} or {last}; or an --output that ends in {', '.join(FORMAT_OF)}")
        return self
