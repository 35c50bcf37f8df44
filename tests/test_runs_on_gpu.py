"""What a run on a GPU sets, accepts and tells, and fp16 on one; on a pretended GPU."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from callbacks import Watch
from pretended_gpu import pretended_gpu
from quick import quick

from ddcnn.__main__ import execute
from ddcnn.data.batches import Rows
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.environment import platform_of
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import Trainer, build
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe

GPU = torch.device("cuda", 0)
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory) -> SimpleNamespace:
    """A deterministic run of coherent in fp16 on one rank: its results, and how PyTorch was set whenever it asked for the GPU."""
    folder, found, deterministic = tmp_path_factory.mktemp("gpu"), [], torch.backends.cudnn.deterministic
    with pretended_gpu(), pytest.MonkeyPatch.context() as patch:
        properties = torch.cuda.get_device_properties

        def noted(device: Any) -> Any:
            found.append((os.environ.get(WORKSPACE), torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic))
            return properties(device)

        patch.setattr(torch.cuda, "get_device_properties", noted)
        patch.setattr(torch.version, "cuda", "13.0")
        patch.setattr(torch.version, "hip", None)
        patch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        patch.setattr(torch.distributed, "is_nccl_available", lambda: True)
        patch.setattr(torch.cuda.nccl, "version", lambda: (2, 28, 3))
        patch.setenv(WORKSPACE, "")  # so that it is as before afterwards
        patch.delenv(WORKSPACE)
        patch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
        options = quick(
            data="synthetic:8x8x2x40", train_samples=None, grid="1x2", methods="coherent", network="vgg3", width=4, batch_size=8,
            coherent_epochs=1, device="cuda", precision="fp16", deterministic=True, output=folder / "run", partitions=folder / "sets",
        )  # fmt: skip
        try:
            code = execute(["run", *options], world)
        finally:
            torch.use_deterministic_algorithms(False)
            torch.backends.cudnn.deterministic = deterministic
    return SimpleNamespace(code=code, found=found, results=json.loads((folder / "run" / "results.json").read_text("utf-8")))


def test_fp16_goes_with_coherent_on_one_rank(finished):
    assert finished.code == 0
    assert finished.results["environment"]["precision"] == "fp16"
    assert finished.results["methods"].keys() == {"coherent"}


def test_deterministic_kernels_are_asked_for_before_the_gpu_is(finished):
    assert finished.found
    for workspace, algorithms, convolutions in finished.found:
        assert workspace in (":4096:8", ":16:8")  # those that cuBLAS computes deterministically with
        assert algorithms and convolutions


def test_results_name_the_gpu_its_driver_and_its_libraries(finished):
    gpu = finished.results["environment"]["gpu"]
    loaded = Path("/sys/module/nvidia/version")
    assert gpu["name"] == "pretended GPU"
    assert gpu["driver"] == (loaded.read_text("utf-8").strip() if loaded.is_file() else "unknown")
    assert (gpu["platform"], gpu["cudnn"], gpu["nccl"]) == ("CUDA 13.0", "91900", "2.28.3")


@pytest.mark.parametrize(
    ("rocm", "cuda", "told"), [(None, "13.0", "CUDA 13.0"), ("7.1.2", None, "ROCm 7.1.2"), (None, None, "CUDA not built in")]
)
def test_the_platform_is_what_pytorch_has_been_built_for(rocm, cuda, told):
    assert platform_of(rocm, cuda) == told


def test_recorded_steps_in_fp16_are_the_same(world):
    """Also those that the scaler of gradients leaves out."""
    shape, random = Shape((8, 8), 1, 4), torch.Generator().manual_seed(0)
    inputs, labels = torch.rand(64, 1, 8, 8, generator=random), torch.arange(64) % 4

    def trained(capture: bool) -> tuple[list[float], list[torch.Tensor], int]:
        losses: list[float] = []
        policy = DevicePolicy(GPU, "fp16", capture)
        with pretended_gpu() as gpu:
            samples = Rows.of(inputs.to(GPU), labels.to(GPU))
            network = build(lambda: make(Design("vgg3", 4), shape), Seeds(0, "test"), policy)
            recipe = Recipe(2, 8, "sgd", 0.05, 0.0, "one-cycle", clip_norm=1.0)
            Trainer(recipe, policy, Seeds(0, "test"), Watch(lambda epoch: losses.append(epoch.loss))).train(
                network, samples, torch.arange(64)
            )
            return losses, [values.cpu() for values in network.state_dict().values()], gpu.operations

    eager, recorded = trained(False), trained(True)
    assert recorded[0] == eager[0] and len(eager[0]) == 2
    assert all(torch.equal(one, other) for one, other in zip(recorded[1], eager[1], strict=True))
    assert recorded[2] < eager[2]  # a replay is none
