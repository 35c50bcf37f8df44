"""Settings: one frozen class a command. A field is an option of the command line and a key of the TOML file, with the same name."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from ddcnn.errors import InputError


def _grid(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = tuple(int(part) for part in value.lower().split("x"))
        except ValueError:
            raise ValueError("write it as rows x columns, such as 2x2, or depth x rows x columns, such as 2x2x2") from None
    return value


def _methods(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


PHASES_OF = {
    "vote": ("local", "gather"),
    "average": ("local", "gather"),
    "dnn": ("local", "folds", "gather", "dnn"),
    "coherent": ("coherent",),
    "transfer": ("local", "folds", "gather", "dnn", "transfer"),
    "global": ("global",),
}  # the phases whose seconds and bytes a method needs
METHODS = tuple(PHASES_OF)

Grid = Annotated[
    tuple[Annotated[int, Field(ge=1)], ...],
    BeforeValidator(_grid),
    PlainSerializer(lambda grid: "x".join(map(str, grid))),
]
Methods = Annotated[
    tuple[Literal["vote", "average", "dnn", "coherent", "transfer", "global"], ...],
    BeforeValidator(_methods),
    PlainSerializer(",".join),
    Field(min_length=1),
]


def option(default: Any, help: str, metavar: str | None = None, **bounds: Any) -> Any:
    """A field with its help text, the name of its value in the usage line, and bounds as in pydantic's ``Field``."""
    return Field(default, description=help, json_schema_extra={"metavar": metavar}, **bounds)


class DataSettings(BaseModel):
    """Which images, and how they are decomposed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    data_root: Path = option(
        Path(os.environ.get("DDCNN_DATA_ROOT", "data")), "folder of torchvision's sets (default: $DDCNN_DATA_ROOT, else data)", "DIR"
    )
    download: bool = option(False, "let torchvision fetch a missing set into --data-root")
    volumes: bool = option(False, "the arrays are volumes (n, depth, rows, columns)")
    grid: Grid = option("2x2", "subdomains per axis", "2x2", validate_default=True)
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
    def grid_text(self) -> str:
        return "x".join(map(str, self.grid))


Settings = TypeVar("Settings", bound=DataSettings)


class PartitionSettings(DataSettings):
    """Settings of ``ddcnn partition``."""

    source: str = option(..., "digits, cifar10, fashion-mnist, or an .npz or .h5 file of arrays", "SOURCE")
    output: Path = option(..., "the partitioned file to write", "FILE.h5")


class RunSettings(DataSettings):
    """Settings of ``ddcnn run``."""

    data: str = option("digits", "digits, cifar10, fashion-mnist, an .npz or .h5 file of arrays, or a partitioned .h5", "SOURCE")
    partitions: Path = option(Path("runs/partitions"), "folder where partitioned sets are kept and found again", "DIR")
    output: Path | None = option(None, "folder for the results (default: runs/DATA-GRID-DATE)", "DIR")
    overwrite: bool = option(False, "replace the finished run in --output")
    start_from: Path | None = option(
        None,
        "take the local CNNs (and the DNN, if its interface is the same) of this finished run (of --seed), instead of training them",
        "RUN",
    )
    network: Literal["vgg3", "vgg9"] = option("vgg9", "architecture of the local CNNs and of the global CNN")
    width: int = option(32, "channels of the first stage of the global network", "CHANNELS", ge=4)
    width_divisor: float | None = option(None, "local widths are the global ones divided by D (default: the square root of N)", "D", ge=1)
    methods: Methods = option(",".join(METHODS), f"what to compare, of {', '.join(METHODS)} (default: all)", "LIST", validate_default=True)
    interface: Literal["probabilities", "logits", "features"] = option(
        "probabilities", "what a local CNN hands to the DNN; features: its last hidden layer"
    )
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
    dnn_data: Literal["train", "holdout", "out-of-fold"] = option(
        "train", "samples whose local classifications train the DNN: those of the local CNNs, some held out, all out of fold"
    )
    folds: int = option(5, "folds of out-of-fold; holdout holds out one of them", "F", ge=2)
    dnn_epochs: int = option(10, "epochs of training the DNN", "E", ge=1)
    dnn_lr: float = option(0.001, "largest learning rate of the DNN (AdamW, one-cycle)", "LR", gt=0)
    seed: int = option(0, "of everything but the subsets", "S", ge=0)
    seeds: int = option(1, "runs with --seed, --seed + 1, ..., for mean and spread", "RUNS", ge=1)
    evaluate_every: int = option(1, "epochs between two evaluations on the test images; 0 for none", "E", ge=0)
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "of the arithmetic; auto: bf16 on GPUs, fp32 on CPUs")
    threads: int | None = option(None, "threads per rank (default: $OMP_NUM_THREADS, else cores divided by ranks)", "T", ge=1)
    progress: Literal["auto", "bar", "lines", "none"] = option("auto", "a bar on a terminal, lines in a file")

    def needs(self, phase: str) -> bool:
        """Whether a method that was asked for needs this phase."""
        return any(phase in PHASES_OF[name] for name in self.methods)

    def epochs_of(self, method: str) -> int:
        """Passes over the training images that end in a method's network; by default the last three make as many."""
        in_all = self.epochs + self.frozen_epochs + self.transfer_epochs
        whole = {"coherent": self.coherent_epochs or in_all, "global": self.global_epochs or in_all, "transfer": in_all}
        return whole.get(method, self.epochs)

    @model_validator(mode="before")
    @classmethod
    def _suit_the_optimizer(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"lr": 0.1, "weight_decay": 5e-4} | values if values.get("optimizer") == "sgd" else values


def load(kind: type[Settings], options: dict[str, Any], file: Path | None = None) -> Settings:
    """Settings from a TOML file and the command line's options, which win.

    Raises:
        InputError: an unreadable file, an unknown key or a bad value, with its name and what is allowed.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = _read_toml(kind, file)
    values |= options
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error, options, file)) from None


def _read_toml(kind: type[DataSettings], file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            found = tomllib.load(stream)
    except OSError as error:
        raise InputError(f"--config {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: not a TOML file ({error})") from None
    values = {key.replace("-", "_"): value for key, value in found.items()}
    for key in found:
        if key.replace("-", "_") not in kind.model_fields:
            raise InputError(f"{file}: unknown key {key!r}{suggest(key, kind)}; allowed: {', '.join(option_names(kind))}")
    return values


def option_names(kind: type[DataSettings]) -> list[str]:
    return [name.replace("_", "-") for name in kind.model_fields]


def suggest(key: str, kind: type[DataSettings]) -> str:
    close = difflib.get_close_matches(key.replace("_", "-"), option_names(kind), n=1)
    return f" (did you mean {'--' if key.startswith('--') else ''}{close[0]}?)" if close else ""


def _explain(error: ValidationError, options: dict[str, Any], file: Path | None) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "missing":
        return f"--{name} is required"
    where = f"--{name.replace('_', '-')}" if name in options or file is None else f"{file}: {name.replace('_', '-')}"
    given = options.get(name, first["input"])
    return f"{where} {given}: {first['msg'].removeprefix('Value error, ')}"
