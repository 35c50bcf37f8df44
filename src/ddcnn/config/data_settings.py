"""Options of which images are read, and how they are decomposed."""

import os
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from ddcnn.config.splitting import SPLITTINGS, ImageSplitting
from ddcnn.config.types import Augment, Grid, Group, ImageSize, Settings, VolumeSize, Window, option

SOURCES = (
    "digits, cifar10, fashion-mnist or a class of torchvision.datasets; an .npz or .h5 file of arrays; a folder of class folders of images "
    "or volumes (NIfTI, DICOM series, TIFF stacks), or of volumes with a labels.csv; "
    "synthetic:SHAPExCLASSESxSAMPLES; scattered-digits:ROWSxCOLUMNSxSAMPLES"
)


class ImageSettings(Settings):
    """Settings of the commands that read images; all ranks run these commands."""

    from_file: ClassVar[bool] = True
    data_root: Path = option(
        Group.DATA, Path(os.environ.get("DDCNN_DATA_ROOT", "data")).expanduser(),
        "folder of torchvision's data sets (default: $DDCNN_DATA_ROOT, else data)", "DIR",
    )  # fmt: skip
    download: bool = option(Group.DATA, False, "let torchvision download a missing data set into --data-root")
    follow_links: bool = option(Group.DATA, False, "read what links in a folder lead to, also where that lies outside of the folder")
    skip_damaged: bool = option(Group.DATA, False, "leave out and count damaged files instead of refusing the data set")
    progress: Literal["auto", "bar", "lines", "none"] = option(
        Group.OUTPUT, "auto", "display of progress; auto: a bar if stderr is a terminal (not under mpirun), else lines; none: tables alone"
    )
    stall_timeout: float = option(Group.RUN, 1800, "abort the job if a rank shows no sign of life for so many seconds; 0: never", "S", ge=0)


class DataSettings(ImageSettings):
    """Which images, and how they are decomposed."""

    volumes: bool = option(
        Group.DATA,
        False,
        "arrays are volumes (n, depth, rows, columns); in class folders, TIFF files and folders of slices are volumes, too",
    )
    image_size: ImageSize | None = option(Group.DATA, None, "resize images to rows x columns (default: keep their size)", "P|HxW")
    image_transform: Literal["resize", "resize+center-crop", "center-crop"] = option(
        Group.DATA, "resize+center-crop", "how images get --image-size: resize both sides, or resize the shorter one and crop, or only crop"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic"] = option(Group.DATA, "bilinear", "interpolation of resized images")
    volume_size: VolumeSize | None = option(
        Group.DATA, None, "resample volumes to depth x rows x columns (default: keep their size)", "P|DxHxW"
    )
    window: Window | None = option(Group.DATA, None, "clip intensities to this range (default: no clipping)", ("LOW", "HIGH"))
    mode: Literal["auto", "grey", "rgb"] = option(
        Group.DATA, "auto", "mode that image files are read in; auto: grey if all are grey, by their headers, else rgb"
    )
    nan: Literal["refuse", "zero", "lowest"] = option(
        Group.DATA, "refuse", "values that are NaN or infinite: refuse the data set, or replace them, by zero or the sample's lowest value"
    )
    test_fraction: float = option(
        Group.DATA, 0.2, "fraction of each class for testing, if the source has no test images; drawn by --subset-seed", "F", gt=0, lt=1
    )
    validation_fraction: float = option(
        Group.DATA, 0.1, "fraction of each class's training images for validation, if the source has no validation images; 0: none",
        "F", ge=0, lt=1,
    )  # fmt: skip
    decomposition: Literal["image", "width"] = option(
        Group.DECOMPOSITION, "image", "decompose the image into subimages, or the network into thin networks that see the whole image"
    )
    grid: Grid = option(Group.DECOMPOSITION, "2x2", "subdomains per axis; in width their product counts", "2x2", validate_default=True)
    overlap: int = option(Group.DECOMPOSITION, 0, "pixels by which a subimage extends into its neighbours", "PIXELS", ge=0)
    augment: Augment = option(
        Group.DATA, "none", "random augmentation of the training images: flip, shift, erase, mixup, joined by +", "NAME+NAME"
    )
    shift: int = option(Group.DATA, 4, "largest shift of --augment shift, in pixels per axis", "PIXELS", ge=1)
    train_samples: int | None = option(Group.DATA, None, "train on a class-balanced subset of S images (default: on all)", "S", ge=1)
    validation_samples: int | None = option(
        Group.DATA,
        None,
        "validate on a class-balanced subset of S images (default: on all; drawn ones in proportion to --train-samples)",
        "S",
        ge=1,
    )
    test_samples: int | None = option(Group.DATA, None, "test on a class-balanced subset of S images (default: on all)", "S", ge=1)
    subset_seed: int = option(Group.DATA, 0, "random seed of the subsets and fractions; --seed does not change them", "S", ge=0)

    @property
    def margin(self) -> int:
        """Pixels around a subimage that are stored for shifts."""
        return self.shift if "shift" in self.augmentations else 0

    @property
    def augmentations(self) -> list[str]:
        """The names in ``--augment``."""
        return self.augment.split("+")

    @property
    def splitting(self) -> ImageSplitting:
        """What differs between the decompositions of the image and of the network."""
        return SPLITTINGS[self.decomposition]

    @property
    def networks_per_subimage(self) -> int:
        return self.splitting.networks_per_subimage(self.grid)

    @model_validator(mode="after")
    def _overlap_is_of_subimages(self) -> Self:
        if self.overlap and not self.splitting.cuts_images:
            raise ValueError("--overlap needs --decomposition image: networks that are decomposed in width see the whole image")
        return self


class PartitionSettings(DataSettings):
    """Settings of ``ddcnn partition``."""

    source: str = option(Group.DATA, ..., f"data set: {SOURCES}", "SOURCE", positional=True)
    output: Path = option(Group.OUTPUT, ..., "the partitioned file to write", "FILE.h5")
