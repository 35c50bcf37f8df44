"""``predict``: a finished run on images of any source, on any number of ranks."""

import csv
import json
import os
import re
import shutil

import h5py
import nibabel
import numpy as np
import pytest
import torch
from conftest import best_method, short_run
from launching import on_ranks, refusal
from PIL import Image

import ddcnn.inference.predict
from ddcnn.__main__ import execute
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.errors import InputError

METHODS = ("vote", "average", "dnn", "coherent", "transfer", "global")


def accuracy(run, method=None):
    """Of a method; None: of the one that ``predict`` takes."""
    return json.loads((run / "results.json").read_text("utf-8"))["methods"][method or best_method(run)]["test_accuracy"]


def lines(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def share_right(found):
    return np.mean([line["class"] == line["label"] for line in found])


@pytest.fixture
def predict(world, tmp_path):
    """Predicts on one rank, and returns the lines of the CSV file."""

    def call(run, source, *options):
        output = tmp_path / "p.csv"
        execute(["predict", str(run), str(source), "--output", str(output), "--threads", "1", "--overwrite", *map(str, options)], world)
        return lines(output)

    return call


@pytest.fixture(scope="module")
def digits():
    """Test images (S, rows, columns, C) and labels (S,)."""
    split = open_source(SourceOptions("digits", "")).splits["test"]
    return split.read(np.arange(len(split))), split.labels


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A run on photographs of different sizes, grey and in colour, in class folders that were partitioned before: (folder, run)."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(60):
        name, shade = (("dark", 60), ("light", 180), ("mid", 120))[number % 3]
        pixels = random.normal(shade, 20, (20 + number % 7, 30 - number % 5, 3)).clip(0, 255).astype(np.uint8)
        (folder / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels if number % 5 else pixels[..., 0]).save(folder / "set" / name / f"{number}.png")
    options = ("--image-size=12x16", "--image-transform=center-crop", "--test-fraction=0.4", "--subset-seed=3", "--output=set.h5")
    assert on_ranks(1, "partition", "set", *options, cwd=folder).returncode == 0
    return folder, short_run(folder, data="set.h5", train_samples=None, methods="average,transfer")


@pytest.mark.parametrize("method", METHODS)
def test_the_test_set_gives_the_accuracy_of_the_results(digits_run, predict, method):
    assert share_right(predict(digits_run, "digits", "--method", method)) == accuracy(digits_run, method)


@pytest.mark.parametrize("method", ["average", "dnn", "coherent", "transfer", "global"])
def test_volumes_give_the_accuracy_of_the_results(volumes_run, predict, method):
    assert share_right(predict(volumes_run, "synthetic:8x8x8x4x100", "--method", method)) == accuracy(volumes_run, method)


@pytest.mark.skipif("DDCNN_DATA_ROOT" not in os.environ, reason="real data: set DDCNN_DATA_ROOT to a folder of torchvision's sets")
def test_cifar10_gives_the_accuracy_of_the_results(tmp_path, predict):
    run = short_run(tmp_path, data="cifar10", train_samples=300, test_samples=600, methods="transfer", epochs=1)
    found = predict(run, "cifar10", "--samples", 600)
    assert share_right(found) == accuracy(run)
    assert {"airplane", "ship"} < {line["label"] for line in found}


@pytest.mark.parametrize(("ranks", "divide", "output"), [(2, "subdomains", "p.csv"), (3, "samples", "p.h5"), (3, "samples", "p.csv")])
def test_any_number_of_ranks_writes_the_same(digits_run, digits, world, tmp_path, ranks, divide, output):
    np.savez(tmp_path / "many.npz", x_test=np.concatenate([digits[0]] * 4), y_test=np.concatenate([digits[1]] * 4))  # several blocks
    for folder in ("one", "several"):
        (tmp_path / folder).mkdir()
    options = ("--local", "--progress", "none", "--threads", "1", "--output")
    execute(["predict", str(digits_run), str(tmp_path / "many.npz"), *options, str(tmp_path / "one" / output)], world)
    finished = on_ranks(ranks, "predict", str(digits_run), "../many.npz", "--divide", divide, *options, output, cwd=tmp_path / "several")
    assert finished.returncode == 0, finished.stderr
    best = best_method(digits_run, "transfer", "coherent", "dnn", "average", "vote")  # with local CNNs, for --local
    assert f"1440 images classified by {best}; split test: accuracy {accuracy(digits_run, best):.6g} " in finished.stdout
    one, several = (tmp_path / folder / output for folder in ("one", "several"))
    assert [path.name for path in several.parent.iterdir()] == [output]
    if output == "p.csv":
        assert one.read_bytes() == several.read_bytes()
    else:
        with h5py.File(one) as expected, h5py.File(several) as found:
            assert set(found) == {"samples", "labels", "classes", "probabilities", "local_probabilities"}
            for name, values in expected.items():
                np.testing.assert_array_equal(found[name][...], values[...], err_msg=name)


def test_arrays_in_hdf5_hold_all_that_was_asked_for(digits_run, digits, world, tmp_path):
    path = tmp_path / "p.h5"
    execute(["predict", str(digits_run), "digits", "--output", str(path), "--method", "average", "--local"], world)
    with h5py.File(path) as file:
        assert json.loads(file.attrs["class_names"]) == [str(k) for k in range(10)]
        assert file.attrs["method"] == "average"
        local, mean = file["local_probabilities"][...], file["probabilities"][...]
        assert local.shape == (360, 4, 10)
        assert file["samples"].asstr()[-1] == "359"
        np.testing.assert_array_equal(file["labels"][...], digits[1])
        np.testing.assert_allclose(local.mean(1), mean, atol=1e-6)
        np.testing.assert_array_equal(mean.argmax(1), file["classes"][...])
        with h5py.File(digits_run / "details.h5") as details:
            np.testing.assert_array_equal(local.argmax(2), details["local_classes"][...])
            np.testing.assert_array_equal(file["classes"][...], details["classes/average"][...])


def test_the_text_of_a_probability_is_the_same_number(digits_run, predict, world, tmp_path):
    found = predict(digits_run, "digits")
    execute(["predict", str(digits_run), "digits", "--output", str(tmp_path / "p.h5")], world)
    with h5py.File(tmp_path / "p.h5") as file:
        numbers = np.array([[line[f"p({k})"] for k in range(10)] for line in found]).astype(np.float32)
        np.testing.assert_array_equal(numbers, file["probabilities"][...])


def test_the_partitioned_set_need_not_be_there_but_may(digits_run, predict, tmp_path):
    options = ("--train-samples", "400", "--overlap", "2", "--output", "set.h5")
    assert on_ranks(1, "partition", "digits", *options, cwd=tmp_path).returncode == 0
    assert share_right(predict(digits_run, tmp_path / "set.h5")) == accuracy(digits_run)
    assert len(predict(digits_run, tmp_path / "set.h5", "--split", "train")) == 400
    assert len(predict(digits_run, tmp_path / "set.h5", "--split", "all")) == 400 + 44 + 360


@pytest.mark.parametrize("method", ["average", "transfer"])
def test_photographs_are_cropped_as_in_the_run(photos, predict, method):
    folder, run = photos
    found = predict(run, folder / "set", "--method", method)
    assert len(found) == 24
    assert share_right(found) == accuracy(run, method)
    assert {os.path.dirname(line["sample"]) for line in found} == {str(folder / "set" / name) for name in ("dark", "light", "mid")}
    assert len(predict(run, folder / "set", "--split", "all")) == 60


def test_loose_images_need_no_labels(photos, predict, tmp_path):
    folder, run = photos
    expected = {os.path.basename(line["sample"]): line for line in predict(run, folder / "set", "--split", "all")}
    (tmp_path / "loose" / "below").mkdir(parents=True)
    for number in (0, 10, 21):  # a grey one among them
        (source,) = (folder / "set").glob(f"*/{number}.png")
        shutil.copy(source, tmp_path / "loose" / ("below" if number == 21 else "."))
    found = predict(run, tmp_path / "loose")
    assert [os.path.basename(line["sample"]) for line in found] == ["0.png", "10.png", "21.png"]
    for line in found:
        assert "label" not in line
        assert line["class"] == expected[os.path.basename(line["sample"])]["class"]
        for name in ("dark", "light", "mid"):
            wanted = expected[os.path.basename(line["sample"])][f"p({name})"]
            assert float(line[f"p({name})"]) == pytest.approx(float(wanted), rel=1e-4)
    (one,) = predict(run, tmp_path / "loose" / "10.png")
    assert one["class"] == found[1]["class"]
    assert len(predict(run, folder / "set", "--unlabelled")) == 60


def test_classes_are_known_by_their_names(photos, predict, tmp_path):
    folder, run = photos
    for name in ("light", "mid"):  # numbers 0 and 1 here, 1 and 2 in the run
        shutil.copytree(folder / "set" / name, tmp_path / "part" / "test" / name)
        shutil.copytree(folder / "set" / name, tmp_path / "part" / "train" / name)
    whole = {os.path.basename(line["sample"]): line["label"] for line in predict(run, folder / "set", "--split", "all")}
    found = predict(run, tmp_path / "part")
    assert len(found) == 40
    assert all(line["label"] == whole[os.path.basename(line["sample"])] for line in found)


def test_a_damaged_image_is_refused_or_left_out(photos, predict, tmp_path, caplog):
    folder, run = photos
    shutil.copytree(folder / "set" / "dark", tmp_path / "loose")
    names = sorted(path.name for path in (tmp_path / "loose").iterdir())
    damaged = tmp_path / "loose" / names[3]
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(InputError, match=f"{names[3]}.*--skip-damaged"):
        predict(run, tmp_path / "loose")
    assert not (tmp_path / "p.csv").exists()
    found = predict(run, tmp_path / "loose", "--skip-damaged")
    assert [os.path.basename(line["sample"]) for line in found] == names[:3] + names[4:]
    skipped = [record.getMessage() for record in caplog.records if getattr(record, "kind", "") == "skipped"]
    assert any(message.startswith(str(damaged)) for message in skipped)
    for path in (tmp_path / "loose").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match="all 20 images are damaged"):
        predict(run, tmp_path / "loose", "--skip-damaged")


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("names", [("x_test", "y_test"), ("test_images", "test_labels"), ("x", "y"), ("images", None), ("other", None)])
def test_arrays_with_and_without_labels(digits_run, digits, predict, write_arrays, tmp_path, suffix, names):
    arrays = {name: values for name, values in zip(names, digits, strict=True) if name}
    found = predict(digits_run, write_arrays(tmp_path / f"new{suffix}", **arrays), "--split", "test" if "test" in str(names) else "all")
    assert len(found) == 360
    if names[1]:
        assert share_right(found) == accuracy(digits_run)
    else:
        assert "label" not in found[0]
        assert np.mean([int(line["class"]) == label for line, label in zip(found, digits[1], strict=True)]) == accuracy(digits_run)


def test_nifti_volumes(tmp_path, predict):
    random = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    table = ["file,label"]
    for number in range(30):
        volume = random.normal(40 * (number % 2), 20, (8, 9, 10)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1, -1, 1, 1])), tmp_path / "scans" / f"{number:02}.nii.gz")
        table.append(f"{number:02}.nii.gz,{('healthy', 'ill')[number % 2]}")
    (tmp_path / "scans" / "labels.csv").write_text("\n".join(table), "utf-8")
    finished = on_ranks(
        1, "run", "--data=scans", "--grid=2x1x1", "--width=8", "--methods=vote,average", "--window", "-50", "90", "--volume-size=8x8x8",
        "--network=vgg3", "--epochs=2", "--progress=none", "--output=run", cwd=tmp_path,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "run"
    found = predict(run, tmp_path / "scans")
    assert share_right(found) == accuracy(run, "average")
    everything = predict(run, tmp_path / "scans", "--unlabelled")
    assert len(everything) == 30
    by_name = {line["sample"]: line["class"] for line in everything}
    assert all(by_name[line["sample"]] == line["class"] for line in found)
    (one,) = predict(run, tmp_path / "scans" / "03.nii.gz")
    assert one["class"] == by_name[one["sample"]]

    network = ddcnn.load(run)
    images = network.read(tmp_path / "scans")  # of the run's size, and turned as its scans
    with torch.no_grad():
        found = network(images).softmax(1).numpy()
        np.testing.assert_allclose(found[:, 1], [float(line["p(ill)"]) for line in everything], atol=1e-6)
        clipped, whole = images.clone(), images.clone()
        clipped[:, :, 0], whole[:, :, 0], clipped[:, :, 1], whole[:, :, 1] = -50, -1000, 90, 2000  # as scans are before the window
        assert torch.equal(network(whole), network(clipped))


@pytest.mark.parametrize("method", ["vote", "average", "dnn", "coherent", "transfer"])
def test_lost_subdomains_leave_an_answer(digits_run, predict, tmp_path, method):
    shutil.copytree(digits_run, tmp_path / "part")
    for path in (tmp_path / "part" / "checkpoints").glob("*-0002.h5"):
        path.unlink()
    with pytest.raises(InputError, match=r"0002\.h5 is missing.*--without"):
        predict(tmp_path / "part", "digits", "--method", method)
    found = predict(tmp_path / "part", "digits", "--method", method, "--without", "2", "--local")
    assert share_right(found) > accuracy(digits_run, method) - 0.25
    assert [name for name in found[0] if name.startswith("subdomain")] == ["subdomain 0", "subdomain 1", "subdomain 3"]


def test_no_more_than_two_blocks_are_in_memory(digits_run, digits, predict, monkeypatch, tmp_path):
    sizes, written = [], []
    read, write = ddcnn.inference.predict.read_block, ddcnn.inference.writers.CsvWriter.write

    def reading(source, images, name, samples, *options):
        sizes.append(len(samples))
        return read(source, images, name, samples, *options)

    def writing(writer, rows):
        written.append((len(sizes), len(rows)))
        write(writer, rows)

    monkeypatch.setattr(ddcnn.inference.predict, "read_block", reading)
    monkeypatch.setattr(ddcnn.inference.predict, "BATCH", 100)
    monkeypatch.setattr(ddcnn.inference.writers.CsvWriter, "write", writing)
    found = predict(digits_run, "digits")
    assert sizes == [100, 100, 100, 60]
    assert [rows for _, rows in written] == sizes
    assert all(read <= done + 2 for done, (read, _) in enumerate(written))  # the next one at most has been read
    assert share_right(found) == accuracy(digits_run)


@pytest.fixture
def wrong(digits_run, photos, tmp_path):
    """Names in the wrong calls."""
    (tmp_path / "text.txt").write_text("hello", "utf-8")
    (tmp_path / "fake.png").write_text("hello", "utf-8")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine", "utf-8")
    np.savez(tmp_path / "large.npz", x_test=np.zeros((3, 9, 8), np.uint8))
    np.savez(tmp_path / "float.npz", x_test=np.zeros((3, 8, 8), np.float32))
    np.savez(tmp_path / "labels.npz", x_test=np.zeros((3, 8, 8), np.uint8), y_test=np.array([0, 1, 10]))
    for name, label in (("negative", -5), ("ignored", -100)):
        np.savez(tmp_path / f"{name}.npz", x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.array([label, 1]))
    np.savez(tmp_path / "few.npz", x_test=np.zeros((3, 8, 8), np.uint8), y_test=np.array([0, 1]))
    with h5py.File(tmp_path / "same.h5", "w") as file:
        file["x_test"] = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "train.npz", x_train=np.zeros((3, 8, 8), np.uint8))
    (tmp_path / "animals" / "cat").mkdir(parents=True)
    (tmp_path / "animals" / "dog").mkdir()
    for name, size in (
        ("animals/cat/a.png", 8),
        ("animals/cat/b.png", 8),
        ("animals/dog/c.png", 8),
        ("animals/dog/d.png", 8),
        ("big.png", 20),
    ):
        Image.fromarray(np.zeros((size, size), np.uint8)).save(tmp_path / name)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "colour.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "outside.png").symlink_to(tmp_path / "big.png")
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "config.toml").write_text("seed = 4\nseeds = 2\n", "utf-8")
    shutil.copytree(digits_run, tmp_path / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(digits_run, tmp_path / "cut")
    path = tmp_path / "cut" / "checkpoints" / "transfer-0001.h5"
    path.write_bytes(path.read_bytes()[:2000])
    shutil.copytree(digits_run, tmp_path / "unfinished", ignore=shutil.ignore_patterns("results.json"))
    shutil.copytree(digits_run, tmp_path / "older")
    for path in (tmp_path / "older" / "checkpoints").glob("*.h5"):
        with h5py.File(path, "a") as file:
            del file.attrs["mean"]
    return {"RUN": digits_run, "PHOTOS": photos[1], "TMP": tmp_path}


CALLS = [
    ("TMP/nowhere digits", "nowhere: no such folder"),
    ("TMP/empty digits", "no results.json"),
    ("TMP/unfinished digits", "has not finished"),
    ("TMP/seeds digits", "seed-4"),
    ("TMP/bare digits", r"no checkpoints/\*.h5"),
    ("TMP/cut digits --method transfer", "transfer-0001.h5: not a readable checkpoint"),
    ("TMP/older digits", "older version"),
    ("RUN nowhere", "^nowhere: no such file or folder"),
    ("RUN digit", "did you mean digits"),
    ("RUN TMP/missing.npz", "no such file"),
    ("RUN TMP/text.txt", "text.txt is no image"),
    ("RUN TMP/fake.png", "fake.png: cannot be read"),
    ("RUN TMP/empty", "nothing to classify|no class folders"),
    ("RUN TMP/big.png", "big.png is 20x20x1, but the run was trained on 8x8x1: resize it; a run that was trained with --image-size"),
    ("RUN TMP/linked", "outside.png is a link to a file outside"),
    ("RUN TMP/colour.png", "colour.png is in colour"),
    ("RUN TMP/large.npz", "9x8x1 uint8, but the run was trained on 8x8x1 uint8"),
    ("RUN TMP/float.npz", "float32, but the run was trained on 8x8x1 uint8"),
    ("RUN TMP/labels.npz", "label 10, but the run has classes 0 to 9"),
    ("RUN TMP/negative.npz", "label -5, but the run has classes 0 to 9"),
    ("RUN TMP/ignored.npz", "label -100, but"),
    ("RUN TMP/few.npz", "3 images and y_test 2 labels"),
    ("RUN TMP/train.npz", "no x_test or test_images among its arrays"),
    ("RUN TMP/animals", "no class cat.*--unlabelled"),
    ("RUN cifar10 --data-root TMP/empty", "does not hold CIFAR10"),
    ("RUN synthetic:8x8x20x50", "no class 10"),
    ("RUN digits --metod vote", r"unknown option --metod \(did you mean --method\?\)"),
    ("RUN digits --method votes", "--method votes"),
    ("PHOTOS digits --method vote", "has no such method.*average, transfer"),
    ("RUN digits --without 4", "--without 4: the subdomains of this run are 0 to 3"),
    ("RUN digits --without one", "write numbers of subdomains"),
    ("RUN digits --without 0,1,2,3", "at least one subdomain"),
    ("RUN digits --method global --without 1", "global needs all of its network.*--method transfer"),
    ("RUN digits --method global --local", "--local"),
    ("RUN digits --samples 361", "has only 360"),
    ("RUN digits --samples 10 --split all", "--samples is of one split"),
    ("RUN digits --precision fp16", "fp16 needs a GPU"),
    ("RUN digits --output TMP/there.csv", "there.csv exists.*--overwrite"),
    ("RUN digits --output TMP/p.txt", r"must end in \.csv or \.h5"),
    ("RUN digits --output TMP/no/p.csv", "there is no folder"),
    (f"RUN digits --output TMP/{'p' * 300}.csv", "File name too long"),
    ("TMP/older digits --overwrite --output TMP/older/details.h5", "details.h5 is a file of the run: name another file"),
    ("RUN TMP/same.h5 --overwrite --output TMP/same.h5", "same.h5 is the source: name another file"),
    ("RUN digits --output TMP/empty", r"must end in \.csv or \.h5"),
    ("RUN", "SOURCE"),
    ("", "RUN"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "words"), CALLS, ids=[call or "nothing" for call, _ in CALLS])
def test_a_wrong_call_is_refused_in_a_line_that_says_what_to_do(wrong, world, tmp_path, call, words):
    for name, path in wrong.items():
        call = call.replace(name, str(path))
    arguments = ["predict", *call.split()]
    arguments += [] if "--output" in arguments else ["--output", str(tmp_path / "p.csv")]
    with pytest.raises(InputError, match=words) as refused:
        execute(arguments, world)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 700
    assert (tmp_path / "there.csv").read_text("utf-8") == "mine"
    assert not list(tmp_path.glob("*p.csv*"))


def test_a_refusal_has_the_exit_code_2_on_all_ranks(digits_run, tmp_path):
    np.savez(tmp_path / "large.npz", x_test=np.zeros((3, 9, 8), np.uint8))
    arguments = ("predict", str(digits_run), "large.npz", "--output", "p.csv")
    assert "9x8x1" in refusal(on_ranks(3, *arguments, cwd=tmp_path))
    assert "fit 4 subdomains" in refusal(on_ranks(3, *arguments[:2], "digits", *arguments[3:], "--divide", "subdomains", cwd=tmp_path))
    assert "no results.json" in refusal(on_ranks(None, "export", ".", "--format", "onnx", "--output", "x", cwd=tmp_path))


def test_nothing_is_left_where_a_network_says_no_number(digits_run, world, tmp_path, monkeypatch):
    monkeypatch.setattr(ddcnn.inference.predict.Assembled, "combine", lambda network, values: torch.full((len(values), 10), float("nan")))
    with pytest.raises(InputError, match="digits: the network's output for 0 is NaN: check its pixels"):
        execute(["predict", str(digits_run), "digits", "--output", str(tmp_path / "p.csv")], world)
    assert not list(tmp_path.iterdir())


def test_a_partitioned_set_must_have_been_made_as_the_runs_images(tmp_path, predict):
    volumes = np.random.default_rng(0).integers(0, 1000, (24, 8, 8, 8)).astype(np.int16)
    np.savez(tmp_path / "v.npz", x_train=volumes, y_train=np.arange(24) % 2, x_test=volumes, y_test=np.arange(24) % 2)
    (tmp_path / "window.toml").write_text("window = [0, 900]\n", "utf-8")
    options = {"config": "window.toml", "volumes": True, "grid": "2x1x1", "methods": "average", "epochs": 1, "width": 4}
    run = short_run(tmp_path, data="v.npz", train_samples=None, **options)
    for name, window in (("same", ("0", "900")), ("other", ("300", "301"))):
        made = on_ranks(
            1, "partition", "v.npz", "--volumes", "--grid", "2x1x1", "--window", *window, "--output", f"{name}.h5", cwd=tmp_path
        )
        assert made.returncode == 0, made.stderr
    assert share_right(predict(run, tmp_path / "same.h5")) == accuracy(run, "average")
    with pytest.raises(InputError, match=r"other\.h5: partitioned with --window 300\.0 301\.0, but the run's images with 0\.0 900\.0"):
        predict(run, tmp_path / "other.h5")


def test_names_that_end_lines_stay_in_their_row(photos, predict, tmp_path):
    (tmp_path / "new").mkdir()
    picture = next((photos[0] / "set" / "dark").iterdir())
    for name in ("a\rb.png", "c\nd.png", 'e",f.png'):
        shutil.copy(picture, tmp_path / "new" / name)
    found = predict(photos[1], tmp_path / "new")
    assert sorted(line["sample"].rpartition("/")[2] for line in found) == ["a\rb.png", "c\nd.png", 'e",f.png']


def told(path, **values):
    """Another attribute in every checkpoint of a run."""
    for checkpoint in (path / "checkpoints").glob("*.h5"):
        with h5py.File(checkpoint, "a") as file:
            for name, value in values.items():
                file.attrs[name] = value


@pytest.mark.parametrize(
    "values",
    [
        {"dtype": "nonsense"}, {"class_names": "5"}, {"class_names": '["a", "a"]'}, {"class_names": "[1, 2]"}, {"preprocessing": "{"},
        {"preprocessing": "[]"}, {"preprocessing": '{"other": 1}'}, {"shape": [10**9, 10**9, 1]}, {"shape": [0, 8, 1]}, {"grid": [2, -1]},
        {"shape": [8, 8, 2], "std": [1.0, 1.0, 1.0]},
    ],
)  # fmt: skip
def test_checkpoints_that_say_what_cannot_be_are_refused(digits_run, predict, tmp_path, values):
    shutil.copytree(digits_run, tmp_path / "copy")
    told(tmp_path / "copy", **values)
    with pytest.raises(InputError, match=r"checkpoints/\S+\.h5: missing, damaged or foreign"):
        predict(tmp_path / "copy", "digits")


@pytest.mark.parametrize("content", [{"methods": {}}, {"methods": {"best": {"test_accuracy": 1}}}, {"environment": {"precision": "fp8"}}])
def test_results_that_cannot_be_are_refused(digits_run, predict, tmp_path, content):
    shutil.copytree(digits_run, tmp_path / "copy")
    results = json.loads((tmp_path / "copy" / "results.json").read_text("utf-8")) | content
    (tmp_path / "copy" / "results.json").write_text(json.dumps(results), "utf-8")
    with pytest.raises(InputError, match=r"results\.json: missing, damaged or foreign"):
        predict(tmp_path / "copy", "digits")


@pytest.mark.parametrize("change", [lambda values: values * np.nan, lambda values: values.astype(np.float64)])
def test_parameters_that_are_none_are_refused(digits_run, predict, tmp_path, change):
    shutil.copytree(digits_run, tmp_path / "copy")
    with h5py.File(tmp_path / "copy" / "checkpoints" / "transfer-0002.h5", "a") as file:
        name = next(name for name in file["parameters"] if name.endswith("weight"))
        values = change(file[f"parameters/{name}"][...])
        del file[f"parameters/{name}"]
        file[f"parameters/{name}"] = values
    with pytest.raises(InputError, match=r"transfer-0002\.h5: not a readable checkpoint"):
        predict(tmp_path / "copy", "digits", "--method", "transfer")


@pytest.mark.parametrize("module", ["pay", "sent.pay", "sent"])
def test_a_program_in_the_runs_folder_is_not_started(digits_run, predict, tmp_path, monkeypatch, module):
    shutil.copytree(digits_run, tmp_path / "sent")
    for name in ("pay.py", "__init__.py"):
        (tmp_path / "sent" / name).write_text("raise SystemExit('started')", "utf-8")
    settings = (tmp_path / "sent" / "config.toml").read_text("utf-8")
    (tmp_path / "sent" / "config.toml").write_text(settings.replace('network = "vgg3"', f'network = "{module}:f"'), "utf-8")
    monkeypatch.syspath_prepend(tmp_path / "sent" if module == "pay" else tmp_path)
    with pytest.raises(InputError, match="is a program in the run's own folder"):
        predict(tmp_path / "sent", "digits")


def test_a_network_that_is_not_here_is_named_as_the_runs(digits_run, predict, tmp_path):
    shutil.copytree(digits_run, tmp_path / "copy")
    settings = (tmp_path / "copy" / "config.toml").read_text("utf-8")
    (tmp_path / "copy" / "config.toml").write_text(settings.replace('network = "vgg3"', 'network = "nowhere.mine:f"'), "utf-8")
    with pytest.raises(InputError, match=r"its network nowhere\.mine:f cannot be found: start where its module lies"):
        predict(tmp_path / "copy", "digits")


def test_a_run_whose_methods_all_need_every_subdomain_is_told_what_adds_one(volumes_run, predict, tmp_path):
    shutil.copytree(volumes_run, tmp_path / "copy")
    results = json.loads((tmp_path / "copy" / "results.json").read_text("utf-8"))
    del results["methods"]["vote"], results["methods"]["average"], results["understanding"]
    (tmp_path / "copy" / "results.json").write_text(json.dumps(results), "utf-8")
    with pytest.raises(InputError, match="dnn needs all of its network, since the run has --interface features") as refused:
        predict(tmp_path / "copy", "synthetic:8x8x8x4x100", "--without", "1")
    (advised,) = re.findall(r"ddcnn (run .*) makes a run that can", str(refused.value))
    done = on_ranks(1, *advised.replace("NEW", "new").split(), "--progress", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    predict(tmp_path / "new", "synthetic:8x8x8x4x100", "--without", "1")
