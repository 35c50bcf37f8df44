"""Images to classify are no set to train on: which of them ``predict`` takes, and what it says of their labels."""

import os
import re
import shutil
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from conftest import short_run
from PIL import Image
from test_predict import accuracy, lines

from ddcnn.__main__ import execute
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.errors import InputError

CLASSES = ("dark", "light", "mid")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on class folders, which it has divided itself: (folder, run)."""
    folder, random = tmp_path_factory.mktemp("trained"), np.random.default_rng(0)
    for number in range(60):
        name, shade = CLASSES[number % 3], (60, 180, 120)[number % 3]
        (folder / "set" / name).mkdir(parents=True, exist_ok=True)
        pixels = random.normal(shade, 20, (12, 16, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "set" / name / f"{number}.png")
    return folder, short_run(folder, data="set", train_samples=None, methods="average", test_fraction=0.4, subset_seed=3, epochs=4)


@pytest.fixture
def predict(world, tmp_path, caplog):
    """Predicts on one rank; returns the lines of the CSV file and the summary."""

    def call(run, source, *options):
        caplog.clear()
        output = ("--output", str(tmp_path / "p.csv"), "--overwrite", "--threads", "1", "--progress", "none")
        with caplog.at_level("INFO"):
            execute(["predict", str(run), str(source), *output, *map(str, options)], world)
        return lines(tmp_path / "p.csv"), caplog.records[-1].getMessage()

    return call


def told(summary: str, images: int, split: str) -> float:
    """The accuracy."""
    found = re.search(rf"{images} images? classified by \w+; split {split}: accuracy ([\d.]+)", summary)
    assert found, summary
    return float(found[1])


def folders(root: Path, source: Path, **images: int) -> Path:
    """Class folders with so many images of the source each."""
    for name, count in images.items():
        (root / name).mkdir(parents=True)
        for path in sorted((source / name).iterdir())[:count]:
            shutil.copy(path, root / name)
    return root


@pytest.mark.parametrize(
    ("images", "count"),
    [
        ({"light": 7}, 7), ({"light": 1}, 1), ({"dark": 1, "light": 1, "mid": 1}, 3), ({"mid": 4, "dark": 0}, 4),
        ({"mid": 20, "light": 20}, 40), ({"dark": 20, "light": 20, "mid": 19}, 59),
    ],
)  # fmt: skip
def test_new_class_folders_are_classified_whole(trained, predict, tmp_path, images, count):
    folder, run = trained
    new = folders(tmp_path / "new", folder / "set", **images)
    for options, split in (((), "all"), (("--split", "all"), "all")):
        found, summary = predict(run, new, *options)
        assert told(summary, count, split) == pytest.approx(np.mean([line["class"] == line["label"] for line in found]), abs=1e-5)
        assert {line["label"] for line in found} == {name for name, number in images.items() if number}
    found, summary = predict(run, new, "--split", "test")  # as the run would divide it, if there is anything to divide
    assert 1 <= len(found) <= count
    told(summary, len(found), "test")
    (tmp_path / "only" / "Test").parent.mkdir()
    new.rename(tmp_path / "only" / "Test")
    for split in ((), ("--split", "test"), ("--split", "all")):
        assert len(predict(run, tmp_path / "only", *split)[0]) == count
    with pytest.raises(InputError, match=r"--split train: .*only has no images to train on"):
        predict(run, tmp_path / "only", "--split", "train")


def test_of_the_runs_own_images_the_test_images_are_taken(trained, predict, tmp_path):
    folder, run = trained
    found, summary = predict(run, folder / "set")
    assert told(summary, 24, "test") == pytest.approx(accuracy(run, "average"), abs=1e-5)
    assert "36 other images are not of split test, --split all takes them too" in summary
    assert len(predict(run, folder / "set", "--split", "train")[0]) == 33
    assert len(predict(run, folder / "set", "--split", "validation")[0]) == 3
    assert len(predict(run, folder / "set", "--split", "all")[0]) == 60
    shutil.copytree(folder / "set", tmp_path / "copy")
    assert {os.path.basename(line["sample"]) for line in predict(run, tmp_path / "copy")[0]} == {
        os.path.basename(line["sample"]) for line in found
    }
    other = next((tmp_path / "copy" / "dark").iterdir())
    for path in (tmp_path / "copy").rglob("*.png"):  # as many images, but other ones
        shutil.copy(other, tmp_path / "one.png")
        os.replace(tmp_path / "one.png", path)
    assert told(predict(run, tmp_path / "copy")[1], 60, "all") == pytest.approx(1 / 3, abs=1e-5)


def test_a_source_with_test_images_of_its_own_gives_these_and_says_so(trained, predict, tmp_path):
    folder, run = trained
    folders(tmp_path / "new" / "train", folder / "set", dark=3)
    folders(tmp_path / "new" / "val", folder / "set", light=2, mid=1)  # classes that its training images have not
    _, summary = predict(run, tmp_path / "new")
    told(summary, 3, "validation")
    assert "3 other images are not of split validation" in summary
    (tmp_path / "new" / "val").rename(tmp_path / "new" / "test")
    _, summary = predict(run, tmp_path / "new")
    told(summary, 3, "test")
    assert "3 other images are not of split test" in summary
    assert len(predict(run, tmp_path / "new", "--split", "all")[0]) == 6


def test_a_class_that_the_run_has_not_is_refused_with_a_way_out(trained, predict, tmp_path):
    folder, run = trained
    new = folders(tmp_path / "new", folder / "set", dark=2)
    (new / "Light").mkdir()
    assert len(predict(run, new)[0]) == 2  # it is empty
    shutil.copy(next((folder / "set" / "light").iterdir()), new / "Light")
    with pytest.raises(
        InputError, match=r"the run has no class Light \(did you mean light\?\); its classes are dark, light, mid; --unlabelled"
    ):
        predict(run, new)
    found, summary = predict(run, new, "--unlabelled")
    assert len(found) == 3
    assert "accuracy" not in summary
    with pytest.raises(InputError, match="nothing to classify"):
        predict(run, folders(tmp_path / "none", folder / "set", dark=0))
    with pytest.raises(InputError, match=r"--split train: .* has no images to train on"):
        predict(run, folders(tmp_path / "one", folder / "set", dark=1), "--split", "train")


def test_what_was_left_out_is_told(trained, predict, tmp_path):
    folder, run = trained
    new = folders(tmp_path / "new", folder / "set", dark=5, mid=1)
    for path in [*sorted((new / "dark").iterdir())[:2], *(new / "mid").iterdir()]:
        path.write_bytes(path.read_bytes()[:60])
    found, summary = predict(run, new, "--skip-damaged")
    assert {line["label"] for line in found} == {"dark"}
    told(summary, 3, "all")
    assert "; 3 damaged ones left out" in summary


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_labels_of_arrays_are_numbers_or_names(digits_run, predict, write_arrays, tmp_path, suffix):
    split = open_source(SourceOptions("digits", "")).splits["test"]
    images, labels = split.read(np.arange(9)), split.labels[:9]
    expected = told(predict(digits_run, write_arrays(tmp_path / f"n{suffix}", x=images, y=labels))[1], 9, "all")
    names = np.array([b"%d" % label for label in labels]) if suffix == ".h5" else labels.astype(str)
    columns = {"names": names, "column": labels[:, None].astype(np.uint8), "float": labels.astype(np.float32)}
    for name, values in columns.items():
        summary = predict(digits_run, write_arrays(tmp_path / f"{name}{suffix}", x_test=images, y_test=values))[1]
        assert told(summary, 9, "test") == expected, name
    one = write_arrays(tmp_path / f"one{suffix}", x_test=images[:1], y_test=labels[:1])
    told(predict(digits_run, one)[1], 1, "test")
    some = write_arrays(tmp_path / f"some{suffix}", x=images, y=np.where(np.arange(9) < 4, labels, -1))
    assert re.search(r"split all: accuracy [\d.]+ on the 4 with a label \(", predict(digits_run, some)[1])
    wrong = write_arrays(tmp_path / f"wrong{suffix}", x=images, y=names.astype("S") if suffix == ".h5" else np.full(9, "ten"))
    if suffix == ".npz":
        with pytest.raises(InputError, match=r"the run has no class ten; its classes are 0, 1.*--unlabelled takes"):
            predict(digits_run, wrong)
        assert "accuracy" not in predict(digits_run, wrong, "--unlabelled")[1]
    half = write_arrays(tmp_path / f"half{suffix}", x=images, y=labels + 0.5)
    with pytest.raises(InputError, match=r"y has type float64: expected class numbers .*--unlabelled"):
        predict(digits_run, half)


def test_a_table_may_name_volumes_of_one_class_and_some_without_label(tmp_path, predict, world):
    random = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    table = ["file,label"]
    for number in range(20):
        name = f"{number:02}.nii.gz"
        nibabel.save(
            nibabel.Nifti1Image(random.normal(40 * (number % 2), 20, (8, 8, 8)).astype(np.float32), np.eye(4)), tmp_path / "scans" / name
        )
        table.append(f"{name},{('healthy', 'ill')[number % 2]}")
    (tmp_path / "scans" / "labels.csv").write_text("\n".join(table), "utf-8")
    run = short_run(tmp_path, data="scans", train_samples=None, methods="average", grid="2x1x1", width=8, epochs=1)
    assert len(predict(run, tmp_path / "scans")[0]) == 4
    for rows, labelled in (
        (["01.nii.gz,ill"], 1), (["00.nii.gz,healthy", "02.nii.gz,healthy", "04.nii.gz,"], 2), (["03.nii.gz,ill", "00.nii.gz,healthy"], 2),
    ):  # fmt: skip
        (tmp_path / "scans" / "labels.csv").write_text("\n".join(["file,label", *rows]), "utf-8")
        found, summary = predict(run, tmp_path / "scans")
        assert len(found) == len(rows)
        assert sum(bool(line["label"]) for line in found) == labelled
        assert "; split all: accuracy" in summary
    (tmp_path / "scans" / "labels.csv").write_text("file,label,split\n01.nii.gz,ill,test\n", "utf-8")
    told(predict(run, tmp_path / "scans")[1], 1, "test")
    (tmp_path / "scans" / "labels.csv").write_text("file,label\n01.nii.gz,well\n", "utf-8")
    with pytest.raises(InputError, match="the run has no class well"):
        predict(run, tmp_path / "scans")


def test_a_table_may_name_images(trained, predict, tmp_path):
    folder, run = trained
    (tmp_path / "flat").mkdir()
    rows = []
    for name in ("mid", "dark"):
        for path in sorted((folder / "set" / name).iterdir())[:2]:
            shutil.copy(path, tmp_path / "flat")
            rows.append(f"{path.name},{name}")
    (tmp_path / "flat" / "labels.csv").write_text("\n".join(["file,label", *rows]), "utf-8")
    found, summary = predict(run, tmp_path / "flat")
    told(summary, 4, "all")
    assert [line["label"] for line in found] == ["mid", "mid", "dark", "dark"]


def test_a_file_of_predictions_tells_the_split(digits_run, world, tmp_path):
    execute(["predict", str(digits_run), "digits", "--output", str(tmp_path / "p.h5")], world)
    with h5py.File(tmp_path / "p.h5") as file:
        assert file.attrs["split"] == "test"
