"""Which precision a rank computes in, with GPUs that are pretended, and which networks draw random numbers."""

import pytest
import torch
from torch import nn

from ddcnn.networks.layers import draws
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape
from ddcnn.training.precision import DevicePolicy

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def see(monkeypatch, capability, version="2.11.0+cu130", cudnn=91900):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # older GPUs emulate it
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)


@pytest.mark.parametrize(("capability", "precision"), [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_is_bf16_only_where_the_gpu_computes_in_it(monkeypatch, capability, precision):
    see(monkeypatch, capability)
    assert DevicePolicy.choose(GPU, "auto").precision == precision
    assert DevicePolicy.choose(GPU, "bf16").precision == "bf16"  # as asked


@pytest.mark.parametrize(
    ("version", "cudnn", "precision"),
    [("2.8.0", 91000, "bf16"), ("2.9.1+cu128", 91002, "fp32"), ("2.9.1", 91500, "bf16"), ("2.10.0", 91002, "bf16")],
)
def test_auto_leaves_out_slow_convolutions_of_volumes(monkeypatch, version, cudnn, precision):
    see(monkeypatch, (9, 0), version, cudnn)
    assert DevicePolicy.choose(GPU, "auto", volumes=True).precision == precision
    assert DevicePolicy.choose(GPU, "auto").precision == "bf16"


def test_nothing_is_recorded_on_a_cpu():
    assert not DevicePolicy.choose(CPU, "auto", capture=True).capture


@pytest.mark.parametrize("name", NETWORKS)
def test_built_in_networks_draw_nothing_while_they_train(name):
    network = make(Design(name, 8), Shape((16, 16), 3, 10)).train()
    assert not draws(network)
    before = torch.get_rng_state()
    network(torch.ones(2, 3, 16, 16))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("foreign", [nn.Dropout(), nn.Dropout2d(), nn.RReLU(), type("Mine", (nn.Module,), {})()])
def test_networks_that_may_draw_are_known(foreign):
    assert draws(nn.Sequential(nn.Linear(2, 2), foreign))
    assert not draws(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
