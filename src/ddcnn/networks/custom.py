"""Networks from outside this package: the user's own, ``package.module:factory``, and the wrapper that splits off their last layer."""

import importlib
import inspect
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddcnn.errors import InputError, did_you_mean
from ddcnn.networks.shape import Shape

ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d)
LIBRARIES = ("ddcnn", "torch", "torchvision", "importlib")  # packages whose frames an error message does not name
INSTALLED = tuple(
    map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib"))
)  # folders of packages whose frames it names if there are no others

IMPORTED: dict[str, str] = {}  # packages of users' networks -> the name of the network


def make(name: str, shape: Shape, width: int | None, divisor: float) -> nn.Module:
    """Calls the factory ``name`` (see ``registry``); ``width`` is passed only if it is given.

    Raises:
        InputError: the factory does not exist, cannot be called, fails, or returns something other than a module.
    """
    option, way_out = f"--network {name}", "; a module has to be in the current folder (start with python -m ddcnn) or on PYTHONPATH"
    module_name, _, factory_name = name.partition(":")
    if not (module_name and factory_name) or "/" in module_name or module_name.endswith(".py"):
        hint = f", such as {Path(module_name).stem}:{factory_name}" if module_name and factory_name else ""
        raise InputError(f"{option}: write it as package.module:factory{hint}{way_out}")
    with errors_as_input_error(f"{option} cannot be imported", way_out):
        module = importlib.import_module(module_name)
    IMPORTED[module_name.partition(".")[0]] = name
    factory = getattr(module, factory_name, None)
    if factory is None:
        raise InputError(f"{option}: {module_name} has no {factory_name}{did_you_mean(factory_name, dir(module))}")
    options = {"divisor": divisor} if width is None else {"width": width, "divisor": divisor}
    try:
        inspect.signature(factory).bind(shape, **options)
    except (TypeError, ValueError) as error:
        call = f"{factory_name}({', '.join(['shape', *(f'{key}={value:g}' for key, value in options.items())])})"
        hint = "; give --width" if "'width'" in str(error) and width is None else ""
        raise InputError(f"{option} cannot be called as {call}: {error}{hint}") from None
    with errors_as_input_error(f"{option} fails to make a network for images of {shape.size}"):
        network = factory(shape, **options)
    if not isinstance(network, nn.Module):
        raise InputError(f"{option} has to return a torch.nn.Module, but it returned a {type(network).__name__}")
    return network


class HeadedNetwork(nn.Module):
    """A network whose last ``nn.Linear`` is split off as ``classifier``, so that its last hidden layer can be read.

    Args:
        name: of the network, for messages.
        network: (B, C, *spatial) -> logits (B, K).
        shape: of its input.
        features: neurons of a dense layer with ReLU that is inserted before the logits; None: the last hidden layer is the input of
            the network's last ``nn.Linear``.

    Raises:
        InputError: the network has no ``nn.Linear`` with K outputs.
        Exception: whatever the network raises, if it has lazy layers.
    """

    def __init__(self, name: str, network: nn.Module, shape: Shape, features: int | None = None):
        super().__init__()
        if any(nn.parameter.is_lazy(parameter) for parameter in network.parameters()):
            with torch.no_grad():
                network.eval()(torch.zeros(1, shape.channels, *shape.spatial))
            network.train()
        self.backbone = network
        layers = [(path, module) for path, module in self.named_modules() if isinstance(module, nn.Linear)]
        heads = [(path, module) for path, module in layers if module.out_features == shape.classes]
        if not heads:
            last = f"; its last one has {layers[-1][1].out_features}" if layers else ""
            raise InputError(f"--network {name} must end in an nn.Linear with {shape.classes} outputs, one a class{last}")
        self.name, self.map_layer = name, getattr(network, "map_layer", "")
        self.head, head = heads[-1]
        self.set_submodule(self.head, nn.Identity())
        self.hidden = nn.Identity() if features is None else nn.Sequential(nn.Linear(head.in_features, features), nn.ReLU())
        self.classifier = head if features is None else nn.Linear(features, shape.classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The last hidden layer: (B, C, *spatial) -> (B, F)."""
        return self.hidden(self.backbone(images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, *spatial) -> logits (B, K)."""
        return self.classifier(self.features(images))

    def maps(self, images: torch.Tensor) -> torch.Tensor:
        """The last map: (B, C, *spatial) -> (B, ``channels``, *cells), a cell for ``cell`` pixels, which are known after the first pass.

        It is the output of ``map_layer``, a module of the network by its path; without such, of the last module with several cells.
        """
        return self.maps_and_features(images)[0]

    def maps_and_features(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``maps`` and ``features`` in one pass."""
        if not self.map_layer:
            self.map_layer = self._find_map_layer(images)
        seen: list[torch.Tensor] = []
        if self.map_layer not in dict(self.backbone.named_modules()):
            raise InputError(f"--interface maps: of --network {self.name} the map_layer {self.map_layer} is none of its modules")
        with self.backbone.get_submodule(self.map_layer).register_forward_hook(lambda module, inputs, output: seen.append(output)):
            features = self.features(images)
        maps = seen[-1]
        self.channels = maps.shape[1]
        self.cell = tuple(round(pixels / cells) for pixels, cells in zip(images.shape[2:], maps.shape[2:], strict=False))
        return maps, features

    def _find_map_layer(self, images: torch.Tensor) -> str:
        found: list[str] = []

        def look(name: str, output: Any) -> None:
            spread = isinstance(output, torch.Tensor) and output.ndim == images.ndim and max(output.shape[2:]) > 1
            if spread and not isinstance(self.backbone.get_submodule(name), ADAPTIVE):  # whose cells are no boxes of pixels
                found.append(name)

        with ExitStack() as hooks, torch.no_grad():
            for name, module in self.backbone.named_modules():
                hooks.enter_context(module.register_forward_hook(lambda module, inputs, output, name=name: look(name, output)))
            self.features(images[:1])
        if not found:
            raise InputError(
                f"--interface maps: --network {self.name} has no feature map of more than one cell; take "
                "another --interface, or name the module that makes it in an attribute map_layer of the network"
            )
        return found[-1]

    def check_on_zeros(self, shape: Shape) -> None:
        """Passes two images of zeros forward and backward as in training, in channels_last memory format; then one, as a last batch may be.

        Raises:
            InputError: the head is not the network's last operation, a parameter gets no gradient, or one image gives no row of logits.
            Exception: whatever the network raises.
        """
        images = torch.zeros(2, *shape.spatial, shape.channels).movedim(-1, 1)
        self.to(memory_format=torch.channels_last if len(shape.spatial) == 2 else torch.channels_last_3d)  # type: ignore[call-overload]
        markers: list[torch.Tensor] = []

        def replace_output(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            markers.append(torch.linspace(-1, 1, output.numel()).view(output.shape))
            return markers[-1]

        with self.get_submodule(self.head).register_forward_hook(replace_output):
            output = self.train().backbone(images)
        if not (len(markers) == 1 and isinstance(output, torch.Tensor) and output.ndim == 2 and torch.equal(output, markers[0])):
            raise InputError(
                f"--network {self.name}: its output has to be that of its last nn.Linear with {shape.classes} outputs, applied once to a "
                "matrix (images x neurons): flatten or pool before it, and leave a softmax out"
            )
        self(images).sum().backward()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise InputError(f"--network {self.name}: its parameter {name.removeprefix('backbone.')} is not used; take it out")
        with torch.no_grad():
            logits = self.eval()(images[:1])
        if logits.shape != (1, shape.classes):
            raise InputError(
                f"--network {self.name}: of one image it makes {tuple(logits.shape)}, expected are logits (1, {shape.classes}); "
                "does it squeeze the axis of images?"
            )


@contextmanager
def errors_as_input_error(what: str, way_out: str = "") -> Iterator[None]:
    """Turns any exception of code that is not ours into a one-line InputError: ``what``, the reason, the way out."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # SystemExit: an imported module may be a script
        raise InputError(f"{what}: {_reason(error)}{way_out}") from error


def as_users(error: BaseException) -> BaseException:
    """An exception that a user's network has raised while it computed, as an InputError; any other as it is."""
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)]
    name = next((IMPORTED[package] for package in packages if package in IMPORTED), None)
    if name is None or not isinstance(error, Exception):
        return error
    return InputError(
        "".join([f"--network {name} fails", *(f" in {note}" for note in getattr(error, "__notes__", [])), f": {_reason(error)}"])
    )


def _reason(error: BaseException) -> str:
    """Type and message of an exception, the layer that raised it, and the last line of user code in its traceback."""
    lines = str(error).strip().splitlines() or ["no message"]
    message = lines[0] if isinstance(error, RuntimeError) else " ".join(lines)  # PyTorch appends a C++ stack
    others = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] not in LIBRARIES
    ]
    own = [place for place in others if not place[0].f_code.co_filename.startswith(INSTALLED)]
    lines_of_code = [f" ({frame.f_code.co_filename}, line {line})" for frame, line in own or others]
    return f"{type(error).__name__}: {message}{_layer(error)}{lines_of_code[-1] if lines_of_code else ''}"


def _layer(error: BaseException) -> str:
    """The innermost layer that was computing when an exception was raised, by its name in the user's network; empty if none was."""
    modules = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [module for module in modules if isinstance(module, nn.Module)]
    if len(layers) < 2 or not isinstance(layers[0], HeadedNetwork) or any(True for _ in layers[-1].children()):
        return ""
    network, layer = layers[0], layers[-1]
    name = network.head if layer is network.classifier else next((name for name, one in network.named_modules() if one is layer), "")
    return f" in its layer {name.removeprefix('backbone.')}, {layer}" if name.startswith("backbone.") else ""
