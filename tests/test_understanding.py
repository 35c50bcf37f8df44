"""What a run's decisions rest on: against hand calculation, against predict, and as the report tells it."""

import json

import numpy as np
import pytest
import torch

import ddcnn
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.io.rows import Table
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load
from ddcnn.method.aggregate import vote
from ddcnn.report.analysis import PICTURES, Decision, disagreements, small_picture, some_of, to_picture
from ddcnn.report.analysis_report import analysis_text
from ddcnn.report.figures import charts, maps
from ddcnn.report.intervals import decimals, of_difference, of_mean, of_share
from ddcnn.report.metrics import calibration_error, reliability


@pytest.fixture(scope="module")
def understood(digits_run):
    return json.loads((digits_run / "results.json").read_text("utf-8"))["understanding"]


def sure(classes: np.ndarray, number: int) -> np.ndarray:
    """p (S, N, K) of local CNNs that are sure of classes (S, N)."""
    return np.eye(number, dtype=np.float32)[classes]


def test_reliance_is_on_the_subdomain_that_decides():
    labels = np.arange(1000) % 4
    values = sure(np.stack([labels, np.zeros_like(labels)], 1), 4)
    first = Decision(values, labels, lambda p, present: p[:, 0].argmax(1))
    lost = first.reliance(seed=3)
    assert lost[0] == pytest.approx(0.75, abs=0.05)  # of four classes, a quarter is right by chance
    assert lost[1] == 0
    assert lost == first.reliance(seed=3) != first.reliance(seed=4)
    assert np.array_equal(values, sure(np.stack([labels, np.zeros_like(labels)], 1), 4))


def test_without_a_subdomain_the_others_decide():
    labels = np.array([0, 1, 2, 0])
    values = sure(np.array([[0, 0, 1], [1, 1, 0], [2, 0, 2], [1, 0, 0]]), 3)
    decision = Decision(values, labels, lambda p, present: vote(p))
    assert decision.without() == [0.5, 0.75, 0.75]  # a tie goes to the lower class
    assert Decision(values, labels, lambda p, present: vote(p), in_part=False).without() is None
    assert Decision(values[:, :1], labels, lambda p, present: vote(p)).without() is None


def test_of_very_many_values_a_part_is_taken(monkeypatch):
    monkeypatch.setattr("ddcnn.report.analysis.MOST_NUMBERS", 1000)
    values = np.arange(500, dtype=np.float32).reshape(50, 5, 2)
    some, part = some_of(Table.of(values))
    assert some.size * 5 <= 1000
    np.testing.assert_array_equal(some, values[::3])
    assert part == slice(None, None, 3)


@pytest.mark.parametrize("method", ["vote", "average", "dnn", "coherent", "transfer"])
def test_a_run_tells_what_predict_finds_without_a_subdomain(digits_run, understood, method):
    test = open_source(SourceOptions("digits", "")).splits["test"]
    images = torch.from_numpy(test.read(np.arange(len(test)))).movedim(-1, 1)
    told = understood["influence"][method]
    assert told["samples"] == len(test)
    assert len(told["reliance"]) == len(told["without"]) == 4
    for index, accuracy in enumerate(told["without"]):
        with torch.no_grad():
            found = ddcnn.load(digits_run, method, without=(index,))(images).argmax(1).numpy()
        assert (found == test.labels).mean() == accuracy


def test_a_run_relies_on_what_it_has_learnt(digits_run, understood):
    """The reliance of dnn is that of the DNN before transfer has trained it on."""
    test = open_source(SourceOptions("digits", "")).splits["test"]
    images = torch.from_numpy(test.read(np.arange(len(test)))).movedim(-1, 1)
    seed = load(RunFolder(digits_run)).results.environment.seed
    for method in ("dnn", "transfer"):
        network = ddcnn.load(digits_run, method)
        with torch.no_grad():
            values = network.interface_values(images)
            decision = Decision(values.numpy(), test.labels, lambda v, present: network.combine(torch.from_numpy(v)).argmax(1).numpy())  # noqa: B023
            assert decision.reliance(seed) == understood["influence"][method]["reliance"]


def test_features_cannot_be_without_a_subdomain_and_global_has_none(volumes_run):
    told = json.loads((volumes_run / "results.json").read_text("utf-8"))["understanding"]
    assert set(told["influence"]) == {"vote", "average", "dnn", "coherent", "transfer"}
    for name, influence in told["influence"].items():
        assert (influence["without"] is None) == (name not in ("vote", "average"))
        assert len(influence["reliance"]) == 4
    assert set(told["calibration_error"]) == {"average", "dnn", "coherent", "transfer", "global"}
    run = load(RunFolder(volumes_run))
    assert (len(run.results.analysis.influence["dnn"].reliance), run.map_shape) == (4, (2, 2, 1))
    assert "| dnn |" in analysis_text(run, {})


def test_disagreements_by_who_is_right():
    labels = np.array([0, 1, 2, 0, 1, 2])
    classes = {"vote": np.array([0, 1, 1, 1, 0, 2]), "dnn": np.array([0, 0, 2, 2, 0, 2]), "global": labels}
    assert {name: rows.tolist() for name, rows in disagreements(labels, classes).items()} == {"dnn": [2], "vote": [1], "neither": [3]}
    assert disagreements(labels, {"vote": classes["vote"]}) == {}
    assert to_picture(labels, classes).tolist() == [1, 2, 3]
    assert len(to_picture(labels, {"vote": labels, "dnn": labels})) == 0


def test_pictures_are_spread_over_the_test_set():
    labels = np.repeat([0, 1], 50)
    rows = to_picture(labels, {"vote": np.full(100, 2), "dnn": labels})
    assert len(rows) == PICTURES
    assert (rows[0], rows[-1]) == (0, 99)


def test_a_run_counts_and_shows_where_vote_and_dnn_disagree(digits_run, understood):
    run = load(RunFolder(digits_run))
    differ = run.details.classes["vote"] != run.details.classes["dnn"]
    assert sum(understood["disagreement"].values()) == differ.sum() > 0
    assert differ[run.details.picture_rows].all()
    test = open_source(SourceOptions("digits", "")).splits["test"]
    np.testing.assert_array_equal(run.details.pictures, test.read(run.details.picture_rows))
    text = analysis_text(run, {})
    assert f"on {differ.sum()} of {len(differ)} test images" in text
    lines = text.split("## Vote and DNN")[1].split("##")[0].splitlines()
    rows = [row.strip("| ").split("|") for row in lines if row.startswith("| ") and row[2].isdigit()]
    assert len(rows) == len(np.unique(run.details.labels[differ]))
    for row in rows:
        label, samples, differing, *kinds = map(int, row)
        assert (samples, differing) == ((run.details.labels == label).sum(), differ[run.details.labels == label].sum())
        assert sum(kinds) == differing


def test_pictures_are_small():
    volume = np.arange(4 * 6 * 8).reshape(4, 6, 8, 1)
    np.testing.assert_array_equal(small_picture(volume), volume[2])
    assert small_picture(np.zeros((1000, 300, 3))).shape == (250, 75, 3)


def test_calibration_error_is_the_mean_distance_of_confidence_and_accuracy():
    confidence = np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5])
    correct = np.array([True, True, True, False, True, True])
    assert calibration_error(confidence, correct) == pytest.approx((4 * 0.15 + 2 * 0.5) / 6)
    assert calibration_error(np.array([1.0, 1 + 1e-6]), np.array([True, True])) == 0
    assert calibration_error(np.array([0.06, 0.07]), np.array([True, False])) == pytest.approx(
        (0.94 + 0.07) / 2
    )  # of 15 bins, the first two
    mean, accuracy, samples = reliability(confidence, correct)
    assert len(mean) == 15
    assert samples[samples > 0].tolist() == [2, 4]
    np.testing.assert_allclose(accuracy[samples > 0], [1, 0.75])
    np.testing.assert_allclose(mean[samples > 0], [0.5, 0.9])


def test_a_run_tells_how_well_its_methods_are_calibrated(digits_run, understood):
    run = load(RunFolder(digits_run))
    for name, error in understood["calibration_error"].items():
        correct = run.details.classes[name] == run.details.labels
        assert error == pytest.approx(calibration_error(run.details.confidence[name], correct), abs=1e-6)


@pytest.mark.parametrize("shape", [(2, 2), (1, 5), (12, 12), (3, 2, 2)])
def test_reliance_is_drawn_on_any_grid(shape):
    lost = np.linspace(-0.05, 0.3, np.prod(shape)).reshape(shape)
    figure = maps.reliance({"vote": lost, "dnn": 2 * lost}, 1000)
    figure.draw_without_rendering()
    shown = [axes.collections[0].get_array() for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert len(shown) == 2 * (shape[0] if len(shape) == 3 else 1)
    np.testing.assert_allclose(np.stack(shown[1::2]).ravel(), 200 * lost.ravel())


def test_reliability_is_drawn_with_its_error_what_few_samples_say_and_no_dots():
    sure = np.repeat([0.2, 0.9], [3, 40])
    bins = {"average": reliability(sure, sure > 0.5), "dnn": reliability(np.ones(300), np.ones(300, bool))}
    figure = charts.reliability(bins, {"average": 0.15, "dnn": 0.0})
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["average\nECE 15.0 %", "dnn\nECE 0.0 %"]
    above, _, below, _ = figure.axes
    assert [bool(bar.get_hatch()) for bar in above.patches] == [False, True]  # that of three samples is marked
    assert below.get_yscale() == "log" and below.get_ylim()[1] > 300
    assert all(line.get_marker() in ("None", None, "_") for line in above.lines)


def test_intervals_are_those_of_the_textbooks():
    np.testing.assert_allclose(of_share(0.8, 10), [0.490, 0.943], atol=1e-3)  # Wilson
    np.testing.assert_allclose(of_share(np.array([0.0, 1.0]), 10), [[0, 0.722], [0.278, 1]], atol=1e-3)
    np.testing.assert_allclose(of_mean(np.array([1.0, 2.0, 3.0])), [2 - 2.484, 2 + 2.484], atol=1e-3)  # Student, t = 4.303
    first, second = np.repeat([True, True, False, False], [794, 86, 150, 570]), np.repeat([True, False, True, False], [794, 86, 150, 570])
    np.testing.assert_allclose(of_difference(first, second), [-0.0587, -0.0213], atol=5e-4)  # Agresti's survey of the prime minister
    same = np.array([True] * 50)
    low, high = of_difference(same, same)
    assert low < 0 < high  # equal decisions on few samples are no proof of equality
    assert [decimals(samples) for samples in (360, 10_000, 1_000_000)] == [1, 2, 2]
