"""torchvision's classification networks by their names in torchvision: untrained, for 2-D images of any channels and classes."""

from typing import Any

import torch
from torch import nn

from ddcnn.errors import InputError, did_you_mean
from ddcnn.networks.custom import errors_as_input_error
from ddcnn.networks.shape import Shape, scaled_width
from ddcnn.networks.torchvision_compat import import_torchvision

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of red, green, blue in 0 ... 1
OTHER_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # in state dicts of googlenet and inception_v3, which are made without them here
RESCALING = ("googlenet", "inception_v3")  # trained ones bring what is normalised as above to (x - 0.5) / 0.5 themselves

DENSENETS = {  # growth rate, layers per block, channels of the stem (Huang, Liu, van der Maaten, Weinberger, arXiv 1608.06993)
    "densenet121": (32, (6, 12, 24, 16), 64),
    "densenet161": (48, (6, 12, 36, 24), 96),
    "densenet169": (32, (6, 12, 32, 32), 64),
    "densenet201": (32, (6, 12, 48, 32), 64),
}


def make(name: str, shape: Shape, width: int | None, divisor: float, built_in: list[str]) -> nn.Module:
    """Makes the network ``name`` with K outputs; the names of ``built_in`` networks are for messages.

    Raises:
        InputError: an unknown network, or an unsupported shape, width or divisor.
    """
    with errors_as_input_error(f"--network {name} is not built in, and torchvision cannot be imported", "; pip install torchvision"):
        models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise InputError(
            f"--network {name}: there is no such network{did_you_mean(name, [*built_in, *known])}; allowed: {', '.join(built_in)}, "
            "or a classification network of torchvision, or your own as package.module:factory"
        )
    if len(shape.spatial) != 2:
        raise InputError(f"--network {name} is for 2-D images, not for volumes of {shape.size}: take {' or '.join(built_in)}")
    if width is not None:
        raise InputError(f"--width {width}: --network {name} has widths of its own; leave --width and --global-width out")
    with errors_as_input_error(f"--network {name} cannot be made for images of {shape.size}"):
        network = _make(models, name, shape, divisor)
        if shape.channels != 3:
            path, stem = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
            kernel, stride, padding = stem.kernel_size, stem.stride, stem.padding
            fitting = nn.Conv2d(shape.channels, stem.out_channels, kernel, stride, padding, bias=stem.bias is not None)  # type: ignore[arg-type]
            nn.init.kaiming_normal_(fitting.weight, mode="fan_out", nonlinearity="relu")
            network.set_submodule(path, fitting)
    return network


def entries(name: str) -> list[str]:
    """The names in the state dict of the network ``name``, in their order."""
    with torch.device("meta"):
        return list(import_torchvision().models.get_model(name, weights=None).state_dict())


def normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of red, green and blue in 0 ... 1 with which torchvision has trained a network; of others ImageNet's."""
    if name in RESCALING:
        return (0.5,) * 3, (0.5,) * 3
    models = import_torchvision().models
    if name not in models.list_models(module=models):
        return IMAGENET
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def _make(models: Any, name: str, shape: Shape, divisor: float) -> nn.Module:
    """Applies the width rule where the network has a parameter for its width."""
    options: dict[str, Any] = {"num_classes": shape.classes}
    if name in DENSENETS:
        growth_rate, layers, stem = DENSENETS[name]
        return models.DenseNet(scaled_width(growth_rate, divisor), layers, scaled_width(stem, divisor), **options)
    if name.startswith("mnasnet"):
        alpha = float(name.removeprefix("mnasnet").replace("_", "."))
        return models.MNASNet(alpha / divisor, **options)
    if name == "mobilenet_v2":
        options |= {"width_mult": 1 / divisor}
    elif divisor != 1:
        raise InputError(f"--network {name}: its widths are fixed, local CNNs cannot be thinner: add --width-divisor 1")
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}  # auxiliary logits would be returned in training
    elif name.startswith("vit_"):
        if shape.spatial[0] != shape.spatial[1]:
            raise InputError(f"--network {name} takes square images only, not {shape.size}: choose a --grid of square subimages")
        options["image_size"] = shape.spatial[0]
    elif name.startswith("maxvit"):
        options["input_size"] = shape.spatial
    return models.get_model(name, weights=None, **options)
