"""Trained weights to start from, and how the images are normalised for them."""

import argparse
import json
import os
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from launching import on_ranks, refusal
from quick import quick
from torch import nn

import ddcnn
from ddcnn.__main__ import execute
from ddcnn.data.batches import Subimages
from ddcnn.data.image_spec import imagenet
from ddcnn.data.stored import Place
from ddcnn.errors import InputError
from ddcnn.io.weights import Weights
from ddcnn.networks import registry
from ddcnn.networks.shape import Shape
from ddcnn.networks.torchvision_compat import import_torchvision

SMALL = "shufflenet_v2_x0_5"


def trained(name: str, **options) -> nn.Module:
    """torchvision's network with parameters and statistics that no new one has."""
    torch.manual_seed(1)
    network = import_torchvision().models.get_model(name, weights=None, **options)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.rand_like(tensor) / 4)
    return network.eval()


def filled(file: Weights, name: str, shape: Shape) -> nn.Module:
    torch.manual_seed(2)
    return file.fill(registry.make(registry.Design(name), shape), name).eval()


def save(content, path: Path) -> Weights:
    torch.save(content, path)
    return Weights.read(path)


@pytest.mark.parametrize("name", [SMALL, "resnet18", "densenet121", "googlenet", "mobilenet_v3_small"])
def test_a_network_is_torchvision_s_but_for_the_head(tmp_path, name):
    reference = trained(name, **({"init_weights": False} if name == "googlenet" else {}))
    network = filled(save(reference.state_dict(), tmp_path / "w.pth"), name, Shape((64, 64), 3, 5))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    head = [module for module in reference.modules() if isinstance(module, nn.Linear) and module.out_features == 1000][-1]
    seen: list[torch.Tensor] = []
    with torch.no_grad(), head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        reference(images)
        torch.testing.assert_close(network.features(images), seen[-1])
        assert network(images).shape == (2, 5)
    torch.manual_seed(2)
    torch.testing.assert_close(
        network.classifier.weight, registry.make(registry.Design(name), Shape((64, 64), 3, 5)).classifier.weight
    )  # of the seed


@pytest.mark.parametrize("name", [SMALL, "resnet18"])
def test_of_grey_images_the_first_convolution_sums_over_the_colours(tmp_path, name):
    file = save(trained(name).state_dict(), tmp_path / "w.pth")
    colour, grey, four = (filled(file, name, Shape((64, 64), channels, 5)) for channels in (3, 1, 4))
    images = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(grey.features(images), colour.features(images.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)
    torch.manual_seed(2)
    new = registry.make(registry.Design(name), Shape((64, 64), 4, 5)).state_dict()
    differing = [
        entry for entry, values in four.state_dict().items() if values.shape == new[entry].shape and torch.equal(values, new[entry])
    ]
    assert next(iter(new)) in differing  # the first convolution is as it was made


VOLUMES = """
from torch import nn

def volumes(shape, divisor=1):
    layers = nn.Conv3d(shape.channels, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(32, shape.classes))
"""


def test_a_network_of_the_user_starts_from_its_own_state_dict(tmp_path, monkeypatch):
    (tmp_path / "of_volumes.py").write_text(VOLUMES, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = registry.make(registry.Design("of_volumes:volumes"), Shape((8, 8, 8), 1, 7)).backbone.state_dict()
    head = {"5.weight": torch.zeros(7, 32), "5.bias": torch.zeros(7)}
    network = filled(save(before | head, tmp_path / "w.pth"), "of_volumes:volumes", Shape((6, 6, 6), 1, 3))
    assert all(torch.equal(values, before[name]) for name, values in network.backbone.state_dict().items())
    with pytest.raises(InputError, match=r"its 6\.weight is not in --network of_volumes:volumes"):
        filled(save(before | {"6.weight": torch.zeros(1)}, tmp_path / "w.pth"), "of_volumes:volumes", Shape((6, 6, 6), 1, 3))


def test_checkpoints_as_they_are_usual(tmp_path):
    state = trained(SMALL).state_dict()
    expected = filled(save(state, tmp_path / "w.pth"), SMALL, Shape((64, 64), 3, 5)).state_dict()
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    for file in (
        Weights.read(tmp_path / "w.safetensors"),
        save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "a.pth"),
        save({"model": {f"module.{name}": values for name, values in state.items()}}, tmp_path / "b.pth"),
        save({name: nn.Parameter(values, values.is_floating_point()) for name, values in state.items()}, tmp_path / "c.pth"),
        save({name: values for name, values in state.items() if not name.startswith("fc.")}, tmp_path / "d.pth"),  # no head
    ):
        found = filled(file, SMALL, Shape((64, 64), 3, 5)).state_dict()
        assert all(torch.equal(found[name], values) for name, values in expected.items())
    old = save({name: values for name, values in state.items() if "num_batches" not in name}, tmp_path / "e.pth")
    half = save({name: values.bfloat16() for name, values in state.items()}, tmp_path / "f.pth")
    for file in (old, half):
        found = filled(file, SMALL, Shape((64, 64), 3, 5)).state_dict()
        assert {values.dtype for values in found.values()} == {torch.float32, torch.int64}


class Code:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_code_in_a_file_is_not_executed(tmp_path):
    code = {"conv1.weight": Code(tmp_path / "ran")}
    torch.save(code, tmp_path / "a.pth")
    torch.save(code, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(code, protocol=2))
    (tmp_path / "d.safetensors").write_bytes(pickle.dumps(code))
    torch.save(nn.Linear(2, 2), tmp_path / "e.pth")
    torch.save({"model": {}, "args": argparse.Namespace()}, tmp_path / "f.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "g.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError, match=rf"--weights {path}: it .*nothing in it was executed: give a state dict") as error:
            Weights.read(path)
        assert "\n" not in str(error.value)
        assert "Re-running" not in str(error.value)  # torch's advice to execute it
    with pytest.raises(InputError, match=r"holds posix\.mkdir, and so more than tensors"):
        Weights.read(tmp_path / "a.pth")
    assert not (tmp_path / "ran").exists()


def test_what_is_no_state_dict_or_that_of_another_network_is_refused(tmp_path):
    state = trained(SMALL).state_dict()
    path, shape = tmp_path / "w.pth", Shape((64, 64), 3, 5)
    for content, words in (
        (torch.zeros(3), "it is no state dict, but a Tensor"), ({}, "it is no state dict, but empty"), ({"a": 3}, "its a is no tensor"),
        ({"state_dict": [1]}, "its state_dict is no tensor"), ({"a": torch.zeros(2, 2).to_sparse()}, "its a is no tensor"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            save(content, path)
    with pytest.raises(InputError, match=r"nowhere\.pth: no such file"):
        Weights.read(tmp_path / "nowhere.pth")
    for name, changes, words in (
        (SMALL, {"conv5.0.weight": torch.zeros(1024, 192, 3, 3)}, r"its conv5.0.weight has shape \(1024, 192, 3, 3\), that of --network"),
        (SMALL, {"conv5.0.weight": None}, "it has no conv5.0.weight, which --network shufflenet_v2_x0_5 has"),
        (SMALL, {"conv6.0.weight": torch.zeros(1)}, "its conv6.0.weight is not in --network shufflenet_v2_x0_5"),
        (SMALL, {"conv5.0.weight": torch.full_like(state["conv5.0.weight"], float("nan"))}, "its conv5.0.weight has values that are NaN"),
        (SMALL, {"conv5.0.weight": state["conv5.0.weight"].to(torch.float8_e4m3fn)}, "its conv5.0.weight has values of type torch.float8"),
        (SMALL, {"conv5.0.weight": state["conv5.0.weight"].to(torch.int8)}, "of type torch.int8, where torch.float32 ones belong"),
        (SMALL, {"conv5.0.weight": state["conv5.0.weight"].double() + 1e300}, "its conv5.0.weight has values that are NaN or infinite"),
        (SMALL, {"conv5.1.running_var": -state["conv5.1.running_var"]}, "its conv5.1.running_var has negative variances"),
        ("resnet18", {}, r"its conv1\.0\.weight|it has no conv1.weight, which --network resnet18 has"),
        ("vgg9", {}, "--network vgg9 is ddcnn's own, without trained weights anywhere: take one of torchvision"),
    ):
        changed = {entry: values for entry, values in (state | changes).items() if values is not None}
        with pytest.raises(InputError, match=words):
            filled(save(changed, path), name, shape)


def test_normalisation_is_torchvision_s_in_the_range_of_the_pixels():
    mean, std = imagenet((8, 8, 3), "|u1", "{}", "resnet50")
    transforms = import_torchvision().models.get_model_weights("resnet50").DEFAULT.transforms()
    np.testing.assert_allclose([mean, std], np.array([transforms.mean, transforms.std]) * 255)
    assert imagenet((8, 8, 3), "|u1", "{}", "efficientnet_v2_l") == ((127.5,) * 3, (127.5,) * 3)
    for name in ("inception_v3", "googlenet"):  # transform_input brings what is normalised as ImageNet to this
        assert imagenet((8, 8, 3), "|u1", "{}", name) == ((127.5,) * 3, (127.5,) * 3)
    np.testing.assert_allclose(imagenet((8, 8, 1), "<u2", "{}", "mine:small"), [[0.449 * 65535], [0.226 * 65535]])
    low_high = imagenet((8, 8, 1), "<f4", '{"window": [-100, 300]}', "resnet50")
    np.testing.assert_allclose(low_high, [[-100 + 0.449 * 400], [0.226 * 400]])
    for shape, dtype, words in (
        ((8, 8, 8, 1), "|u1", "volumes: take --normalise set"), ((8, 8, 4), "|u1", "not for images of 4 channels"),
        ((8, 8, 1), "<f4", "the range of float32 pixels is not known: tell it by --window LOW HIGH"), ((8, 8, 1), "<i2", "of int16 pixels"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            imagenet(shape, dtype, "{}", "resnet50")


# Runs


OPTIONS = {
    "network": SMALL, "width_divisor": 1, "data": "synthetic:32x32x3x4x60", "train_samples": 32, "batch_size": 8, "partitions": "sets",
    "lr": 1e-30, "weight_decay": 0, "grid": "1x2", "epochs": 1, "weights": "w.pth",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A folder with a run that learns next to nothing, and was stopped once."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("w.pth", "kept.pth"):
        torch.save(trained(SMALL).state_dict(), folder / name)
    options = quick(**OPTIONS | {"methods": "dnn,coherent,global", "dnn_data": "out-of-fold", "folds": 2, "checkpoint_every": 1})
    finished = on_ranks(2, "run", *options, "--output", "run", cwd=folder, interrupted=("coherent", 2, 1, "kill -USR1 $PPID"))
    assert finished.returncode == 75, finished.stderr
    return folder


def test_a_state_dict_goes_in_and_comes_out(run, tmp_path):
    state, other = torch.load(run / "w.pth"), {"conv1.0.weight": torch.zeros(24, 3, 3, 3)}
    torch.save(state | other, run / "other.pth")
    (run / "w.pth").rename(run / "moved.pth")
    assert "--weights w.pth: no such file" in refusal(on_ranks(2, "run", "--resume", "--output", "run", cwd=run))
    line = refusal(on_ranks(2, "run", "--resume", "--output", "run", "--weights", "other.pth", cwd=run))
    assert "--weights other.pth: the run in run has w.pth" in line
    (run / "other.pth").rename(run / "w.pth")
    line = refusal(on_ranks(2, "run", "--resume", "--output", "run", cwd=run))
    assert "--weights w.pth: not the file that the run in run began with" in line
    finished = on_ranks(2, "run", "--resume", "--output", "run", "--weights", "moved.pth", cwd=run)
    assert finished.returncode == 0, finished.stderr
    assert f"network {SMALL} from the trained weights moved.pth, " in (run / "run" / "report.md").read_text("utf-8")
    for method, parts in (("dnn", 2), ("coherent", 2), ("global", 1)):
        path = tmp_path / f"{method}.pt"
        execute(["export", str(run / "run"), "--method", method, "--format", "state-dict", "--output", str(path)], None)
        found = torch.load(path, weights_only=True)
        for i in range(parts):
            for name in ("conv1.0.weight", "stage3.2.branch2.5.weight"):
                torch.testing.assert_close(found[f"local_cnns.{i}.backbone.{name}"], state[name], rtol=0, atol=0)
        np.testing.assert_allclose(found["mean"].flatten(), np.array([0.485, 0.456, 0.406]) * 255, rtol=1e-6)


def test_a_run_does_not_start_from_networks_of_images_that_were_normalised_otherwise(run):
    options = quick(**OPTIONS | {"methods": "average", "weights": None, "start_from": "run", "output": "second"})
    assert "were normalised otherwise than this run's; give the same --normalise" in refusal(on_ranks(2, "run", *options, cwd=run))
    finished = on_ranks(2, "run", *options, "--normalise", "imagenet", cwd=run)
    assert finished.returncode == 0, finished.stderr


def test_what_does_not_fit_is_refused_before_any_rank_trains(run):
    for changes, words in (
        ({"width_divisor": None, "network": "mobilenet_v2"}, "local CNNs are thinner by 1.41421: add --width-divisor 1"),
        ({"network": "resnet18", "grid": "1x1"}, "it has no conv1.weight, which --network resnet18 has"),
        ({"network": "vgg3"}, "--network vgg3 is ddcnn's own"),
        ({"data": "synthetic:8x8x8x4x60", "volumes": True, "grid": "1x1x1", "network": "resnet18"}, "colour and grey images, not for"),
    ):  # fmt: skip
        assert words in refusal(on_ranks(2, "run", *quick(**OPTIONS | {"output": "no", "weights": "kept.pth"} | changes), cwd=run))
    assert not (run / "no").exists()


ON_ONE_RANK = """
import os, ddcnn
world, home = ddcnn.World(), os.getcwd()
for folder, words in (("nothing", "no such file"), ("another", "not the same file on all ranks")):
    os.chdir(folder if world.rank else home)
    try:
        ddcnn.decompose(world, OPTIONS)
    except ddcnn.InputError as error:
        assert words in str(error), error
    else:
        raise AssertionError(folder)
    os.chdir(home)
"""


def test_a_file_that_is_missing_or_another_on_one_rank_is_refused_on_all(run):
    for folder in ("nothing", "another"):
        (run / folder).mkdir()
    torch.save(trained(SMALL).state_dict() | {"fc.bias": torch.zeros(1)}, run / "another" / "kept.pth")
    options = OPTIONS | {"weights": "kept.pth", "partitions": str(run / "sets"), "threads": 1}
    (run / "script.py").write_text(ON_ONE_RANK.replace("OPTIONS", f"**{options}"), "utf-8")
    finished = on_ranks(2, cwd=run, script="script.py")
    assert finished.returncode == 0, finished.stderr


def test_a_script_starts_from_trained_weights_too(run, world):
    options = {name: value for name, value in OPTIONS.items() if name not in ("partitions", "weights")}
    safetensors.torch.save_file(torch.load(run / "kept.pth"), run / "w.safetensors")
    problem = ddcnn.decompose(world, **options, partitions=run / "sets", weights=run / "w.safetensors", threads=1)
    network = problem.train_local(0)
    state = torch.load(run / "kept.pth")
    torch.testing.assert_close(network.backbone.state_dict()["conv1.0.weight"], state["conv1.0.weight"], rtol=0, atol=0)
    images = Subimages.load(problem.store, "test", 0, Place(torch.device("cpu"))).batch(torch.arange(8))[0]
    assert images.abs().max() < 3  # about -2.1 to 2.6
    with h5py.File(next((run / "sets").glob("*.h5"))) as file:
        assert abs(np.array(file.attrs["mean"]) - 0.45 * 255).max() > 10  # the set stays as it was
    assert json.loads((run / "run" / "origin.json").read_text("utf-8"))["weights"]
