"""Settings of ``ddcnn run`` and ``ddcnn report``."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, model_validator

from ddcnn.config.data_settings import SOURCES, DataSettings
from ddcnn.config.methods import BY_DEFAULT, PHASES_OF, Method
from ddcnn.config.training_settings import TrainingSettings
from ddcnn.config.types import Device, Every, Group, Interface, Methods, Settings, Signals, option
from ddcnn.networks.registry import NETWORKS, Design
from ddcnn.networks.shape import scaled_width

THREADS = "threads per rank (default: $OMP_NUM_THREADS, else the cores divided by the ranks on them)"
CHANGEABLE = (
    "output", "overwrite", "resume", "checkpoint_every", "keep_checkpoints", "time_limit", "stop_signals", "progress", "threads", "device",
    "partitions", "data", "data_root", "download", "follow_links", "stall_timeout", "methods", "figures", "tensorboard", "dry_run",
    "resident", "recompute", "capture", "deterministic",
)  # settings that may change when a run is resumed: --data to a path of the same images  # fmt: skip


class RunSettings(DataSettings, TrainingSettings):
    """Settings of ``ddcnn run``."""

    data: str = option(Group.DATA, "digits", f"data set: {SOURCES}; or a partitioned .h5 file", "SOURCE")
    partitions: Path = option(Group.DATA, Path("runs/partitions"), "folder where partitioned data sets are stored and reused", "DIR")

    methods: Methods = option(
        Group.NETWORK, ",".join(BY_DEFAULT), "methods to compare (default: all but spatial)", ",".join(Method), validate_default=True
    )
    network: str = option(
        Group.NETWORK, "vgg9", f"{', '.join(NETWORKS)}, a model of torchvision, or your own, as package.module:factory", "NAME"
    )
    width: int | None = option(Group.NETWORK, None, "channels of the global CNN's first stage (default: by network)", "CHANNELS", ge=4)
    width_divisor: float | None = option(
        Group.NETWORK, None, "divide the global CNN's widths by D in local CNNs (default: the square root of N; in width: N)", "D", ge=1
    )
    head: Literal["dense", "pooled"] | None = option(
        Group.NETWORK, None,
        "how the built-in VGGs, local and global, decide: by dense layers on their last map, or by one on the largest values of it in "
        "each half of an axis (default: pooled)",
        "pooled|dense",
    )  # fmt: skip
    features: int | None = option(Group.NETWORK, None, "neurons of the local CNNs' last hidden layer (default: by width)", "F", ge=1)
    weights: Path | None = option(
        Group.NETWORK, None, "start all CNNs from a state dict of this --network, of torch.save or .safetensors (default: none)", "FILE"
    )
    normalise: Literal["set", "imagenet"] = option(
        Group.NETWORK, "set",
        "subtract mean and divide by deviation: of the training images, or torchvision's (default: set, with --weights imagenet)",
    )  # fmt: skip

    epochs: int = option(Group.LOCAL, 10, "epochs of local training", "E", ge=1)
    batch_size: int = option(Group.LOCAL, 128, "samples per step, of all ranks together", "B", ge=2)
    accumulate: int = option(
        Group.LOCAL, 1, "divide each batch into K parts, whose gradients are added; batch normalisation sees a part", "K", ge=1
    )
    recompute: bool = option(
        Group.LOCAL, False, "compute the CNNs' activations again in the backward pass rather than keep them: less memory, more time"
    )
    start_from: Path | None = option(
        Group.LOCAL, None, "take the local CNNs, and the DNN if it fits, from a finished run with the same --seed (default: train)", "RUN"
    )

    interface: Interface = option(
        Group.DNN, "probabilities", "what a local CNN passes to the DNN; features: its last hidden layer; maps: its last feature map"
    )
    coarse: Literal["dense", "convolutional"] | None = option(
        Group.DNN, None, "layers of the DNN (default: convolutional on maps, else dense)"
    )
    coarse_width: int | None = option(
        Group.DNN, None, "channels of the first convolution of a convolutional DNN (default: as in the global CNN, without stages 64)",
        "CHANNELS", ge=1,
    )  # fmt: skip
    coarse_stages: int = option(
        Group.DNN, 0,
        "give the last S stages of a VGG to the convolutional DNN, as wide as --width says; local CNNs have the others (default: 1)",
        "S", ge=0,
    )  # fmt: skip
    coarse_image: bool = option(
        Group.DNN, False, "the convolutional DNN also gets the image itself, each cell of the map the mean of its pixels (default: yes)"
    )
    dnn_data: Literal["train", "holdout", "out-of-fold"] = option(
        Group.DNN, "train", "samples that train the DNN: those of the local CNNs, some that they have not seen, or all, out of fold"
    )
    folds: int = option(Group.DNN, 5, "folds of --dnn-data out-of-fold; holdout uses one of them", "F", ge=2)
    dnn_epochs: int = option(
        Group.DNN, 10, "epochs of training the DNN (default: 10, with convolutions 2); 0: it stays as it starts", "E", ge=0
    )
    dnn_lr: float = option(Group.DNN, 0.001, "largest learning rate of the DNN (AdamW, one-cycle)", "LR", gt=0)

    seed: int = option(Group.RUN, 0, "random seed of everything but the subsets", "S", ge=0)
    seeds: int = option(Group.RUN, 1, "number of runs, with --seed, --seed + 1, ..., for mean and spread", "RUNS", ge=1)
    device: Device = option(Group.RUN, "auto", "device of the computation")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        Group.RUN, "auto", "floating-point precision; auto: bf16 on GPUs that compute in it, else fp32"
    )
    resident: Literal["auto", "device", "host", "stream"] = option(
        Group.RUN, "auto", "where the images are: the device, the host's memory, or the partitioned set, which is read meanwhile; "
        "auto: where there is room",
    )  # fmt: skip
    threads: int | None = option(Group.RUN, None, THREADS, "T", ge=1)
    resume: bool = option(Group.RUN, False, "continue the run in --output, with its settings; start it if there is none")
    checkpoint_every: Every = option(Group.RUN, "10min", "epochs (5) or minutes (10min) between checkpoints of a training", "EVERY")
    keep_checkpoints: int = option(Group.RUN, 2, "number of checkpoints that are kept of each training", "N", ge=1)
    time_limit: float | None = option(
        Group.RUN, None, "save and stop, with exit code 75, after so many minutes (default: only before a SLURM job ends)", "MIN", gt=0
    )
    stop_signals: Signals = option(Group.RUN, "SIGUSR1,SIGTERM", "signals that make the run save and stop", "NAMES", validate_default=True)

    dry_run: bool = option(
        Group.RUN, False, "check everything and estimate time, memory and disk from a few timed steps; trains and writes nothing"
    )

    output: Path | None = option(Group.OUTPUT, None, "folder of the results (default: runs/DATA-GRID-DATE)", "DIR")
    overwrite: bool = option(Group.OUTPUT, False, "replace the run in --output")
    evaluate_every: int = option(Group.OUTPUT, 1, "epochs between evaluations on the validation images; 0: none while training", "E", ge=0)
    figures: bool = option(Group.OUTPUT, True, "draw figures at the end of the run; ddcnn report RUN draws them later")
    tensorboard: bool = option(Group.OUTPUT, False, "also write metrics for TensorBoard, into tensorboard/ in --output")

    def sees_whole_image(self, method: str) -> bool:
        """Whether a method has a single network, which sees the whole image."""
        return Method(method).whole_image or self.splitting.composes(method)

    @property
    def joint(self) -> list[Method]:
        """Those of the methods that train local CNNs and DNN together."""
        return [method for method in map(Method, self.methods) if method.joint and not self.splitting.composes(method)]

    def phases_of(self, method: str) -> tuple[str, ...]:
        """The phases whose seconds and bytes a method needs; a composed network needs no DNN."""
        return ("local", "transfer") if self.splitting.composes(method) else PHASES_OF[Method(method)]

    def needs(self, phase: str) -> bool:
        """Whether one of the methods needs this phase."""
        return any(phase in self.phases_of(name) for name in self.methods)

    @property
    def trains_dnn(self) -> bool:
        """Whether the DNN is trained on its own; without, it stays as it starts."""
        return self.needs("dnn") and self.dnn_epochs > 0

    @property
    def judged_by_dnn(self) -> tuple[str, ...]:
        """The splits that the DNN classifies, beside its own training."""
        return ("validation", "test") if Method.DNN in self.methods else ("validation",) if self.trains_dnn else ()

    @property
    def phases(self) -> tuple[str, ...]:
        """Those that take place after the partitioning, in their order."""
        phases = (*PHASES_OF[Method.DNN], *(method for method in Method if method.joint or method.whole_image))
        left_out = set() if self.dnn_data == "out-of-fold" else {"folds"}
        needed = {phase for phase in phases if self.needs("local" if phase == "gather" else phase)}  # p_i are gathered for what is recorded
        return tuple(phase for phase in phases if phase in needed - left_out)

    @property
    def local_cnns_classify(self) -> bool:
        """Whether local CNNs hand on classifications, which mean the same in every subdomain; not hidden layers."""
        return self.interface in ("probabilities", "logits")

    @property
    def decides_in_part(self) -> bool:
        """Whether the DNN can do without some subdomains: something can stand for what they hand on."""
        return self.local_cnns_classify or bool(self.convolutional)

    @property
    def convolutional(self) -> tuple[tuple[int, ...], ...] | None:
        """Channels of the convolutions of each stage of the DNN, if it is convolutional."""
        if self.interface != "maps" or self.coarse == "dense":
            return None
        if not self.coarse_stages:
            first = self.coarse_width or 64
            return (first,), (2 * first,)
        built_in = NETWORKS[self.network]
        local, given = built_in.stages[: -self.coarse_stages], built_in.stages[-self.coarse_stages :]
        first = self.coarse_width or (self.width or built_in.width) << len(local)
        return tuple((scaled_width(first << stage, 1),) * convolutions for stage, convolutions in enumerate(given))

    @property
    def keeps(self) -> str:
        """Which epoch's parameters are kept, "best" or "last"."""
        return self.keep or ("last" if self.early_stopping is None else "best")

    @property
    def selects(self) -> str:
        """The option by which validation images decide something; empty if they do not."""
        return "--early-stopping" if self.early_stopping is not None else "--keep best" if self.keep == "best" else ""

    def divisor(self, subdomains: int) -> float:
        """The factor by which the local CNNs of N subdomains are narrower than the global CNN."""
        return self.width_divisor or self.splitting.divisor(subdomains)

    def local_design(self, subdomains: int) -> Design:
        """Of the local CNNs of N subdomains."""
        return Design(self.network, self.width, self.divisor(subdomains), self.features, self.head, self.coarse_stages)

    def global_design(self, method: Method) -> Design:
        """Of a method's network of whole images."""
        return Design(self.network, self.global_width or self.width if method.whole_image else self.width, head=self.head)

    def epochs_of(self, method: str) -> int:
        """Epochs of training of a method's network or of a local CNN; by default coherent, global and transfer make the same."""
        in_all = self.epochs + self.frozen_epochs + self.transfer_epochs
        whole: dict[str, int] = {Method.COHERENT: self.coherent_epochs or in_all, Method.TRANSFER: in_all}
        whole |= dict.fromkeys((Method.GLOBAL, Method.SPATIAL), self.global_epochs or in_all)
        return whole.get(method, self.epochs)

    def _schedules(self) -> dict[str, tuple[str, int]]:
        """The schedule and the epochs of each training of CNNs."""
        from_scratch = [method for method in (Method.COHERENT, Method.GLOBAL, Method.SPATIAL) if method in self.methods]
        found: dict[str, tuple[str, int]] = {str(method): (self.schedule, self.epochs_of(method)) for method in from_scratch}
        if self.needs("local"):
            found["local training"] = (self.schedule, self.epochs)
        if Method.TRANSFER in self.methods:
            found["transfer"] = (self.transfer_schedule, min(self.transfer_epochs, self.frozen_epochs or self.transfer_epochs))
        return found

    @property
    def checkpoint_epochs(self) -> int | None:
        return None if self.checkpoint_every.endswith("min") else int(self.checkpoint_every)

    @property
    def checkpoint_seconds(self) -> float | None:
        return 60 * float(self.checkpoint_every.removesuffix("min")) if self.checkpoint_every.endswith("min") else None

    def identity(self) -> dict[str, Any]:
        """The settings on which parameters and metrics depend, as JSON values."""
        return self.model_dump(mode="json", exclude={*CHANGEABLE, "start_from", "weights"})  # paths, which may lead there from elsewhere

    def as_stored(self) -> Self:
        """As an older version meant them, which lacked some options: no validation images, dense heads, maps alone."""
        built_in, lacks = NETWORKS.get(self.network), {"validation_fraction", "head", "coarse_image"} - self.model_fields_set
        older = {"validation_fraction": 0.0, "coarse_image": False, **({"head": "dense"} if built_in and "dense" in built_in.heads else {})}
        return self.model_copy(update={name: value for name, value in older.items() if name in lacks})

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.frozen_epochs and Method.TRANSFER in self.methods and self.splitting.composes(Method.TRANSFER):
            raise ValueError("--frozen-epochs: networks that are decomposed in width are composed without a DNN; leave it out")
        if not self.local_cnns_classify and self.dnn_data == "out-of-fold" and self.needs("dnn"):
            raise ValueError(
                f"--dnn-data out-of-fold does not work with --interface {self.interface}: hidden neurons of different folds' networks do "
                "not correspond; use probabilities or logits, or --dnn-data holdout"
            )
        if self.interface == "maps" and not self.splitting.cuts_images:
            raise ValueError(
                "--interface maps: networks that are decomposed in width all have maps of the whole image; take another interface"
            )
        if self.share != "none" and not self.splitting.cuts_images:
            raise ValueError(f"--share {self.share}: networks that are decomposed in width would all be one; leave it out")
        if self.coarse == "convolutional" and self.interface != "maps":
            raise ValueError("--coarse convolutional works on maps: add --interface maps")
        if self.coarse_stages:
            self._check_stages()
        if self.coarse_width and not self.convolutional:
            raise ValueError("--coarse-width is of a convolutional DNN: take --interface maps without --coarse dense, or leave it out")
        if self.coarse_image and not self.convolutional:
            raise ValueError("--coarse-image is of a convolutional DNN: take --interface maps without --coarse dense, or leave it out")
        if self.dnn_data != "train" and not self.dnn_epochs:
            raise ValueError(f"--dnn-data {self.dnn_data}: with --dnn-epochs 0 the DNN learns from none; leave one of them out")
        self.check_warmup(self._schedules())
        if self.selects and not self.evaluate_every:
            raise ValueError(f"{self.selects} needs evaluations on the validation images: --evaluate-every must not be 0")
        if self.resume and self.overwrite:
            raise ValueError("--overwrite deletes the run that --resume continues: give only one of them")
        return self

    def _check_stages(self) -> None:
        option, built_in = f"--coarse-stages {self.coarse_stages}", NETWORKS.get(self.network)
        if self.interface != "maps" or self.coarse == "dense":
            raise ValueError(f"{option} is of a convolutional DNN: take --interface maps without --coarse dense, or leave it out")
        if not (built_in and built_in.stages):
            with_stages = " and ".join(name for name, one in NETWORKS.items() if one.stages)
            raise ValueError(f"{option}: of --network {self.network} the DNN cannot have stages, of {with_stages} it can: leave it out")
        if self.coarse_stages >= len(built_in.stages):
            raise ValueError(f"{option}: --network {self.network} has {len(built_in.stages)} stages; leave one to the local CNNs at least")

    @model_validator(mode="wrap")
    @classmethod
    def _defaults(cls, values: dict[str, Any], validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Defaults that depend on other options; like other defaults they do not count as given."""
        built_in = NETWORKS.get(str(values.get("network", cls.model_fields["network"].default)))
        defaults: dict[str, Any] = {"lr": 0.1, "weight_decay": 5e-4} if values.get("optimizer") == "sgd" else {}
        defaults |= {"width": built_in.width, "head": built_in.heads[0]} if built_in else {}
        if values.get("interface") == "maps" and values.get("coarse") != "dense":
            defaults["dnn_epochs"] = 2  # each of which costs rank 0 more than one of local training
            defaults |= {"coarse_stages": 1 if built_in and built_in.stages else 0, "coarse_image": True}
        defaults |= {"normalise": "imagenet"} if values.get("weights") else {}
        defaults |= {"capture": True} if built_in else {}
        settings = validate(defaults | values)
        settings.model_fields_set.difference_update(set(defaults) - set(values))
        return settings


class ReportSettings(Settings):
    """Settings of ``ddcnn report``."""

    runs: tuple[Path, ...] = option(Group.OUTPUT, ..., "finished runs; with --follow also one that goes on", "RUN", positional=True)
    follow: bool = option(Group.OUTPUT, False, "instead show what one run does, until it has finished")
