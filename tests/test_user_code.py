"""Networks that users bring: imported where ddcnn's own workarounds are in place, and what is said of those that do not work."""

import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import pytest
import torch
from launching import alone, on_ranks, refusal
from quick import quick
from torch import nn

import ddcnn
from ddcnn.errors import InputError
from ddcnn.io import parameters
from ddcnn.networks.registry import Design, check
from ddcnn.networks.shape import Shape

# torchvision as it is where it does not match its torch: its operators are missing, and its import says so
BROKEN = {
    "__init__.py": "from torchvision import _meta_registrations\nfrom torchvision import models\n__version__ = '0.0'\n",
    "_meta_registrations.py": """
        import torch

        @torch.library.register_fake("torchvision::nms")
        def meta_nms(dets, scores, iou_threshold):
            return dets.new_empty(0)
    """,
    "models.py": "from torch import nn\nbatches = 'imported'\n",
}
USERS = """
    import torchvision
    from torch import nn

    def small(shape, width=8, divisor=1):
        from torchvision.models import batches
        return nn.Sequential(nn.Conv2d(shape.channels, 4, 3), nn.Flatten(), nn.LazyLinear(shape.classes))
"""


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(textwrap.dedent(text), "utf-8")
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A folder with a torchvision that does not match torch, and a user's module that imports it."""
    folder = tmp_path_factory.mktemp("broken")
    write(folder / "torchvision", BROKEN)
    return write(folder, {"mine.py": USERS})


def python(folder: Path, program: str) -> subprocess.CompletedProcess:
    path = f"{Path(ddcnn.__file__).parent.parent}:{folder}"
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=folder, check=False)


def test_a_torchvision_without_its_operators_can_be_imported_by_users(broken):
    assert "torchvision::nms does not exist" in python(broken, "import torchvision").stderr  # or this test is none
    scripts = (
        "import ddcnn, mine",
        "import torch, ddcnn\nfrom torchvision import models\nimport torchvision.models",
        "import ddcnn.errors, mine",
    )
    making = """
        from ddcnn.networks.registry import Design, make
        from ddcnn.networks.shape import Shape
        print(make(Design("mine:small"), Shape((8, 8), 1, 3)))
    """
    done = python(broken, scripts[0] + textwrap.dedent(making))
    assert done.returncode == 0, done.stderr
    assert "Conv2d" in done.stdout
    for script in scripts[1:]:
        done = python(broken, script)
        assert done.returncode == 0, done.stderr


def test_a_run_of_a_network_that_imports_it(broken):
    path = f"{Path(ddcnn.__file__).parent.parent}:{broken}"
    options = quick(network="mine:small", methods="average", epochs=1, output="run")
    done = alone("run", *options, cwd=broken, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr


FAILING = """
    from torch import nn

    def small(shape, divisor):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Sequential(nn.ReLU(), nn.Linear(9, 8)), nn.Linear(8, shape.classes))

    def last(shape, divisor):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(9, shape.classes))

    class Squeezing(nn.Module):
        def __init__(self, shape, divisor):
            super().__init__()
            self.filters, self.dense = nn.Conv2d(shape.channels, 4, shape.spatial), nn.Linear(4, shape.classes)

        def forward(self, images):
            return self.dense(self.filters(images).squeeze())

    def library(shape, divisor):
        import json
        return json.loads("{")
"""


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("small", "2x8 and 9x8) in its layer 2.1, Linear(in_features=9"), ("last", "2x8 and 9x3) in its layer 2, Linear(in_features=9"),
        ("Squeezing", "of one image it makes (3,), expected are logits (1, 3)"), ("library", "mine.py, line 20)"),
    ],
)  # fmt: skip
def test_a_network_that_fails_is_named_with_its_layer_or_line(tmp_path, monkeypatch, factory, words):
    write(tmp_path, {"mine.py": FAILING})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(InputError) as error:
        check(Design(f"mine:{factory}"), Shape((8, 8), 1, 3))
    monkeypatch.delitem(sys.modules, "mine")
    assert words in str(error.value)


def test_a_file_is_no_module_and_the_name_is_told(tmp_path):
    write(tmp_path, {"mine.py": USERS})
    for name in ("mine.py:small", "./mine.py:small", "/somewhere/mine:small"):
        line = refusal(on_ranks(None, "run", "--network", name, "--output=run", cwd=tmp_path))
        assert "write it as package.module:factory, such as mine:small" in line


def test_a_module_with_a_slash_in_its_name_is_loaded_again(tmp_path):
    network = nn.Sequential()
    network.add_module("a/b", nn.Linear(2, 3))
    parameters.save(tmp_path / "n.h5", network, {})
    with h5py.File(tmp_path / "n.h5") as file:
        assert list(file["parameters"]) == ["a%b.bias", "a%b.weight"]
    other = nn.Sequential()
    other.add_module("a/b", nn.Linear(2, 3))
    parameters.load(tmp_path / "n.h5", other, {})
    torch.testing.assert_close(other(torch.ones(1, 2)), network(torch.ones(1, 2)))


LATER = """
    from torch import nn

    class Later(nn.Module):
        calls = 0

        def __init__(self, shape, divisor):
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(shape.classes))

        def forward(self, images):
            Later.calls += len(images) > 2
            if Later.calls == 3:
                raise KeyError("the third batch")
            return self.layers(images)
"""


def test_a_network_that_fails_while_it_is_trained_is_named_with_its_line(tmp_path):
    write(tmp_path, {"mine.py": LATER})
    options = quick(network="mine:Later", methods="average", batch_size=16, output="run")
    line = refusal(alone("run", *options, cwd=tmp_path))
    assert "--network mine:Later fails in subdomain 0: KeyError: 'the third batch'" in line
    assert f"({tmp_path / 'mine.py'}, line 14)" in line
