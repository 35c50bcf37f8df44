"""``ddcnn export``: the network of a finished run as one file for other programs."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from ddcnn.assembled import Assembled, load
from ddcnn.errors import InputError
from ddcnn.files import replacing
from ddcnn.predictions import check_output
from ddcnn.trained_settings import ExportSettings

EXAMPLES = 2  # images that the network is traced with; the number is free afterwards


def export(settings: ExportSettings) -> None:
    """Writes the file.

    Raises:
        InputError: no such run or method, a file that cannot be written, or a package that is missing.
    """
    check_output(settings.output, settings.overwrite)
    network = load(settings.run, settings.method, settings.without)
    with replacing(settings.output) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its own interiors
        FORMATS[settings.format](network, temporary)
    shape, classes = ", ".join(map(str, network.shape)), len(network.class_names)
    print(f"{settings.output}: {network.method}; float32 images (B, {shape}) in their own range of values -> logits (B, {classes})")


def _traced(network: Assembled) -> torch.export.ExportedProgram:
    images = torch.zeros(EXAMPLES, *network.shape)
    return torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _torch_export(network: Assembled, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_traced(network), file)


def _onnx(network: Assembled, path: Path) -> None:
    try:
        import onnx  # type: ignore[import-not-found] # noqa: F401
        import onnxscript  # type: ignore[import-not-found] # noqa: F401
    except ImportError as error:
        raise InputError(f"--format onnx needs onnx and onnxscript: pip install 'ddcnn[export]' ({error})") from None
    program = torch.onnx.export(_traced(network), input_names=["images"], output_names=["logits"], dynamo=True, verbose=False)
    assert program
    program.save(path)


def _state_dict(network: Assembled, path: Path) -> None:
    with path.open("wb") as file:
        torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)


FORMATS: dict[str, Callable[[Assembled, Path], None]] = {"torch-export": _torch_export, "onnx": _onnx, "state-dict": _state_dict}
