"""Scaling studies, collected from runs that were made for the purpose."""

import csv
import itertools
import json
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from math import prod
from pathlib import Path

import h5py
import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from launching import on_ranks, refusal
from matplotlib.image import imread
from quick import quick

from ddcnn.config.parser import parse
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import grid_of
from ddcnn.errors import InputError
from ddcnn.io.run_folder import RunFolder
from ddcnn.parallel.launcher import given_threads
from ddcnn.parallel.timeline import PHASES
from ddcnn.report.figures import studies
from ddcnn.scaling import collect as scaling
from ddcnn.scaling import measurements as points
from ddcnn.scaling import slurm
from ddcnn.scaling.study import Study

SMALL = {"width": 8, "methods": "vote,dnn"}
STRONG = {"train_samples": 300, "test_samples": 50}


def run(ranks: int, folder: Path, name: str, **options: object) -> Path:
    finished = on_ranks(ranks, "run", *quick(output=name, **SMALL | options), cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / name


@pytest.fixture(scope="module")
def strong(tmp_path_factory) -> Path:
    """A folder with the runs 1 and 2, which no test changes."""
    folder = tmp_path_factory.mktemp("strong")
    for ranks in (1, 2):
        run(ranks, folder, str(ranks), **STRONG)
    return folder


@pytest.fixture(scope="module")
def weak(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weak")
    for ranks, grid, shape in ((1, "1x1", "8x8"), (2, "1x2", "8x16")):
        run(ranks, folder, str(ranks), data=f"synthetic:{shape}x4x200", train_samples=None, grid=grid, width_divisor=1)
    return folder


@pytest.fixture
def copy(tmp_path) -> Callable[..., Path]:
    """Copies a run and changes what its files say: ``copy(run, "name", results=…, settings=…)``."""

    def make(source: Path, name: str, results: Callable = lambda found: None, settings: Callable = lambda found: None) -> Path:
        shutil.copytree(source, tmp_path / name)
        found, config = json.loads((source / "results.json").read_text("utf-8")), tomllib.loads((source / "config.toml").read_text("utf-8"))
        results(found)
        settings(config)
        (tmp_path / name / "results.json").write_text(json.dumps(found), "utf-8")
        (tmp_path / name / "config.toml").write_text(tomli_w.dumps(config), "utf-8")
        return tmp_path / name

    return make


def document(folder: Path) -> dict:
    return json.loads((folder / "scaling.json").read_text("utf-8"))


def collect(*arguments: object, cwd: Path):
    return on_ranks(None, "scaling", "collect", *map(str, arguments), cwd=cwd)


def rows(folder: Path) -> list[dict[str, float]]:
    """scaling.csv, numbers as numbers."""
    with (folder / "scaling.csv").open(encoding="utf-8") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def local_seconds(folder: Path) -> float:
    return json.loads((folder / "results.json").read_text("utf-8"))["phases"]["local"]["seconds"]


def test_strong_study_tells_the_times_of_its_runs_and_their_ratios(strong, tmp_path):
    done = collect(strong / "2", strong / "1", "--output", "study", cwd=tmp_path)  # in any order
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "study")
    assert (one["ranks"], two["ranks"]) == (1, 2)
    for row, name in ((one, "1"), (two, "2")):
        results = json.loads((strong / name / "results.json").read_text("utf-8"))
        for phase in ("local", "gather", "dnn"):
            found = results["phases"].get(phase, {"seconds": 0, "max_rank_seconds": 0, "mean_rank_seconds": 0})
            assert row[f"{phase}_seconds"] == found["seconds"]
            assert row[f"{phase}_max_rank_seconds"] == found["max_rank_seconds"]
            assert row[f"{phase}_mean_rank_seconds"] == found["mean_rank_seconds"]
        assert row["total_seconds"] == pytest.approx(results["methods"]["dnn"]["seconds"]["total"])  # it needs all the phases
        assert row["images_per_second"] == pytest.approx(2 * 300 / row["local_seconds"])
        assert row["max_over_mean_rank"] == pytest.approx(row["local_max_rank_seconds"] / row["local_mean_rank_seconds"])
    assert (one["speed_up"], one["efficiency"]) == (1, 1)
    assert two["speed_up"] == pytest.approx(one["total_seconds"] / two["total_seconds"])
    assert two["efficiency"] == pytest.approx(two["speed_up"] / 2)
    assert two["local_speed_up"] == pytest.approx(one["local_seconds"] / two["local_seconds"])
    assert two["serial_fraction"] == pytest.approx(2 / two["speed_up"] - 1)  # (1/ψ - 1/2) / (1 - 1/2)
    assert one["serial_fraction"] != one["serial_fraction"]  # an empty cell
    text = (tmp_path / "study" / "scaling.md").read_text("utf-8")
    assert text.startswith("# Strong scaling") and f"| {two['speed_up']:.2f} | {100 * two['efficiency']:.1f} |" in text
    assert f"| {two['speed_up']:.2f} |" in done.stdout and done.stdout.splitlines()[-1] == "study: study/scaling.md"
    picture = imread(tmp_path / "study" / "scaling.png")
    assert picture.shape[1] > 1000 and picture.std() > 0.05


def test_a_total_is_that_of_the_run_also_where_another_rank_starts_late(strong, copy):
    """Only the time in which rank 0 comes back to where it was is no part of a phase."""
    folder = copy(strong / "2", "late")
    with h5py.File(folder / "details.h5", "r+") as file:
        spans, about = file["timeline"][...], dict(file["timeline"].attrs)
        begin, end = spans[spans[:, 1] == PHASES.index("local")][:, 3:].T
        late = [1, PHASES.index("start"), 0, begin.min(), (begin.min() + end.max()) / 2]
        del file["timeline"]
        file["timeline"] = np.vstack([spans, late])
        file["timeline"].attrs.update(about)
    assert (
        points.measure(RunFolder(folder), "strong").seconds["total"] == points.measure(RunFolder(strong / "2"), "strong").seconds["total"]
    )


def test_weak_study_compares_the_times_of_equal_work_per_rank(weak, tmp_path):
    done = collect(weak / "1", weak / "2", "--output", "study", "--kind", "weak", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = rows(tmp_path / "study")
    assert two["efficiency"] == pytest.approx(one["total_seconds"] / two["total_seconds"])
    assert two["speed_up"] == pytest.approx(2 * two["efficiency"])
    assert two["serial_fraction"] == pytest.approx(2 - two["speed_up"])
    assert (tmp_path / "study" / "scaling.md").read_text("utf-8").startswith("# Weak scaling")


def test_runs_on_as_many_ranks_are_repetitions_of_which_the_median_counts(strong, copy, tmp_path):
    def slower(seconds: float) -> Callable:
        return lambda found: found["phases"]["local"].update(seconds=seconds)

    again = [copy(strong / "1", f"again-{seconds}", slower(seconds)) for seconds in (100.0, 300.0, 200.0)]
    assert collect(*again, strong / "2", "--output", "study", cwd=tmp_path).returncode == 0
    one, two = rows(tmp_path / "study")
    assert (one["runs"], two["runs"], one["local_seconds"]) == (3, 1, 200)
    assert (one["local_shortest_seconds"], one["local_longest_seconds"]) == (100, 300)
    assert two["local_cost"] == pytest.approx(2 * two["local_seconds"]) and one["local_cost"] == 200
    raw = document(tmp_path / "study")["runs"]
    assert [(run["ranks"], run["seconds"]["local"]) for run in raw[:3]] == [(1, 100), (1, 300), (1, 200)]
    assert len(raw) == 4 and all(run["rank_seconds"]["local"] for run in raw)
    assert two["local_speed_up"] == pytest.approx(200 / local_seconds(strong / "2"))


def test_the_fewest_ranks_are_what_others_are_compared_with(strong, copy, tmp_path):
    four = copy(strong / "2", "four", lambda found: found["environment"].update(ranks=4))
    four_times = local_seconds(strong / "2") / 4
    faster = copy(
        strong / "2", "faster", lambda found: (found["environment"].update(ranks=8), found["phases"]["local"].update(seconds=four_times))
    )
    assert collect(faster, strong / "2", four, "--output", "study", cwd=tmp_path).returncode == 0
    assert [row["ranks"] for row in rows(tmp_path / "study")] == [2, 4, 8]
    assert [row["local_speed_up"] for row in rows(tmp_path / "study")] == pytest.approx([1, 1, 4])
    assert [row["local_efficiency"] for row in rows(tmp_path / "study")] == pytest.approx([1, 0.5, 1])


@pytest.mark.parametrize(
    ("results", "settings", "words"),
    [
        (lambda r: r["data"].update(source="cifar10"), None, "--data is cifar10 and digits"),
        (lambda r: r["decomposition"].update(width_divisor=1.0), None, "width divisor is 1.0 and 2.0"),
        (lambda r: r["data"].update(train_samples=299), None, "train samples is 299 and 300"),
        (lambda r: r["environment"].update(device="cuda:0"), None, "device is cuda:0 and cpu"),
        (lambda r: r["environment"].update(threads_per_rank=4), None, "threads per rank is 4 and 1"),
        (None, lambda c: c.update(grid="4x1"), "--grid is 4x1 and 2x2"),
        (None, lambda c: c.update(epochs=3), "--epochs is 3 and 2"),
        (None, lambda c: c.update({"label-smoothing": 0.1, "batch-size": 64, "lr": 0.1, "network": "vgg9"}), "; and 1 more"),
        (lambda r: r["environment"].update(seed=5), None, "--seed [5], those on 1 [0]"),
        (lambda r: r["environment"].update(ranks=1), None, "all of these runs are on 1 ranks"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_with_what_differs(strong, copy, tmp_path, results, settings, words):
    changes = {name: change for name, change in (("results", results), ("settings", settings)) if change}
    other = copy(strong / "2", "other", **changes)
    with pytest.raises(InputError) as refused:
        scaling.collect([strong / "1", other], tmp_path / "study", "strong")
    assert words in str(refused.value) and str(refused.value).count(" is ") <= 3
    assert not (tmp_path / "study").exists()


def test_what_says_nothing_about_speed_may_differ(strong, copy, tmp_path):
    other = copy(
        strong / "2", "other", settings=lambda found: found.update({"data-root": "elsewhere", "overwrite": True, "progress": "bar"})
    )
    assert collect(strong / "1", other, "--output", "study", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["decomposition"].update(parameters=7), "parameters a subdomain (--width-divisor 1 keeps them)"),
        (lambda r: r["decomposition"]["subdomains"][0].update(core_stop=[8, 4]), "pixels a rank is 48.0 and 64.0"),
        (lambda r: r["data"].update(train_samples=8), "train samples is 8 and 180"),
    ],
)
def test_weak_study_refuses_ranks_with_other_work(weak, copy, tmp_path, change, words):
    other = copy(weak / "2", "other", change)
    with pytest.raises(InputError) as refused:
        scaling.collect([weak / "1", other], tmp_path / "study", "weak")
    assert words in str(refused.value)


def test_strong_runs_are_no_weak_study_and_the_other_way_round(strong, weak, tmp_path):
    assert "subdomains a rank is 2.0 and 4.0" in refusal(
        collect(strong / "1", strong / "2", "--output", "s", "--kind", "weak", cwd=tmp_path)
    )
    assert "--data is synthetic:8x16x4x200" in refusal(collect(weak / "1", weak / "2", "--output", "s", cwd=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere", "--output", "study"), "nowhere: no results.json"),
        (("nowhere",), "--output"),
        (("--output", "study"), "RUN"),
        (("nowhere", "--output", "study", "--kind", "odd"), "odd is none of strong, weak"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, arguments, words):
    assert words in refusal(collect(*arguments, cwd=tmp_path))


def test_a_study_of_several_seeds_takes_each_of_them(strong, copy, tmp_path):
    for ranks in ("1", "2"):
        for seed in (0, 1):
            copy(strong / ranks, f"{ranks}/seed-{seed}", lambda found, seed=seed: found["environment"].update(seed=seed))
        (tmp_path / ranks / "config.toml").write_text("seed = 0\nseeds = 2\n", "utf-8")
    scaling.collect([tmp_path / "1", tmp_path / "2"], tmp_path / "study", "strong")
    assert [row["runs"] for row in rows(tmp_path / "study")] == [2, 2]


def test_a_study_needs_no_torch(strong, tmp_path):
    """It may run on a login node."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ddcnn.__main__ import execute\n"
        f"execute(['scaling', 'collect', '{strong / '1'}', '{strong / '2'}', '--output', 'study'], None)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "study" / "scaling.png").exists()


@given(st.floats(0, 1), st.floats(1.01, 5000), st.sampled_from(["strong", "weak"]))
def test_the_serial_fraction_is_that_of_the_law(fraction, more, kind):
    speed_up = points.speed_up_at(fraction, more, kind)
    assert points.serial_fraction(speed_up, more, kind) == pytest.approx(fraction, abs=1e-6)
    assert 1 - 1e-9 <= speed_up <= more * (1 + 1e-9)


@pytest.mark.parametrize(("kind", "fraction", "more", "speed_up"), [("strong", 0.05, 8, 8 / 1.35), ("weak", 0.05, 8, 7.65)])
def test_the_laws_are_those_of_amdahl_and_gustafson(kind, fraction, more, speed_up):
    assert points.speed_up_at(fraction, more, kind) == pytest.approx(speed_up)


def test_the_speed_ups_of_the_slowest_and_the_fastest_run_are_shown(strong, copy, monkeypatch, tmp_path):
    shown = {}
    drawn = studies.scaling
    monkeypatch.setattr(studies, "scaling", lambda *given: shown.update(given=given) or drawn(*given))
    again = [copy(strong / "2", f"again-{k}", lambda found, k=k: found["phases"]["local"].update(seconds=k)) for k in (1.0, 2.0, 4.0)]
    scaling.collect([strong / "1", *again], tmp_path / "study", "strong")
    ranks, speed_up, spread, law, name, _ = shown["given"]
    alone = local_seconds(strong / "1")
    assert ranks == [1, 2] and speed_up["local"] == pytest.approx([1, alone / 2])
    assert spread["local"][1] == pytest.approx((alone / 4, alone))
    assert law == pytest.approx([1, speed_up["total"][1]]) and name.startswith("Amdahl, e = ")


# A study from its description


def described(kind: str = "strong", *options: str, **changes) -> Study:
    values = {"folder": Path("study"), "ranks": (1, 2, 4), "repetitions": 2} | changes
    return Study(kind=kind, options=options, size={"side": 8, "classes": 4, "samples": 100} if kind == "weak" else {}, **values)


def run_settings(arguments: list[str]) -> RunSettings:
    return parse(RunSettings, arguments[1:], arguments[0])


@pytest.mark.parametrize(
    ("ranks", "grid"), [(1, (1, 1)), (2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (6, (2, 3)), (12, (3, 4)), (4096, (64, 64))]
)
def test_weak_grids_are_the_closest_to_a_square(ranks, grid):
    settings = run_settings(described("weak").arguments(ranks))
    assert settings.grid == grid and settings.width_divisor == 1
    assert settings.data == f"synthetic:{8 * grid[0]}x{8 * grid[1]}x4x100"


@given(st.integers(1, 300), st.lists(st.sampled_from([8, 16, 24, 64]), min_size=2, max_size=3))
def test_grids_divide_the_longest_axes_most(number, sides):
    grid = grid_of(number, sides)
    assert prod(grid) == number and len(grid) == len(sides)
    lengths = [side / parts for side, parts in zip(sides, grid, strict=True)]
    for others in itertools.permutations(grid):
        other = [side / parts for side, parts in zip(sides, others, strict=True)]
        assert max(lengths) / min(lengths) <= max(other) / min(other) + 1e-9


def test_what_the_user_says_wins_over_the_defaults_of_a_study():
    plain, own = run_settings(described().arguments(2)), described("strong", "--methods", "vote").arguments(2)
    assert (plain.methods, plain.evaluate_every, plain.partitions) == (("vote", "average", "dnn"), 0, Path("study/partitions"))
    assert own.count("--methods") == 1 and run_settings(own).methods == ("vote",) and plain.output == Path("study/2") and plain.overwrite
    assert run_settings(described().arguments(2, 2)).output == Path("study/2-2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("strong", "--ranks", "1,3"), "3 ranks do not fit 4 subdomains (--grid 2x2)"),
        (("strong", "--ranks", "1,two"), "--ranks 1,two"),
        (("strong", "--ranks", "2"), "several"),
        (("strong", "--repetitions", "0"), "--repetitions 0"),
        (("weak", "--side", "3"), "--side 3"),
        (("weak", "--classes", "1"), "--classes 1"),
        (("weak", "--samples", "9"), "--samples 9"),
        (("strong", "--side", "8"), "--side"),
        (("strong", "--launcher", "no-such-program"), "--launcher no-such-program"),
        (("strong", "--launcher", "'mpirun"), "--launcher 'mpirun"),
        (("strong", "--epochs", "2"), "--epochs"),
        (("strong", "--", "--epochs", "none"), "--epochs none"),
        (("strong", "--", "--epoch", "2"), "--epochs"),
        (("strong", "--", "--output", "elsewhere"), "--output: a study"),
        (("strong", "--", "--time-limit", "5"), "--time-limit: a study"),
        (("strong", "--", "--dry-run"), "--dry-run: a study"),
        (("weak", "--", "--data", "digits"), "--data: a study"),
        (("weak", "--", "--grid", "2x2"), "--grid: a study"),
        (("strong", "--", "--config", "of.toml"), "--resume: a study"),
        (("strong", "--slurm", "--sbatch", "time=5"), "--sbatch time=5"),
    ],
)
def test_a_bad_study_is_refused_before_anything_starts(tmp_path, arguments, words):
    (tmp_path / "of.toml").write_text("resume = true\n", "utf-8")
    assert words in refusal(on_ranks(None, "scaling", arguments[0], "--output", "study", *arguments[1:], cwd=tmp_path))
    assert not (tmp_path / "study").exists()


def test_slurm_that_is_not_there_is_one_line(tmp_path):
    told = refusal(on_ranks(None, "scaling", "strong", "--output", "study", "--slurm", cwd=tmp_path, PATH=""))
    assert "no sbatch" in told


def test_the_batch_script_runs_the_same_study_with_one_number_of_ranks(tmp_path):
    study = described("weak", "--label", "it's", folder=tmp_path / "a study")
    text = slurm.script(study, ["srun", "--mpi=pmix"], ["--time=02:00:00"], "sbatch again")
    assert text.index("#SBATCH --time=01:00:00") < text.index("#SBATCH --time=02:00:00")  # the last one wins
    run = shlex.split(next(line for line in text.splitlines() if line.startswith("exec")))
    assert run[1:6] == [sys.executable, "-m", "ddcnn", "scaling", "weak"] and run[-3:] == ["--", "--label", "it's"]
    assert run[run.index("--ranks") + 1] == "$1" and run[run.index("--launcher") + 1] == "srun --mpi=pmix"
    assert "--side=8" in run and run[run.index("--output") + 1] == str(tmp_path / "a study")
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(("given", "threads"), [("4", 4), ("0", None), ("", None), ("-1", None), ("many", None)])
def test_threads_that_are_none_are_not_taken_from_the_environment(monkeypatch, given, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert given_threads() == threads
