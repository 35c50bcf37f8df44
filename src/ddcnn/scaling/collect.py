"""``ddcnn scaling collect``: compares finished runs on different numbers of ranks in a table, a CSV and a JSON file, and a figure.

Strong scaling: the same problem on more ranks. Weak scaling: the same work per rank.
"""

import csv
import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ddcnn.io.atomic import disk_errors, write_json, write_text
from ddcnn.io.run_folder import RunFolder
from ddcnn.report.pages import number, table
from ddcnn.scaling.measurements import TOTAL, Kind, Measured, Point, check_comparable, measure, points_of, speed_up_at
from ddcnn.scaling.study import runs_of

logger = logging.getLogger(__name__)
SUMMARY_HEADER = ("range of total s", "speed-up", "efficiency in %", "serial fraction in %", "busiest / mean rank", "images/s")
WORDS = {
    "strong": "Strong scaling: the same images and subdomains on more ranks. With p = P / P₀ times as many ranks P as the fewest P₀, the "
    "speed-up ψ is the time on P₀ ranks divided by the time on P, and efficiency is ψ / p. The serial fraction is that of Karp and "
    "Flatt, e = (1/ψ - 1/p) / (1 - 1/p): an e that grows with the ranks tells of overhead, one that does not of work that is not divided.",
    "weak": "Weak scaling: as many pixels, subdomains and parameters for every rank, images that grow with their number. With p = P / P₀ "
    "times as many ranks P as the fewest P₀, efficiency is the time on P₀ ranks divided by the time on P; the speed-up ψ is scaled: "
    "efficiency times p. The serial fraction is Gustafson's, e = (p - ψ) / (p - 1).",
}


def collect(folders: Iterable[Path], output: Path, kind: Kind) -> None:
    """Writes scaling.csv, .json, .md and .png into ``output``; several runs on as many ranks are repetitions.

    Args:
        folders: of runs, or of a study with its runs.

    Raises:
        InputError: no finished run, one that cannot be compared with the others, or runs on one number of ranks only.
    """
    from ddcnn.report.figures import draw

    runs = measured(folders, kind)
    points, training = points_of(runs, kind), runs[0].training
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    write_text(output / "scaling.csv", csv_text(csv_row(point, training) for point in points))
    write_json(output / "scaling.json", document(runs, points, kind))
    rows = table(
        ("ranks", "runs", *(f"{name} s" for name in points[0].seconds), *SUMMARY_HEADER), (summary_row(point, training) for point in points)
    )
    write_text(output / "scaling.md", text(points, rows, runs[0], kind))
    shown, fraction = dict.fromkeys((TOTAL, training)), points[-1].serial_fraction or 0.0
    ranks = [point.ranks for point in points]

    def figure() -> Any:
        from ddcnn.report.figures import studies

        return studies.scaling(
            ranks,
            {name: [point.speed_up[name] for point in points] for name in shown},
            {name: [point.speed_ups(name) for point in points] for name in shown},
            [speed_up_at(fraction, number / ranks[0], kind) for number in ranks],
            f"{'Amdahl' if kind == 'strong' else 'Gustafson'}, e = {100 * fraction:.1f} %",
            kind,
        )

    draw(output / "scaling.png", figure)
    logger.info("%s\n\nstudy: %s", rows, output / "scaling.md")


def measured(folders: Iterable[Path], kind: Kind) -> list[Measured]:
    """All runs, with every seed, in folders of runs or of studies, checked to be comparable."""
    runs = [run for folder in folders for run in runs_of(folder) or [folder]]
    seeds = [measure(seed, kind) for run in runs for seed in RunFolder(run).seeds() or [RunFolder(run)]]
    check_comparable(seeds)
    return seeds


def summary_row(point: Point, training: str) -> tuple[Any, ...]:
    """A row of scaling.md."""
    return (
        point.ranks, point.runs, *(f"{value:.2f}" for value in point.seconds.values()),
        " to ".join(f"{value:.2f}" for value in point.extremes[TOTAL]), f"{point.speed_up[TOTAL]:.2f}",
        f"{100 * point.efficiency[TOTAL]:.1f}", number(point.serial_fraction and 100 * point.serial_fraction, "{:.1f}"),
        f"{point.imbalance(training):.3f}", f"{point.images_per_second:.0f}",
    )  # fmt: skip


def text(points: Sequence[Point], rows: str, run: Measured, kind: Kind) -> str:
    """scaling.md."""
    costs = table(
        ("ranks", *(f"{name}, rank-seconds" for name in points[0].seconds)),
        ((point.ranks, *(f"{point.cost(name):.2f}" for name in point.seconds)) for point in points),
    )
    return f"""# {kind.title()} scaling

{WORDS[kind]} {run.conditions["train samples"]} training images; medians over the runs on as many ranks, whose shortest and longest
total is the range. Total: all phases but the partitioning. Busiest / mean rank and images/s: of the phase `{run.training}`.
Every number of every run: [scaling.json](scaling.json).

{rows}

What all ranks together are held for, per phase (ranks times wall time):

{costs}

![speed-up and efficiency](scaling.png)
"""


def csv_row(point: Point, training: str) -> dict[str, Any]:
    """A row of scaling.csv, by column."""
    return (
        {"ranks": point.ranks, "runs": point.runs}
        | {f"{name}_seconds": value for name, value in point.seconds.items()}
        | {f"{name}_{which}_seconds": pair[k] for name, pair in point.extremes.items() for k, which in enumerate(("shortest", "longest"))}
        | {f"{name}_{which}_rank_seconds": pair[k] for name, pair in point.rank_seconds.items() for k, which in enumerate(("max", "mean"))}
        | {f"{name}_cost": point.cost(name) for name in point.seconds}
        | {"speed_up": point.speed_up[TOTAL], "efficiency": point.efficiency[TOTAL], "serial_fraction": point.serial_fraction}
        | {f"{training}_speed_up": point.speed_up[training], f"{training}_efficiency": point.efficiency[training]}
        | {"max_over_mean_rank": point.imbalance(training), "images_per_second": point.images_per_second}
    )


def csv_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file whose header is the names of the first row; None is an empty cell."""
    rows, stream = list(rows), io.StringIO()
    writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def document(runs: Sequence[Measured], points: Sequence[Point], kind: Kind) -> dict[str, Any]:
    """scaling.json: the points, and what every run measured."""
    each = [{name: value for name, value in asdict(run).items() if name != "conditions"} | {"folder": str(run.folder)} for run in runs]
    return {"kind": kind, "conditions": runs[0].conditions, "points": [asdict(point) for point in points], "runs": each}
