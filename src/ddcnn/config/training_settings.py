"""Options of how all CNNs are trained, and how much their images are augmented."""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel

from ddcnn.config.types import AXES, FlipAxes, Group, Schedule, option


class TrainingSettings(BaseModel):
    """Options that ``RunSettings`` inherits."""

    optimizer: Literal["adamw", "sgd"] = option(Group.LOCAL, "adamw", "optimizer of all CNNs")
    lr: float = option(Group.LOCAL, 0.005, "largest learning rate of all CNNs (default: 0.005, with sgd 0.1)", "LR", gt=0)
    weight_decay: float = option(Group.LOCAL, 0.01, "weight decay of all CNNs (default: 0.01, with sgd 0.0005)", "W", ge=0)
    schedule: Schedule = option(Group.LOCAL, "one-cycle", "learning-rate schedule of all CNNs but those of transfer")
    label_smoothing: float = option(Group.LOCAL, 0.0, "label smoothing of all CNNs", "E", ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = option(
        Group.LOCAL, "none", "class weights of the loss; balanced: rare classes count as much as frequent ones"
    )
    clip_norm: float | None = option(
        Group.LOCAL, None, "largest norm of the gradient, of every CNN and, in coherent and transfer, of the DNN: each by itself, so that "
        "nothing is communicated (default: no limit)", "NORM", gt=0,
    )  # fmt: skip
    ema: float | None = option(
        Group.LOCAL, None, "evaluate and keep the exponential moving average of all CNNs' parameters and running statistics over the "
        "steps, with this decay, such as 0.999; takes as much memory as the parameters once more, and a pass over them in each step "
        "(default: none)", "DECAY", gt=0, lt=1,
    )  # fmt: skip
    warmup: float = option(
        Group.LOCAL, 0.0, "epochs in which the learning rate rises to the schedules cosine and constant; one-cycle has a rise of its own",
        "EPOCHS", ge=0,
    )  # fmt: skip
    early_stopping: int | None = option(
        Group.LOCAL, None, "end a training after E epochs without a better validation accuracy (default: never)", "E", ge=1
    )
    keep: Literal["best", "last"] | None = option(
        Group.LOCAL, None, "which epoch's parameters are kept, the best on the validation images or the last (default: last, with "
        "--early-stopping best)", "best|last",
    )  # fmt: skip

    transfer_epochs: int = option(Group.JOINT, 4, "epochs of joint training from the trained local CNNs and DNN", "E", ge=1)
    frozen_epochs: int = option(Group.JOINT, 0, "epochs of transfer before these, in which the local CNNs are frozen", "E", ge=0)
    transfer_lr: float | None = option(Group.JOINT, None, "largest learning rate of transfer (default: --lr / 5)", "LR", gt=0)
    transfer_schedule: Schedule = option(Group.JOINT, "cosine", "learning-rate schedule of transfer")
    share: Literal["none", "early", "all"] = option(
        Group.JOINT, "none", "parameters that local CNNs have in common in coherent and transfer: none, those of the first stage, or all; "
        "they then also start from the same ones",
    )  # fmt: skip
    auxiliary: float = option(
        Group.JOINT,
        0.0,
        "weight of the local CNNs' own mean cross entropy in the loss of coherent and transfer; it falls to zero",
        "W",
        ge=0,
    )
    coherent_epochs: int | None = option(
        Group.JOINT, None, "epochs of joint training from scratch (default: those of local training and transfer)", "E", ge=1
    )
    coherent_lr: float | None = option(Group.JOINT, None, "largest learning rate of coherent (default: --lr)", "LR", gt=0)

    global_epochs: int | None = option(
        Group.BASELINE, None, "epochs of the CNN of global and spatial (default: those of local training and transfer)", "E", ge=1
    )
    global_lr: float | None = option(
        Group.BASELINE, None, "largest learning rate of the CNN of global and spatial (default: --lr)", "LR", gt=0
    )
    global_width: int | None = option(
        Group.BASELINE, None, "--width of the CNN of global and spatial, if it differs (default: --width)", "CHANNELS", ge=4
    )

    capture: bool = option(
        Group.RUN, False, "on GPUs, record the passes of a step as a CUDA graph, which leaves less for the host to do: of networks that "
        "one rank trains without messages, whose images are on the device, and without --recompute (default: yes for built-in networks)",
    )  # fmt: skip
    deterministic: bool = option(Group.RUN, False, "on GPUs, the same bits in every run, by kernels that may be slower")

    flip_axes: FlipAxes = option(
        Group.DATA, "columns", "axes of --augment flip: any of depth, rows and columns, joined by +; for n axes that the grid cuts, a rank "
        "holds the images of up to 2^n subdomains for each of its own", "AXIS+AXIS",
    )  # fmt: skip
    erase: float = option(
        Group.DATA, 0.5, "largest side of the box that --augment erase blanks, as a fraction of the image's sides", "F", gt=0, le=1
    )
    mixup: float = option(
        Group.DATA, 0.2, "parameter of the beta distribution from which --augment mixup draws the weights of two images", "ALPHA", gt=0
    )

    @property
    def flipped_axes(self) -> tuple[int, ...]:
        """The axes of flips, counted from the last: -1 are the columns."""
        return tuple(AXES.index(name) - len(AXES) for name in self.flip_axes.split("+"))

    def check_warmup(self, schedules: Mapping[str, tuple[str, int]]) -> None:
        """Refuses a warm-up that no training follows, or that one would not come to the end of.

        Args:
            schedules: schedule and epochs of each training.

        Raises:
            ValueError: naming the option, and the training if it is one.
        """
        followed = {name: epochs for name, (schedule, epochs) in schedules.items() if schedule != "one-cycle"}
        if self.warmup and not followed:
            raise ValueError("--warmup: the schedule one-cycle has a rise of its own; take --schedule cosine or constant")
        for name, epochs in followed.items():
            if self.warmup >= epochs:
                raise ValueError(f"--warmup {self.warmup:g}: {name} ends after {epochs} epochs; take a shorter warm-up")
