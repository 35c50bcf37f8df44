"""A pretended GPU: tensors that say they are on cuda:0 and hold CPU values, so that device code runs where there is no GPU.

It refuses what a GPU would refuse, has a random state of its own, and counts what the host would wait for, with the line of ddcnn:

    with pretended_gpu() as gpu:
        ...
        print(gpu.waits)

    [mpirun -n RANKS] python tests/pretended_gpu.py run --data digits --device cuda ...

The second form takes any command line of ddcnn, and writes the waits of each rank as JSON to $PRETENDED_GPU_WAITS.RANK. Numbers are those
of the CPU, bit for bit, and so is autocast's list of what is computed in half precision. Not pretended: DistributedDataParallel, NCCL,
cuDNN, work of several streams at once, gradients through a copy to the host.
"""

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode, _push_mode
from torch.utils._pytree import tree_leaves, tree_map_only

import ddcnn

SOURCE = f"{Path(ddcnn.__file__).parent}{os.sep}"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
MEMORY = 80 << 30
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
    random: torch.Tensor = field(default_factory=lambda: torch.Generator().manual_seed(0).get_state())  # of its generator
    pinned: dict[int, torch.Tensor] = field(default_factory=dict)  # by address; held, so that nothing else gets the address
    recording: "Graph | None" = None

    def wait(self, what: str) -> None:
        frame: FrameType | None = sys._getframe(1)
        while frame and not frame.f_code.co_filename.startswith(SOURCE):
            frame = frame.f_back
        place = f"{frame.f_code.co_filename.removeprefix(SOURCE)}:{frame.f_lineno}" if frame else "elsewhere"
        if self.recording:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what} at {place}")
        if self.forbids:
            raise RuntimeError(f"called a synchronizing CUDA operation: {what} at {place}")
        self.waits[what, place] += 1


gpu = Gpu()  # of this process; ``pretended_gpu`` begins with the values of a new one


class OnGpu(torch.Tensor):
    """Says cuda:0. C++ takes it for a CPU tensor without memory, whose operations all come to ``compute``."""

    held: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held):
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        with torch.inference_mode(False):  # a view of an ordinary tensor stays one, wherever it is made
            made = torch.Tensor._make_wrapper_subclass(cls, held.size(), device=CPU, **layout)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def to(self, *args, **kwargs):
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{name: value for name, value in kwargs.items() if name != "copy"})
        if device is None or device.type == "cuda":
            return super().to(dtype=dtype or self.dtype, **{name: kwargs[name] for name in ("copy", "memory_format") if name in kwargs})
        assert not (self.requires_grad and torch.is_grad_enabled()), "the pretended GPU has no gradients through a copy to the host"
        gpu.wait("copy to the host")
        return self.held.to(dtype=dtype or self.dtype, copy=True)

    def cpu(self, *args, **kwargs):
        return self.to(CPU)

    def get_device(self):
        return 0

    def tolist(self):
        gpu.wait("tolist")
        return self.held.tolist()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first.")

    __array__ = numpy

    def pin_memory(self, *args):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def __reduce_ex__(self, protocol):
        raise TypeError("a tensor on a GPU is pickled")

    def __repr__(self, **kwargs):
        return f"OnGpu({self.held!r})"


class Graph:
    """A CUDA graph. What is recorded is undone at the end of the recording, as if it had not been computed; a replay computes it."""

    def __init__(self, *args, **kwargs):
        self.calls: list[tuple] = []
        self.before: list[tuple[torch.Tensor, torch.Tensor]] = []  # what has been written to, and its values

    def keep(self, func: Any, args: tuple) -> None:
        writes = [value for value, one in zip(args, func._schema.arguments, strict=False) if one.alias_info and one.alias_info.is_write]
        writes += args[3:5] if func is aten.native_batch_norm.default else []  # running statistics, of which its schema does not tell
        self.before += [(one, one.clone()) for one in tree_leaves(writes) if isinstance(one, torch.Tensor)]

    def replay(self) -> None:
        for func, args, kwargs, found in self.calls:
            again = run(func, args, kwargs)
            if not any(one.alias_info for one in func._schema.returns):  # else it is a view, or has been written to
                for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    if old is not None:
                        old.copy_(new)


@contextmanager
def recorded(graph: Graph, *args, **kwargs) -> Iterator[None]:
    gpu.recording, random = graph, gpu.random
    try:
        yield
    finally:
        gpu.recording, gpu.random = None, random
        for tensor, values in reversed(graph.before):
            tensor.copy_(values)


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Dispatch(TorchDispatchMode):
    """Brings operations without a tensor of the GPU to ``compute``, too: copies to it, pinning, tensors that are made there."""

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # to do so would import it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


@contextmanager
def dispatching() -> Iterator[None]:
    """A ``Dispatch`` in this thread; others may begin and end theirs meanwhile."""
    _push_mode(Dispatch())
    try:
        yield
    finally:
        _pop_mode()


def compute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation: on the pretended GPU if one of its tensors is there, or if it makes one there."""
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
    on_gpu, on_host = ([one for one in tensors if isinstance(one, OnGpu) == there] for there in (True, False))
    device = kwargs.get("device")
    if (on_gpu or device is not None or func is aten.pin_memory.default) and func._can_decompose():
        with dispatching():  # where no gradient is wanted, operations that consist of others come whole
            return func.decompose(*args, **kwargs)
    if func is aten.is_pinned.default:
        return not on_gpu and address(args[0]) in gpu.pinned
    if func is aten._pin_memory.default:
        return gpu.pinned.setdefault(address(copy := args[0].clone()), copy)
    if not on_gpu and (device is None or torch.device(device).type != "cuda"):
        return func(*args, **kwargs)
    refuse(func, args, kwargs, on_gpu, on_host)
    if func is aten.as_strided_.default:
        return args[0]  # of a mean over all pixels, whose strides there do not matter
    if what := wait_of(func, args, kwargs, on_gpu, on_host):
        gpu.wait(what)
    known = {id(one.held): one for one in on_gpu} | {id(one): one for one in on_host}  # what is written to is given back
    args, kwargs = tree_map_only(OnGpu, lambda one: one.held, (args, kwargs))
    if device is not None:  # C++ may say that a tensor of the GPU is on the CPU: results are where such tensors are
        kwargs = {name: CPU if name == "device" else value for name, value in kwargs.items() if name != "pin_memory"}
    gpu.operations += 1
    if gpu.recording:
        gpu.recording.keep(func, args)
    found = run(func, args, kwargs)
    if gpu.recording:
        gpu.recording.calls.append((func, args, kwargs, found))
    return tree_map_only(torch.Tensor, lambda one: known[id(one)] if id(one) in known else OnGpu(one), found)


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Computes it on the CPU; what is random with the GPU's own state."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return func(*args, **kwargs)
    hosts = torch.get_rng_state()
    torch.set_rng_state(gpu.random)
    try:
        return func(*args, **kwargs)
    finally:
        gpu.random = torch.get_rng_state()
        torch.set_rng_state(hosts)


def refuse(func: Any, args: tuple, kwargs: dict[str, Any], on_gpu: list, on_host: list) -> None:
    """Raises what PyTorch would raise of a real GPU, and of what is not pretended."""
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if torch.Tag.inplace_view in func.tags and func is not aten.as_strided_.default:
        raise NotImplementedError(f"the pretended GPU does not know {func}")
    index = {id(one) for one in args[1] if one is not None} if func in INDEXING and isinstance(args[0], OnGpu) else set()
    written = func._schema.is_mutable and any(one is args[0] for one in on_host)
    apart = [one for one in on_host if (one.dim() or written) and id(one) not in index]  # a number of the host's may take part
    if on_gpu and apart and func not in COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu, in {func}")


def wait_of(func: Any, args: tuple, kwargs: dict[str, Any], on_gpu: list, on_host: list) -> str:
    """What an operation waits for; empty: nothing."""
    if on_host and (func in COPIES or (func is aten._to_copy.default and not on_gpu)):
        free = kwargs.get("non_blocking", args[2] if len(args) > 2 else False) and all(address(one) in gpu.pinned for one in on_host)
        to_host = func in COPIES and not isinstance(tree_leaves(args[0])[0], OnGpu)
        return "" if free else f"copy to the {'host' if to_host else 'GPU'}"
    if func in INDEXING:
        masks = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
        return "index by booleans" if masks else "index on the host" if any(one.dim() for one in on_host) else ""
    name = func.overloadpacket.__name__
    return NAMES.get(name, name) if WAITING & set(func.tags) else ""


def patches() -> dict[Any, dict[str, Any]]:
    """What takes the place of what, by module."""
    tensor, one_hot, thread = torch.tensor, torch.nn.functional.one_hot, threading.Thread.run
    properties = SimpleNamespace(name="pretended GPU", major=9, minor=0, uuid="0", total_memory=MEMORY, multi_processor_count=1)
    stream = SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: gpu.wait("synchronize"))

    def no(value=None):
        return lambda *args, **kwargs: value

    def seed(number):
        gpu.random = torch.Generator().manual_seed(int(number)).get_state()

    def as_on_cpu(real):
        return lambda kind="cuda": real("cpu" if kind == "cuda" else kind)

    class Autocast(torch.autocast):
        def __init__(self, kind, *args, **kwargs):
            super().__init__("cpu" if kind == "cuda" else kind, *args, **kwargs)

    def new_tensor(data, *, device=None, **kwargs):
        return tensor(data, **kwargs) if device is None else tensor(data, **kwargs).to(device)

    def new_one_hot(classes, number=-1):  # C++ makes it of others, some of them on the CPU
        return OnGpu(one_hot(classes.held, number)) if isinstance(classes, OnGpu) else one_hot(classes, number)

    def grouped(lists, with_indices=False, real=torch._C._group_tensors_by_device_and_dtype):
        return {(GPU if isinstance(one[0][0][0], OnGpu) else key[0], key[1]): one for key, one in real(lists, with_indices).items()}

    def in_thread(self):
        with dispatching():
            thread(self)

    return {
        torch.cuda: {
            "is_available": no(True), "is_initialized": no(True), "_lazy_init": no(), "_is_in_bad_fork": no(False), "device_count": no(1),
            "current_device": no(0), "set_device": no(), "_exchange_device": no(0), "_maybe_exchange_device": no(0),
            "get_device_properties": no(properties), "get_device_name": no(properties.name), "get_device_capability": no((9, 0)),
            "mem_get_info": no((MEMORY, MEMORY)), "memory_allocated": no(0), "max_memory_allocated": no(0), "memory_reserved": no(0),
            "max_memory_reserved": no(0), "reset_peak_memory_stats": no(), "empty_cache": no(), "manual_seed": seed,
            "manual_seed_all": seed, "get_rng_state": lambda device=None: gpu.random.clone(),
            "set_rng_state": lambda state, device=None: setattr(gpu, "random", state.clone()),
            "synchronize": lambda device=None: gpu.wait("synchronize"), "stream": no(nullcontext()), "current_stream": no(stream),
            "set_sync_debug_mode": lambda mode: setattr(gpu, "forbids", mode in (2, "error")),
            "Stream": no(stream), "CUDAGraph": Graph, "graph": recorded,
        },
        torch: {
            "tensor": new_tensor, "autocast": Autocast, "is_autocast_enabled": as_on_cpu(torch.is_autocast_enabled),
            "get_autocast_dtype": as_on_cpu(torch.get_autocast_dtype),
        },
        torch.amp: {"autocast": Autocast},
        torch.nn.functional: {"one_hot": new_one_hot},
        torch._C: {"_group_tensors_by_device_and_dtype": grouped},
        _foreach_utils: {"_foreach_supported_types": [*_foreach_utils._foreach_supported_types, OnGpu]},
        threading.Thread: {"run": in_thread},
    }  # fmt: skip


@contextmanager
def pretended_gpu() -> Iterator[Gpu]:
    """In here ``torch.cuda`` has a GPU; afterwards all is as before."""
    vars(gpu).update(vars(Gpu()))
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's memory cannot move: there will be a new parameter
    try:
        with ExitStack() as stack:
            for where, names in patches().items():
                stack.enter_context(mock.patch.multiple(where, **names))
            stack.enter_context(dispatching())
            yield gpu
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


if __name__ == "__main__":
    from ddcnn.__main__ import main
    from ddcnn.parallel.launcher import launched_rank

    with pretended_gpu():
        code = main()
    if path := os.environ.get("PRETENDED_GPU_WAITS"):
        told = {"operations": gpu.operations, "waits": [[*what, number] for what, number in sorted(gpu.waits.items())]}
        Path(f"{path}.{launched_rank()}").write_text(json.dumps(told, indent=1), encoding="utf-8")
    sys.exit(code)
