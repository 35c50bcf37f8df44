"""Settings: one frozen class a command. A field is an option of the command line and a key of the TOML file, with the same name."""

import os
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from ddcnn.config.methods import Method
from ddcnn.config.types import Every, Grid, ImageSize, Interface, Methods, Signals, VolumeSize, Window, option
from ddcnn.networks.registry import NETWORKS, default_width


class Settings(BaseModel):
    """Settings of a command; those of one without options.

    Attributes:
        from_file: whether they can be given in a TOML file, ``--config``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    from_file: ClassVar[bool] = False


class ImageSettings(Settings):
    """Settings of the commands that read images, on all ranks."""

    from_file: ClassVar[bool] = True
    data_root: Path = option(
        Path(os.environ.get("DDCNN_DATA_ROOT", "data")), "folder of torchvision's sets (default: $DDCNN_DATA_ROOT, else data)", "DIR"
    )
    download: bool = option(False, "let torchvision fetch a missing set into --data-root")
    skip_damaged: bool = option(False, "leave damaged files out, and count them, instead of refusing the set")
    progress: Literal["auto", "bar", "lines", "none"] = option("auto", "a bar on a terminal, lines in a file")
    stall_timeout: float = option(1800, "seconds without a sign of life from a rank after which the job is ended; 0 for never", "S", ge=0)


class DataSettings(ImageSettings):
    """Which images, and how they are decomposed."""

    volumes: bool = option(False, "the arrays are volumes (n, depth, rows, columns)")
    image_size: ImageSize | None = option(None, "size that images are brought to, rows x columns (default: their own)", "P|HxW")
    image_transform: Literal["resize", "resize+center-crop", "center-crop"] = option(
        "resize+center-crop", "how: torchvision's Resize of both sides; Resize of the shorter side and CenterCrop; CenterCrop alone"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] = option("bilinear", "of Resize, as torchvision names it")
    volume_size: VolumeSize | None = option(None, "size that volumes are resampled to, depth x rows x columns", "P|DxHxW")
    window: Window | None = option(None, "intensities are clipped to this range", ("LOW", "HIGH"))
    test_fraction: float = option(
        0.2, "share of the images of every class for testing, of a source without test images; --subset-seed says which", "F", gt=0, lt=1
    )
    decomposition: Literal["image", "width"] = option(
        "image", "what is decomposed: the image into subimages, or the network in width into thin networks that see the whole image"
    )
    grid: Grid = option("2x2", "subdomains per axis; of a decomposition in width, the product counts", "2x2", validate_default=True)
    overlap: int = option(0, "pixels by which a subimage extends into its neighbours", "PIXELS", ge=0)
    augment: Literal["none", "flip", "shift", "flip+shift"] = option("none", "what is done to training images")
    shift: int = option(4, "largest shift of --augment shift, in pixels per axis", "PIXELS", ge=1)
    train_samples: int | None = option(None, "class-balanced subset of the training images", "S", ge=1)
    test_samples: int | None = option(None, "class-balanced subset of the test images", "S", ge=1)
    subset_seed: int = option(0, "seed of the subsets, so that runs of different --seed see the same images", "S", ge=0)

    @property
    def margin(self) -> int:
        return self.shift if "shift" in self.augment else 0

    @property
    def thin(self) -> int:
        """Thin networks per subdomain: 1, or N where the network is decomposed in width and the image is the only subdomain."""
        return prod(self.grid) if self.decomposition == "width" else 1

    @model_validator(mode="after")
    def _suit_the_decomposition(self) -> Self:
        if self.decomposition == "width" and self.overlap:
            raise ValueError("--overlap belongs to --decomposition image: networks that are decomposed in width see the whole image")
        return self


AnySettings = TypeVar("AnySettings", bound=Settings)
SOURCES = (
    "digits, cifar10, fashion-mnist or a class of torchvision.datasets; an .npz or .h5 of arrays; a folder of class folders, or of NIfTI "
    "volumes with a labels.csv; synthetic:SHAPExCLASSESxSAMPLES"
)


class PartitionSettings(DataSettings):
    """Settings of ``ddcnn partition``."""

    source: str = option(..., SOURCES, "SOURCE", positional=True)
    output: Path = option(..., "the partitioned file to write", "FILE.h5")


FREE = (
    "output", "overwrite", "resume", "checkpoint_every", "keep_checkpoints", "time_limit", "stop_signals", "progress", "threads", "device",
    "partitions", "data_root", "download", "stall_timeout", "methods", "figures", "tensorboard",
)  # settings that may change between the attempts of a run  # fmt: skip


class RunSettings(DataSettings):
    """Settings of ``ddcnn run``."""

    data: str = option("digits", f"{SOURCES}; or a partitioned .h5", "SOURCE")
    partitions: Path = option(Path("runs/partitions"), "folder where partitioned sets are kept and found again", "DIR")
    output: Path | None = option(None, "folder for the results (default: runs/DATA-GRID-DATE)", "DIR")
    overwrite: bool = option(False, "replace the run in --output")
    resume: bool = option(False, "go on where an earlier attempt in --output stopped, with its settings; begin if there was none")
    checkpoint_every: Every = option("10min", "epochs (5) or minutes (10min) between two checkpoints of a training", "EVERY")
    keep_checkpoints: int = option(2, "checkpoints of a training that stay, the newest", "N", ge=1)
    time_limit: float | None = option(
        None, "minutes after which the run keeps what it has done and ends with 75; so it does before the end of a SLURM job", "MIN", gt=0
    )
    stop_signals: Signals = option("SIGUSR1,SIGTERM", "signals that ask for the same", "NAMES", validate_default=True)
    start_from: Path | None = option(
        None,
        "take the local CNNs (and the DNN, if its interface is the same) of this finished run (of --seed), instead of training them",
        "RUN",
    )
    network: str = option(
        "vgg9",
        f"of the local CNNs and of the global CNN: {', '.join(NETWORKS)}, one of torchvision's, or your own, package.module:factory",
        "NAME",
    )
    width: int | None = option(None, "channels of the first stage of the global network (default: the network's own)", "CHANNELS", ge=4)
    width_divisor: float | None = option(
        None, "local widths are the global ones divided by D (default: the square root of N; decomposed in width: N)", "D", ge=1
    )
    methods: Methods = option(",".join(Method), f"what to compare, of {', '.join(Method)} (default: all)", "LIST", validate_default=True)
    interface: Interface = option("probabilities", "what a local CNN hands to the DNN; features: its last hidden layer")
    features: int | None = option(None, "neurons of the local CNNs' last hidden layer (default: by the width rule)", "F", ge=1)
    epochs: int = option(10, "epochs of local training", "E", ge=1)
    transfer_epochs: int = option(4, "epochs of training all as one network, from the trained parts", "E", ge=1)
    frozen_epochs: int = option(0, "epochs before these, in which only the DNN learns", "E", ge=0)
    coherent_epochs: int | None = option(
        None, "epochs of training it from scratch (default: those of local training and transfer)", "E", ge=1
    )
    global_epochs: int | None = option(None, "epochs of the global CNN (default: those of local training and transfer)", "E", ge=1)
    batch_size: int = option(128, "samples per step, of all ranks together", "B", ge=2)
    optimizer: Literal["adamw", "sgd"] = option("adamw", "of all CNNs")
    lr: float = option(0.005, "largest learning rate (default: 0.005, with sgd 0.1)", "LR", gt=0)
    transfer_lr: float | None = option(None, "largest learning rate of transfer (default: a fifth of --lr)", "LR", gt=0)
    coherent_lr: float | None = option(None, "largest learning rate of coherent training (default: --lr)", "LR", gt=0)
    global_lr: float | None = option(None, "largest learning rate of the global CNN (default: --lr)", "LR", gt=0)
    global_width: int | None = option(None, "channels of the first stage of the baseline (default: --width)", "CHANNELS", ge=4)
    weight_decay: float = option(0.01, "of all CNNs (default: 0.01, with sgd 0.0005)", "W", ge=0)
    schedule: Literal["one-cycle", "cosine", "constant"] = option("one-cycle", "of the learning rate")
    transfer_schedule: Literal["one-cycle", "cosine", "constant"] = option(
        "cosine", "of the learning rate of transfer; a warm-up would first spoil what has been learnt"
    )
    label_smoothing: float = option(0.0, "of all CNNs", "E", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = option(
        "none", "of the loss; balanced: every class counts as much as any other, however rare it is"
    )
    dnn_data: Literal["train", "holdout", "out-of-fold"] = option(
        "train", "samples whose local classifications train the DNN: those of the local CNNs, some held out, all out of fold"
    )
    folds: int = option(5, "folds of out-of-fold; holdout holds out one of them", "F", ge=2)
    dnn_epochs: int = option(10, "epochs of training the DNN", "E", ge=1)
    dnn_lr: float = option(0.001, "largest learning rate of the DNN (AdamW, one-cycle)", "LR", gt=0)
    seed: int = option(0, "of everything but the subsets", "S", ge=0)
    seeds: int = option(1, "runs with --seed, --seed + 1, ..., for mean and spread", "RUNS", ge=1)
    figures: bool = option(True, "draw them at the end of the run; without, ddcnn report RUN draws them when they are wanted")
    tensorboard: bool = option(False, "also write the lines of metrics.jsonl for TensorBoard, into tensorboard/ in the folder")
    evaluate_every: int = option(1, "epochs between two evaluations on the test images; 0 for none", "E", ge=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "of the arithmetic; auto: bf16 on GPUs that have it, else fp32")
    threads: int | None = option(None, "threads per rank (default: $OMP_NUM_THREADS, else cores divided by ranks)", "T", ge=1)

    def is_composed(self, method: str) -> bool:
        """Whether a method trains the network that the thin ones of ``--decomposition width`` are composed to."""
        return self.decomposition == "width" and method == Method.TRANSFER

    def sees_whole_image(self, method: str) -> bool:
        """Whether a method's network is a single one, of the whole image."""
        return Method(method).whole_image or self.is_composed(method)

    def phases_of(self, method: str) -> tuple[str, ...]:
        """The phases whose seconds and bytes a method needs; thin networks are composed without a DNN."""
        return ("local", "transfer") if self.is_composed(method) else Method(method).phases

    def needs(self, phase: str) -> bool:
        """Whether a method that was asked for needs this phase."""
        return any(phase in self.phases_of(name) for name in self.methods)

    def divisor(self, subdomains: int) -> float:
        """Of the width rule, for N subdomains; N thin networks, side by side, are as wide as the global one."""
        return self.width_divisor or (subdomains if self.decomposition == "width" else subdomains**0.5)

    def epochs_of(self, method: str) -> int:
        """Epochs of training of a method's network or of a local CNN; by default coherent, global and transfer make the same."""
        in_all = self.epochs + self.frozen_epochs + self.transfer_epochs
        whole: dict[str, int] = {
            Method.COHERENT: self.coherent_epochs or in_all,
            Method.GLOBAL: self.global_epochs or in_all,
            Method.TRANSFER: in_all,
        }
        return whole.get(method, self.epochs)

    @property
    def checkpoint_epochs(self) -> int | None:
        return None if self.checkpoint_every.endswith("min") else int(self.checkpoint_every)

    @property
    def checkpoint_seconds(self) -> float | None:
        return 60 * float(self.checkpoint_every.removesuffix("min")) if self.checkpoint_every.endswith("min") else None

    def deciding(self) -> dict[str, Any]:
        """The settings on which parameters and metrics depend, as JSON values."""
        return self.model_dump(mode="json", exclude=set(FREE))

    @model_validator(mode="after")
    def _hidden_layers_are_of_one_network(self) -> Self:
        if self.interface == "features" and self.dnn_data == "out-of-fold" and self.needs("dnn"):
            raise ValueError(
                "--dnn-data out-of-fold does not go with --interface features: hidden neurons mean something else in the networks of every "
                "fold; take another interface, or --dnn-data holdout"
            )
        return self

    @model_validator(mode="after")
    def _resume_or_overwrite(self) -> Self:
        if self.resume and self.overwrite:
            raise ValueError("--overwrite throws away what --resume goes on with: leave one of them out")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _defaults(cls, values: dict[str, Any], validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Defaults that depend on other options; like other defaults they do not count as given."""
        width = default_width(str(values.get("network", cls.model_fields["network"].default)))
        defaults: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4} if values.get("optimizer") == "sgd" else {}
        defaults |= {"width": width} if width else {}
        settings = validate(defaults | values)
        settings.model_fields_set.difference_update(set(defaults) - set(values))
        return settings


class ReportSettings(Settings):
    """Settings of ``ddcnn report``."""

    runs: tuple[Path, ...] = option(..., "folders of finished runs", "RUN", positional=True)
    follow: bool = option(False, "instead show what one run does, until it has finished")
