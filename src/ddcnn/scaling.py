"""Scaling studies: finished runs on different numbers of ranks, put together in a table, a CSV file and a figure.

Strong scaling: the same problem on more ranks. Weak scaling: a problem that grows with the ranks, the same for each of them.
"""

import csv
import io
import statistics
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from ddcnn.config import FREE
from ddcnn.errors import InputError
from ddcnn.files import disk_errors, replacing, write_text
from ddcnn.finished import FinishedRun, load, reading
from ddcnn.report import table
from ddcnn.seeding import seed_names
from ddcnn.timeline import PHASES, wall, windows

Kind = Literal["strong", "weak"]
TIMED = tuple(phase for phase in PHASES if phase not in ("start", "partition"))  # a set is partitioned once for many runs
TOTAL = "total"
TRAINING = ("local", "coherent", "global")  # the first of them that took place is the phase whose load and images are told
NOT_COMPARED = {name.replace("_", "-") for name in FREE} | {"data", "precision", "seed", "seeds"}  # or elsewhere than as options
MOST_DIFFERENCES = 3  # that a refusal names
WORDS = {
    "strong": "Strong scaling: the same images and subdomains on more ranks. Speed-up is the time of the fewest ranks divided by the time "
    "of N, efficiency the share that it is of the ideal.",
    "weak": "Weak scaling: as many pixels, subdomains and parameters for every rank, images that grow with their number. Efficiency is "
    "the time of the fewest ranks divided by the time of N; the speed-up is scaled: efficiency times the ratio of the ranks.",
}


@dataclass(frozen=True)
class Measured:
    """One run of a study.

    Attributes:
        seconds: of wall time, per phase and in all ("total", without start and partitioning; phases may overlap).
        rank_seconds: per phase: what the busiest rank computes, and the mean.
        training: the phase whose ``images_per_second`` are told.
        conditions: what has to be the same in all runs, by a name for people.
    """

    folder: Path
    ranks: int
    seed: int
    seconds: dict[str, float]
    rank_seconds: dict[str, tuple[float, float]]
    training: str
    images_per_second: float
    conditions: dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One number of ranks: medians over its runs; ``speed_up`` and ``efficiency`` as ``seconds``, per phase and in all."""

    ranks: int
    runs: int
    seconds: dict[str, float]
    rank_seconds: dict[str, tuple[float, float]]
    images_per_second: float
    speed_up: dict[str, float]
    efficiency: dict[str, float]

    def imbalance(self, phase: str) -> float:
        """Seconds of the busiest rank over those of the mean one."""
        busiest, mean = self.rank_seconds[phase]
        return busiest / mean if mean else 1.0


def collect(folders: Iterable[Path], output: Path, kind: Kind) -> None:
    """Writes scaling.csv, scaling.md and scaling.png into ``output``; several runs on as many ranks are repetitions.

    Raises:
        InputError: no finished run, one that cannot be compared with the others, or runs on one number of ranks only.
    """
    from ddcnn import figures

    runs = [measure(seed, kind) for run in folders for seed in [run / name for name in seed_names(run)] or [run]]
    check_comparable(runs)
    points, training = study(runs, kind), runs[0].training
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_text(output / "scaling.csv", csv_text(points, training))
    rows = table(("ranks", "runs", *(f"{name} s" for name in points[0].seconds), *SUMMARY_HEADER), map(summary_row(training), points))
    about = f"{runs[0].conditions['train samples']} training images; medians over the runs on as many ranks."
    columns = f"Total: all phases but the partitioning. Busiest / mean rank and images/s: of the phase `{training}`."
    picture = "![speed-up and efficiency](scaling.png)"
    write_text(output / "scaling.md", f"# {kind.title()} scaling\n\n{WORDS[kind]} {about} {columns}\n\n{rows}\n\n{picture}\n")
    shown = dict.fromkeys((TOTAL, training))
    figure = figures.scaling(
        [point.ranks for point in points],
        {name: [point.speed_up[name] for point in points] for name in shown},
        {name: [point.efficiency[name] for point in points] for name in shown},
        kind,
    )
    with replacing(output / "scaling.png") as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    print(f"{rows}\n\nstudy: {output / 'scaling.md'}")


def measure(folder: Path, kind: Kind) -> Measured:
    """Times and conditions of a finished run."""
    run = load(folder)
    with reading(folder / "config.toml"):
        settings = tomllib.loads((folder / "config.toml").read_text())
    with reading(folder / "results.json"):
        results, environment = run.results, run.results["environment"]
        if environment.get("resumed"):
            raise InputError(f"{folder}: this run was stopped and resumed, which is no measurement: run it anew, in one go")
        phases = {name: phase for name, phase in results["phases"].items() if name in TIMED}
        training = next((name for name in TRAINING if name in phases), None)
        if training is None:
            raise InputError(f"{folder}: nothing was trained from scratch in this run (--start-from): it has no place in a scaling study")
        epochs = settings["epochs"] if training == "local" else results["methods"][training]["epochs"]
        return Measured(
            folder, environment["ranks"], environment["seed"],
            {name: phase["seconds"] for name, phase in phases.items()} | {TOTAL: wall(windows([run.spans[:, 1:]], TIMED))},
            {name: (phase["max_rank_seconds"], phase["mean_rank_seconds"]) for name, phase in phases.items()},
            training, epochs * results["data"]["train_samples"] / phases[training]["seconds"], conditions(run, settings, kind),
        )  # fmt: skip


def conditions(run: FinishedRun, settings: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """What has to be the same in all runs of a study; options under their names."""
    data, boxes, environment = run.results["data"], run.results["decomposition"], run.results["environment"]
    ranks, subdomains = environment["ranks"], boxes["subdomains"]
    pixels = sum(prod(b - a for a, b in zip(place["core_start"], place["core_stop"], strict=True)) for place in subdomains)
    found = {"train samples": data["train_samples"], "test samples": data["test_samples"], "classes": data["classes"]}
    if kind == "strong":
        found |= {"--data": data["source"], "image": data["shape"], "width divisor": boxes["width_divisor"]}
    else:
        found |= {
            "channels": data["shape"][-1], "subdomains a rank": len(subdomains) / ranks, "pixels a rank": pixels / ranks,
            "parameters a subdomain (--width-divisor 1 keeps them)": boxes["parameters"] / len(subdomains),
        }  # fmt: skip
    found |= {name.replace("_", " "): environment[name] for name in ("device", "precision", "threads_per_rank", "torch", "ddcnn")}
    free = NOT_COMPARED if kind == "strong" else NOT_COMPARED | {"grid"}
    return found | {f"--{name}": value for name, value in settings.items() if name not in free}


def check_comparable(runs: Sequence[Measured]) -> None:
    """Refuses runs that differ in more than the number of ranks."""
    first = runs[0]
    for run in runs[1:]:
        names = [name for name in first.conditions | run.conditions if first.conditions.get(name) != run.conditions.get(name)]
        if names:
            told = "; ".join(f"{name} is {run.conditions.get(name)} and {first.conditions.get(name)}" for name in names[:MOST_DIFFERENCES])
            more = f"; and {len(names) - MOST_DIFFERENCES} more" if len(names) > MOST_DIFFERENCES else ""
            raise InputError(f"{run.folder} and {first.folder} cannot be compared: {told}{more}")
    seeds = {ranks: sorted({run.seed for run in runs if run.ranks == ranks}) for ranks in {run.ranks for run in runs}}
    if len(seeds) == 1:
        raise InputError(f"all of these runs are on {first.ranks} ranks: a scaling study compares different numbers of them")
    for ranks, found in seeds.items():
        if found != seeds[first.ranks]:
            raise InputError(f"the runs on {ranks} ranks have --seed {found}, those on {first.ranks} {seeds[first.ranks]}: use the same")


def study(runs: Sequence[Measured], kind: Kind) -> list[Point]:
    """A point for every number of ranks, in ascending order; the first one is what the others are compared with."""
    phases = [name for name in TIMED if any(name in run.seconds for run in runs)]  # on one rank there may be no gather
    points: list[Point] = []
    for ranks in sorted({run.ranks for run in runs}):
        these = [run for run in runs if run.ranks == ranks]
        middle = statistics.median
        seconds = {name: middle(run.seconds.get(name, 0.0) for run in these) for name in (*phases, TOTAL)}
        pairs = {name: [run.rank_seconds.get(name, (0.0, 0.0)) for run in these] for name in phases}
        busy = {name: (middle(most for most, _ in pair), middle(mean for _, mean in pair)) for name, pair in pairs.items()}
        first = points[0] if points else None
        ratio = {name: (first.seconds[name] if first else value) / value if value else 1.0 for name, value in seconds.items()}
        more = ranks / first.ranks if first else 1.0
        speed_up = ratio if kind == "strong" else {name: value * more for name, value in ratio.items()}
        efficiency = {name: value / more for name, value in speed_up.items()}
        points.append(Point(ranks, len(these), seconds, busy, middle(run.images_per_second for run in these), speed_up, efficiency))
    return points


SUMMARY_HEADER = ("speed-up", "efficiency in %", "busiest / mean rank", "images/s")


def summary_row(training: str) -> Any:
    """Of a point: the cells of its row in scaling.md."""
    return lambda point: (
        point.ranks, point.runs, *(f"{value:.2f}" for value in point.seconds.values()), f"{point.speed_up[TOTAL]:.2f}",
        f"{100 * point.efficiency[TOTAL]:.1f}", f"{point.imbalance(training):.3f}", f"{point.images_per_second:.0f}",
    )  # fmt: skip


def csv_text(points: Sequence[Point], training: str) -> str:
    """All numbers, a row for every number of ranks."""
    rows = [
        {"ranks": point.ranks, "runs": point.runs}
        | {f"{name}_seconds": value for name, value in point.seconds.items()}
        | {f"{name}_{which}_rank_seconds": pair[k] for name, pair in point.rank_seconds.items() for k, which in enumerate(("max", "mean"))}
        | {"speed_up": point.speed_up[TOTAL], "efficiency": point.efficiency[TOTAL]}
        | {f"{training}_speed_up": point.speed_up[training], f"{training}_efficiency": point.efficiency[training]}
        | {"max_over_mean_rank": point.imbalance(training), "images_per_second": point.images_per_second}
        for point in points
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
