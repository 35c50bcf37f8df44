"""Validation images: where they come from, what is decided by them, and that the test images decide nothing."""

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from launching import on_ranks
from PIL import Image
from quick import quick
from resuming import assert_same, outcome
from torch import nn

from ddcnn.data.batches import Rows
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.sources import SourceOptions, Split, open_source
from ddcnn.data.sources.splits import completed
from ddcnn.errors import InputError
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.kept import Score
from ddcnn.training.loop import Callback, Trainer
from ddcnn.training.precision import DevicePolicy
from ddcnn.training.recipe import Recipe
from ddcnn.training.state import Epoch, TrainState
from ddcnn.training.validation import Selection, Validation


def split(labels) -> Split:
    """A split whose images are the numbers of its samples."""
    labels = np.asarray(labels)
    return Split((len(labels), 1, 1, 1), np.dtype(np.int64), labels, lambda rows: np.asarray(rows).reshape(-1, 1, 1, 1))


def numbers(one: Split) -> list[int]:
    return one.read(np.arange(len(one))).reshape(-1).tolist()


# Where they come from


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.5), st.floats(0.01, 0.9), st.integers(0, 3), st.booleans())
def test_what_is_drawn_is_a_balanced_part_of_the_training_images(labels, test_fraction, validation_fraction, seed, has_test):
    labels = np.array([*labels, 0, 0, 0, 0])
    options = SourceOptions("set", Path(), test_fraction=test_fraction, validation_fraction=validation_fraction, seed=seed)
    found = {"train": split(labels)} | ({"test": split([0, 1])} if has_test else {})
    parts, drawn = completed(found, options)
    assert list(parts) == ["train", "validation", "test"]
    assert drawn == {"validation"} | ({"test"} if not has_test else set())
    of_train = [part for name, part in parts.items() if name in ("train", *drawn)]
    assert sorted(number for part in of_train for number in numbers(part)) == list(range(len(labels)))  # nothing twice, nothing lost
    for part in of_train:
        assert numbers(part) == sorted(numbers(part))
        assert part.labels.tolist() == labels[numbers(part)].tolist()
    for k in range(5):
        before = sum(int((part.labels == k).sum()) for name, part in parts.items() if name == "train" or name == "validation")
        taken = int((parts["validation"].labels == k).sum())
        assert taken == min(max(0, before - 1), max(1, round(validation_fraction * before)))
    again, _ = completed(found, options)
    assert {name: numbers(part) for name, part in again.items()} == {name: numbers(part) for name, part in parts.items()}
    without, _ = completed(found, SourceOptions("set", Path(), test_fraction=test_fraction, seed=seed))
    assert list(without) == ["train", "test"]
    assert numbers(without["test"]) == numbers(parts["test"])  # which the validation does not change


def test_the_seed_chooses_the_validation_images():
    own = {"train": split(np.arange(60) % 3), "test": split([0, 1, 2])}
    found = [completed(own, SourceOptions("set", Path(), validation_fraction=0.2, seed=seed))[0]["validation"] for seed in (0, 1)]
    assert numbers(found[0]) != numbers(found[1])


def test_a_source_has_validation_images_of_its_own(tmp_path, caplog):
    own = {"train": split([0, 1, 0, 1]), "validation": split([1, 0])}
    asked = SourceOptions("set", Path(), validation_fraction=0.1)
    parts, drawn = completed(own, asked)
    assert drawn == {"test"}
    assert numbers(parts["validation"]) == [0, 1]
    parts, drawn = completed(own, SourceOptions("set", Path()))  # no validation set: they are the test images, as there are no others
    assert (list(parts), drawn) == (["train", "test"], set())
    assert numbers(parts["test"]) == [0, 1]
    parts, drawn = completed(own | {"test": split([0])}, SourceOptions("set", Path()))
    assert (list(parts), len(parts["test"])) == (["train", "test"], 1)
    parts, drawn = completed({"train": split([0, 1, 2]), "test": split([0])}, asked)  # a class of one sample has none to spare
    assert list(parts) == ["train", "test"]
    for name, samples in (("train", 4), ("val", 3), ("test", 2)):
        for k in range(samples):
            for kind in ("a", "b"):
                (tmp_path / "photos" / name / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((4, 4), 10 * k, np.uint8)).save(tmp_path / "photos" / name / kind / f"{k}.png")
    random = np.random.default_rng(0)
    arrays = {f"{x}_{name}": values for name, n in (("train", 8), ("val", 6), ("test", 4)) for x, values in (
        ("x", random.integers(0, 255, (n, 4, 4), np.uint8)), ("y", np.arange(n) % 2)
    )}  # fmt: skip
    np.savez(tmp_path / "set.npz", **arrays)
    for name in ("photos", "set.npz"):
        source = open_source(SourceOptions(str(tmp_path / name), tmp_path, validation_fraction=0.1))
        assert {part: len(images) for part, images in source.splits.items()} == {"train": 8, "validation": 6, "test": 4}
        assert not source.drawn
    shutil.rmtree(tmp_path / "photos" / "test")
    caplog.set_level("INFO", "ddcnn")
    source = open_source(SourceOptions(str(tmp_path / "photos"), tmp_path, validation_fraction=0.1))
    assert "photos has no test images: 2 of its 8 training images are drawn for testing (--test-fraction)" in caplog.text
    assert ({part: len(images) for part, images in source.splits.items()}, source.drawn) == (
        {"train": 6, "validation": 6, "test": 2},
        {"test"},
    )


def test_validation_images_that_are_not_wanted_are_not_looked_at(tmp_path, write_arrays, random_arrays):
    arrays = random_arrays((4, 4), train=9, validation=4) | {"y_validation": np.array([0, 1, 2, 7])}  # classes that train has not
    for name, kinds in (("train", "ab"), ("val", "abc"), ("test", "ab")):
        for kind in kinds:
            (tmp_path / "photos" / name / kind).mkdir(parents=True)
            Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "photos" / name / kind / "0.png")
    for source, words in (
        (write_arrays(tmp_path / "set.npz", **arrays), "label 2 of validation"),
        (tmp_path / "photos", "val/c: the train"),
    ):
        opened = open_source(SourceOptions(str(source), tmp_path))
        assert list(opened.splits) == ["train", "test"]
        with pytest.raises(InputError, match=words):
            open_source(SourceOptions(str(source), tmp_path, validation_fraction=0.1))


def test_half_a_pair_of_arrays_and_two_of_one_split_are_refused(tmp_path, write_arrays, random_arrays):
    whole = random_arrays((4, 4), validation=4)
    for changes, words in (
        ({"y_validation": None}, r"x_validation, but no y_validation \(x_validation and y_validation, or validation_images and "),
        ({"x_test": None}, r"y_test, but no x_test \(x_test and y_test, or test_images and test_labels\) among its arrays: x_train,"),
        ({"y_validation": None, "val_labels": np.zeros(4, int)}, "x_validation, but no y_validation"),
        ({"x_val": whole["x_validation"], "y_val": whole["y_validation"]}, "x_validation and x_val are both called like validation images"),
    ):
        arrays = {name: values for name, values in (whole | changes).items() if values is not None}
        with pytest.raises(InputError, match=words):
            open_source(SourceOptions(str(write_arrays(tmp_path / "set.npz", **arrays)), tmp_path, validation_fraction=0.1))
    for name in ("train", "val", "validation", "test"):
        (tmp_path / "photos" / name / "a").mkdir(parents=True)
    with pytest.raises(InputError, match=r"photos/validation and .*photos/val are both called like a split of validation images"):
        open_source(SourceOptions(str(tmp_path / "photos"), tmp_path))


def test_subsets_keep_their_size_and_validation_its_proportion(world, tmp_path):
    def partitioned(*options: str):
        done = on_ranks(1, "partition", "digits", "--output", "set.h5", *options, cwd=tmp_path)
        return PartitionedSet.open(tmp_path / "set.h5") if done.returncode == 0 else done.stderr

    assert partitioned().samples == {"train": 1294, "validation": 143, "test": 360}
    assert partitioned("--train-samples=900").samples == {"train": 900, "validation": 100, "test": 360}
    assert partitioned("--train-samples=20").samples == {"train": 20, "validation": 10, "test": 360}  # one of each class
    store = partitioned("--train-samples=100", "--validation-samples=70", "--validation-fraction=0.3")
    assert store.samples == {"train": 100, "validation": 70, "test": 360}
    assert np.bincount(store.labels("validation")).tolist() == [7] * 10
    assert partitioned("--validation-fraction=0").samples == {"train": 1437, "test": 360}
    assert "1295: the train split has only 1294 samples; 143 others are for validation" in partitioned("--train-samples=1295")
    none = partitioned("--validation-fraction=0", "--validation-samples=5")
    assert "--validation-samples 5: there are no validation images, with --validation-fraction 0: give a larger one" in none
    assert "--validation-fraction" in partitioned("--validation-fraction=1")


def test_a_partitioned_set_of_the_older_schema_is_read(tmp_path):
    """It had no validation images, and else the same; a set that has lost the number of them is not taken for one."""
    for fraction in ("0", "0.1"):
        done = on_ranks(2, "partition", "digits", "--output", f"{fraction}.h5", f"--validation-fraction={fraction}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with h5py.File(tmp_path / f"{fraction}.h5", "a") as file:
            assert ("validation_samples" in file.attrs) == (fraction != "0")
            file.attrs["schema_version"] = 3
            if fraction != "0":
                del file.attrs["validation_samples"]
    assert PartitionedSet.open(tmp_path / "0.h5").samples == {"train": 1437, "test": 360}
    with pytest.raises(InputError, match="not those that were written"):
        PartitionedSet.open(tmp_path / "0.1.h5")
    options = quick(data="0.h5", train_samples=None, methods="average,dnn", output="run")
    assert on_ranks(1, "run", *options, cwd=tmp_path).returncode == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))
    assert results["data"]["validation_samples"] == 0
    assert results["methods"]["dnn"]["validation_accuracy"] is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [line["validation_accuracy"] for line in lines] == [None] * len(lines)
    trained = [line["accuracy"] for line in lines if line["phase"] == "dnn"]
    assert [accuracy for _, accuracy in results["methods"]["dnn"]["curve"]] == trained  # never of the test images
    assert "those on the training images" in (tmp_path / "run" / "report.md").read_text("utf-8")
    refused = on_ranks(1, "run", *options, "--overwrite", "--early-stopping=2", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--early-stopping: 0.h5 has no validation images, by which to decide" in refused.stderr


# What is decided by them


@dataclass
class Story(Callback):
    """Scores by epoch, and what a training has made of them."""

    scores: dict[int, Score]
    networks: list[dict[str, torch.Tensor]] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    ended: bool = False

    def after_epoch(self, state: TrainState, epoch: Epoch) -> None:
        self.epochs.append(epoch)

    def score(self, network: nn.Module) -> Score:
        self.networks.append({name: value.clone() for name, value in network.state_dict().items()})
        return self.scores[len(self.networks)]


POLICY = DevicePolicy(torch.device("cpu"), "fp32")


@pytest.mark.parametrize(
    ("accuracies", "losses", "patience", "keep_best", "made", "kept"),
    [
        ([0.1, 0.3, 0.2, 0.2, 0.2, 0.2], None, None, True, 6, 2),
        ([0.1, 0.3, 0.2, 0.2, 0.2, 0.2], None, 2, True, 4, 2),
        ([0.1, 0.3, 0.2, 0.2, 0.2, 0.2], None, 2, False, 4, 4),
        ([0.1, 0.3, 0.2, 0.4, 0.2, 0.2], None, 2, True, 6, 4),
        ([0.3, 0.3, 0.3, 0.3, 0.3, 0.3], [5, 4, 3, 3, 3, 2], 2, True, 5, 3),  # of the same accuracy the smaller loss; of both the first
        ([0.3, 0.2, 0.2, 0.2, 0.2, 0.2], None, 1, True, 2, 1),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None, 1, True, 6, 6),
        ([0.1, 0.3, 0.2, 0.2, 0.2, 0.2], None, None, False, 6, 6),
    ],
)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_training_ends_early_and_keeps_its_best_epoch(world, accuracies, losses, patience, keep_best, made, kept, ema):
    story = Story({k + 1: Score(accuracy, losses[k] if losses else 1.0) for k, accuracy in enumerate(accuracies)})
    validation = Validation(story, story.score, Selection(1, patience, keep_best), world.alone(), epochs=6)
    torch.manual_seed(0)
    rows = Rows.of(torch.randn(32, 5), torch.arange(32) % 3)
    recipe = Recipe(6, 8, "sgd", 0.1, 0.0, "constant", ema=ema)
    trainer = Trainer(recipe, POLICY, Seeds(0, "test"), validation)
    network = trainer.build(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)))
    trainer.train(network, rows, torch.arange(32))
    assert [epoch.epoch for epoch in story.epochs] == list(range(1, made + 1))
    assert [epoch.stops_early for epoch in story.epochs] == [False] * (made - 1) + [made < 6]
    for name, value in network.state_dict().items():
        assert torch.equal(value, story.networks[kept - 1][name]), name


def test_validation_takes_place_every_so_many_epochs_and_at_the_end_if_it_decides(world):
    for keep_best, expected in ((True, [2, 4, 5]), (False, [2, 4])):
        story = Story(dict.fromkeys(range(1, 9), Score(0.5, 1.0)))
        validation = Validation(story, story.score, Selection(2, None, keep_best), world.alone(), epochs=5)
        trainer = Trainer(Recipe(5, 8, "sgd", 0.1, 0.0, "constant"), POLICY, Seeds(0, "test"), validation)
        trainer.train(trainer.build(lambda: nn.Linear(5, 3)), Rows.of(torch.randn(8, 5), torch.arange(8) % 3), torch.arange(8))
        assert [epoch.epoch for epoch in story.epochs if epoch.validation] == expected


# Runs

SELECTING = quick(
    epochs=4, transfer_epochs=3, frozen_epochs=1, dnn_epochs=5, early_stopping=1, lr=0.02, schedule="constant", interface="logits",
    checkpoint_every=1, partitions="partitions", progress="lines", dnn_data="out-of-fold", folds=2,
)  # fmt: skip


def results_of(folder: Path) -> dict:
    return json.loads((folder / "run" / "results.json").read_text("utf-8"))


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def selecting(tmp_path_factory):
    """A run with early stopping on two ranks."""
    folder = tmp_path_factory.mktemp("selecting")
    done = on_ranks(2, "run", "--output", "run", *SELECTING, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_results_say_which_epochs_were_made_and_kept(selecting):
    folder, said = selecting
    results, lines = results_of(folder), lines_of(folder)
    assert "; stops early after epoch " in said
    assert results["schema_version"] == 2
    stopped = 0
    trainings = {(line["phase"], line["subdomain"]) for line in lines} - {("folds", k) for k in range(4)}
    for phase, subdomain in trainings:
        own = [line for line in lines if (line["phase"], line["subdomain"]) == (phase, subdomain)]
        scored = [line for line in own if phase != "transfer" or line["epoch"] > 1]  # the first is frozen
        best = max(scored, key=lambda line: (line["validation_accuracy"], -line["validation_loss"]))
        result = results["methods"][phase] if subdomain is None else results["decomposition"]["subdomains"][subdomain]
        assert result["kept_epoch"] == best["epoch"], (phase, subdomain)
        assert math.isclose(result["validation_accuracy"], best["validation_accuracy"]), (phase, subdomain)
        planned = {"local": 4, "dnn": 5, "transfer": 4}.get(phase, 8)
        assert own[-1]["epoch"] in (best["epoch"] + 1, planned)
        assert result["epochs" if subdomain is not None else "own_epochs"] == own[-1]["epoch"]
        stopped += own[-1]["epoch"] < planned
        if subdomain is None:
            assert math.isclose(result["validation_loss"], best["validation_loss"], rel_tol=1e-5)
            assert result["curve"][-1][1] == result["validation_accuracy"]
    assert stopped >= 3
    local = max(line["epoch"] for line in lines if line["phase"] == "local")
    made = {line["phase"]: line["epoch"] for line in lines}
    epochs = {name: method["epochs"] for name, method in results["methods"].items()}
    assert epochs == {
        "vote": local, "average": local, "dnn": local, "coherent": made["coherent"], "transfer": local + made["transfer"],
        "global": made["global"],
    }  # fmt: skip
    assert [results["methods"][name]["kept_epoch"] for name in ("vote", "average")] == [None, None]


def test_what_is_kept_is_the_same_on_one_rank_and_after_interruptions(selecting, tmp_path):
    """Interrupted after the best epoch of a training: its parameters come back with the checkpoint."""
    folder, _ = selecting
    methods = "vote,average,dnn,coherent,transfer"  # global: the order of summation is another one
    expected = {name: value for name, value in outcome(folder).items() if "global" not in name}
    expected["metrics"] = [line for line in expected["metrics"] if line["phase"] != "global"]
    once = [("local", 3, 1, "SIGUSR1"), ("coherent", 3, 1, "SIGUSR1"), ("transfer", 3, 1, "SIGUSR1"), ("dnn", 3, 1, "SIGUSR1")]
    for interrupted in once:
        done = on_ranks(1, "run", "--output", "run", *SELECTING, f"--methods={methods}", "--resume", cwd=tmp_path, interrupted=interrupted)
        assert done.returncode in (0, 75), done.stderr
    done = on_ranks(1, "run", "--output", "run", "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same(outcome(tmp_path), expected)


def test_the_test_images_decide_nothing(selecting, tmp_path):
    """Other test images, and other labels of them: the same parameters and metrics, bit for bit."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 255, (200, 8, 8), np.uint8), np.arange(200) % 4
    images[np.arange(200), labels, labels] = 255
    found = []
    for k in range(2):
        folder = tmp_path / str(k)
        folder.mkdir()
        test = random.integers(0, 255, (40, 8, 8), np.uint8), random.permutation(np.arange(40) % 4)
        np.savez(folder / "set.npz", x_train=images, y_train=labels, x_test=test[0], y_test=test[1])
        options = quick(data="set.npz", train_samples=None, epochs=3, dnn_epochs=3, transfer_epochs=2, early_stopping=1, output="run")
        done = on_ranks(2, "run", *options, cwd=folder)
        assert done.returncode == 0, done.stderr
        found.append(outcome(folder))
    of_tests = ("test_", "balanced", "auc", "confusion")
    for one in found:
        del one["local classes"]
        for name, values in one.items():
            if isinstance(values, dict):
                one[name] = {key: value for key, value in values.items() if not key.startswith(of_tests)}
    assert_same(*found)


def test_predict_takes_the_method_that_validation_prefers_and_says_why(selecting):
    folder, _ = selecting
    methods = results_of(folder)["methods"]
    best = max(methods.values(), key=lambda method: method["validation_accuracy"])["validation_accuracy"]
    done = on_ranks(2, "predict", "run", "digits", "--output", "p.csv", "--overwrite", "--split=validation", "--samples=22", cwd=folder)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert f"is the best of the run's methods on its validation images ({100 * best:.1f} %)" in said
    assert f"split validation: accuracy {best:.6g}" in said  # of the images by which it was chosen
    done = on_ranks(1, "predict", "run", "digits", "--output", "p.csv", "--overwrite", cwd=folder)
    chosen = next(name for name in methods if f"{name} is the best of" in said)
    assert f"accuracy {methods[chosen]['test_accuracy']:.6g}" in done.stdout + done.stderr
    counts = {}
    for split_name in ("train", "validation", "test"):
        done = on_ranks(1, "predict", "run", "digits", "--output", "p.csv", "--overwrite", f"--split={split_name}", cwd=folder)
        counts[split_name] = len((folder / "p.csv").read_text("utf-8").splitlines()) - 1
    assert counts == {"train": 1294, "validation": 143, "test": 360}


def test_local_cnns_that_stopped_early_are_begun_from_with_the_epochs_that_they_had(selecting, tmp_path):
    folder, _ = selecting
    before = results_of(folder)["methods"]
    options = [option for option in SELECTING if not option.startswith("--methods")]
    done = on_ranks(2, "run", *options, "--methods=vote,coherent", "--start-from", str(folder / "run"), "--output", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = results_of(tmp_path)["methods"]
    assert (after["vote"]["epochs"], after["vote"]["test_accuracy"]) == (before["vote"]["epochs"], before["vote"]["test_accuracy"])
    for index in range(4):
        with h5py.File(folder / "run" / "checkpoints" / f"local-{index:04}.h5") as file:
            made = [line["epoch"] for line in lines_of(folder) if (line["phase"], line["subdomain"]) == ("local", index)]
            assert file.attrs["epochs"] == max(made)


def test_results_of_schema_version_1_are_read(selecting, tmp_path):
    folder, _ = selecting
    shutil.copytree(folder / "run", tmp_path / "run")
    results = results_of(tmp_path)
    results["schema_version"] = 1
    del results["data"]["validation_samples"]
    for part in (*results["methods"].values(), *results["decomposition"]["subdomains"]):
        for name in ("validation_accuracy", "validation_loss", "kept_epoch", "peak_memory_bytes"):
            part.pop(name, None)
    (tmp_path / "run" / "results.json").write_text(json.dumps(results), "utf-8")
    lines = lines_of(tmp_path)
    for line in lines:
        line["test_accuracy"] = line.pop("validation_accuracy")
        del line["validation_loss"]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    done = on_ranks(1, "report", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "run" / "report.md").read_text("utf-8")
    assert "How accurate a method is on the test images" in text
    done = on_ranks(1, "predict", "run", "digits", "--output", "p.csv", cwd=tmp_path)
    assert "transfer is the first of the usual order, since the run had no validation images" in done.stdout + done.stderr
