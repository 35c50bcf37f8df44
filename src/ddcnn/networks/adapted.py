"""Networks that were not written for this program, with the head and the last hidden layer that it needs."""

import torch
from torch import nn

from ddcnn.errors import InputError
from ddcnn.networks.shape import Shape


class Adapted(nn.Module):
    """Any network that maps images to logits and whose last layer is an ``nn.Linear``.

    Args:
        name: what it is called in refusals.
        network: (B, C, *spatial) -> logits (B, K).
        shape: what the network sees.
        features: neurons of a hidden dense layer with ReLU, put before the logits; without it, the input of the network's last
            ``nn.Linear`` is the last hidden layer.

    Raises:
        InputError: it has no ``nn.Linear`` with K outputs.
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
            there = f"; its last one has {layers[-1][1].out_features}" if layers else ""
            raise InputError(f"--network {name} must end in an nn.Linear with {shape.classes} outputs, one a class{there}")
        self.name = name
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

    def probe(self, shape: Shape) -> None:
        """Passes two empty images forward and backward as training does: in training mode, channels last in memory.

        Raises:
            InputError: the head is not the end of the network, so that this one does not compute what the network did, or a parameter
                gets no gradient.
            Exception: whatever the network raises.
        """
        images = torch.zeros(2, *shape.spatial, shape.channels).movedim(-1, 1)
        self.to(memory_format=torch.channels_last if len(shape.spatial) == 2 else torch.channels_last_3d)  # type: ignore[call-overload]
        given: list[torch.Size] = []
        marks: list[torch.Tensor] = []

        def mark(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
            given.append(output.shape)
            marks.append(torch.linspace(-1, 1, output.numel()).view(output.shape))
            return marks[-1]

        handle = self.get_submodule(self.head).register_forward_hook(mark)
        try:
            found = self.train().backbone(images)
        finally:
            handle.remove()
        if not (len(marks) == 1 and isinstance(found, torch.Tensor) and found.ndim == 2 and torch.equal(found, marks[0])):
            raise InputError(
                f"--network {self.name}: its output has to be that of its last nn.Linear with {shape.classes} outputs, applied once to a "
                "matrix (images x neurons): flatten or pool before it, and leave a softmax out"
            )
        self(images).sum().backward()
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and parameter.grad is None:
                raise InputError(f"--network {self.name}: its parameter {name.removeprefix('backbone.')} is not used; take it out")
