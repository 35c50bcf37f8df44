"""Networks for every size of subimage, the width rule, initial parameters."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcnn.errors import InputError
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.registry import NETWORKS
from ddcnn.networks.shape import Shape, scaled_width
from ddcnn.seeding import Seeds
from ddcnn.training import Engine, build

ENGINE = Engine(torch.device("cpu"), "fp32")
every_network = pytest.mark.parametrize("name", NETWORKS)


def check_forward_and_backward(name: str, spatial: tuple[int, ...], channels: int = 3, classes: int = 5) -> None:
    shape = Shape(spatial, channels, classes)
    shape.check(name)
    network = ENGINE.place(NETWORKS[name](shape, 4))
    logits = network(torch.randn(2, channels, *spatial))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


@every_network
@pytest.mark.parametrize("side", range(4, 41))
def test_square_images_of_every_size(name, side):
    check_forward_and_backward(name, (side, side))


@every_network
@pytest.mark.parametrize("side", [4, 5, 7, 8, 9, 16, 17, 40])
def test_cubes(name, side):
    check_forward_and_backward(name, (side, side, side), channels=1)


@every_network
@settings(max_examples=30)
@given(spatial=st.lists(st.integers(4, 40), min_size=2, max_size=2).map(tuple), channels=st.integers(1, 4), classes=st.integers(2, 12))
def test_images_of_any_sides(name, spatial, channels, classes):
    check_forward_and_backward(name, spatial, channels, classes)


@every_network
@settings(max_examples=15)
@given(spatial=st.permutations([(4, 7), (4, 12), (4, 40)]).flatmap(lambda sides: st.tuples(*[st.integers(*side) for side in sides])))
def test_volumes_of_any_sides(name, spatial):
    check_forward_and_backward(name, spatial)


@every_network
def test_the_class_depends_on_every_pixel_of_a_thin_image(name):
    images = torch.randn(2, 1, 4, 40, requires_grad=True)
    NETWORKS[name](Shape((4, 40), 1, 3), 8)(images).square().sum().backward()
    assert (images.grad.abs().sum(dim=(0, 1)) > 0).float().mean() > 0.9


@every_network
@pytest.mark.parametrize("spatial", [(3, 8), (8, 3), (1, 1), (3, 8, 8), (8, 8, 2)])
def test_images_that_are_too_small_are_refused_with_network_and_size(name, spatial):
    with pytest.raises(InputError) as error:
        Shape(spatial, 1, 2).check(name)
    assert f"--network {name}" in str(error.value)
    assert "x".join(map(str, spatial)) in str(error.value)


@pytest.mark.parametrize(
    ("width", "divisor", "expected"),
    [(32, 4**0.5, 16), (32, 16**0.5, 8), (32, 3, 12), (128, 8**0.5, 48), (4, 100, 4), (64, 2**0.5, 48), (84, 1.4, 60)],
)
def test_the_width_rule(width, divisor, expected):
    assert scaled_width(width, divisor) == expected


@given(st.integers(1, 512), st.integers(1, 1024))
def test_widths_are_the_next_multiple_of_four(units, parts):
    assert scaled_width(4 * units, 1) == 4 * units
    scaled = scaled_width(4 * units, parts**0.5)
    assert scaled % 4 == 0
    assert scaled >= 4
    assert (scaled - 4) ** 2 * parts < (4 * units) ** 2 <= scaled**2 * parts  # without rounding errors: no narrower one would do


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@every_network
@pytest.mark.parametrize("subdomains", [4, 16])
def test_local_networks_have_about_one_nth_of_the_parameters(name, subdomains):
    shape = Shape((16, 16), 3, 10)
    whole, local = NETWORKS[name](shape, 32), NETWORKS[name](shape, 32, subdomains**0.5)
    assert count(local) / count(whole) == pytest.approx(1 / subdomains, rel=0.2)
    assert count(local.convolutions) / count(whole.convolutions) == pytest.approx(1 / subdomains, rel=0.2)


@pytest.mark.parametrize(("name", "convolutions", "dense"), [("vgg3", 3, 2), ("vgg9", 6, 3)])
def test_layers_are_as_wide_as_the_rule_says(name, convolutions, dense):
    network = NETWORKS[name](Shape((16, 16), 3, 10), 32, 2)
    filters = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert (len(filters), len(layers)) == (convolutions, dense)
    assert sorted({module.out_channels for module in filters}) == [16, 32, 64]
    assert [layer.out_features for layer in layers] == [64] * (dense - 1) + [10]


@pytest.mark.parametrize(("interface", "values"), [("probabilities", 5), ("logits", 5), ("features", 8)])
def test_the_dnn_takes_what_all_local_cnns_hand_over(interface, values):
    assert DenseNetwork(interface, 3, values, 5)(torch.rand(7, 3 * values)).shape == (7, 5)


def test_the_untrained_dnn_decides_as_the_geometric_mean_of_the_local_classifications():
    logits = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(2)
    expected = probabilities.log().mean(1).softmax(1)
    for interface, values in (("probabilities", probabilities), ("logits", logits)):
        torch.testing.assert_close(DenseNetwork(interface, 3, 5, 5)(values.flatten(1)).softmax(1), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_the_last_hidden_layer_in_the_width_that_was_asked_for(name):
    network, images = NETWORKS[name](Shape((8, 8), 1, 3), 8, 2, 20), torch.randn(4, 1, 8, 8)
    network.eval()
    assert network.features(images).shape == (4, 20)
    torch.testing.assert_close(network.classifier(network.features(images)), network(images))


def test_initial_parameters_are_a_function_of_the_seeds_alone():
    def initial(seeds: Seeds, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        network = build(lambda: NETWORKS["vgg3"](Shape((8, 8), 1, 3), 8), seeds, ENGINE)
        return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])

    first = initial(Seeds(0, "local", 1), before=1)
    assert torch.equal(first, initial(Seeds(0, "local", 1), before=2))
    for other in (Seeds(1, "local", 1), Seeds(0, "local", 2), Seeds(0, "other", 1)):
        assert not torch.equal(first, initial(other, before=1))


def test_building_a_network_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build(lambda: NETWORKS["vgg3"](Shape((8, 8), 1, 3), 8), Seeds(0, "local"), ENGINE)
    assert torch.equal(torch.rand(1), expected)
