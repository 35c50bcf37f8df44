"""Networks for every size of subimage, the width rule, initial parameters; torchvision's networks and the user's own."""

import inspect
import math
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.inference.export import ANY_BATCH
from ddcnn.networks import registry
from ddcnn.networks.dense import DenseNetwork
from ddcnn.networks.registry import NETWORKS, Design, check, make
from ddcnn.networks.resnet import PaddedShortcut
from ddcnn.networks.shape import Shape, scaled_width
from ddcnn.networks.torchvision_compat import import_torchvision
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import build
from ddcnn.training.precision import DevicePolicy

POLICY = DevicePolicy(torch.device("cpu"), "fp32")
OTHERS = ["densenet121", "mobilenet_v2", "mnasnet0_5", "shufflenet_v2_x0_5", "googlenet"]  # of torchvision
every_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def flat(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def filters_of(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]


def refusal(name: str, shape: Shape, *options) -> str:
    """The message with which ``check`` refuses: one line."""
    with pytest.raises(InputError) as error:
        check(Design(name, *options), shape)
    assert "\n" not in str(error.value)
    return str(error.value)


# Sizes


def check_forward_and_backward(name: str, spatial: tuple[int, ...], channels: int = 3, classes: int = 5) -> None:
    shape = Shape(spatial, channels, classes)
    width = 4 if name in NETWORKS else None
    check(Design(name, width), shape)
    network = POLICY.place(make(Design(name, width), shape))
    logits = network(torch.randn(2, channels, *spatial))
    assert logits.shape == (2, classes)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())


def sides(name: str, more: int) -> st.SearchStrategy[int]:
    smallest = NETWORKS[name].smallest
    return st.integers(smallest, smallest + more)


@every_network
@pytest.mark.parametrize("side", [*range(4, 18), 31, 32, 33, 40])
def test_square_images(name, side):
    if side >= NETWORKS[name].smallest:
        check_forward_and_backward(name, (side, side))


@every_network
@pytest.mark.parametrize("side", [4, 5, 7, 8, 9, 16, 17])
def test_cubes(name, side):
    if side >= NETWORKS[name].smallest:
        check_forward_and_backward(name, (side, side, side), channels=1)


@every_network
@settings(max_examples=20, deadline=None)
@given(data=st.data(), channels=st.integers(1, 4), classes=st.integers(2, 12))
def test_images_of_any_sides(name, data, channels, classes):
    check_forward_and_backward(name, data.draw(st.tuples(sides(name, 36), sides(name, 36))), channels, classes)


@every_network
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_volumes_of_any_sides(name, data):
    longest = data.draw(st.permutations([3, 8, 24]))
    check_forward_and_backward(name, data.draw(st.tuples(*[sides(name, more) for more in longest])))


@every_network
def test_the_class_depends_on_every_pixel_of_a_thin_image(name):
    spatial = (NETWORKS[name].smallest, 40)
    images = torch.randn(2, 1, *spatial, requires_grad=True)
    make(Design(name, 8), Shape(spatial, 1, 3))(images).square().sum().backward()
    assert (images.grad.abs().sum(dim=(0, 1)) > 0).float().mean() > 0.9


@every_network
@pytest.mark.parametrize("spatial", [(16, 20), (16, 16, 16)])
def test_it_is_exported_for_any_number_of_images(name, spatial):
    network, images = make(Design(name, 4), Shape(spatial, 2, 3)).eval(), torch.randn(5, 2, *spatial)
    program = torch.export.export(network, (torch.zeros(2, 2, *spatial),), dynamic_shapes=ANY_BATCH)
    torch.testing.assert_close(program.module()(images), network(images))


@every_network
@pytest.mark.parametrize("others", [(), (40,)])
def test_images_that_are_too_small_are_refused_with_network_and_size(name, others):
    smallest = NETWORKS[name].smallest
    for spatial in ((smallest - 1, *others, 20), (20, *others, smallest - 1)):
        shape = Shape(spatial, 1, 2)
        message = refusal(name, shape)
        assert f"--network {name}" in message
        assert f"at least {smallest} pixels" in message
        assert shape.size in message
        check(Design(name), Shape(tuple(max(side, smallest) for side in spatial), 1, 2))


# Widths


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


@pytest.mark.parametrize("name", ["vgg3", "vgg9", "resnet20", "resnet18"])
@pytest.mark.parametrize("subdomains", [4, 16])
def test_local_networks_have_about_one_nth_of_the_parameters(name, subdomains):
    shape = Shape((16, 16), 3, 10)
    whole, local = make(Design(name, 32), shape), make(Design(name, 32, subdomains**0.5), shape)
    assert count(local) / count(whole) == pytest.approx(1 / subdomains, rel=0.2)
    in_filters = [sum(count(module) for module in filters_of(network)) for network in (local, whole)]
    assert in_filters[0] / in_filters[1] == pytest.approx(1 / subdomains, rel=0.2)


@pytest.mark.parametrize(
    ("name", "convolutions", "stages", "dense"),
    [("vgg3", 3, [16, 32, 64], [64]), ("vgg9", 6, [16, 32, 64], [64, 64]), ("resnet20", 19, [16, 32, 64], []),
     ("resnet18", 20, [16, 32, 64, 128], [])],
)  # fmt: skip
def test_layers_are_as_wide_as_the_rule_says(name, convolutions, stages, dense):
    network = make(Design(name, 32, 2, head=NETWORKS[name].heads[-1]), Shape((16, 16), 3, 10))
    assert len(filters_of(network)) == convolutions
    assert sorted({module.out_channels for module in filters_of(network)}) == stages
    assert [module.out_features for module in network.modules() if isinstance(module, nn.Linear)] == [*dense, 10]


def test_without_width_and_head_a_network_has_its_own_defaults():
    shape = Shape((32, 32), 3, 10)
    defaults = [(chosen.width, chosen.head) for chosen in (RunSettings(network=name) for name in NETWORKS)]
    assert [width for width, _ in defaults] == [32, 32, 16, 64]
    for name, (width, head) in zip(NETWORKS, defaults, strict=True):
        assert count(make(Design(name), shape)) == count(make(Design(name, width, head=head), shape))
    for name in ("densenet121", "mine:small"):
        assert (RunSettings(network=name).width, RunSettings(network=name).head) == (None, None)


# Residual networks as published


def test_resnet20_has_as_many_parameters_as_published():
    assert count(make(Design("resnet20"), Shape((32, 32), 3, 10))) == 269_722


def test_resnet18_is_torchvisions():
    reference, network = import_torchvision().models.resnet18(), make(Design("resnet18"), Shape((64, 48), 3, 1000))
    assert count(network) == 11_689_512
    state = zip(network.state_dict().items(), reference.state_dict().values(), strict=True)
    network.load_state_dict({name: torch.rand_like(there) if there.ndim == 1 else there for (name, _), there in state})
    reference.load_state_dict(dict(zip(reference.state_dict(), network.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(network.eval()(images), reference.eval()(images))


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
@pytest.mark.parametrize("spatial", [(8, 8), (8, 8, 8)])
def test_initial_filters_of_residual_networks_keep_the_gradients_size(name, spatial):
    for module in filters_of(make(Design(name, 32), Shape(spatial, 3, 10))):
        expected = (2 / (module.out_channels * torch.Size(module.kernel_size).numel())) ** 0.5
        assert module.weight.std().item() == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("spatial", [(5, 6), (5, 4, 3)])
def test_the_new_channels_of_a_shortcut_without_parameters_lie_between_the_old_ones(spatial):
    images = torch.randn(2, 4, *spatial)
    padded = PaddedShortcut(4, 8, 2)(images)
    assert torch.equal(padded[:, ::2], images[(..., *[slice(None, None, 2)] * len(spatial))])
    assert not padded[:, 1::2].any()


@given(st.integers(1, 4), st.integers(1, 12), st.integers(0, 12))
def test_such_shortcuts_side_by_side_are_a_wide_one(networks, inputs, more):
    """Also where the width rule has not doubled the channels."""
    images, outputs = torch.rand(1, networks * inputs, 3, 3), inputs + more
    thin = torch.cat([PaddedShortcut(inputs, outputs, 1)(part) for part in images.chunk(networks, dim=1)], dim=1)
    assert torch.equal(PaddedShortcut(networks * inputs, networks * outputs, 1)(images), thin)
    assert thin.count_nonzero() == images.count_nonzero()


# Thin networks side by side


def fill(wide: nn.Module, thin: list[nn.Module]) -> None:
    """Thin networks into a wide one: channels and neurons concatenated, their logits' mean."""
    filled = {}
    for name, target in wide.state_dict().items():
        parts = [network.state_dict()[name] for network in thin]
        if name == "classifier.weight":
            filled[name] = torch.cat(parts, 1) / len(parts)
        elif target.ndim == 0 or name == "classifier.bias":
            filled[name] = sum(parts) / len(parts)
        elif target.ndim == 1 or target.shape[1] == parts[0].shape[1]:  # the stem: they all see the image
            filled[name] = torch.cat(parts)
        else:
            filled[name] = torch.zeros_like(target)
            for index, part in enumerate(parts):
                rows, columns = part.shape[:2]
                filled[name][index * rows : (index + 1) * rows, index * columns : (index + 1) * columns] = part
    wide.load_state_dict(filled)


@every_network
@pytest.mark.parametrize("spatial", [(8, 11), (9, 8, 10)])
@pytest.mark.parametrize(("networks", "features"), [(2, None), (3, None), (2, 6)])
def test_thin_networks_side_by_side_are_exactly_a_wide_one(name, spatial, networks, features):
    shape = Shape(spatial, 2, 3)
    thin = [make(Design(name, 4, 1, features), shape).double().eval() for _ in range(networks)]
    for network in thin:
        for tensor in network.state_dict().values():
            if tensor.ndim == 1:  # as after training: statistics and offsets are those of nothing special
                tensor.uniform_(0.5, 1.5)
    wide = make(Design(name, 4 * networks, 1, features and networks * features), shape).double().eval()
    fill(wide, thin)
    images = torch.randn(2, 2, *spatial, dtype=torch.float64)
    torch.testing.assert_close(wide.features(images), torch.cat([network.features(images) for network in thin], 1))
    torch.testing.assert_close(wide(images), sum(network(images) for network in thin) / networks)


# What all networks have


@pytest.mark.parametrize("name", [*NETWORKS, *OTHERS])
@pytest.mark.parametrize("features", [None, 20])
def test_features_are_the_last_hidden_layer_in_the_width_that_was_asked_for(name, features):
    network, images = make(Design(name, features=features), Shape((32, 32), 1, 3)).eval(), torch.randn(4, 1, 32, 32)
    values = network.features(images)
    assert values.shape == (4, features or network.classifier.in_features)
    assert isinstance(network.classifier, nn.Linear)
    assert network.classifier.out_features == 3
    torch.testing.assert_close(network.classifier(values), network(images))
    if features:
        assert (values >= 0).all()


@pytest.mark.parametrize("name", [*NETWORKS, *OTHERS])
def test_initial_parameters_depend_on_torchs_generator_alone(name):
    def initial(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return flat(make(Design(name, features=8), Shape((32, 32), 1, 3)))

    first = initial(1)
    assert torch.equal(first, initial(1))
    assert not torch.equal(first, initial(2))


def test_initial_parameters_are_a_function_of_the_seeds_alone():
    def initial(seeds: Seeds, before: int) -> torch.Tensor:
        torch.manual_seed(before)
        return flat(build(lambda: make(Design("vgg3", 8), Shape((8, 8), 1, 3)), seeds, POLICY))

    first = initial(Seeds(0, "local", 1), before=1)
    assert torch.equal(first, initial(Seeds(0, "local", 1), before=2))
    for other in (Seeds(1, "local", 1), Seeds(0, "local", 2), Seeds(0, "other", 1)):
        assert not torch.equal(first, initial(other, before=1))


def test_building_a_network_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build(lambda: make(Design("vgg3", 8), Shape((8, 8), 1, 3)), Seeds(0, "local"), POLICY)
    check(Design("mobilenet_v2"), Shape((8, 8), 1, 3))
    assert torch.equal(torch.rand(1), expected)


def test_built_in_networks_are_known_and_checked_without_torch():
    program = """
        import sys
        from ddcnn.errors import InputError
        from ddcnn.networks.registry import NETWORKS, Design, check
        from ddcnn.networks.shape import Shape
        for name in NETWORKS:
            check(Design(name, NETWORKS[name].width, 2), Shape((8, 8), 3, 10))
            try:
                check(Design(name), Shape((3, 8), 3, 10))
            except InputError:
                continue
            sys.exit("not refused")
        sys.exit("torch" in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


# torchvision's


@pytest.mark.parametrize("name", [*OTHERS, "resnet34", "efficientnet_b0", "vit_b_16"])
def test_torchvisions_networks_learn_from_images_of_any_channels(name):
    check_forward_and_backward(name, (32, 32), channels=2)


@pytest.mark.parametrize(("name", "inputs"), [("densenet121", 3), ("mobilenet_v2", 3), ("mnasnet1_0", 3), ("resnet34", 3), ("resnet34", 1)])
def test_undivided_networks_are_torchvisions_but_for_the_classes_and_the_stem(name, inputs):
    reference = import_torchvision().models.get_model(name, weights=None, num_classes=7)
    stem, fitting = filters_of(reference)[0], filters_of(network := make(Design(name), Shape((32, 32), inputs, 7)))[0]
    assert count(network) - count(reference) == fitting.weight.numel() - stem.weight.numel()
    assert (fitting.in_channels, fitting.stride, fitting.padding) == (inputs, stem.stride, stem.padding)
    assert fitting.weight.std().item() == pytest.approx(stem.weight.std().item(), rel=0.1)


@pytest.mark.parametrize(("name", "least", "most"), [("densenet121", 0.2, 0.3), ("mobilenet_v2", 0.25, 0.35), ("mnasnet1_0", 0.25, 0.35)])
def test_the_width_rule_where_torchvision_has_a_parameter_for_it(name, least, most):
    shape = Shape((32, 32), 3, 10)
    check(Design(name, None, 2), shape)
    assert least < count(make(Design(name, divisor=2), shape)) / count(make(Design(name), shape)) < most


def test_densenets_widths_are_multiples_of_four():
    for divisor, growth, stem in ((2, 16, 32), (3, 12, 24)):
        network = make(Design("densenet121", divisor=divisor), Shape((32, 32), 3, 10))
        wide = [module.out_channels for module in filters_of(network)]
        assert wide[0] == stem
        assert wide[2] == growth


@pytest.mark.parametrize(
    ("name", "spatial", "width", "divisor", "expected"),
    [
        ("resnet50", (32, 32), None, 2, ["widths are fixed", "add --width-divisor 1"]),
        ("densenet121", (32, 32), 32, 1, ["--width 32", "leave --width"]),
        ("densenet121", (8, 9, 7), None, 1, ["2-D", "8x9x7", "vgg9"]),
        ("densenet121", (16, 16), None, 1, ["16x16", "Output size is too small", "coarser --grid"]),
        ("inception_v3", (32, 32), None, 1, ["32x32", "Kernel size", "coarser --grid"]),
        ("squeezenet1_0", (32, 32), None, 1, ["must end in an nn.Linear with 3 outputs"]),
        ("vit_b_16", (32, 48), None, 1, ["square", "32x48"]),
        ("vit_b_16", (30, 30), None, 1, ["30x30", "patch size"]),
        ("maxvit_t", (32, 32), None, 1, ["32x32", "partition size"]),
        ("resnet21", (32, 32), None, 1, ["no such network", "did you mean resnet20?", "vgg3, vgg9", "torchvision", "module:factory"]),
        ("densnet121", (32, 32), None, 1, ["did you mean densenet121?"]),
        ("fasterrcnn_resnet50_fpn", (32, 32), None, 1, ["no such network"]),
    ],
)
def test_what_torchvisions_networks_cannot_do_is_refused_with_the_reason(name, spatial, width, divisor, expected):
    message = refusal(name, Shape(spatial, 3, 3), width, divisor)
    for part in (f"--network {name}", *expected):
        assert part in message


# The user's own


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Writes the user's module ``mine``, which can then be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str) -> Path:
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(source), "utf-8")
        return path

    yield write
    sys.modules.pop("mine", None)


@pytest.fixture
def example(mine):
    """The one in the documentation."""
    lines = inspect.getdoc(registry).split("::\n", 1)[1].splitlines()
    start = lines.index("    from torch import nn")
    end = next(index for index, line in enumerate(lines) if index > start and line and not line.startswith("    "))
    return mine("\n".join(lines[start:end]))


@pytest.mark.parametrize("features", [None, 20])
def test_the_users_own_network_as_documented(example, features):
    check(Design("mine:small", None, 2, features), shape := Shape((9, 7), 2, 3))
    network, images = make(Design("mine:small", None, 2, features), shape), torch.randn(4, 2, 9, 7)
    values = network.features(images)
    assert values.shape == (4, features or 4 * 8)
    torch.testing.assert_close(network.classifier(values), network(images))
    network(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("width", "divisor", "channels"), [(None, 1, 16), (None, 2, 8), (40, 1, 40), (40, 2, 20)])
def test_the_users_factory_is_told_width_and_divisor(example, width, divisor, channels):
    assert filters_of(make(Design("mine:small", width, divisor), Shape((8, 8), 1, 3)))[0].out_channels == channels


def test_the_users_network_may_find_its_sizes_out_by_itself(mine):
    mine("""
        from torch import nn
        def lazy(shape, divisor):
            return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.Dropout(), nn.LazyLinear(shape.classes))
    """)
    check(Design("mine:lazy"), shape := Shape((6, 8), 2, 3))
    network = make(Design("mine:lazy"), shape)
    assert all(module.training for module in network.modules())
    assert network.classifier.in_features == 4 * 4 * 6
    assert count(network) == (2 * 9 + 1) * 4 + 2 * 4 + (4 * 4 * 6 + 1) * 3


def test_the_head_is_the_last_layer_with_as_many_neurons_as_classes(mine):
    mine("""
        from torch import nn
        def narrow(shape, divisor):
            return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 3))
    """)
    check(Design("mine:narrow"), shape := Shape((4, 4), 1, 3))
    network, images = make(Design("mine:narrow"), shape), torch.randn(5, 1, 4, 4)
    assert (network.features(images) >= 0).all()
    torch.testing.assert_close(network.classifier(network.features(images)), network(images))


@pytest.mark.parametrize("name", ["mine:", ":small", ":"])
def test_half_a_name_of_a_factory_is_refused(name):
    assert f"--network {name}: write it as package.module:factory" in refusal(name, Shape((8, 8), 1, 3))


def test_a_module_that_is_nowhere_is_refused():
    message = refusal("nowhere.at_all:small", Shape((8, 8), 1, 3))
    for part in ("--network nowhere.at_all:small", "No module named 'nowhere'", "PYTHONPATH"):
        assert part in message


HEAD = "from torch import nn\n"
SEQUENTIAL = HEAD + "def small(shape, divisor):\n    return nn.Sequential"
CLASS = (
    HEAD
    + """class small(nn.Sequential):
    def __init__(self, shape, divisor):
        super().__init__(nn.Flatten(), nn.Linear(64, 3))
    def forward(self, images):
"""
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import missing_package", ["ModuleNotFoundError", "missing_package", "mine.py, line 1"]),
        ("weights = {}['there']", ["KeyError: 'there'", "mine.py, line 1"]),
        ("def small(shape:", ["SyntaxError", "mine.py, line 1"]),
        ("import sys\nsys.exit('usage')", ["SystemExit: usage", "mine.py, line 2"]),
        ("smaller = None", ["mine has no small", "did you mean smaller?"]),
        ("small = 3", ["3 is not a callable"]),
        ("def small(shape): pass", ["small(shape, divisor=2)", "divisor"]),
        ("def small(shape, width, divisor): pass", ["small(shape, divisor=2)", "'width'", "give --width"]),
        ("def small(shape, divisor):\n    return 1 / 0", ["8x8", "ZeroDivisionError: division by zero", "mine.py, line 2"]),
        ("def small(shape, divisor):\n    return other()\ndef other():\n    return int('x')", ["ValueError", "mine.py, line 4"]),
        (HEAD + "def small(shape, divisor):\n    return nn.Linear('x', 3)", ["TypeError", "mine.py, line 3"]),
        ("def small(shape, divisor): return {}", ["torch.nn.Module", "returned a dict"]),
        (SEQUENTIAL + "(nn.Flatten(), nn.Linear(64, 4))", ["must end in an nn.Linear with 3 outputs", "its last one has 4"]),
        (SEQUENTIAL + "(nn.Flatten(), nn.ReLU())", ["must end in an nn.Linear with 3 outputs"]),
        (SEQUENTIAL + "(nn.Flatten(), nn.Linear(60, 3))", ["8x8", "RuntimeError", "2x64 and 60x3"]),
        (SEQUENTIAL + "(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1))", ["softmax"]),
        (SEQUENTIAL + "(nn.Flatten(), nn.Linear(64, 3), nn.ReLU())", ["has to be that of its last nn.Linear"]),
        (SEQUENTIAL + "(nn.Linear(8, 3))", ["has to be that of its last nn.Linear", "flatten"]),
        (SEQUENTIAL + "(nn.Linear(8, 3), nn.Conv2d(1, 3, (8, 3)), nn.Flatten())", ["has to be that of its last nn.Linear"]),
        (HEAD + "def small(shape, divisor):\n    return nn.Linear(8, 3)", ["has to be that of its last nn.Linear"]),
        (CLASS + "        logits = super().forward(images)\n        return (logits, 0) if self.training else logits", ["has to be"]),
        (CLASS + "        raise NotImplementedError('later')", ["8x8", "NotImplementedError: later", "mine.py, line 6"]),
    ],
)  # fmt: skip
def test_a_module_of_the_user_that_does_not_work_is_refused_with_the_reason(mine, source, expected):
    mine(source)
    message = refusal("mine:small", Shape((8, 8), 1, 3), None, 2)
    for part in ("--network mine:small", *expected):
        assert part in message


# The DNN


@pytest.mark.parametrize(("interface", "values"), [("probabilities", 5), ("logits", 5), ("features", 8)])
def test_the_dnn_takes_what_all_local_cnns_hand_over(interface, values):
    assert DenseNetwork(interface, 3, values, 5)(torch.rand(7, 3 * values)).shape == (7, 5)


def test_the_untrained_dnn_decides_as_the_geometric_mean_of_the_local_classifications():
    logits = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0))
    probabilities = logits.softmax(2)
    expected = probabilities.log().mean(1).softmax(1)
    for interface, values in (("probabilities", probabilities), ("logits", logits)):
        torch.testing.assert_close(DenseNetwork(interface, 3, 5, 5)(values.flatten(1)).softmax(1), expected)


class Flattening(nn.Module):
    """With a view that needs contiguous memory, or a layer that is never used."""

    def __init__(self, shape: Shape, view: bool):
        super().__init__()
        self.filters, self.view = nn.Conv2d(shape.channels, 4, 3, padding=1), view
        self.dense = nn.Linear(4 * math.prod(shape.spatial), shape.classes)
        if not view:
            self.unused = nn.Linear(2, 2)

    def forward(self, images):
        filtered = self.filters(images)
        return self.dense(filtered.view(len(images), -1) if self.view else filtered.flatten(1))


@pytest.mark.parametrize(("view", "words"), [(True, "view size is not compatible"), (False, "its parameter unused.weight is not used")])
def test_what_would_fail_in_training_is_refused_before(monkeypatch, view, words):
    factory = lambda shape, divisor: Flattening(shape, view)  # noqa: E731
    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(factory=factory))
    with pytest.raises(InputError, match=words):
        check(Design("mine:factory"), Shape((8, 8), 2, 3))


@pytest.mark.parametrize("channels", [1, 4])
def test_torchvision_s_networks_of_any_number_of_channels_can_be_counted_without_memory(channels):
    with torch.device("meta"):
        assert count(make(Design("mobilenet_v2", None, 2), Shape((32, 32), channels, 3))) > 1000
