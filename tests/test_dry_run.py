"""A dry run: what it tells, that it writes nothing, and that it refuses what the run would refuse, in the same words."""

import json
import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from launching import on_ranks, refusal
from quick import quick

from ddcnn.__main__ import execute
from ddcnn.data.partition import partition
from ddcnn.data.sources import SourceOptions, balanced_subset, open_source
from ddcnn.data.stand_in import StandIn, described, stored_bytes
from ddcnn.decomposition import Decomposition
from ddcnn.io.progress import duration
from ddcnn.networks.operations import multiply_adds

FEW = ("--data", "synthetic:8x8x3x4", "--train-samples", "3", "--methods", "transfer")  # too few for two ranks of one network
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def entries(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def table(text: str, first: str) -> dict[str, list[str]]:
    """The rows below the headers that begin with ``first``, by their first cell: a table may be divided."""
    rows: dict[str, list[str]] = {}
    for part in text.split(f"\n {first} ")[1:]:
        for line in part.split("\n\n")[0].splitlines()[1:]:
            name, *cells = re.split(r"\s{2,}", line.strip())
            rows.setdefault(name, []).extend(cells)
    return rows


def number_of(cell: str) -> float:
    value, unit = cell.split()
    return float(value) * UNITS[unit]


OPTIONS = quick(overlap=1, interface="logits", augment="flip+shift", shift=1, frozen_epochs=1, partitions="partitions", output="run")


@pytest.fixture(scope="module")
def tried(tmp_path_factory) -> tuple[Path, str]:
    """A folder with a run, and what was told of it before; then nothing was written."""
    folder = tmp_path_factory.mktemp("tried")
    told = on_ranks(2, "run", *OPTIONS, "--dry-run", cwd=folder)
    assert (told.returncode, told.stderr, entries(folder)) == (0, "", {})
    finished = on_ranks(2, "run", *OPTIONS, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder, told.stdout


def test_it_tells_what_the_run_takes_and_writes_nothing(tried):
    folder, told = tried
    results = json.loads((folder / "run" / "results.json").read_text("utf-8"))
    phases = table(told, "phase")
    assert list(phases) == [*results["phases"], "in all"]
    for name, phase in results["phases"].items():
        if name != "partition":
            assert number_of(phases[name][1]) == pytest.approx(phase["max_rank_memory_bytes"], rel=0.2)
            parts = sum(map(number_of, phases[name][2:]))
            assert parts == pytest.approx(number_of(phases[name][1]), rel=0.02), told
    subdomains = table(told, "subdomain")
    for box in results["decomposition"]["subdomains"]:
        found = subdomains[str(box["index"])]
        assert found[0] == " × ".join(f"{a}:{b}" for a, b in zip(box["start"], box["stop"], strict=True))
        assert int(found[2].replace(",", "")) == box["parameters"]
    assert "\n subdomain  rows × columns  with overlap  parameters " in told
    assert "\nresident   images during local, coherent, transfer: in memory; global: read from the partitioned set" in told
    assert phases["gather"][0] not in ("0 s", "0.0 s")
    methods = table(told, "method")
    for name, method in results["methods"].items():
        whole = results["decomposition"]["parameters"] if name in ("vote", "average") else method["parameters"]
        assert (int(methods[name][0].replace(",", "")), int(methods[name][2])) == (whole, method["epochs"])
    before = entries(folder)
    again = on_ranks(2, "run", *OPTIONS, "--dry-run", "--output=other", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert table(again.stdout, "phase")["partition"][0] == "done"  # the set of the run is found
    assert entries(folder) == before


def test_of_a_run_that_is_gone_on_with_it_tells_of_the_whole_and_leaves_it_as_it_is(tried):
    folder, _ = tried
    (folder / "run" / "report.md").rename(folder / "report.md")  # the last thing that a run does is left to do
    before = entries(folder)
    told = on_ranks(2, "run", "--resume", "--output=run", "--dry-run", cwd=folder)
    assert (told.returncode, told.stderr, entries(folder)) == (0, "", before)
    assert "All numbers are of the whole run, also of what is done already." in told.stdout
    (folder / "report.md").rename(folder / "run" / "report.md")


def test_it_tells_what_checkpoints_take_of_the_disk_and_where_that_is_more_than_there_is(world, caplog, monkeypatch, tmp_path):
    options = ("run", *quick(methods="dnn,global", epochs=5, grid="1x2", checkpoint_every=1, output=tmp_path / "run", partitions=tmp_path))
    caplog.set_level(logging.INFO, "ddcnn")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e6))
    assert execute([*options, "--dry-run"], world) == 0
    most, end = map(number_of, re.search(r"checkpoints at most (\S+ .?B) while it runs, (\S+ .?B) at the end", caplog.text).groups())
    (note,) = re.findall(r"note: (\S+ .?B) are more than the 1 MB that are free in \S+/run and \S+$", caplog.text, re.MULTILINE)
    sizes, rmtree = [], shutil.rmtree

    def taken() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*.h5"))

    def remove(*arguments, **options):
        sizes.append(taken())  # before states go
        rmtree(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", remove)
    assert execute(list(options), world) == 0
    (partitioned,) = tmp_path.glob("*.h5")
    assert (most, end) == (pytest.approx(max(sizes), rel=0.1), pytest.approx(taken(), rel=0.1))
    assert number_of(note) == pytest.approx(most + partitioned.stat().st_size, rel=0.02)


def test_a_run_to_start_from_is_looked_at_before_the_images_are_partitioned(tried):
    folder, _ = tried
    start = quick(overlap=1, methods="average", start_from="run", partitions="elsewhere", output="second")
    assert on_ranks(2, "run", *start, "--dry-run", cwd=folder).returncode == 0
    refused = [refusal(on_ranks(2, "run", *start, "--grid=1x2", *dry, cwd=folder)) for dry in (["--dry-run"], [])]
    assert refused[0] == refused[1] and "a network with divisor 2.0, where this run has 1.4" in refused[0]


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (None, {"decomposition": "width", "methods": "transfer", "width": 16, "seeds": 2}),
        (None, {"dnn_data": "out-of-fold", "methods": "dnn", "folds": 2, "class_weights": "balanced", "grid": "5x4", "overlap": 3}),
        (2, {"grid": "1x1", "methods": "coherent", "evaluate_every": 0}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_any_kind_of_run_can_be_tried(ranks, changes, tmp_path):
    told = on_ranks(ranks, "run", *quick(**changes), "--dry-run", cwd=tmp_path, COLUMNS="80")
    assert (told.returncode, told.stderr, entries(tmp_path)) == (0, "", {})
    assert all(len(line) < 80 for line in told.stdout.splitlines() if not line[:1].isalpha())
    shares = {"width": "1, 4 subdomains each", "out-of-fold": "1, 20 subdomains each"}
    assert f"\nranks      {shares.get(next(iter(changes.values())), '2, 2 for each subdomain')}; CPU, " in told.stdout
    phases = table(told.stdout, "phase")
    assert list(phases)[1:-1] == {
        "width": ["local", "gather", "transfer"], "out-of-fold": ["local", "folds", "gather", "dnn"],
    }.get(next(iter(changes.values())), ["coherent"])  # fmt: skip
    assert list(phases)[-1] == ("2 seeds" if "seeds" in changes else "in all")


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        (2, ("--grid", "3x1")), (None, ("--data", "nothing.npz")), (None, ("--resume",)), (None, ("--device", "cuda")),
        (None, ("--decomposition", "width", "--width", "20")), (None, ("--start-from", ".")), (None, ("--output", "file")),
        (None, ("--output", "file/x/run")), (None, ("--partitions", "file/x")),
        (None, ("--network", "vgg9", "--grid", "4x4")), (2, ("--decomposition", "width", "--grid", "1x2", "--width", "8", *FEW)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)  # fmt: skip
def test_what_the_run_refuses_is_refused(ranks, options, tmp_path):
    (tmp_path / "file").touch()
    refused = [refusal(on_ranks(ranks, "run", *quick(), *options, *dry, cwd=tmp_path)) for dry in ([], ["--dry-run"])]
    assert refused[0] == refused[1]


def test_nothing_is_downloaded(tmp_path):
    options = quick(data="MNIST", data_root="empty", download=True)
    assert refusal(on_ranks(None, "run", *options, "--dry-run", cwd=tmp_path)).endswith("--dry-run itself downloads nothing")
    assert entries(tmp_path) == {}


def test_a_stand_in_has_the_shapes_of_the_set_and_its_description_needs_no_images(world, tmp_path):
    source = open_source(SourceOptions("digits", Path()))
    chosen = {name: balanced_subset(split.labels, 40, 0, name) for name, split in source.splits.items()}
    decomposition = Decomposition((8, 8), (2, 1), 1, 1)
    store = partition(world, source, chosen, decomposition, tmp_path / "set.h5")
    labels = {name: source.splits[name].labels[rows] for name, rows in chosen.items()}
    alike = described(store.source, store.shape, store.dtype, store.class_names, labels, (2, 1), 1, 1, "")
    assert (alike.samples, alike.decomposition.subdomains) == (store.samples, store.decomposition.subdomains)
    few = StandIn.of(alike, 10 * 8 * 8 * np.dtype(store.dtype).itemsize)
    assert set(few.samples.values()) == {10}
    for split in store.samples:
        np.testing.assert_array_equal(alike.labels(split), store.labels(split))
        for found, expected in ((few.read(split, 1), store.read(split, 1)), (few.whole(split), store.whole(split))):
            assert (found.dtype, found.shape[1:]) == (expected.dtype, expected.shape[1:])
        assert stored_bytes(alike, split, 1) == store.read(split, 1).nbytes


def test_multiply_adds_are_those_of_the_layers():
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5))
    assert multiply_adds(network, (3, 6, 6)) == 3 * 8 * 9 * 36 + 8 * 36 * 5


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.001, "0 s"),
        (0.42, "0.4 s"),
        (9.97, "10 s"),
        (14.2, "14 s"),
        (100, "1.7 min"),
        (1234, "21 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_have_the_unit_that_fits(seconds, words):
    assert duration(seconds) == words
