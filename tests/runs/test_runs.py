"""Whole runs, started with mpirun as a user does."""

import json
import os
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from launching import launch, on_ranks, refusal
from PIL import Image
from quick import full, quick
from resuming import parameters

from ddcnn.networks import registry

DECOMPOSED = "vote,average,dnn,coherent,transfer"
METHODS = [*DECOMPOSED.split(","), "global"]
QUICK = quick(train_samples=None, dnn_epochs=3)
EXAMPLE = registry.__doc__.split("``mine.py``::\n")[1].split("\nThe factory")[0].replace("\n    ", "\n")  # of a network of one's own

MEMORY = {"max_rank_memory_bytes", "max_rank_gpu_allocated_bytes", "max_rank_gpu_reserved_bytes"}


def run(ranks: int, folder: Path, *options: str) -> dict:
    """A run in ``folder``/run; returns its results.json."""
    finished = on_ranks(ranks, "run", *QUICK, "--output", "run", *options, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return json.loads((folder / "run" / "results.json").read_text("utf-8"))


def learnt(folder: Path) -> set[str]:
    """The phases in which something has been trained."""
    return {json.loads(line)["phase"] for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()}


def without_times(results: dict) -> dict:
    """What must not depend on the number of ranks."""
    for method in results["methods"].values():
        del method["seconds"], method["bytes_communicated"], method["peak_memory_bytes"]
        method["curve"] = [accuracy for _, accuracy in method["curve"][-2:]]
    for subdomain in results["decomposition"]["subdomains"]:
        del subdomain["seconds"]
    return {name: results[name] for name in ("data", "decomposition", "methods")}


@pytest.mark.parametrize(
    "options",
    [
        ("--interface", "features"),
        ("--dnn-data", "out-of-fold", "--folds", "2", "--augment", "flip+shift+erase+mixup", "--shift", "1",
         "--clip-norm", "0.5", "--ema", "0.95", "--schedule", "constant", "--warmup", "0.5"),
        ("--interface", "logits", "--precision", "bf16", "--frozen-epochs", "1", "--methods", "transfer"),
    ],
)  # fmt: skip
def test_1_2_and_4_ranks_give_the_same_weights_bit_for_bit(tmp_path, options):
    found = {}
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        found[ranks] = (without_times(run(ranks, folder, "--train-samples", "300", "--methods", DECOMPOSED, *options)), parameters(folder))
    assert len(found[1][1]) > 5
    for ranks in (2, 4):
        assert found[ranks][0] == found[1][0]
        assert found[ranks][1].keys() == found[1][1].keys()
        for name, tensor in found[1][1].items():
            np.testing.assert_array_equal(found[ranks][1][name], tensor, err_msg=f"{name} at {ranks} ranks")


@pytest.mark.parametrize(
    ("ranks", "grid", "overlap"),
    [(1, "1x1", 0), (2, "2x1", 0), (3, "3x1", 1), (4, "2x2", 0), full(6, "3x2", 2), full(9, "3x3", 2), full(16, "4x4", 2)],
)
def test_one_rank_a_subdomain_finishes_on_every_grid(tmp_path, ranks, grid, overlap):
    results = run(ranks, tmp_path, "--grid", grid, "--overlap", str(overlap), "--train-samples", "200", "--epochs", "1")
    assert results["environment"]["ranks"] == ranks
    assert results["environment"]["subdomains_per_rank"] == 1
    assert len(results["decomposition"]["subdomains"]) == ranks


def test_a_run_leaves_what_the_contract_says(tmp_path):
    results = run(2, tmp_path, "--overlap", "1", "--train-samples", "300", "--seed", "7", "--figures")
    assert results["schema_version"] == 2
    assert results["data"] == {
        "source": "digits", "shape": [8, 8, 1], "classes": 10, "train_samples": 300, "validation_samples": 33, "test_samples": 360,
        "skipped": 0,
        "class_names": [str(k) for k in range(10)],
    }  # fmt: skip
    decomposition = results["decomposition"]
    assert (decomposition["kind"], decomposition["grid"], decomposition["width_divisor"]) == ("image", [2, 2], 2)
    assert decomposition["global_parameters"] == results["methods"]["global"]["parameters"]
    assert decomposition["parameters"] == results["methods"]["vote"]["parameters"]
    assert results["decomposition"]["subdomains"][3]["start"] == [3, 3]
    assert list(results["methods"]) == METHODS
    assert results["methods"]["vote"]["test_loss"] is None
    local = sum(subdomain["parameters"] for subdomain in results["decomposition"]["subdomains"])
    assert results["methods"]["average"]["parameters"] == local < results["methods"]["dnn"]["parameters"]
    for method in results["methods"].values():
        assert set(method["seconds"]) == {"compute", "communicate", "wait", "total"}
    # one rank of two sends the classifications of two subdomains, 4 bytes for each of 10 classes
    assert results["methods"]["vote"]["bytes_communicated"] == (33 + 360) * 2 * 10 * 4
    assert {name: method["epochs"] for name, method in results["methods"].items()} == {
        "vote": 2, "average": 2, "dnn": 2, "coherent": 3, "transfer": 3, "global": 3,
    }  # fmt: skip
    for method in results["methods"].values():
        seconds, accuracies = zip(*method["curve"], strict=True)
        assert list(seconds) == sorted(seconds)
        assert (seconds[-1], accuracies[-1]) == (method["seconds"]["total"], method["validation_accuracy"])
    assert len(results["methods"]["average"]["curve"]) == 4 * 2 + 1
    assert len(results["methods"]["global"]["curve"]) == 3 + 1
    kept = {name: method["kept_epoch"] for name, method in results["methods"].items()}
    assert kept == {"vote": None, "average": None, "dnn": 3, "coherent": 3, "transfer": 1, "global": 3}
    assert set(results["phases"]) == {"partition", "local", "gather", "dnn", "coherent", "transfer", "global"}
    for phase in results["phases"].values():
        assert set(phase) == {"seconds", "max_rank_seconds", "mean_rank_seconds", *MEMORY}
        assert phase["max_rank_memory_bytes"] > 1 << 26
    environment = results["environment"]
    assert (environment["ranks"], environment["subdomains_per_rank"], environment["threads_per_rank"], environment["seed"]) == (2, 2, 1, 7)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    assert [(line["phase"], line["subdomain"], line["epoch"]) for line in lines] == [
        *(("local", subdomain, epoch) for subdomain in range(4) for epoch in (1, 2)),
        *(("dnn", None, epoch) for epoch in (1, 2, 3)),
        *(("coherent", None, epoch) for epoch in (1, 2, 3)),
        ("transfer", None, 1),
        *(("global", None, epoch) for epoch in (1, 2, 3)),
    ]
    assert (tmp_path / "run" / "report.md").is_file()
    assert len(list((tmp_path / "run" / "figures").glob("*.png"))) >= 5


def test_rare_classes_are_told_by_more_than_the_accuracy(tmp_path):
    random = np.random.default_rng(0)
    arrays = {}
    for split, samples in (("train", 240), ("test", 80)):
        labels = (np.arange(samples) % 8 == 0).astype(int)
        arrays |= {f"x_{split}": random.normal(0, 40, (samples, 8, 8)) + 25 * labels[:, None, None], f"y_{split}": labels}
    np.savez(tmp_path / "rare.npz", **arrays)
    found = {
        weights: run(2, tmp_path, "--data", "rare.npz", "--epochs", "4", "--class-weights", weights, "--overwrite")["methods"]
        for weights in ("none", "balanced")
    }
    for name, method in found["balanced"].items():
        (right, wrong), (missed, rare) = method["confusion"]
        assert right + wrong == 70
        assert missed + rare == 10
        assert method["test_accuracy"] == pytest.approx((right + rare) / 80)
        assert method["balanced_accuracy"] == pytest.approx((right / 70 + rare / 10) / 2)
        assert (method["auc"] is None) == (name == "vote")
    # weights make the rare class be found more often
    assert found["balanced"]["average"]["confusion"][1][1] > found["none"]["average"]["confusion"][1][1]
    assert "AUC" in (tmp_path / "run" / "report.md").read_text("utf-8")


def test_thin_networks_are_trained_alone_and_composed_to_the_global_one_on_any_number_of_ranks(tmp_path):
    found = {}
    for ranks in (1, 2, 4):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        options = ("--decomposition", "width", "--network", "resnet20", "--width", "16", "--train-samples", "300", "--augment", "flip")
        results = run(ranks, folder, *options)
        methods = results["methods"]
        assert list(methods) == METHODS
        assert results["decomposition"]["kind"] == "width"
        assert [place["stop"] for place in results["decomposition"]["subdomains"]] == [[8, 8]] * 4
        assert methods["transfer"]["parameters"] == methods["global"]["parameters"] == results["decomposition"]["global_parameters"]
        assert results["decomposition"]["parameters"] < methods["global"]["parameters"] / 2
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
        transfer = [line for line in lines if line["phase"] == "transfer"]
        assert [line["epoch"] for line in transfer] == [0, 1]  # as composed, and trained on
        assert transfer[0]["loss"] is None
        for name in ("vote", "average", "dnn", "coherent"):
            for measured in ("seconds", "bytes_communicated", "peak_memory_bytes", "curve"):
                del methods[name][measured]
        kept = {name: tensor for name, tensor in parameters(folder).items() if not name.startswith(("transfer", "global"))}
        found[ranks] = (
            {name: methods[name] for name in DECOMPOSED.split(",") if name != "transfer"},
            kept,
            transfer[0]["validation_accuracy"],
        )
    for ranks in (2, 4):
        assert found[ranks][0] == found[1][0]
        assert found[ranks][2] == pytest.approx(found[1][2], abs=1.5 / 360)
        for name, tensor in found[1][1].items():
            np.testing.assert_array_equal(found[ranks][1][name], tensor, err_msg=f"{name} at {ranks} ranks")


def test_photos_of_any_size_with_a_network_of_ones_own(tmp_path):
    random = np.random.default_rng(0)
    for number in range(40):
        name, shade = ("dark", 60) if number % 2 else ("light", 180)
        pixels = random.normal(shade, 20, (20 + number % 7, 30 - number % 5, 3)).clip(0, 255).astype(np.uint8)
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    (tmp_path / "photos" / "dark" / "broken.jpg").write_bytes((tmp_path / "photos" / "dark" / "1.jpg").read_bytes()[:300])
    (tmp_path / "mine.py").write_text(EXAMPLE, "utf-8")
    options = ("--data", "photos", "--image-size", "16x24", "--test-fraction", "0.25", "--network", "mine:small", "--overlap", "2")
    refused = refusal(on_ranks(2, "run", *QUICK, *options[:-4], cwd=tmp_path))
    assert "broken.jpg" in refused
    assert "--skip-damaged" in refused
    results = run(2, tmp_path, *options, "--skip-damaged", "--epochs", "4", "--interface", "features")
    assert results["data"]["class_names"] == ["dark", "light"]
    assert results["data"]["shape"] == [16, 24, 3]
    assert results["data"]["skipped"] == 1
    assert [results["data"][f"{split}_samples"] for split in ("train", "validation", "test")] == [26, 4, 10]
    assert results["methods"]["average"]["test_accuracy"] > 0.8
    assert "damaged and left out: 1" in (tmp_path / "run" / "report.md").read_text("utf-8")
    again = run(2, tmp_path, *options, "--skip-damaged", "--overwrite")
    assert again["data"] == results["data"]
    assert len(list((tmp_path / "runs" / "partitions").glob("*.h5"))) == 1


def test_the_decisions_on_disk_give_the_accuracies_of_the_results(tmp_path):
    results = run(2, tmp_path, "--train-samples", "300")
    with h5py.File(tmp_path / "run" / "details.h5") as file:
        labels = file["labels"][...]
        for name, method in results["methods"].items():
            assert (file["classes"][name][...] == labels).mean() == method["test_accuracy"]
        for subdomain in results["decomposition"]["subdomains"]:
            assert (file["local_classes"][:, subdomain["index"]] == labels).mean() == subdomain["test_accuracy"]


@pytest.mark.parametrize("seeds", [1, full(2)])
def test_figures_can_be_left_to_later(tmp_path, seeds):
    run(2, tmp_path, "--train-samples", "100", "--methods", "vote", "--seeds", str(seeds))
    assert not list((tmp_path / "run").rglob("*.png"))
    assert "figures" not in (tmp_path / "run" / "report.md").read_text("utf-8")
    assert on_ranks(1, "report", "run", cwd=tmp_path).returncode == 0
    assert (tmp_path / "run" / "figures" / "accuracy_over_time.png").is_file()
    assert len(list((tmp_path / "run").rglob("timeline.png"))) == seeds


def test_config_toml_repeats_the_run(tmp_path):
    first = run(2, tmp_path, "--train-samples", "200", "--dnn-data", "holdout", "--seed", "3")
    config = (tmp_path / "run" / "config.toml").read_text("utf-8")
    assert tomllib.loads(config)["dnn-data"] == "holdout"
    (tmp_path / "again.toml").write_text(config, "utf-8")
    finished = on_ranks(2, "run", "--config", "again.toml", "--output", "again", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert without_times(json.loads((tmp_path / "again" / "results.json").read_text("utf-8"))) == without_times(first)


@pytest.mark.parametrize("decomposition", [("--grid", "2x1", "--overlap", "1"), ("--decomposition", "width")])
def test_config_toml_of_a_run_on_a_partitioned_file_repeats_it_too(tmp_path, decomposition):
    grid = decomposition if "width" not in decomposition else ("--grid", "1x1", "--overlap", "2")
    assert on_ranks(1, "partition", "digits", "--train-samples", "200", *grid, "--output", "set.h5", cwd=tmp_path).returncode == 0
    first = run(1, tmp_path, "--data", "set.h5", "--methods", "average,transfer", *decomposition[-2:])
    finished = on_ranks(1, "run", "--config", "run/config.toml", "--output", "again", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert without_times(json.loads((tmp_path / "again" / "results.json").read_text("utf-8"))) == without_times(first)


def test_a_network_that_exists_for_subimages_only_is_no_obstacle_to_the_methods_that_need_no_more(tmp_path):
    square = EXAMPLE.replace("    channels =", "    assert shape.spatial[0] == shape.spatial[1]\n    channels =", 1)
    (tmp_path / "mine.py").write_text(square, "utf-8")
    options = ("--data", "synthetic:8x16x4x60", "--grid", "1x2", "--network", "mine:small")
    results = run(2, tmp_path, *options, "--methods", "vote,transfer")
    assert results["decomposition"]["global_parameters"] is None
    refused = refusal(on_ranks(2, "run", *QUICK, *options, cwd=tmp_path))
    assert "8x16" in refused
    assert "AssertionError" in refused


def test_a_second_run_finds_the_partitioned_set_again_and_another_content_does_not(tmp_path):
    def partitions() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "partitions").glob("*.h5")}

    run(1, tmp_path, "--train-samples", "200")
    first = partitions()
    run(2, tmp_path, "--train-samples", "200", "--seed", "5", "--overwrite")
    assert partitions() == first
    run(2, tmp_path, "--train-samples", "201", "--overwrite")
    assert len(partitions()) == 2


def test_a_partitioned_file_is_a_source(tmp_path):
    finished = on_ranks(
        2, "partition", "digits", "--grid", "1x2", "--overlap", "1", "--train-samples", "200", "--output", "d.h5", cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    results = run(2, tmp_path, "--data", "d.h5")
    assert results["decomposition"]["grid"] == [1, 2]
    assert results["decomposition"]["overlap"] == 1
    assert results["data"]["train_samples"] == 200


@pytest.mark.parametrize(
    ("grid", "overlap", "options"),
    [
        ("4x4x1", 1, ("--augment", "flip+shift", "--shift", "1")), full("4x4x2", 2, ("--network", "resnet20")),
        ("2x2x1", 0, ("--decomposition", "width", "--network", "resnet18", "--width", "16")),
        full("2x2x2", 0, ("--decomposition", "width", "--network", "resnet18", "--width", "32")),
    ],
)  # fmt: skip
def test_every_decomposition_of_volumes_finishes(tmp_path, grid, overlap, options):
    options = ("--grid", grid, "--overlap", str(overlap), "--interface", "features", "--epochs", "1", "--figures", *options)
    results = run(2, tmp_path, "--data", "synthetic:16x16x8x4x40", "--volumes", *options)
    assert list(results["methods"]) == METHODS
    assert len(results["decomposition"]["subdomains"]) == np.prod([int(n) for n in grid.split("x")])
    assert (tmp_path / "run" / "figures" / "decomposition.png").is_file()


def test_volumes_are_decomposed_in_three_dimensions(tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    volumes = (random.integers(0, 50, (40, 8, 9, 8)) + 100 * labels[:, None, None, None]).astype(np.int16)
    np.savez(tmp_path / "v.npz", train_images=volumes, train_labels=labels, test_images=volumes, test_labels=labels[:, None])
    results = run(2, tmp_path, "--data", "v.npz", "--volumes", "--grid", "2x2x1", "--batch-size", "8")
    assert results["data"]["shape"] == [8, 9, 8, 1]
    assert len(results["decomposition"]["subdomains"]) == 4


def test_the_default_run_learns_the_digits(tmp_path):
    finished = launch(4, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    (folder,) = (tmp_path / "runs").glob("digits-2x2-*")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    local = [subdomain["test_accuracy"] for subdomain in results["decomposition"]["subdomains"]]
    assert results["methods"]["dnn"]["test_accuracy"] > 0.93
    assert min(method["test_accuracy"] for method in results["methods"].values()) > max(local)


@pytest.mark.skipif("DDCNN_DATA_ROOT" not in os.environ, reason="real data: set DDCNN_DATA_ROOT to a folder of torchvision's sets")
@pytest.mark.parametrize(("data", "shape"), [("cifar10", [32, 32, 3]), ("fashion-mnist", [28, 28, 1])])
@pytest.mark.parametrize("methods", ["average,dnn", full(",".join(METHODS))])
def test_real_images_train(tmp_path, data, shape, methods):
    small = ("--train-samples", "2000", "--test-samples", "500", "--epochs", "3")
    results = run(2, tmp_path, "--data", data, *small, "--methods", methods)
    assert results["data"]["shape"] == shape
    assert results["methods"]["average"]["test_accuracy"] > 0.25


@pytest.mark.parametrize("methods", ["coherent", "global", "transfer", "vote", "global,average", "dnn,coherent"])
def test_methods_run_in_any_combination(tmp_path, methods):
    results = run(2, tmp_path, "--train-samples", "200", "--methods", methods, "--figures")
    assert list(results["methods"]) == methods.split(",")
    local = [subdomain["test_accuracy"] for subdomain in results["decomposition"]["subdomains"]]
    assert (None in local) == (methods in ("coherent", "global"))
    assert all(method["parameters"] > 1000 for method in results["methods"].values())


def test_seeds_give_a_run_each_and_their_mean_and_spread(tmp_path):
    results = run(2, tmp_path, "--train-samples", "200", "--seeds", "2", "--seed", "5", "--figures")
    each = [json.loads((tmp_path / "run" / f"seed-{seed}" / "results.json").read_text("utf-8")) for seed in (5, 6)]
    assert results["seeds"] == [5, 6]
    for name, method in results["methods"].items():
        accuracies = [document["methods"][name]["test_accuracy"] for document in each]
        assert method["test_accuracy"] == pytest.approx(np.mean(accuracies))
        assert method["spread"]["test_accuracy"] == pytest.approx(np.std(accuracies, ddof=1))
    assert (tmp_path / "run" / "report.md").read_text("utf-8").count("±") >= 2 * len(METHODS)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("report.md")}
    assert len(before) == 3
    for path in before:
        path.unlink()
    again = on_ranks(1, "report", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "alone").mkdir()
    alone = run(2, tmp_path / "alone", "--train-samples", "200", "--seed", "6")
    for name in DECOMPOSED.split(","):
        assert alone["methods"][name]["test_accuracy"] == each[1]["methods"][name]["test_accuracy"]


def test_transfer_starts_from_a_finished_run_as_it_does_in_one_run(tmp_path):
    for name in ("whole", "parts", "rest"):
        (tmp_path / name).mkdir()
    options = ("--train-samples", "200", "--interface", "features")
    whole = run(2, tmp_path / "whole", *options, "--methods", "dnn,transfer")
    run(4, tmp_path / "parts", *options, "--methods", "dnn")
    rest = run(1, tmp_path / "rest", *options, "--methods", "dnn,transfer", "--start-from", str(tmp_path / "parts" / "run"))
    for name in ("dnn", "transfer"):
        assert rest["methods"][name]["test_loss"] == whole["methods"][name]["test_loss"]
    found, expected = parameters(tmp_path / "rest"), parameters(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_what_is_left_of_a_run_is_kept_or_goes_as_a_whole(tmp_path):
    small = ("--train-samples", "100", "--epochs", "1", "--methods", "dnn")
    run(1, tmp_path, *small, "--seeds", "2")
    (tmp_path / "run" / "results.json").unlink()  # as if it had been stopped before its summary
    assert "finished run" in refusal(on_ranks(1, "run", *QUICK, *small, "--output", "run", cwd=tmp_path))
    for start in ("run", "run/seed-0"):
        options = (*small, "--start-from", start, "--output", "run", "--overwrite")
        assert "--start-from reads from there" in refusal(on_ranks(1, "run", *QUICK, *options, cwd=tmp_path))
    assert (tmp_path / "run" / "seed-1" / "results.json").is_file()
    run(1, tmp_path, *small, "--overwrite")
    assert not any((tmp_path / "run").rglob("seed-*/**/*.*"))
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 5


def test_the_decision_alone_starts_from_a_finished_run(tmp_path):
    for name in ("parts", "votes", "three"):
        (tmp_path / name).mkdir()
    small = ("--train-samples", "100", "--test-samples", "60")
    parts = run(2, tmp_path / "parts", *small, "--epochs", "3", "--methods", "vote,average,dnn", "--seeds", "2", "--seed", "4")
    start = ("--start-from", str(tmp_path / "parts" / "run"))
    votes = run(2, tmp_path / "votes", *small, *start, "--methods", "vote,average,dnn,global", "--seeds", "2", "--seed", "4")
    for name in ("vote", "average", "dnn"):
        assert votes["methods"][name]["test_accuracy"] == parts["methods"][name]["test_accuracy"]
        assert votes["methods"][name]["epochs"] == 3
    assert votes["methods"]["global"]["epochs"] == 4
    (tmp_path / "other").mkdir()
    seed_4 = ("--start-from", str(tmp_path / "parts" / "run" / "seed-4"), "--seed", "4")
    assert learnt(tmp_path / "votes" / "run" / "seed-4") == {"global"}
    run(2, tmp_path / "other", *small, *seed_4, "--interface", "logits")
    assert "dnn" in learnt(tmp_path / "other" / "run")  # a DNN for another interface is trained anew
    assert "taken from" in (tmp_path / "votes" / "run" / "seed-4" / "report.md").read_text("utf-8")
    for options, words in ((("--seed", "3"), "has no seed-3"), (("--seed", "4", "--data", "other.npz"), "data")):
        random = np.random.default_rng(0)
        images, labels = random.integers(0, 16, (180, 8, 8)).astype(np.uint8), np.arange(180) % 10
        np.savez(tmp_path / "three" / "other.npz", x_train=images[:120], y_train=labels[:120], x_test=images[120:], y_test=labels[120:])
        finished = on_ranks(2, "run", *QUICK, *small, *start, *options, "--methods", "vote", "--output", "o", cwd=tmp_path / "three")
        assert words in refusal(finished)


def test_held_out_samples_stay_held_out(tmp_path):
    small = ("--train-samples", "100", "--test-samples", "60", "--epochs", "1", "--methods", "dnn")
    run(2, tmp_path, *small)
    options = (*small, "--start-from", "run", "--dnn-data", "holdout", "--output", "other")
    assert "all but fold 0" in refusal(on_ranks(2, "run", *QUICK, *options, cwd=tmp_path))


def test_a_run_to_start_from_must_fit(tmp_path):
    run(2, tmp_path, "--train-samples", "200", "--methods", "dnn")
    for options, words in (
        (("--start-from", "nowhere"), ("nowhere", "finished run")),
        (("--start-from", "run", "--width", "16"), ("width 32", "16")),
        (("--start-from", "run", "--overlap", "1"), ("spatial",)),
        (("--start-from", "run", "--grid", "2x1"), ("divisor",)),
    ):
        finished = on_ranks(2, "run", *QUICK, "--train-samples", "200", "--output", "other", *options, cwd=tmp_path)
        message = refusal(finished)
        assert all(word in message for word in words), message


def test_what_nobody_may_have_meant_is_noted(tmp_path):
    options = (*QUICK, "--progress", "lines", "--methods", "vote", "--train-samples", "150", "--batch-size", "64", "--overlap", "5")
    finished = on_ranks(2, "run", *options, "--output", "run", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert (
        "note: batches of 64 leave 22 of the 150 training images out of every epoch, others each time; --batch-size 50 takes all\n"
        in finished.stdout
    )
    whole = "note: with --overlap 5, 4 of 4 subimages are the whole image, so nothing is decomposed: take a smaller --overlap\n"
    assert whole in finished.stdout
    finished = on_ranks(2, "run", *options, "--batch-size", "30", "--overlap", "3", "--output", "other", cwd=tmp_path)
    assert finished.returncode == 0 and "note" not in finished.stdout
