"""The performance model: its equations, what it tells from timings, and the problem of a study on other numbers of ranks."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from launching import launch, on_ranks, refusal
from matplotlib.image import imread
from quick import quick

from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load
from ddcnn.method.costs import Network, cnn
from ddcnn.method.work import Counts, Sizes, counts
from ddcnn.networks.registry import Design
from ddcnn.networks.shape import Shape
from ddcnn.scaling.extrapolation import fitted
from ddcnn.scaling.machine_benchmark import SIZES, alpha_beta
from ddcnn.scaling.measurements import TOTAL, Point
from ddcnn.scaling.performance_model import COMMUNICATION, FITTED, Observation, fit
from ddcnn.scaling.workload import Workload
from ddcnn.training.data_parallel import global_batch_size

SETTINGS = RunSettings(
    batch_size=100, epochs=3, dnn_epochs=5, coherent_epochs=4, transfer_epochs=2, global_epochs=4, folds=5, evaluate_every=0
)
SAMPLES = {"train": 1000, "validation": 100, "test": 300}
SMALL = Sizes(
    SETTINGS, ranks=1, subdomains=4, phases=("local", "folds", "gather", "dnn", "coherent", "transfer", "global"), samples=SAMPLES,
    classes=10, subimage=(16, 16), local=Network(2e6, 25, 0, 10), whole=Network(3e7, 27, 500_000, 10), dnn=Network(1e5, 5, 0, 10),
    local_bytes=1_000_000, global_bytes=4_000_000,
)  # fmt: skip
PROBLEM = Workload("strong", RunSettings(), (32, 32, 3), (2, 2), 1, SAMPLES, 10, ("local", "gather", "dnn", "global"), 1, "cpu")
positive = st.floats(1e-3, 1e3)


def at(ranks: int, sizes: Sizes = SMALL, **settings) -> Sizes:
    return replace(sizes, ranks=ranks, settings=SETTINGS.model_copy(update=settings))


def test_counts_are_those_of_the_equations():
    """By hand: 4 subdomains on 2 ranks, 10 steps an epoch."""
    found = counts(at(2))
    assert found["local"].local_operations == pytest.approx(2 * (3 * 1000 + (400 + 1000) / 3) * 2e6)
    assert found["local"].layer_steps == 2 * 3 * 10 * 25
    assert found["local"].bytes_read == 2 * 1_000_000
    assert found["folds"].layer_steps == 2 * 5 * 3 * 8 * 25
    assert found["folds"].local_operations == pytest.approx(2 * (5 * 3 * 800 + 1000 / 3) * 2e6)
    assert found["gather"].bytes_sent == pytest.approx(4 * 4 * (10 * 1000 + 10 * 400) / 2)
    assert (found["gather"].collectives, found["gather"].messages) == (6, 6)
    assert found["dnn"].layer_steps == 5 * 10 * 5
    assert found["dnn"].local_operations == pytest.approx((5 * 1000 + 400 / 3) * 1e5)
    assert found["coherent"].bytes_sent == pytest.approx(40 * 4 * 4 * 10 * 100 / 2)  # in 40 steps
    assert (found["coherent"].collectives, found["coherent"].layer_steps) == (80, 40 * (2 * 25 + 5))
    assert found["transfer"].collectives == 40
    assert found["global"].global_operations == pytest.approx((40 * 50 + 400 / 2 / 3) * 3e7)
    assert found["global"].reduce_bytes == pytest.approx(40 * 8 * 500_000 / 2)
    assert found["global"].reduce_messages == 40 * (2 + 1)
    assert found["global"].bytes_read == 4_000_000


def test_evaluations_and_frozen_epochs_are_forward_only():
    evaluated, plain = counts(at(1, evaluate_every=1)), counts(at(1))
    more = evaluated["local"].local_operations - plain["local"].local_operations
    assert more == pytest.approx(4 * 3 * 100 / 3 * 2e6)
    frozen = counts(at(1, frozen_epochs=3))["transfer"]
    assert frozen.local_operations - plain["transfer"].local_operations == pytest.approx(3 * 1000 * (4 * 2e6 / 3 + 1e5))
    assert frozen.layer_steps - plain["transfer"].layer_steps == 30 * (4 * 25 + 5)


@given(st.sampled_from([1, 2, 4]), st.sampled_from(SMALL.phases))
def test_more_ranks_never_compute_more(ranks, phase):
    less, more = counts(at(ranks))[phase], counts(at(2 * ranks))[phase]
    assert more.local_operations <= less.local_operations and more.global_operations <= less.global_operations


def test_one_rank_communicates_nothing():
    for found in counts(at(1)).values():
        assert not any(found.only(COMMUNICATION))


def test_the_batch_of_ddp_grows_where_a_rank_would_have_less_than_two_samples():
    assert [at(ranks).global_share for ranks in (1, 2, 32, 50, 64, 4096)] == [100, 50, 3, 2, 2, 2]
    steps = [counts(at(ranks))["global"].layer_steps / 27 / 4 for ranks in (50, 100, 250, 500)]
    assert steps == [10, 5, 2, 1]


@given(st.tuples(*[positive] * 3), st.tuples(*[positive] * 6))
@example((1.0, 1.0, 1.0), (1.0,) * 6)
@example((293.0, 0.001, 1.0), (1.0, 1.0, 1.0, 1.0, 1.0, 980.0))  # messages take so long that steps and arithmetic are all but collinear
def test_rates_are_recovered_from_the_timings_that_they_make(rates, known):
    """Whatever the machine, as long as every rate has a part of some phase's time and the timings tell steps from arithmetic."""
    scale = Counts(1e-11, 1e-11, 1e-4, 1e-9, 1e-6, 1e-9, 1e-5, 1e-6, 1e-9)
    machine = Counts(*(s * k for s, k in zip(scale, (*rates, *known), strict=True)))
    seen = [Observation(found, found.seconds(machine)) for ranks in (1, 2, 4) for found in counts(at(ranks)).values() if any(found)]
    parts = [[getattr(one.counts, name) * getattr(machine, name) / one.seconds for one in seen] for name in FITTED]
    found, untold = fit(seen, machine._replace(**dict.fromkeys(FITTED, 0.0)))
    assert untold == () if set((*rates, *known)) == {1.0} else untold in ((), ("layer_steps",))
    for name, part in zip(FITTED, parts, strict=True):
        if max(part) > 0.01 and not untold:
            assert getattr(found, name) == pytest.approx(getattr(machine, name), rel=1e-3)


def test_noise_does_not_make_rates_negative():
    random = np.random.default_rng(0)
    machine = Counts(local_operations=5e-11, global_operations=3e-11, layer_steps=1e-6)
    for _ in range(50):
        seen = [Observation(found, found.seconds(machine) * random.uniform(0.5, 2)) for r in (1, 2) for found in counts(at(r)).values()]
        found, _ = fit([one for one in seen if one.seconds > 0], Counts())
        assert min(found) >= 0 and found.local_operations > 1e-11


def test_what_timings_do_not_tell_is_named_and_left_at_zero():
    machine = Counts(local_operations=5e-11, layer_steps=1e-4)
    alike = [Observation(counts(at(ranks))["local"], counts(at(ranks))["local"].seconds(machine)) for ranks in (1, 2, 4)]
    found, untold = fit(alike, Counts())
    assert untold == ("global_operations", "layer_steps") and found.layer_steps == 0
    for one in alike:  # the measured points are explained all the same
        assert one.counts.seconds(found) == pytest.approx(one.seconds)


@given(st.floats(1e-7, 1e-3), st.floats(1e-12, 1e-7))
def test_alpha_and_beta_are_recovered(alpha, beta):
    found = alpha_beta(SIZES, [alpha + beta * size for size in SIZES])
    assert found == pytest.approx((alpha, beta), rel=1e-3, abs=1e-15)


# The problem on other numbers of ranks


def test_strong_subdomains_are_those_of_the_study_up_to_n_and_finer_beyond():
    found = {ranks: PROBLEM.at(ranks) for ranks in (1, 2, 4, 8, 16, 64)}
    assert [sizes.subdomains for sizes in found.values()] == [4, 4, 4, 8, 16, 64]
    assert [sizes.subimage for sizes in found.values()] == [(16, 16)] * 3 + [(16, 8), (8, 8), (4, 4)]
    assert found[16].local.operations < found[4].local.operations / 8  # a quarter of the pixels, half the width
    assert {sizes.whole.operations for sizes in found.values()} == {found[1].whole.operations}
    assert found[64].dnn.operations > 2 * found[4].dnn.operations
    assert found[1].local_bytes == 1400 * 16 * 16 * 3


@pytest.mark.parametrize(("ranks", "words"), [(3, "do not fit"), (256, "at least 4 pixels"), (4096, "finer than the images")])
def test_strong_scaling_ends_where_subimages_are_too_small(ranks, words):
    with pytest.raises(InputError, match=words):
        PROBLEM.at(ranks)


def test_weak_images_grow_and_subimages_do_not():
    weak = replace(PROBLEM, kind="weak", grid=(1, 2), ranks=2, shape=(16, 32, 1), settings=RunSettings(width_divisor=1))
    found = {ranks: weak.at(ranks) for ranks in (1, 2, 64, 4096)}
    assert {sizes.subimage for sizes in found.values()} == {(16, 16)}
    assert len({sizes.local.operations for sizes in found.values()}) == 1
    assert found[4096].global_bytes == 4096 * found[1].global_bytes
    assert found[64].whole.operations > 50 * found[1].whole.operations


def test_operations_are_those_of_the_layers():
    """VGG3 on 4x4 grey pixels, by hand: 2 a multiplication, three times (forward, and for both factors backward)."""
    network = cnn("probabilities", Design("vgg3", 8), Shape((4, 4), 1, 10))
    convolutions = 9 * (16 * 1 * 8 + 4 * 8 * 16 + 4 * 16 * 32)  # two pixels a side are not pooled
    forward = 2 * (convolutions + 2 * 2 * 32 * 10)
    images_need_none = 2 * 9 * 16 * 1 * 8  # gradient with respect to the pixels
    assert network.operations == 3 * forward - images_need_none


# Whole predictions


def point(ranks: int, seconds: dict[str, float]) -> Point:
    return Point(ranks, 1, seconds | {TOTAL: sum(seconds.values())}, {}, {}, 0.0, {}, {}, None)


def test_a_study_that_follows_the_model_is_predicted_without_error_from_the_other_ranks():
    machine = Counts(5e-11, 3e-11, 1e-4, 1e-9, 1e-6, 1e-9, 1e-4, 1e-4, 1e-9)
    points = [point(ranks, {phase: one.seconds(machine) for phase, one in counts(PROBLEM.at(ranks)).items()}) for ranks in (1, 2, 4)]
    model = fitted(PROBLEM, points, machine, {"messages": 7.0})
    assert len(model.compared) >= 9 and max(abs(one.error) for one in model.compared) < 1e-6
    assert model.measured == pytest.approx(machine)
    assert model.predicted == pytest.approx(machine._replace(messages=7.0))
    slower = [points[0], replace(points[1], seconds={name: 2 * value for name, value in points[1].seconds.items()}), points[2]]
    errors = {one.ranks: one.error for one in fitted(PROBLEM, slower, machine, {}).compared if one.phase == TOTAL}
    assert errors[2] == pytest.approx(-0.5)  # the others tell nothing of what slowed this one down


def test_the_prediction_of_a_phase_is_the_sum_of_its_parts():
    machine = Counts(5e-11, 3e-11, 1e-4, 1e-9, 1e-6, 1e-9, 1e-4, 1e-4, 1e-9)
    points = [point(ranks, {phase: one.seconds(machine) for phase, one in counts(PROBLEM.at(ranks)).items()}) for ranks in (1, 2)]
    found = fitted(PROBLEM, points, machine, {}).at(16)
    assert PROBLEM.in_all("dnn", found.seconds) == pytest.approx(sum(found.seconds[phase] for phase in ("local", "gather", "dnn")))
    assert PROBLEM.in_all("global", found.seconds) == found.seconds["global"] and PROBLEM.in_all("dnn", {"local": 1.0}) is None
    assert found.communication["gather"] == found.seconds["gather"] > 0 == found.communication["local"]
    assert found.reading["local"] == pytest.approx(1e-9 * found.sizes.local_bytes)


# The command


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A strong study of two runs, which no test changes."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "study").mkdir()
    (folder / "study" / "study.toml").write_text('kind = "strong"\n', "utf-8")
    options = quick(network="vgg9", epochs=1, train_samples=300, width=8, methods="dnn,global")
    for ranks in (1, 2):
        done = on_ranks(ranks, "run", *options, "--output", f"study/{ranks}", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_predicts_a_study_on_ranks_and_a_network_that_are_given(study, tmp_path):
    given = ("--latency-us", "3", "--bandwidth-gb", "20", "--read-gb", "2", "--ranks", "4,16,4096", "--output", str(tmp_path / "out"))
    done = on_ranks(None, "scaling", "predict", "study", *given, cwd=study)
    assert done.returncode == 0, done.stderr
    text, lines = (tmp_path / "out" / "predict.md").read_text("utf-8"), (tmp_path / "out" / "predict.csv").read_text("utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["ranks", "1", "2", "4", "16", "4096"]
    for words in ("| α | 3 µs | 3 µs |", "| β | 20 GB/s | 20 GB/s |", "| ρ, reading | 2 GB/s |", "16 ranks: --network vgg9 needs", "DDP"):
        assert words in text
    assert "**Measured: 1, 2 ranks. All else is the model's extrapolation" in text
    assert "| 1 | local |" in done.stdout and "| 2 | total |" in done.stdout and "finer than the images" in done.stdout
    assert "extrapolation" in done.stdout.split("| ranks | subdomains |")[0]  # before the table
    row = dict(zip(lines[0].split(","), lines[3].split(","), strict=True))
    assert float(row["method_dnn_seconds"]) == pytest.approx(sum(float(row[f"{name}_seconds"]) for name in ("local", "gather", "dnn")))
    assert float(row["global_communication"]) < float(row["global_seconds"])
    picture = imread(tmp_path / "out" / "predict.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.05


def test_the_network_is_measured_by_a_program_of_two_ranks(tmp_path):
    done = launch(2, cwd=tmp_path, program=("-m", "ddcnn.scaling.machine_benchmark"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"messages", "bytes_sent", "collectives", "reduce_messages", "reduce_bytes"} == set(found)
    assert 1e-8 < found["messages"] < 0.1 and 0 <= found["collectives"] < 1
    assert all(0 <= value < 1 and math.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("study",), "--measure"),
        (("study", "--latency-us", "2"), "--bandwidth-gb"),
        (("study", "--latency-us", "0", "--bandwidth-gb", "1"), "--latency-us 0"),
        (("study", "--latency-us", "2", "--bandwidth-gb", "nan"), "--bandwidth-gb nan"),
        (("study", "--latency-us", "2", "--bandwidth-gb", "1", "--ranks", "0"), "--ranks 0"),
        (("nowhere", "--latency-us", "2", "--bandwidth-gb", "1"), "nowhere: no study.toml"),
        (("study", "--measure", "--launcher", "no-such-program"), "no-such-program"),
        (("study", "--measure", "--launcher", "'mpirun"), "--launcher 'mpirun"),
        (("study", "--measure", "--launcher", "echo"), "network_speed.log: missing, damaged or foreign"),
        (("study", "--measure", "--launcher", "./no-format"), "--launcher ./no-format: cannot be started (Exec format error)"),
        (("study", "--measure", "--", "--epochs", "1"), "no options after --"),
    ],
)
def test_bad_usage_is_one_line(study, arguments, words):
    (study / "no-format").write_text("", "utf-8")
    (study / "no-format").chmod(0o700)
    assert words in refusal(on_ranks(None, "scaling", "predict", *arguments, cwd=study))
    assert not (study / "study" / "predict.md").exists()


def test_groups_of_ranks_are_not_modelled(study, tmp_path):
    shutil.copytree(study / "study", tmp_path / "study")
    path = tmp_path / "study" / "2" / "results.json"
    found = json.loads(path.read_text("utf-8"))
    found["environment"]["ranks"] = 8
    path.write_text(json.dumps(found), "utf-8")
    line = refusal(on_ranks(None, "scaling", "predict", "study", "--latency-us", "2", "--bandwidth-gb", "1", cwd=tmp_path))
    assert "8 ranks trained 4 subdomains, in groups" in line


def test_the_gather_of_other_interfaces_has_one_more_and_that_without_a_dnn_one_less():
    handed = counts(at(2, replace(SMALL, local=SMALL.local._replace(values=16)), interface="features"))["gather"]
    assert handed.bytes_sent == pytest.approx(4 * 4 * (10 * 400 + 16 * 1000 + 16 * 400) / 2)
    assert (handed.collectives, handed.messages) == (10, 10)  # of validation and test samples each
    alone = counts(at(2, replace(SMALL, phases=("local", "gather"))))["gather"]
    assert alone.bytes_sent == pytest.approx(4 * 4 * 10 * 400 / 2)
    assert alone.collectives == 4


def test_a_global_cnn_needs_two_samples_a_rank():
    assert "global" in counts(at(500, replace(SMALL, subdomains=1024)))
    assert "global" not in counts(at(512, replace(SMALL, subdomains=1024)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 64, 400])
def test_the_batch_of_the_global_cnn_is_that_of_a_run(ranks):
    assert at(ranks).global_share * ranks == global_batch_size(100, 1000, ranks)


def test_held_out_samples_are_not_modelled(digits_run, tmp_path):
    run = load(RunFolder(digits_run))
    shutil.copytree(digits_run, tmp_path / "copy")
    settings = (digits_run / "config.toml").read_text("utf-8").replace('dnn-data = "train"', 'dnn-data = "holdout"')
    (tmp_path / "copy" / "config.toml").write_text(settings, "utf-8")
    Workload.of(run, "strong", {"local", "dnn"})
    held_out = load(RunFolder(tmp_path / "copy"))
    with pytest.raises(InputError, match="holdout is not modelled"):
        Workload.of(held_out, "strong", {"local", "dnn"})
