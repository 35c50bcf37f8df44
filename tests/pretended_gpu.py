"""A pretended GPU: tensors that say they are on cuda:0 and hold CPU values, so that device code runs where there is no GPU.

It refuses what a GPU would refuse, has a random state of its own, and counts what the host would wait for, with the line of ddcnn:

    with pretended_gpu() as gpu: ...; print(gpu.waits)
    [mpirun -n RANKS] python tests/pretended_gpu.py run --data digits --device cuda ...

The second form takes any command line of ddcnn, and writes the waits of each rank as JSON to $PRETENDED_GPU_WAITS.RANK. Numbers are those
of the CPU, bit for bit, in half precision too. Not pretended: DistributedDataParallel, NCCL, gradients through a copy to the host.
"""

import json
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode

import ddcnn
from ddcnn.parallel.world import World
from ddcnn.training import step

SOURCE = f"{Path(ddcnn.__file__).parent}{os.sep}"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
COPIES = (aten.copy_.default, aten._foreach_copy_.default)
INDEXING = (aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
WAITING = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}  # the host needs a value to go on
NAMES = {"_local_scalar_dense": "item", "_unique2": "unique"}


@dataclass
class Gpu:
    """What is known of the device."""

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)  # for what, FILE:LINE of ddcnn
    operations: int = 0  # that it has computed
    forbids: bool = False  # a wait is an error, as after torch.cuda.set_sync_debug_mode("error")
    random: torch.Tensor = field(default_factory=torch.Generator().get_state)  # of its generator
    pinned: dict[int, torch.Tensor] = field(default_factory=dict)  # by address; held, so that nothing else gets the address
    recording: "Graph | None" = None

    def wait(self, what: str) -> None:
        files = ((frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None))
        place = next((f"{file.removeprefix(SOURCE)}:{line}" for file, line in files if file.startswith(SOURCE)), "elsewhere")
        if self.recording or self.forbids:
            why = "operation not permitted when stream is capturing" if self.recording else "called a synchronizing CUDA operation"
            raise RuntimeError(f"{why}: {what} at {place}")
        self.waits[what, place] += 1


gpu = Gpu()  # of this process; ``pretended_gpu`` begins with the values of a new one


class Graph:
    """A CUDA graph. What is recorded is undone at the end of the recording, as if it had not been computed; a replay computes it."""

    def __init__(self):
        self.random, self.calls, self.before = gpu.random, [], []  # ``before``: what has been written to, and its values

    def __enter__(self):
        gpu.wait("synchronize")  # as torch.cuda.graph does
        gpu.recording = self

    def __exit__(self, *error):
        gpu.recording, gpu.random = None, self.random
        for tensor, values in reversed(self.before):
            tensor.copy_(values)

    def call(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        writes = [value for value, one in zip(args, func._schema.arguments, strict=False) if one.alias_info and one.alias_info.is_write]
        writes += args[3:5] if func is aten.native_batch_norm.default else []  # running statistics, of which its schema does not tell
        self.before += [(one, one.clone()) for one in tensors_in(writes)]
        self.calls.append((func, args, kwargs, found := run(func, args, kwargs)))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.calls:
            again = run(func, args, kwargs)
            if not any(one.alias_info for one in func._schema.returns):  # else it is a view, or has been written to
                for old, new in zip(tensors_in(found), tensors_in(again), strict=True):
                    old.copy_(new)


def compute(dispatcher: Any, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
    """An operation: on the pretended GPU if one of its tensors is there, or if it makes one there."""
    kwargs = kwargs or {}
    tensors = tensors_in((*args, *kwargs.values()))
    on_gpu, on_host = ([one for one in tensors if isinstance(one, OnGpu) == there] for there in (True, False))
    device = kwargs.get("device")
    if torch.is_inference_mode_enabled() and func._can_decompose():
        with Dispatch():  # here operations that consist of others come whole
            return func.decompose(*args, **kwargs)
    if func is aten.is_pinned.default:
        return not on_gpu and address(args[0]) in gpu.pinned
    if not on_gpu and (func is aten._pin_memory.default or kwargs.pop("pin_memory", False)):
        made = args[0].clone() if func is aten._pin_memory.default else func(*args, **kwargs)
        return gpu.pinned.setdefault(address(made), made)
    if not on_gpu and (device is None or torch.device(device).type != "cuda"):
        return func(*args, **kwargs)
    if func is aten.as_strided_.default:
        return args[0]  # of a mean over all pixels, whose strides there do not matter
    if what := wait_of(func, args, kwargs, on_gpu, on_host):
        gpu.wait(what)
    gpu.operations += 1
    known = {id(one.held): one for one in on_gpu} | {id(one): one for one in on_host}  # what is written to is given back
    args, pairs = changed((args, list(kwargs.items())), lambda one: getattr(one, "held", one))
    kwargs = dict(pairs) | ({"device": CPU} if device is not None else {})  # C++ may say so of the GPU's tensors, too
    found = (gpu.recording.call if gpu.recording else run)(func, args, kwargs)
    return changed(found, lambda one: known[id(one)] if id(one) in known else OnGpu(one))


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Computes it on the CPU; what is random with the GPU's own state."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return func(*args, **kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(gpu.random)
        found = func(*args, **kwargs)
        gpu.random = torch.get_rng_state()
        return found


def wait_of(func: Any, args: tuple, kwargs: dict[str, Any], on_gpu: list, on_host: list) -> str:
    """What an operation waits for; empty: nothing. Raises what PyTorch would raise of a real GPU."""
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if torch.Tag.inplace_view in func.tags:
        raise NotImplementedError(f"the pretended GPU does not know {func}")
    index = {id(one) for one in args[1] if one is not None} if func in INDEXING and isinstance(args[0], OnGpu) else set()
    read = args[1:] if func._schema.is_mutable else args  # where a number of the host's may take part
    apart = [one for one in on_host if (one.dim() or all(one is not other for other in read)) and id(one) not in index]
    if on_gpu and apart and func not in COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu, in {func}")
    if on_host and (func in COPIES or (func is aten._to_copy.default and not on_gpu)):
        free = kwargs.get("non_blocking", args[2] if len(args) > 2 else False) and all(address(one) in gpu.pinned for one in on_host)
        to_host = func in COPIES and not isinstance(tensors_in(args[0])[0], OnGpu)
        return "" if free else f"copy to the {'host' if to_host else 'GPU'}"
    if func in INDEXING:
        masks = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        return "index by booleans" if masks else "index on the host" if any(one.dim() for one in on_host) else ""
    return NAMES.get(func.overloadpacket.__name__, func.overloadpacket.__name__) if WAITING & set(func.tags) else ""


def tensors_in(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for part in value for one in tensors_in(part)] if isinstance(value, (list, tuple)) else []


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(changed(part, change) for part in value) if isinstance(value, (list, tuple)) else value


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class OnGpu(torch.Tensor):
    """Says cuda:0. C++ takes it for a CPU tensor without memory, whose operations all come to ``compute``."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    __torch_dispatch__ = classmethod(compute)  # type: ignore[assignment]
    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch._C._InferenceMode(False):  # a view of an ordinary tensor stays one, wherever it is made
            made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=CPU, **layout)
        made.held = held
        return made

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{name: value for name, value in kwargs.items() if name != "copy"})
        if device is None or device.type == "cuda":
            return super().to(dtype=dtype or self.dtype, **{name: kwargs[name] for name in ("copy", "memory_format") if name in kwargs})
        assert not (self.requires_grad and torch.is_grad_enabled()), "the pretended GPU has no gradients through a copy to the host"
        gpu.wait("copy to the host")
        return self.held.to(dtype=dtype or self.dtype, copy=True)

    cpu = partialmethod(to, CPU)  # type: ignore[assignment]

    def tolist(self):
        gpu.wait("tolist")
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    def pin_memory(self, *args):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def __reduce_ex__(self, protocol):
        raise TypeError("a tensor on a GPU is pickled")


class Dispatch(TorchDispatchMode):
    """Brings operations without a tensor of the GPU to ``compute``, too: copies to it, pinning, tensors that are made there."""

    __torch_dispatch__ = compute

    def __enter__(self):
        _push_mode(self)  # of this thread; TorchDispatchMode itself also keeps what is of all threads

    def __exit__(self, *error):
        _pop_mode()


def patches() -> dict[Any, dict[str, Any]]:
    """What takes the place of what, by module."""
    tensor, one_hot, thread = torch.tensor, torch.nn.functional.one_hot, threading.Thread.run
    properties = SimpleNamespace(name="pretended GPU", major=9, minor=0, uuid="0", total_memory=80 << 30, multi_processor_count=1)
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: gpu.wait("synchronize"))

    def no(value=None):
        return lambda *args, **kwargs: value

    def as_on_cpu(real):
        return lambda device_type="cuda": real(device_type.replace("cuda", "cpu"))

    class Autocast(torch.autocast):
        def __init__(self, device_type, *args, **kwargs):
            super().__init__(device_type.replace("cuda", "cpu"), *args, **kwargs)

    def new_tensor(data, *, device=None, **kwargs):
        return tensor(data, **kwargs) if device is None else tensor(data, **kwargs).to(device)

    def new_one_hot(classes, number=-1):  # C++ makes it of others, some of them on the CPU
        return OnGpu(one_hot(classes.held, number)) if isinstance(classes, OnGpu) else one_hot(classes, number)

    def grouped(lists, with_indices=False, real=torch._C._group_tensors_by_device_and_dtype):
        return {(GPU if isinstance(one[0][0][0], OnGpu) else key[0], key[1]): one for key, one in real(lists, with_indices).items()}

    def in_thread(self):
        with Dispatch():
            thread(self)

    return {
        torch.cuda: {
            "is_available": no(True), "is_initialized": no(True), "_lazy_init": no(), "_is_in_bad_fork": no(False), "device_count": no(1),
            "current_device": no(0), "set_device": no(), "_exchange_device": no(0), "_maybe_exchange_device": no(0),
            "get_device_properties": no(properties), "get_device_name": no(properties.name), "get_device_capability": no((9, 0)),
            "mem_get_info": no((80 << 30, 80 << 30)), "memory_reserved": no(0), "max_memory_allocated": no(0), "max_memory_reserved": no(0),
            "reset_peak_memory_stats": no(), "get_rng_state": lambda device=None: gpu.random.clone(),
            "manual_seed_all": lambda seed: setattr(gpu, "random", torch.Generator().manual_seed(int(seed)).get_state()),
            "set_rng_state": lambda state, device=None: setattr(gpu, "random", state.clone()),
            "synchronize": lambda device=None: gpu.wait("synchronize"), "stream": no(nullcontext()), "current_stream": no(stream),
            "set_sync_debug_mode": lambda mode: setattr(gpu, "forbids", mode in (2, "error")),
            "Stream": no(stream), "CUDAGraph": Graph, "graph": lambda graph, **kwargs: graph,
        },
        torch: {
            "tensor": new_tensor, "autocast": Autocast, "is_autocast_enabled": as_on_cpu(torch.is_autocast_enabled),
            "get_autocast_dtype": as_on_cpu(torch.get_autocast_dtype),
        },
        torch.amp: {"autocast": Autocast},
        step: {"recording_stream": no(stream)},  # which is kept otherwise
        World: {"spins": World.spins},  # which is put back
        torch.nn.functional: {"one_hot": new_one_hot},
        torch._C: {"_group_tensors_by_device_and_dtype": grouped},
        torch.__future__: {"_overwrite_module_params_on_conversion": True},  # a parameter's memory cannot move: it will be a new one
        _foreach_utils: {"_foreach_supported_types": [*_foreach_utils._foreach_supported_types, OnGpu]},
        threading.Thread: {"run": in_thread},
    }  # fmt: skip


@contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """In here ``torch.cuda`` has a GPU; afterwards all is as before."""
    vars(gpu).update(vars(Gpu()))
    with ExitStack() as stack:
        for where, names in patches().items():
            stack.enter_context(mock.patch.multiple(where, **names))
        stack.enter_context(Dispatch())
        yield gpu


if __name__ == "__main__":
    from ddcnn.__main__ import main
    from ddcnn.parallel.launcher import launched_rank

    with pretended_gpu():
        code = main()
    if path := os.environ.get("PRETENDED_GPU_WAITS"):
        told = {"operations": gpu.operations, "waits": [[*what, number] for what, number in sorted(gpu.waits.items())]}
        Path(f"{path}.{launched_rank()}").write_text(json.dumps(told, indent=1), encoding="utf-8")
    sys.exit(code)
