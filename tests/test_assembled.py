"""The network of a finished run as one module: it says what the ranks said together, in PyTorch and elsewhere."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import best_method, short_run

import ddcnn
from ddcnn.__main__ import execute
from ddcnn.data.image_spec import value_range
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.errors import InputError
from ddcnn.method.aggregate import fill_missing

METHODS = ("vote", "average", "dnn", "coherent", "transfer", "global")


@pytest.fixture(scope="module")
def digits():
    """Test images (S, C, rows, columns) uint8 and labels (S,)."""
    split = open_source(SourceOptions("digits", "")).splits["test"]
    return torch.from_numpy(split.read(np.arange(len(split)))).movedim(-1, 1), split.labels


@pytest.fixture(scope="module")
def predicted(digits_run, world, tmp_path_factory):
    """What predict writes: lines of the CSV file by method."""
    found = {}
    for method in METHODS:
        path = tmp_path_factory.mktemp("predicted") / "p.csv"
        execute(["predict", str(digits_run), "digits", "--output", str(path), "--method", method, "--threads", "1"], world)
        with path.open(encoding="utf-8") as file:
            found[method] = list(csv.DictReader(file))
    return found


def accuracy(run, method):
    return json.loads((run / "results.json").read_text("utf-8"))["methods"][method]["test_accuracy"]


@pytest.mark.parametrize("method", METHODS)
def test_one_module_says_what_the_ranks_said(digits_run, digits, predicted, method):
    network = ddcnn.load(digits_run, method)
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    images, labels = digits
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (360, 10)
    assert logits.dtype == torch.float32
    assert (logits.argmax(1).numpy() == labels).mean() == accuracy(digits_run, method)
    assert [network.class_names[k] for k in logits.argmax(1)] == [line["class"] for line in predicted[method]]
    if method != "vote":
        expected = [[float(line[f"p({name})"]) for name in network.class_names] for line in predicted[method]]
        np.testing.assert_allclose(logits.softmax(1).numpy(), expected, rtol=1e-4, atol=1e-6)
    batch_of_one = network(images[:1].float())
    torch.testing.assert_close(batch_of_one, logits[:1], rtol=1e-4, atol=1e-4)


def test_a_module_of_volumes_says_what_the_ranks_said(volumes_run):
    split = open_source(SourceOptions("synthetic:8x8x8x4x100", "", volumes=True)).splits["test"]
    images = torch.from_numpy(split.read(np.arange(len(split)))).movedim(-1, 1)
    for method in ("average", "transfer", "global"):
        found = ddcnn.load(str(volumes_run), method)(images).argmax(1).numpy()
        assert (found == split.labels).mean() == accuracy(volumes_run, method)


def test_loading_draws_no_random_numbers_and_is_the_same_every_time(digits_run, digits):
    before = torch.random.get_rng_state()
    first, second = ddcnn.load(digits_run), ddcnn.load(digits_run)
    assert first.method == best_method(digits_run)
    assert first.why.startswith(f"{first.method} is the best of the run's methods on its validation images (")
    assert ddcnn.load(digits_run, "vote").why == "it was asked for"
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    torch.testing.assert_close(first(digits[0]), second(digits[0]), rtol=0, atol=0)


def test_it_learns_on_as_any_module(digits_run, digits):
    network = ddcnn.load(digits_run, "transfer").train()
    torch.nn.functional.cross_entropy(network(digits[0][:32]), torch.from_numpy(digits[1][:32])).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_images_of_another_size_are_refused(digits_run):
    with pytest.raises(ValueError, match=r"\(2, 1, 9, 8\), expected \(B, 1, 8, 8\)"):
        ddcnn.load(digits_run)(torch.zeros(2, 1, 9, 8))


@pytest.mark.parametrize("interface", ["probabilities", "features"])
def test_missing_subdomains(digits_run, volumes_run, digits, interface):
    run = digits_run if interface == "probabilities" else volumes_run
    whole, part = ddcnn.load(run, "average"), ddcnn.load(run, "average", without=[1, 2])
    values = torch.rand(5, 4, 10)
    torch.testing.assert_close(part.combine(values[:, [0, 3]]), values[:, [0, 3]].double().mean(1).log())
    assert part.subdomains == (0, 3)
    assert len(part.local_cnns) == 2
    assert len(whole.local_cnns) == 4
    if interface == "features":
        with pytest.raises(InputError, match="--interface features"):
            ddcnn.load(run, "transfer", without=[1])
        return
    transfer = ddcnn.load(run, "transfer", without=[1, 2])
    all_of_them = fill_missing(values[:, [0, 3]], transfer.present, transfer.dnn)
    torch.testing.assert_close(all_of_them[:, [0, 3]], values[:, [0, 3]])
    for missing in (1, 2):
        torch.testing.assert_close(all_of_them[:, missing], values[:, [0, 3]].mean(1))
    torch.testing.assert_close(transfer.combine(values[:, [0, 3]]), transfer.dnn(all_of_them.flatten(1)))


def test_thin_networks_are_one_module_too(tmp_path, digits, world):

    short = {"epochs": 1, "dnn_epochs": 1, "precision": "bf16"}
    run = short_run(tmp_path, decomposition="width", **short)
    for method in METHODS:
        network = ddcnn.load(run, method)
        assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}
        exactly = tmp_path / f"{method}.csv"
        execute(["predict", str(run), "digits", "--output", str(exactly), "--method", method, "--threads", "1"], world)
        with exactly.open(encoding="utf-8") as file:
            assert np.mean([line["class"] == line["label"] for line in csv.DictReader(file)]) == accuracy(run, method)
        found = network(digits[0]).argmax(1).numpy()  # in single precision
        assert abs((found == digits[1]).mean() - accuracy(run, method)) < 0.05
    with pytest.raises(InputError, match="--without"):
        ddcnn.load(run, "transfer", without=[0])
    assert ddcnn.load(run, without=[0]).method == best_method(run, "vote", "average", "dnn")


@pytest.mark.parametrize("method", ["vote", "average", "transfer"])
def test_onnxruntime_says_the_same(digits_run, digits, tmp_path, method):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "network.onnx"
    assert execute(["export", str(digits_run), "--format", "onnx", "--method", method, "--output", str(path)], None) == 0
    session = onnxruntime.InferenceSession(str(path))
    assert (session.get_inputs()[0].shape[0], session.get_outputs()[0].shape[0]) == ("batch", "batch")
    images, labels = digits
    (logits,) = session.run(["logits"], {"images": images.float().numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, ddcnn.load(digits_run, method)(images).numpy(), rtol=1e-4, atol=1e-4)
    assert (logits.argmax(1) == labels).mean() == accuracy(digits_run, method)
    (one,) = session.run(["logits"], {"images": images[:1].float().numpy()})
    np.testing.assert_allclose(one, logits[:1], rtol=1e-4, atol=1e-4)
    assert [entry.name for entry in tmp_path.iterdir()] == ["network.onnx"]


def test_volumes_run_in_onnxruntime(volumes_run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    execute(["export", str(volumes_run), "--format", "onnx", "--output", str(tmp_path / "v.onnx")], None)
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8, 8)).astype(np.float32)
    (logits,) = onnxruntime.InferenceSession(str(tmp_path / "v.onnx")).run(None, {"images": images})
    np.testing.assert_allclose(logits, ddcnn.load(volumes_run)(torch.from_numpy(images)).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_an_exported_program_needs_nothing_of_ddcnn(digits_run, digits, tmp_path):
    execute(["export", str(digits_run), "--format", "torch-export", "--output", str(tmp_path / "network.pt2")], None)
    np.save(tmp_path / "images.npy", digits[0].float().numpy())
    program = """if True:
        import sys, numpy, torch
        network = torch.export.load("network.pt2").module()
        images = torch.from_numpy(numpy.load("images.npy"))
        numpy.save("logits.npy", network(images).detach().numpy())
        network(images[:1])
        assert "ddcnn" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), ddcnn.load(digits_run)(digits[0]).detach().numpy(), rtol=1e-4, atol=1e-4)


def test_a_state_dict_loads_without_pickles(digits_run, digits, tmp_path):
    path = tmp_path / "network.pt"
    execute(["export", str(digits_run), "--format", "state-dict", "--method", "dnn", "--output", str(path)], None)
    network = ddcnn.load(digits_run, "dnn")
    expected = network(digits[0])
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.load_state_dict(torch.load(path, weights_only=True))
    torch.testing.assert_close(network(digits[0]), expected)


EXPECTED = {
    "class_names": list("0123456789"), "input_layout": "BCHW", "input_shape": ["B", 1, 8, 8], "input_dtype": "float32",
    "input_range": [0, 255], "normalisation": "inside, as the clipping to --window: pixels go in as they are in the source",
    "method": "average", "run": "run",
    "output": "logits, whose softmax are probabilities", "ddcnn_version": ddcnn.__version__, "without": [],
}  # fmt: skip


def test_a_file_says_what_it_is_and_its_suffix_what_it_becomes(digits_run, tmp_path, caplog):
    onnx = pytest.importorskip("onnx")
    safetensors = pytest.importorskip("safetensors.torch")
    caplog.set_level("INFO", "ddcnn")
    for name in ("n.onnx", "n.pt2", "n.pt", "n.PTH", "n.safetensors"):
        execute(["export", str(digits_run), "--method", "average", "--output", str(tmp_path / name)], None)
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in EXPECTED.items()}
    found = {prop.key: prop.value for prop in onnx.load(tmp_path / "n.onnx").metadata_props}
    assert found["input_range"] == "[0.0, 255.0]"
    assert {name: json.loads(value) if isinstance(EXPECTED[name], list) else value for name, value in found.items()} == EXPECTED
    torch.export.load(tmp_path / "n.pt2", extra_files=(extra := {"ddcnn.json": ""}))
    assert json.loads(extra["ddcnn.json"]) == EXPECTED
    state, network = ddcnn.load(digits_run, "average").state_dict(), ddcnn.load(digits_run, "average")
    with safetensors.safe_open(tmp_path / "n.safetensors", "pt") as file:
        assert file.metadata() == text | {"input_range": "[0.0, 255.0]"}
    for loaded in (safetensors.load_file(tmp_path / "n.safetensors"), torch.load(tmp_path / "n.PTH", weights_only=True)):
        network.load_state_dict(loaded)
        assert all(torch.equal(values, state[name]) for name, values in loaded.items())
    assert "note: " not in caplog.text
    execute(["export", str(digits_run), "--format", "state-dict", "--output", str(tmp_path / "m.onnx")], None)
    assert "m.onnx will be state-dict, as --format says, though .onnx is for onnx" in caplog.text
    torch.load(tmp_path / "m.onnx", weights_only=True)


def test_a_loaded_network_says_what_it_is(digits_run, volumes_run, tmp_path):
    network, volumes = ddcnn.load(digits_run, "vote"), ddcnn.load(volumes_run)
    assert (network.layout, network.shape, network.input_range) == ("BCHW", (1, 8, 8), (0, 255))
    assert (network.method, network.run, network.version) == ("vote", "run", ddcnn.__version__)
    assert network.metadata["output"].startswith("scores")
    assert (volumes.layout, volumes.shape, volumes.input_range) == ("BCDHW", (1, 8, 8, 8), (0, 255))
    assert "depth from foot to head" in volumes.metadata["orientation"]
    assert ddcnn.load(digits_run, "average", without=[2]).metadata["without"] == (2,)
    (tmp_path / "study").mkdir()
    shutil.copytree(digits_run, tmp_path / "study" / "seed-3")
    assert ddcnn.load(tmp_path / "study" / "seed-3").run == "study/seed-3"
    assert value_range("<i2", "{}") is value_range("<f4", "{}") is None
    assert value_range("<i2", '{"window": [-160, 240]}') == (-160, 240)
    assert value_range("|u1", '{"window": [-160.5, 240.5]}') == (0, 240)


def test_a_file_that_is_there_stays(digits_run, tmp_path):
    (tmp_path / "network.pt").write_text("mine", "utf-8")
    arguments = ["export", str(digits_run), "--format", "state-dict", "--output", str(tmp_path / "network.pt")]
    with pytest.raises(InputError, match="--overwrite"):
        execute(arguments, None)
    assert (tmp_path / "network.pt").read_text("utf-8") == "mine"
    assert execute([*arguments, "--overwrite"], None) == 0


def test_wrong_calls_of_export(digits_run, tmp_path):
    for options, words in (
        (("--format", "onx"), "onx is none of torch-export, onnx, state-dict .did you mean onnx"), ((), "is required"),
        (("--formt", "onnx"), "--format"),
        (("--format", "state-dict", "--method", "best"), "--method best"), (("--format", "onnx", "--without", "9"), "--without 9"),
        (("--format", "onnx", "--output", str(tmp_path)), "is a folder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            execute(["export", str(digits_run), "--output", str(tmp_path / "x"), *options], None)
    assert not list(tmp_path.iterdir())


def test_importing_ddcnn_imports_neither_torch_nor_mpi():
    program = "import sys, ddcnn; assert not {'torch', 'mpi4py', 'h5py', 'numpy'} & set(sys.modules); ddcnn.load"
    subprocess.run([sys.executable, "-c", program], check=True)
