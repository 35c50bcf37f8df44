"""The control flow of benchmarks/gpu.py, on a pretended GPU and in small; its figures mean nothing here.

As a script: one of its commands on the pretended GPU.
"""

import importlib
import json
import os
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import on_ranks
from pretended_gpu import pretended_gpu

from ddcnn.parallel.world import World

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PRETENDED = str(Path(__file__).with_name("pretended_gpu.py"))
GPU = torch.device("cuda", 0)
SMALL = {"synthetic:32x32x3x10x8192": "synthetic:8x8x3x10x64", "cifar10": "synthetic:8x8x3x10x64", "4x4": "1x2"}
SMALL |= dict.fromkeys(("3", "8", "48"), "1")  # epochs
MPS = """#!/bin/bash
pid=$CUDA_MPS_PIPE_DIRECTORY/nvidia-cuda-mps-control.pid
if [ "$1" = -d ]; then
  mkdir -p $CUDA_MPS_PIPE_DIRECTORY
  setsid sleep 1000 >/dev/null 2>&1 &
  echo $! | tee $pid >$STUB.new && mv $STUB.new $STUB
elif [ "$STUBBORN" ]; then
  exec sleep 1000
else
  read -r order && [ "$order" = quit ] && kill $(<$pid) && rm $pid
fi
"""


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
    monkeypatch.setattr(module, "RANKS", (1, 2))
    monkeypatch.setattr(module, "SHARING", (2,))
    monkeypatch.setattr(module, "METHODS", "dnn,coherent,spatial")
    monkeypatch.setattr(module, "FEW_STEPS", [*("100" if one == "200" else one for one in module.FEW_STEPS), "--test-samples", "60"])
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


@pytest.fixture
def commands(gpu, monkeypatch):
    """What the benchmark starts; it runs in kept ranks, and is smaller where it would take long."""
    started = []

    def start(number, program, arguments, environment):
        started.append((number, [*program, *arguments], environment))
        script = {"-m": PRETENDED if GPU.type in arguments else "", gpu.__file__: gpu.__file__}[program[0]]
        if "stopping" in program:
            script = __file__
        if "run" in arguments and "--resume" not in arguments:
            arguments = [*arguments, "--threads", "1"]
            if not set(gpu.FEW_STEPS) <= set(arguments):
                arguments = [*(SMALL.get(one, one) for one in arguments if one != "--deterministic"), "--network", "vgg3", "--width", "8"]
        if program[0] != "-m":
            arguments = [*program[1:], *arguments]
        return on_ranks(min(number, 2), *arguments, cwd=BENCHMARKS, script=script, **environment)

    monkeypatch.setattr(gpu, "start", start)
    return started


def again(gpu, monkeypatch, part, change) -> dict:
    """What a part finds in runs that have been made, of which one is changed: (number of the run, results) -> None."""
    runs = []
    with monkeypatch.context() as patch:
        run = gpu.run
        patch.setattr(gpu, "run", lambda *args, **kwargs: runs.append(run(*args, **kwargs)) or runs[-1])
        said = dict(part(GPU))
    with monkeypatch.context() as patch:
        numbers = count()

        def changed(*args, **kwargs):
            found = runs[number := next(numbers)]
            networks = {key: {name: values.copy() for name, values in own.items()} for key, own in found["networks"].items()}
            change(number, found := found | {"networks": networks})
            return found

        patch.setattr(gpu, "run", changed)
        with pytest.raises(RuntimeError) as error:
            dict(part(GPU))
    return said | {"error": str(error.value)}


def test_all_methods_are_compared_with_double_precision(gpu, commands, monkeypatch):
    def change(number, found):  # of those on the GPU the second, and there less than what half precision does
        if number == 3:
            for values in found["networks"]["coherent-dnn"].values():
                values *= 1.001

    said = again(gpu, monkeypatch, gpu.methods, change)
    assert said.pop("error") == "too far from the CPU: one rank, eager: coherent-dnn"
    assert [number for number, _, _ in commands] == [1] * 4 + [2] * 3
    for group in ("one rank", "two ranks, maps, shared, streamed"):
        most = said.pop(f"{group}, CPU: at most")
        assert 0 < most <= gpu.APART
    assert len(said) == 3
    for distances in said.values():
        assert {"local-0000", "local-0001", "dnn", "coherent-dnn", "spatial"} <= distances.keys()
        assert all(0 < float(one) < gpu.APART for one in distances.values())  # 0: nothing was in double precision
    with pytest.raises(RuntimeError, match="networks"):
        gpu.apart({}, {})


def test_bits_are_compared_and_there_are_some(gpu, commands, monkeypatch):
    def flip(number, found):
        if number == 3:
            values = found["networks"]["global"]["classifier.bias"]
            values[0] = np.nextafter(values[0], 1)

    said = again(gpu, monkeypatch, gpu.bits, flip)
    assert said["as it is"]["the same bits"] and said["--deterministic"]["the same bits"] and said["as it is"]["local"] >= 0
    assert "differ" in said["error"] and ["--deterministic" in command for _, command, _ in commands] == [False, False, True, True]
    with pytest.raises(RuntimeError, match="no parameters"):
        gpu.same_bits({"networks": {}}, {"networks": {}})


def test_a_run_stops_in_every_training_and_ends_with_the_same_bits(gpu, commands, monkeypatch):
    monkeypatch.setattr(gpu, "METHODS", "dnn,coherent,global")

    def forget(number, found):
        if number == 1:
            found["networks"]["dnn"]["layers.0.bias"][0] += 1

    said = again(gpu, monkeypatch, gpu.resume, forget)
    assert said == {"stops": 5, "the same bits": True, "error": "resumed otherwise than without a stop"}
    assert ["--resume" in command for _, command, _ in commands] == [False] * 2 + [True] * 5


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def service(tmp_path, monkeypatch):
    """NVIDIA's multi-process service, pretended: where the number of its daemon stands."""
    (tmp_path / "nvidia-cuda-mps-control").write_text(MPS, "utf-8")
    (tmp_path / "nvidia-cuda-mps-control").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB", str(tmp_path / "daemon"))
    return tmp_path / "daemon"


def assert_ended(daemon: Path) -> None:
    process, end = int(daemon.read_text("utf-8")), time.monotonic() + 10
    while lives(process):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_ranks_share_the_gpu_with_and_without_the_service(gpu, commands, service, monkeypatch):
    environment = dict(os.environ)
    without = dict(gpu.ranks(GPU))
    assert not service.exists()
    assert without.keys() == {"1 ranks", "2 ranks"} == dict(gpu.PARTS["mps"](GPU)).keys()
    assert all(seconds >= 0 for seconds, _ in without.values())
    assert_ended(service)
    daemon = service.read_text("utf-8")
    found = dict(gpu.cifar10(GPU, "somewhere"))
    assert found.keys() == {"1 ranks", "4 ranks", "4 ranks, multi-process service"}
    assert all(0 <= one["vote"] <= 100 and one["local"] > 0 for one in found.values())
    assert_ended(service)
    assert service.read_text("utf-8") != daemon and os.environ == environment
    assert ["CUDA_MPS_PIPE_DIRECTORY" in own for _, _, own in commands] == [False, False, True, True, False, False, True]


def test_the_service_ends_with_its_part(gpu, service, monkeypatch):
    environment = dict(os.environ)

    class AtItsLimit(subprocess.Popen):
        """Comes to it when the service runs."""

        def wait(self, timeout=None):
            while timeout == 99:
                if service.exists():
                    raise subprocess.TimeoutExpired("", timeout)
                assert self.poll() is None
                time.sleep(0.05)
            return super().wait(timeout)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", AtItsLimit)
        assert gpu.one_part("mps", 99, ["--device", "cpu"])["failed"] == "took more than 99 s"
    assert_ended(service)
    monkeypatch.setenv("STUBBORN", "1")
    monkeypatch.setattr(gpu, "QUIT", 0.2)
    with pytest.raises(KeyError), gpu.multi_process_service():
        assert lives(int(service.read_text("utf-8")))
        raise KeyError
    assert_ended(service)
    assert {name: value for name, value in os.environ.items() if name != "STUBBORN"} == environment


def test_sums_of_gradients_are_compared_element_by_element(gpu, commands, monkeypatch):
    found = dict(gpu.sums(torch.device("cpu")))
    assert found["nccl"].startswith("skipped") and found.keys() == {"nccl", "gloo, 2 ranks"}
    sides = found["gloo, 2 ranks"]
    assert sides["backend"] == "gloo"
    assert all(sides[name]["elements"] > 50000 and not sides[name]["wrong"] for name in ("fp32", "bf16"))

    def stale(all_reduce, world, bucket):  # an element of a bucket comes too late
        before = bucket.buffer().flatten()[7].clone()
        future = all_reduce(world, bucket)
        future.wait()
        bucket.buffer().flatten()[7] = 1.01 * before
        return future

    with gpu.process_group(World(), torch.device("cpu")), monkeypatch.context() as patch:
        patch.setattr(gpu, "all_reduce", partial(stale, gpu.all_reduce))
        wrong = gpu.summed(World(), torch.device("cpu"), torch.float32)["wrong"]
    assert 2 <= wrong <= 6  # at most one of each bucket
    with monkeypatch.context() as patch:
        told = json.dumps({"backend": "gloo", "fp32": {"elements": 9, "wrong": 1}, "bf16": {"elements": 9, "wrong": 0}})
        patch.setattr(gpu, "start", lambda *_: subprocess.CompletedProcess([], 0, told, ""))
        with pytest.raises(RuntimeError, match="wrong"):
            dict(gpu.sums(torch.device("cpu")))


if __name__ == "__main__":
    import gpu as benchmark  # type: ignore[import-not-found]  # from the working folder

    with pretended_gpu():
        benchmark.main()
