"""``ddcnn export``: writes the network of a finished run as one file for other programs."""

import logging
import warnings
from collections.abc import Callable
from io import BytesIO

import torch

from ddcnn.config.trained_settings import ExportSettings
from ddcnn.errors import InputError
from ddcnn.inference.network import Assembled, load
from ddcnn.inference.writers import check_output
from ddcnn.io.atomic import write_bytes

logger = logging.getLogger(__name__)
EXAMPLES = 2  # images with which the network is traced; exported, it takes any number
ANY_BATCH = ({0: torch.export.Dim("batch")},)


def export(settings: ExportSettings) -> None:
    """Writes the file, and prints the shapes of input and output; InputError if the run, the method or a package is missing."""
    check_output(settings.output, settings.overwrite, settings.run)
    network = load(settings.run, settings.method, settings.without)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own code
        content = FORMATS[settings.format](network)
    write_bytes(settings.output, content)  # torch would crash if it wrote the file itself on a full disk
    shape, classes = ", ".join(map(str, network.shape)), len(network.class_names)
    form = f"float32 images (B, {shape}) in their own range of values -> logits (B, {classes})"
    logger.info("%s: %s; %s", settings.output, network.method, form)


def _traced(network: Assembled) -> torch.export.ExportedProgram:
    return torch.export.export(network, (torch.zeros(EXAMPLES, *network.shape),), dynamic_shapes=ANY_BATCH)


def _torch_export(network: Assembled) -> bytes:
    torch.export.save(_traced(network), file := BytesIO())
    return file.getvalue()


def _onnx(network: Assembled) -> bytes:
    try:
        import onnx  # type: ignore[import-not-found] # noqa: F401
        import onnxscript  # type: ignore[import-not-found] # noqa: F401
    except ImportError as error:
        raise InputError(f"--format onnx needs onnx and onnxscript: pip install 'ddcnn[export]' ({error})") from None
    program = torch.onnx.export(
        _traced(network), dynamic_shapes=ANY_BATCH, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )  # the shapes once more, for the name of the axis
    assert program
    try:
        return program.model_proto.SerializeToString()
    except ValueError:
        raise InputError("--format onnx: the network is larger than 2 GiB, which no ONNX file can be; take torch-export") from None


def _state_dict(network: Assembled) -> bytes:
    torch.save({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file := BytesIO())
    return file.getvalue()


FORMATS: dict[str, Callable[[Assembled], bytes]] = {"torch-export": _torch_export, "onnx": _onnx, "state-dict": _state_dict}
