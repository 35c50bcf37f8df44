"""``ddcnn export``: writes the network of a finished run as one file for other programs."""

import json
import logging
import warnings
from collections.abc import Callable
from io import BytesIO

import safetensors.torch
import torch

from ddcnn.config.trained_settings import FORMAT_OF, ExportSettings
from ddcnn.errors import InputError
from ddcnn.inference.network import Assembled, load
from ddcnn.inference.writers import check_output
from ddcnn.io.atomic import write_bytes
from ddcnn.io.weights import SAFE

logger = logging.getLogger(__name__)
EXAMPLES = 2  # images with which the network is traced; exported, it takes any number
METADATA = "ddcnn.json"  # among the extra files of torch.export
ANY_BATCH = ({0: torch.export.Dim("batch", max=2**31 - 1)},)  # without a maximum, PyTorch 2.6 refuses residual networks


def export(settings: ExportSettings) -> None:
    """Writes the file, and prints the shapes of input and output; InputError if the run, the method or a package is missing."""
    check_output(settings.output, settings.overwrite, settings.run)
    suffix = settings.output.suffix.lower()
    kind = settings.format or FORMAT_OF[suffix]
    if (usual := FORMAT_OF.get(suffix, kind)) != kind:
        logger.info("note: %s will be %s, as --format says, though %s is for %s", settings.output, kind, suffix, usual)
    network = load(settings.run, settings.method, settings.without)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its own code
        content = (_safetensors if kind == "state-dict" and suffix == SAFE else FORMATS[kind])(network)
    write_bytes(settings.output, content)  # torch would crash if it wrote the file itself on a full disk
    shape, classes = ", ".join(map(str, network.shape)), len(network.class_names)
    values = "from {:g} to {:g}".format(*network.input_range) if network.input_range else "as in the data set"
    form = f"float32 images (B, {shape}) with values {values} -> logits (B, {classes})"
    why = "" if settings.method else f"; {network.why}"
    logger.info("%s: %s; %s%s", settings.output, network.method, form, why)


def _traced(network: Assembled) -> torch.export.ExportedProgram:
    return torch.export.export(network, (torch.zeros(EXAMPLES, *network.shape),), dynamic_shapes=ANY_BATCH)


def _torch_export(network: Assembled) -> bytes:
    torch.export.save(_traced(network), file := BytesIO(), extra_files={METADATA: json.dumps(network.metadata)})
    return file.getvalue()


def _onnx(network: Assembled) -> bytes:
    try:
        import onnx  # type: ignore[import-not-found]
        import onnxscript  # type: ignore[import-not-found] # noqa: F401
    except ImportError as error:
        raise InputError(f"--format onnx needs onnx and onnxscript: pip install 'ddcnn[export]' ({error})") from None
    program = torch.onnx.export(
        _traced(network), dynamic_shapes=ANY_BATCH, input_names=["images"], output_names=["logits"], dynamo=True, verbose=False
    )  # the shapes once more, for the name of the axis
    assert program
    try:
        proto = program.model_proto
        onnx.helper.set_model_props(proto, _as_text(network))
        return proto.SerializeToString()
    except ValueError:
        raise InputError("--format onnx: the network is larger than 2 GiB, which no ONNX file can be; take torch-export") from None


def _state_dict(network: Assembled) -> bytes:
    torch.save(_parameters(network), file := BytesIO())
    return file.getvalue()


def _safetensors(network: Assembled) -> bytes:
    return safetensors.torch.save(_parameters(network), _as_text(network))


def _parameters(network: Assembled) -> dict[str, torch.Tensor]:
    """The state dict, each tensor with memory of its own."""
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()}


def _as_text(network: Assembled) -> dict[str, str]:
    """The metadata for formats that take nothing but text; what is none is JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in network.metadata.items()}


FORMATS: dict[str, Callable[[Assembled], bytes]] = {"torch-export": _torch_export, "onnx": _onnx, "state-dict": _state_dict}
