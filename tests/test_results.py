"""The models of results.json and metrics.jsonl: what is refused, the published schema, and how results are put together."""

import json
from pathlib import Path

import numpy as np
import pytest

from ddcnn.config.settings import RunSettings
from ddcnn.data.partition import partition
from ddcnn.data.sources import SourceOptions, balanced_subset, open_source
from ddcnn.decomposition import Decomposition
from ddcnn.experiment.results import Decided, Gathered, average_curve, results_of
from ddcnn.io.json_schema import json_schema
from ddcnn.io.metrics_log import Recorded, Records, line, text
from ddcnn.io.results_schema import Environment, EpochLine, RunResults, dump, parse
from ddcnn.io.rows import Table
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load_results
from ddcnn.parallel.timeline import PHASES, Timeline
from ddcnn.report.metrics import Probable
from ddcnn.report.seeds_report import summary
from ddcnn.training.kept import Score

SCHEMA = Path(__file__).parent.parent / "docs" / "results.schema.json"
ENVIRONMENT = Environment(
    ranks=2, subdomains_per_rank=2, ranks_per_subdomain=1, threads_per_rank=1, device="cpu", precision="fp32", mpi="MPI", hdf5="1",
    torch="2", ddcnn="0", seed=0, resumed=False,
)  # fmt: skip


def test_the_published_schema_is_that_of_the_models():
    assert json.loads(SCHEMA.read_text("utf-8")) == json_schema(), f"python -m ddcnn.io.json_schema > docs/{SCHEMA.name}"


def test_the_results_of_a_run_are_read_and_written_as_they_are(digits_run):
    content = (digits_run / "results.json").read_text("utf-8")
    assert json.dumps(dump(parse(RunResults, content)), indent=1) + "\n" == content


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("schema_version",), 3, "schema_version: Input should be 1 or 2, not 3"),
        (("data", "shape"), [8, "8", 1], "data.shape.1"),
        (("methods",), {}, "methods"),
        (("methods", "votes"), {}, "methods.votes"),
        (("methods", "vote", "test_accuracy"), None, "methods.vote.test_accuracy"),
        (("methods", "vote", "seconds", "total"), "1", "methods.vote.seconds.total"),
        (("methods", "vote", "unknown"), 1, "methods.vote.unknown"),
        (("decomposition", "subdomains", 1, "start"), [0], "subdomain 1 has not 2 axes"),
        (("decomposition", "subdomains", 1, "stop"), [9, 9], "subdomain 1 lies beyond the image"),
        (("understanding", "influence", "vote", "reliance"), [0.0], "influence on vote is not that of 4 subdomains"),
        (("understanding", "calibration_error", "best"), 0.1, "a method that the run has not"),
        (("environment", "precision"), "fp8", "environment.precision"),
    ],
)
def test_damaged_results_are_refused_with_their_place(digits_run, place, value, words):
    document = json.loads((digits_run / "results.json").read_text("utf-8"))
    part = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(ValueError, match=words):
        parse(RunResults, json.dumps(document))


def test_a_row_of_metrics_is_a_line():
    row = (PHASES.index("local"), 3.0, 2.0, 0.5, 0.8, np.nan, 0.75, 1.5, 9.0)
    assert parse(EpochLine, text(row)) == line(row)
    assert text(row) == (
        '{"phase": "local", "subdomain": 3, "epoch": 2, "loss": 0.5, "accuracy": 0.8, "validation_accuracy": null, '
        '"validation_loss": 0.75, "seconds": 1.5, "time": 9.0}\n'
    )
    assert line(row).training == "local-0003"


def test_results_are_put_together_without_ranks(world, tmp_path):
    source = open_source(SourceOptions("digits", "", validation_fraction=0.1))
    chosen = {split: balanced_subset(images.labels, 40, 0, split) for split, images in source.splits.items()}
    store = partition(world, source, chosen, Decomposition((8, 8), (2, 2), 1), tmp_path / "set.h5")
    labels = store.labels("test")
    validation = store.labels("validation")
    local_classes = {
        "validation": np.stack([validation, (validation + 1) % 10, validation, validation], axis=1),
        "test": np.stack([labels, labels, (labels + 1) % 10, labels], axis=1),
    }
    local, gather = PHASES.index("local"), PHASES.index("gather")
    spans = [np.array([[local, 0, 0.0, 4.0], [gather, 1, 4.0, 5.0]]), np.array([[local, 0, 0.0, 2.0], [gather, 2, 2.0, 5.0]])]
    sent = np.zeros((2, len(PHASES)))
    sent[1, [local, gather]] = 10, 1000
    peaks = np.zeros((2, len(PHASES), 3))
    peaks[:, local, 0], peaks[1, gather, 0] = (700, 500), 800
    subdomains = np.array([[0, 100, 90, 1.0], [1, 100, 90, 1.0], [2, 100, 90, 1.0], [3, 100, 90, 1.0]])
    settings = RunSettings(data="digits", methods="vote,dnn", epochs=3, dnn_epochs=5, seed=0, keep="best")
    decided = {
        "vote": Decided(labels, 126, Score(0.75, np.nan), gathered_bytes=400),
        "dnn": Decided((labels + 1) % 10, 128, Score(0.5, 2.5), Probable.of(Table.of(np.eye(10, dtype=np.float32)[labels]), labels), 7),
    }
    epochs = np.array([
        (local, 0, 1, 1, 0, 0.3, 2.0, 1, 1), (local, 0, 2, 1, 0, 0.5, 3.0, 1, 2), (local, 0, 3, 1, 0, 0.5, 2.0, 1, 3),
        (local, 0, 4, 1, 0, 0.5, 2.0, 1, 4), (local, 1, 1, 1, 0, np.nan, np.nan, 1, 1), (local, 1, 2, 1, 0, np.nan, np.nan, 1, 2),
        (PHASES.index("dnn"), np.nan, 1, 1, 0, 0.25, 1.0, 1, 4.5),
    ])  # fmt: skip
    gathered = Gathered(sent, spans, epochs, subdomains, None, 1, local_classes, 555, peaks)
    results = results_of(gathered, decided, settings, store, ENVIRONMENT)
    assert [box.test_accuracy for box in results.decomposition.subdomains] == [1, 1, 0, 1]
    assert [box.validation_accuracy for box in results.decomposition.subdomains] == [1, 0, 1, 1]
    assert [box.kept_epoch for box in results.decomposition.subdomains] == [3, 2, None, None]
    assert (results.decomposition.parameters, results.decomposition.global_parameters) == (400, 555)
    vote, dnn = results.methods["vote"], results.methods["dnn"]
    assert (vote.test_accuracy, vote.parameters, vote.batch_size, vote.bytes_communicated) == (1, 400, 126, 410)
    assert (dnn.test_accuracy, dnn.parameters, dnn.batch_size, dnn.bytes_communicated) == (0, 360 + 7, 128, 1010)
    assert vote.seconds.model_dump() == {"compute": 3.0, "communicate": 0.5, "wait": 1.5, "total": 5.0}
    assert (vote.curve, dnn.curve) == ([(5.0, 0.75)], [(4.5, 0.25), (5.0, 0.5)])
    assert (vote.validation_accuracy, vote.validation_loss, vote.kept_epoch, vote.epochs) == (0.75, None, None, 4)
    assert (dnn.validation_accuracy, dnn.validation_loss, dnn.kept_epoch, dnn.epochs) == (0.5, 2.5, 1, 4)
    assert (results.best, results.curves_on, results.data.validation_samples) == ("vote", "validation", 40)
    assert (vote.peak_memory_bytes, vote.peak_gpu_memory_bytes) == (800, None)
    assert [phase.max_rank_memory_bytes for phase in results.phases.values()] == [700, 800]
    assert set(results.phases) == {"local", "gather"}
    assert parse(RunResults, json.dumps(dump(results))) == results


@pytest.mark.parametrize(
    ("accuracies", "losses", "best"),
    [((0.5, 0.9, 0.9), (1, 2, 3), "dnn"), ((0.9, 0.9, 0.9), (None, 2, 1), "transfer"), ((0.9, 0.9, 0.9), (None, 2, 2), "transfer")],
)
def test_the_best_method_is_the_most_accurate_and_then_that_with_the_smallest_loss(digits_run, accuracies, losses, best):
    results = load_results(RunFolder(digits_run))
    names = ("vote", "dnn", "transfer")
    changed = {
        name: results.methods[name].model_copy(update={"validation_accuracy": accuracy, "validation_loss": loss})
        for name, accuracy, loss in zip(names, accuracies, losses, strict=True)
    }
    assert results.model_copy(update={"methods": changed}).best == best


def test_seeds_of_which_an_older_version_has_made_some_are_summed_up(digits_run):
    new = load_results(RunFolder(digits_run))
    methods = {name: method.model_copy(update={"kept_epoch": None, "test_loss": 0.0}) for name, method in new.methods.items()}
    old = new.model_copy(update={"schema_version": 1, "methods": methods})
    together = summary([new, old])
    assert (together.schema_version, together.methods["dnn"].kept_epoch) == (1, new.methods["dnn"].kept_epoch)
    assert together.methods["dnn"].test_loss == new.methods["dnn"].test_loss / 2


def test_rows_that_an_older_version_has_kept_come_back_without_its_test_accuracies():
    recorded, restored = Recorded(), []
    timeline = Timeline()
    records = Records(recorded, "local", 3, True, timeline, lambda: restored.append(True))
    arrays = timeline.to_save() | {"records/moments": np.ones((2, 2)), "records/classifications": np.ones((2, 5, 10))}  # of test images
    records.restore([[PHASES.index("local"), 3.0, 1.0, 0.5, 0.8, 0.6, 1.5, 9.0]], arrays)
    np.testing.assert_equal(recorded.epochs, [(PHASES.index("local"), 3.0, 1.0, 0.5, 0.8, np.nan, np.nan, 1.5, 9.0)])
    assert (recorded.classifications, recorded.moments, restored) == ([], [], [True])


def test_the_curve_of_the_average_takes_the_latest_of_every_subdomain():
    labels = np.array([0, 1])
    right, wrong = np.eye(2, dtype=np.float16), np.eye(2, dtype=np.float16)[::-1]
    moments = np.array([[0, 3.0], [0, 1.0], [1, 2.0]])
    assert average_curve(moments, np.stack([right, wrong, 0.9 * right]), labels) == [(1.0, 0.0), (2.0, 0.0), (3.0, 1.0)]
