"""Maps as the interface: which networks have them, what a subdomain hands on, and what a run, predict and exports make of it."""

import csv
import textwrap
from itertools import product

import numpy as np
import pytest
import torch
from launching import on_ranks, refusal
from quick import quick
from torch import nn

import ddcnn
from ddcnn.config.load import load
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.method.aggregate import fill_missing
from ddcnn.networks.coarse import ConvolutionalNetwork
from ddcnn.networks.layers import LargestOfHalves, cell_means, count_parameters
from ddcnn.networks.maps import map_interface
from ddcnn.networks.registry import NETWORKS, Design, make
from ddcnn.networks.shape import Shape

OWN = """
    from torch import nn
    from ddcnn.networks.shape import scaled_width

    class Small(nn.Sequential):
        map_layer = "0"

    def told(shape, divisor=1):
        return Small(*plain(shape, divisor))

    def plain(shape, divisor=1):
        channels = scaled_width(16, divisor)
        return nn.Sequential(
            nn.Conv2d(shape.channels, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(channels, shape.classes),
        )

    def flat(shape, divisor=1):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape.spatial[0] * shape.spatial[1] * shape.channels, shape.classes))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "with_maps.py").write_text(textwrap.dedent(OWN), "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


def means(images, cell):
    """The mean of each cell's pixels, one by one; a last cell has the pixels that remain."""
    whole = torch.empty(*images.shape[:2], *(-(-pixels // c) for pixels, c in zip(images.shape[2:], cell, strict=True)), dtype=images.dtype)
    for index in np.ndindex(*whole.shape[2:]):
        box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, cell, strict=True))
        whole[(..., *index)] = images[(..., *box)].flatten(2).mean(2)
    return whole


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_built_in_networks_hand_on_the_cells_of_the_whole_image(name, dimension):
    """With no padding at cuts to tell them apart, the stitched map is that of the whole image: here with networks of one-pixel kernels."""
    design, side = Design(name, 8, 2, head="pooled"), {"resnet18": 64}.get(name, 16)
    cut = Decomposition((side,) * dimension, (2,) * dimension, 0)
    maps = map_interface(design, cut, 1, 5, image=True)
    network = make(design, Shape(cut.subdomains[0].subimage.shape, 1, 5)).double().eval()
    images = torch.randn(3, 1, *cut.shape, dtype=torch.float64)
    values = []
    for index in range(len(cut)):
        own, features = network.maps_and_features(cut.restrict(images, index, 2))
        torch.testing.assert_close(own, network.maps(cut.restrict(images, index, 2)))
        torch.testing.assert_close(features, network.features(cut.restrict(images, index, 2)))
        values.append(maps.pack(cut.restrict(images, index, 2), own, network.classifier(features), index))
    values = torch.stack(values, 1)
    assert values.shape == (3, len(cut), maps.values)
    stitched, of_image = maps.stitched(values).tensor_split([network.channels], 1)
    assert stitched.shape == (3, network.channels, *(pixels // cell for pixels, cell in zip(cut.shape, network.cell, strict=True)))
    torch.testing.assert_close(of_image, means(images, network.cell))
    for index, box in enumerate(maps.stitching.own):
        own = network.maps(cut.restrict(images, index, 2))
        torch.testing.assert_close(stitched[(slice(None), slice(None), *box.slices)], own)
        torch.testing.assert_close(maps.logits(values)[:, index], network(cut.restrict(images, index, 2)))


@pytest.mark.parametrize(("side", "last"), [(4, 2), (12, 3), (14, 3), (16, 2)])
def test_an_axis_is_pooled_only_where_two_pixels_remain(side, last):
    """4 -> 2; 12 -> 6 -> 3; 14 -> 7 -> 3; 16 -> 8 -> 4 -> 2. The DNN that has the last stages pools alike."""
    shape, cut = Shape((side, side), 1, 3), Decomposition((side, side), (1, 1), 0)
    whole = make(Design("vgg3", 4, head="pooled"), shape)
    assert whole.convolutions(torch.zeros(1, 1, side, side)).shape[2:] == (last, last)
    maps = map_interface(Design("vgg3", 4, head="pooled", coarse_stages=2), cut, 1, 3)
    dnn = ConvolutionalNetwork(maps, ((8,), (16,)))
    before = torch.zeros(1, maps.channels, *maps.stitching.shape)
    for layer in dnn.layers[:-3]:
        before = layer(before)
    assert before.shape[2:] == {4: (2, 2), 12: (3, 3), 14: (3, 3), 16: (4, 4)}[side]


@pytest.mark.parametrize(
    ("name", "shape", "grid", "overlap"),
    [
        ("vgg3", (36, 36), (2, 2), 2), ("vgg3", (39, 39), (2, 2), 3), ("vgg3", (12, 17, 11), (1, 2, 1), 4),
        ("resnet20", (38, 47), (2, 2), 3), ("resnet20", (37, 45), (2, 1), 2),
    ],
)  # fmt: skip
def test_uneven_subdomains_are_filled_up_and_unpacked(name, shape, grid, overlap):
    """VGG makes no cell of pixels that remain, ResNet does. The image's cells are what they would be without a decomposition."""
    cut = Decomposition(shape, grid, overlap)
    maps = map_interface(Design(name, 4, head="pooled"), cut, 2, 3, image=True)
    whole, logits = torch.randn(2, maps.channels - 2, *maps.stitching.shape), torch.randn(2, len(cut), 3)
    images, values = torch.randn(2, 2, *shape), []
    for index in range(len(cut)):
        mine = maps.stitching.extend(maps.stitching.cut(whole, index), index)
        values.append(maps.pack(cut.restrict(images, index, 2), mine, logits[:, index], index))
    found, of_image = maps.stitched(torch.stack(values, 1)).tensor_split([maps.channels - 2], 1)
    assert torch.equal(found, whole)
    cells = (slice(None), slice(None), *map(slice, maps.stitching.shape))
    torch.testing.assert_close(of_image, means(images, maps.stitching.cell)[cells])
    assert torch.equal(maps.logits(torch.stack(values, 1)), logits)


@pytest.mark.parametrize(
    ("name", "cell", "channels"),
    [("with_maps:told", 1, 16), ("with_maps:plain", 2, 16), ("mobilenet_v2", 32, 1280), ("densenet121", 32, 1024)],
)
def test_the_last_map_of_other_networks_is_found_or_told(own, name, cell, channels):
    side = 2 * max(cell, 2) if cell < 32 else 64
    network, images = make(Design(name), Shape((side, side), 3, 4)).eval(), torch.randn(2, 3, side, side)
    maps, features = network.maps_and_features(images)
    assert (network.cell, network.channels) == ((cell, cell), channels)
    assert maps.shape == (2, channels, side // cell, side // cell)
    torch.testing.assert_close(features, network.features(images))


def test_a_network_without_maps_is_refused(own):
    with pytest.raises(InputError, match="--interface maps: --network with_maps:flat has no feature map"):
        map_interface(Design("with_maps:flat"), Decomposition((8, 8), (2, 2), 0), 1, 3)


@pytest.mark.parametrize(
    ("layer", "words"), [("9", "map_layer 9 is none of its modules"), ("0.9", "map_layer 0.9 is none"), ("4", "is no map: name another")]
)
def test_a_layer_that_makes_no_map_is_refused(own, layer, words):
    import with_maps

    class Odd(with_maps.Small):
        map_layer = layer

    with_maps.odd = lambda shape, divisor=1: Odd(*list(with_maps.plain(shape, divisor).children()))
    with pytest.raises(InputError, match=f"--interface maps: .*with_maps:odd.*{words}"):
        map_interface(Design("with_maps:odd"), Decomposition((8, 8), (2, 2), 0), 1, 3)


def test_local_cnns_know_their_map_layer_from_the_beginning(own):
    """Nothing passes through them before the first step, which would change running statistics."""
    maps = map_interface(Design("with_maps:plain"), Decomposition((8, 8), (2, 2), 0), 1, 3)
    assert maps.hands_on(lambda: make(Design("with_maps:plain"), Shape((4, 4), 1, 3)), 0)().map_layer == maps.layer == "2"


def test_a_cell_beyond_the_image_is_empty(own):
    """Some networks make more cells than pixels suggest: 10 of 26 pixels, which is 3 pixels a cell."""
    images = torch.randn(2, 3, 26, 5)
    torch.testing.assert_close(cell_means(images, (3, 2), (9, 2)), means(images, (3, 2))[..., :2])
    more = cell_means(images, (3, 2), (10, 2))
    assert torch.equal(more[:, :, :9], cell_means(images, (3, 2), (9, 2))) and not more[:, :, 9].any()


@pytest.mark.parametrize("size", [(1, 2), (3, 5), (4, 7), (2, 3, 6)])
def test_the_pooled_head_is_adaptive_pooling(size):
    """Exporters know no adaptive pooling of odd sizes."""
    pooling = {2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}[len(size)]
    images = torch.randn(2, 3, *size)
    assert torch.equal(LargestOfHalves()(images), pooling(tuple(min(side, 2) for side in size))(images))


def test_in_each_cell_of_a_missing_subdomain_stands_the_mean_of_the_others_cells():
    """Also where subdomains have different numbers of cells: 3x3, 3x2, 2x3 and 2x2."""
    maps = map_interface(Design("vgg3", 4, head="pooled"), Decomposition((20, 20), (2, 2), 2), 1, 3, image=True)
    dnn = ConvolutionalNetwork(maps, ((4,),)).eval()
    assert len({box.shape for box in maps.stitching.own}) > 1
    whole = torch.arange(maps.channels, dtype=torch.float32).reshape(1, -1, *[1] * 2).expand(2, -1, *maps.stitching.shape)
    values = torch.stack([torch.zeros(2, maps.values)] * 4, 1)
    for index, box in enumerate(maps.stitching.own):
        own = whole[:, :, *box.slices].movedim(1, -1).flatten(1)
        values[:, index, : own.shape[1]], values[:, index, maps.cells :] = own, torch.tensor([1.0, 2.0, 3.0])
    for missing in range(4):
        present = [index for index in range(4) if index != missing]
        torch.testing.assert_close(fill_missing(values[:, present], present, dnn), values)


@pytest.mark.parametrize("coarse", ["convolutional", "dense"])
def test_what_a_run_has_computed_in_half_precision_predict_computes_again(tmp_path, coarse):
    options = quick(
        image_size=40, interface="maps", coarse=coarse, methods="average,dnn,transfer", precision="bf16", epochs=1, width=8, auxiliary=0.1
    )
    done = on_ranks(None, "run", *options, "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    methods = ddcnn_results(tmp_path / "run")["methods"]
    for method, further in product(methods, ((), ("--local",), ("--divide", "subdomains"))):
        done = on_ranks(None, "predict", "run", "digits", "--method", method, *further, "--output", "p.csv", "--overwrite", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((tmp_path / "p.csv").read_text("utf-8").splitlines()))
        assert np.mean([row["label"] == row["class"] for row in rows]) == pytest.approx(methods[method]["test_accuracy"], abs=1e-9)


def test_dense_layers_on_maps_take_half_precision(tmp_path):
    options = quick(image_size=40, interface="maps", coarse="dense", methods="coherent", precision="bf16", epochs=1, width=8, output="run")
    done = on_ranks(None, "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("interface", ["probabilities", "maps"])
def test_a_dnn_that_stays_as_it_starts_is_not_taken_for_a_trained_one(tmp_path, interface):
    def accuracy(folder, **more):
        options = quick(
            **{"interface": interface, "train_samples": 400, "epochs": None, "width": 8, "output": folder, "progress": "lines"} | more
        )
        done = on_ranks(None, "run", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return ddcnn_results(tmp_path / folder)["methods"].get("dnn", {}).get("test_accuracy")

    accuracy("untrained", epochs=2, dnn_epochs=0, methods="transfer", checkpoint_every=1)
    trained = accuracy("trained", dnn_epochs=8, methods="dnn", start_from="untrained")
    at_start = accuracy("start", dnn_epochs=0, methods="dnn", start_from="trained")
    assert at_start != trained == accuracy("again", methods="dnn", start_from="trained")


def test_a_stopped_or_finished_run_whose_dnn_added_the_local_logits_is_refused(tmp_path):
    options = quick(interface="maps", methods="coherent", epochs=1, width=8, output="run")
    assert on_ranks(None, "run", *options, cwd=tmp_path).returncode == 0
    config = tmp_path / "run" / "config.toml"
    config.write_text("".join(line for line in config.read_text("utf-8").splitlines(True) if "coarse" not in line), "utf-8")
    for command in (("predict", "run", "digits", "--output", "p.csv"), ("run", "--resume", "--output", "run")):
        assert "run: a run of an older version, whose convolutional DNN added the local logits: train it again" in refusal(
            on_ranks(None, *command, cwd=tmp_path)
        )


def test_a_run_to_start_from_has_the_same_head_and_sharing(tmp_path):
    assert on_ranks(None, "run", *quick(methods="dnn", head="dense", epochs=1, width=8, output="a"), cwd=tmp_path).returncode == 0
    again = quick(methods="transfer", start_from="a", epochs=None, width=8, output="b")
    maps = (*again, "--head=dense", "--interface=maps")
    assert "give --coarse-stages 0, too" in refusal(on_ranks(None, "run", *maps, cwd=tmp_path))
    assert "give --head dense, too" in refusal(on_ranks(None, "run", *again, cwd=tmp_path))
    assert "whose mean is worth nothing" in refusal(on_ranks(None, "run", *again, "--head=dense", "--share=early", cwd=tmp_path))


def test_a_pooled_head_does_not_grow_with_the_image():
    count = {
        head: [count_parameters(make(Design("vgg9", 8, head=head), Shape((s, s), 1, 4))) for s in (32, 64)] for head in ("dense", "pooled")
    }
    assert count["pooled"][0] == count["pooled"][1] < count["dense"][0] < count["dense"][1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": "resnet20", "head": "dense"}, "--head dense: there is no such head of --network resnet20, which has pooled"),
        ({"decomposition": "width", "share": "all"}, "--share all: networks that are decomposed in width would all be one"),
        ({"network": "mobilenet_v2", "width_divisor": 1, "head": "pooled"}, "whose head is its own"),
        ({"interface": "maps", "decomposition": "width"}, "--interface maps: networks that are decomposed in width"),
        ({"coarse": "convolutional"}, "--coarse convolutional works on maps"),
        ({"coarse_width": 8}, "--coarse-width is of a convolutional DNN"),
        ({"coarse_image": True}, "--coarse-image is of a convolutional DNN"),
        ({"coarse_stages": 1}, "--coarse-stages 1 is of a convolutional DNN: take --interface maps without --coarse dense"),
        (
            {"interface": "maps", "coarse_stages": 1, "coarse_width": 8, "network": "mobilenet_v2"},
            "of --network mobilenet_v2 the DNN cannot",
        ),
        ({"dnn_epochs": 0, "dnn_data": "holdout"}, "--dnn-data holdout: with --dnn-epochs 0 the DNN learns from none"),
        ({"interface": "maps", "coarse_stages": 3}, "--network vgg3 has 3 stages; leave one to the local CNNs"),
        (
            {"interface": "maps", "coarse_stages": 1, "network": "resnet20"},
            "of --network resnet20 the DNN cannot have stages, of vgg3 and vgg9 it can",
        ),
        ({"interface": "maps", "dnn_data": "out-of-fold"}, "--dnn-data out-of-fold does not work with --interface maps"),
        ({"interface": "maps", "overlap": 1, "network": "vgg3"}, "an --overlap of 0, 2 or 4 would do"),
        ({"share": "early", "network": "mobilenet_v2", "width_divisor": 1}, "--share early is of built-in networks"),
        (
            {"share": "all", "head": "dense", "data": "synthetic:16x24x2x300", "grid": "1x3", "overlap": 4},
            "local CNNs of 16x12 and 16x16 pixels have parameters of different sizes: take --head pooled",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_way_out(tmp_path, options, words):
    assert words in refusal(on_ranks(None, "run", *quick(**options), cwd=tmp_path))


@pytest.mark.parametrize(("stages", "cell"), [(1, 4), (2, 2)])
def test_local_cnn_and_dnn_with_its_last_stages_are_the_global_cnn(stages, cell):
    """On a single subdomain, whose cuts disturb nothing."""
    cut, width = Decomposition((16, 16), (1, 1), 0), 8
    design = Design("vgg9", width, head="pooled", coarse_stages=stages)
    maps, shape = map_interface(design, cut, 3, 5), Shape((16, 16), 3, 5)
    local, whole = make(design, shape).double().eval(), make(Design("vgg9", width, head="pooled"), shape).double().eval()
    settings = load(RunSettings, {"interface": "maps", "width": width, "coarse_stages": stages}, None)
    dnn = ConvolutionalNetwork(maps, settings.convolutional).double().eval()
    assert local.cell == (cell, cell)
    of_whole = [one for one in whole.convolutions if any(True for _ in one.parameters())]
    in_parts = [one for part in (local.convolutions, dnn.layers[:-1]) for one in part if any(True for _ in one.parameters())]
    for one, other in zip(in_parts, of_whole, strict=True):
        one.load_state_dict(other.state_dict())
    dnn.classifier.load_state_dict(whole.classifier.state_dict())
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    own, features = local.maps_and_features(images)
    torch.testing.assert_close(dnn(maps.pack(images, own, local.classifier(features), 0)), whole(images))


@pytest.mark.parametrize("more", [{"coarse_stages": 0}, {"dnn_epochs": 0, "no_coarse_image": True}])
def test_a_run_with_maps_and_shared_parameters_is_predicted_exported_and_loaded(tmp_path, more):
    options = quick(
        interface="maps",
        share="all",
        auxiliary=0.3,
        coarse_width=8,
        width=8,
        methods="average,dnn,coherent,transfer",
        output="run",
        **more,
    )
    done = on_ranks(2, "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = ddcnn_results(tmp_path / "run")
    if "no_coarse_image" in more:  # as a run of before there was such an option
        config = tmp_path / "run" / "config.toml"
        config.write_text("".join(line for line in config.read_text("utf-8").splitlines(True) if "image" not in line), "utf-8")
    for method in ("average", "dnn", "coherent", "transfer"):
        said = on_ranks(None, "predict", "run", "digits", "--method", method, "--local", "--output", f"{method}.csv", cwd=tmp_path)
        assert f"accuracy {results['methods'][method]['test_accuracy']:.6g}" in said.stdout + said.stderr
    divided = on_ranks(
        2, "predict", "run", "digits", "--method", "coherent", "--local", "--divide", "subdomains", "--output", "d.csv", cwd=tmp_path
    )
    assert divided.returncode == 0
    assert (tmp_path / "d.csv").read_bytes() == (tmp_path / "coherent.csv").read_bytes()
    lost = on_ranks(None, "predict", "run", "digits", "--method", "dnn", "--without", "1", "--output", "w.csv", cwd=tmp_path)
    assert f"accuracy {results['understanding']['influence']['dnn']['without'][1]:.6g}" in lost.stdout + lost.stderr
    network = ddcnn.load(tmp_path / "run", "coherent")
    images = network.read("digits")[:9]
    assert on_ranks(None, "export", "run", "--method", "coherent", "--output", "c.pt2", cwd=tmp_path).returncode == 0
    with torch.inference_mode():
        torch.testing.assert_close(torch.export.load(tmp_path / "c.pt2").module()(images.float()), network(images), rtol=1e-4, atol=1e-5)
    files = {path.name for path in (tmp_path / "run" / "checkpoints").glob("*.h5")}
    assert {"coherent-0000.h5", "transfer-0000.h5", "local-0003.h5"} <= files  # what is shared is stored once
    assert not {"coherent-0001.h5", "transfer-0003.h5"} & files
    local, coherent = (results["methods"][name]["parameters"] for name in ("average", "coherent"))
    dnn = results["methods"]["dnn"]["parameters"] - local
    assert coherent == local // 4 + dnn


def ddcnn_results(folder):
    import json

    return json.loads((folder / "results.json").read_text("utf-8"))


def test_options_of_maps_in_a_file_are_the_run_s(tmp_path):
    (tmp_path / "o.toml").write_text('interface = "maps"\ncoarse-stages = 0\ncoarse-width = 32\nshare = "early"\n', "utf-8")
    settings = load(RunSettings, {}, tmp_path / "o.toml")
    assert (settings.convolutional, settings.share, settings.decides_in_part) == (((32,), (64,)), "early", True)
    assert load(RunSettings, {"interface": "maps"}, None).convolutional == ((128, 128),)
    assert load(RunSettings, {"interface": "maps", "network": "resnet20"}, None).convolutional == ((64,), (128,))
    given = {"interface": "maps", "coarse_stages": 2}
    assert load(RunSettings, given, None).convolutional == ((64, 64), (128, 128))
    assert load(RunSettings, given | {"network": "vgg3", "width": 8}, None).convolutional == ((16,), (32,))
    assert load(RunSettings, given | {"coarse_width": 24}, None).convolutional == ((24, 24), (48, 48))
    assert load(RunSettings, given | {"width": 5}, None).convolutional == ((12, 12), (20, 20))  # as in the global CNN
    assert load(RunSettings, given | {"methods": "average,global"}, None).local_design(4).coarse_stages == 2  # methods may be added
    assert load(RunSettings, {"coarse": "dense"}, None).convolutional is None
    assert not load(RunSettings, {"coarse": "dense", "interface": "maps"}, None).decides_in_part
    assert np.isfinite(settings.auxiliary)
