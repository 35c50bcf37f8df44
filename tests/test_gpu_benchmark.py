"""The control flow of benchmarks/gpu.py, on a pretended GPU and in small; its figures mean nothing here."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import pretended_gpu

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark, with few images and steps."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "BATCH", 16)
    monkeypatch.setattr(module, "IMAGES", 48)
    monkeypatch.setattr(module, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(module, "CHECKED", 192)
    monkeypatch.setattr(module, "REPLAYS", 1)
    monkeypatch.setattr(module, "NETWORKS", ["vgg3"])
    monkeypatch.setattr(module, "compute_deterministically", lambda: None)  # for good
    yield module
    for name in ("gpu", "engine"):
        sys.modules.pop(name, None)


def found(part) -> dict:
    with pretended_gpu():
        return {name: json.loads(json.dumps(value)) for name, value in part(torch.device("cuda", 0))}


def test_the_parts_that_compare(gpu):
    assert found(gpu.environment)["name"] == "pretended GPU"
    assert set(found(gpu.waits).values()) == {"nothing"}
    assert set(found(gpu.capture).values()) == {"the same"}
    agreement = found(gpu.agreement)
    assert all(agreement[f"vgg3 {shape} fp32 cuda"] == agreement[f"vgg3 {shape} fp32 cpu"] for shape in ("32x32", "16x16x16"))


def test_the_parts_that_measure(gpu):
    loop, streams = found(gpu.loop), found(gpu.streams)
    assert len(loop) == 2
    for sides in loop.values():
        assert all(rate > 0 for name, rate in sides.items() if "/" not in name)
        assert sides["ddcnn / bare, captured"]["median"] > 0
    assert all(counts["in turn"] > 0 for counts in streams.values())


def test_a_part_that_fails_or_takes_too_long_hides_no_other(gpu):
    assert gpu.one_part("environment", 60, ["--device", "cpu"])["torch"] == torch.__version__
    if not torch.cuda.is_available():
        assert "CUDA" in gpu.one_part("waits", 60, ["--device", "cuda"])["failed"]
    assert gpu.one_part("loop", 0.5, ["--device", "cpu"])["failed"] == "took more than 0.5 s"
