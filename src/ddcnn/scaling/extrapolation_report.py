"""``ddcnn scaling predict``: fits the performance model to a study, and writes predict.csv, predict.md and predict.png."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from ddcnn.decomposition import times
from ddcnn.errors import InputError
from ddcnn.io.atomic import disk_errors, write_text
from ddcnn.io.hdf5 import DAMAGED, parsing, reading
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load
from ddcnn.method.work import Counts
from ddcnn.report.pages import number, table
from ddcnn.scaling.collect import csv_text, measured
from ddcnn.scaling.extrapolation import Model, Predicted, fitted
from ddcnn.scaling.measurements import TOTAL, Kind, Measured, points_of
from ddcnn.scaling.performance_model import FITTED
from ddcnn.scaling.study import execute, find_launcher
from ddcnn.scaling.workload import Workload

logger = logging.getLogger(__name__)
POLLING = 1e-4  # seconds that a polite collective takes beyond its messages, where it has not been measured
READING = 1e9  # bytes per second of a partitioned set, likewise
OF_KIND = {
    "strong": "Strong scaling: the image and the set are those of the study. Up to N ranks its subdomains are shared out; beyond, the grid "
    "is finer, with one subdomain a rank, local CNNs are narrower by the width rule (4 channels at least), and the overlap stays. It ends "
    "where a subimage is too small for the network.",
    "weak": "Weak scaling: a rank has the subdomain of the study; the image grows with the ranks, and with it the global CNN, its first "
    "dense layer most of all.",
}
DDP = (
    "DDP is the global CNN under DistributedDataParallel: the batch of all ranks stays what it is in the study, shared out, until a rank "
    "has 2 samples of it (batch normalisation needs them), and grows beyond; its all-reduce is a ring that does not "
    "overlap with the computing."
)
TIMES_NOTE = (
    "First the seconds of each phase, then (bold) the total of each method over the phases that it needs. The all-reduce is a part of the "
    "total of DDP; its batch is that of all ranks together. In the last column, above 1 the decomposed method is the faster one."
)
NOT_MODELLED = """\
- Accuracy: local CNNs of small subimages see little, and a larger batch of DDP learns otherwise.
- A file system that all ranks share, memory that is too small, stragglers, and ranks of a node that slow each other down.
- How the rates depend on the size of a layer: those of the study are taken for subimages and networks of all sizes. This fails first
  where they are smallest; a study on finer grids (strong) or smaller sides (weak) tells."""
RATES = {
    "local_operations": ("R_l, local CNNs and DNN", 1e9, "GFLOP/s", True),
    "global_operations": ("R_g, global CNN", 1e9, "GFLOP/s", True),
    "layer_steps": ("t, a layer in a step beyond its arithmetic", 1e6, "µs", False),
    "bytes_read": ("ρ, reading", 1e9, "GB/s", True),
    "messages": ("α", 1e6, "µs", False),
    "bytes_sent": ("β", 1e9, "GB/s", True),
    "collectives": ("o, a collective beyond its messages", 1e6, "µs", False),
    "reduce_messages": ("α', of DDP's all-reduce", 1e6, "µs", False),
    "reduce_bytes": ("β', of DDP's all-reduce", 1e9, "GB/s", True),
}  # what they are called, units and whether the number is one per second


def predict(study: Path, ranks: Sequence[int], given: dict[str, float], launcher: Sequence[str] | None, output: Path, kind: Kind) -> None:
    """Writes predict.csv, predict.md and predict.png, and prints the tables.

    Args:
        given: seconds per count of the machine that is predicted, as far as they are known; the others are those of this one.
        launcher: of the program that measures this machine; None: do not.

    Raises:
        InputError: no finished study, or nothing is known of the network.
    """
    from ddcnn.report.figures import draw

    if launcher is None and not {"messages", "bytes_sent"} <= set(given):
        raise InputError("nothing is known of the network: add --measure, or --latency-us and --bandwidth-gb")
    runs = measured([study], kind)
    workload = Workload.of(load(RunFolder(runs[0].folder)), kind, set(runs[0].seconds))
    most = max(run.ranks for run in runs) if kind == "strong" else workload.ranks
    if most > prod(workload.grid):
        raise InputError(f"{study}: {most} ranks trained {prod(workload.grid)} subdomains, in groups, which are not modelled: study fewer")
    with disk_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    machine = Counts(collectives=POLLING, bytes_read=1 / READING)
    machine = machine._replace(**(given if launcher is None else measured_speed(launcher, study, output)))
    model = fitted(workload, points_of(runs, kind), machine, given)
    wanted = [model.at(number) for number in sorted({*(point.ranks for point in model.points), *ranks})]
    write_text(output / "predict.csv", csv_text(csv_row(one, workload) for one in wanted))
    write_text(output / "predict.md", text(model, wanted, runs[0]))

    def figure() -> Any:
        from ddcnn.report.figures import studies

        return studies.predicted(
            [one.ranks for one in wanted],
            {method: [workload.in_all(method, one.seconds) for one in wanted] for method in workload.methods},
            {phase: [one.seconds.get(phase) for one in wanted] for phase in workload.phases if phase not in workload.methods},
            [point.ranks for point in model.points],
            {method: [workload.in_all(method, point.seconds) for point in model.points] for method in workload.methods},
            kind,
        )

    draw(output / "predict.png", figure)
    tables = (
        f"The model against what was measured:\n\n{error_table(model)}\n\n"
        f"Seconds by the model. {extrapolated(model)}\n\n{time_table(workload, wanted)}\n{refusals(wanted)}"
    )
    logger.info("%s\nprediction: %s", tables, output / "predict.md")


def measured_speed(launcher: Sequence[str], study: Path, output: Path) -> dict[str, float]:
    """Seconds per count of this machine's network, and of reading a set of the study if there is one."""
    sets = sorted(map(str, (study / "partitions").glob("*.h5")))[-1:]
    log = output / "network_speed.log"
    program = [sys.executable, "-m", "ddcnn.scaling.machine_benchmark", *sets]
    execute([*find_launcher(launcher), "-n", "2", *program], log, dict(os.environ))
    with reading(log, *DAMAGED), parsing():
        speed = json.loads(next((line for line in log.read_text("utf-8").splitlines() if line.startswith("{")), ""))
        return {name: float(speed[name]) for name in Counts._fields if name in speed and name not in FITTED}


def text(model: Model, wanted: Sequence[Predicted], run: Measured) -> str:
    """predict.md."""
    conditions = ", ".join(f"{name} {run.conditions[name]}" for name in ("device", "precision", "threads per rank", "torch"))
    return f"""# Prediction

**{extrapolated(model)}**

{OF_KIND[model.workload.kind]} {DDP}

{time_table(model.workload, wanted)}

{TIMES_NOTE}
{refusals(wanted)}
![time over ranks](predict.png)

## Compared with what was measured

Every number of ranks, with the model fitted to the others only ({conditions}; medians of the repetitions). {worst(model)}

{error_table(model)}

## The machine

Fitted to all measured points, in relative least squares: R_l, R_g and t; the others are measured apart, or given. The equations
are in the docstring of `ddcnn.method.work`.

{rate_table(model)}
{undetermined(model)}
## Not modelled

{NOT_MODELLED}
"""


def extrapolated(model: Model) -> str:
    """Which of the numbers of ranks were measured."""
    ranks = sorted({point.ranks for point in model.points})
    names = f"{', '.join(map(str, ranks))} {'rank' if ranks == [1] else 'ranks'}"
    return f"Measured: {names}. All else is the model's extrapolation, the farther the less sure."


def refusals(wanted: Sequence[Predicted]) -> str:
    """Notes on numbers of ranks without a prediction."""
    lines = [f"{one.ranks} ranks: {one.refusal}" for one in wanted if one.refusal]
    if crowded := [one.ranks for one in wanted if one.sizes and not one.sizes.global_fits]:
        lines.append(f"From {crowded[0]} ranks on there are not two training samples a rank for the global CNN")
    return "".join(f"\n{line}.\n" for line in lines)


def worst(model: Model) -> str:
    """The largest error of the whole time."""
    most = max((one for one in model.compared if one.phase == TOTAL), key=lambda one: abs(one.error))
    return f"The whole time is off by at most {100 * abs(most.error):.1f} % (on {most.ranks} ranks)."


def error_table(model: Model) -> str:
    rows = [(one.ranks, one.phase, f"{one.measured:.3f}", f"{one.predicted:.3f}", f"{100 * one.error:+.1f}") for one in model.compared]
    return table(("ranks", "phase", "measured s", "model s, fitted without it", "error in %"), rows)


def time_table(workload: Workload, wanted: Sequence[Predicted]) -> str:
    """Seconds on every number of ranks: of the phases, and of the methods in all."""
    phases, methods = [phase for phase in workload.phases if phase != "global"], workload.methods
    rows = []
    for one in wanted:
        sizes, in_all = one.sizes, [workload.in_all(method, one.seconds) for method in methods]
        first, ddp = in_all[0], in_all[-1]
        batch = sizes.global_share * one.ranks if sizes and sizes.global_fits else "–"
        rows.append((
            one.ranks, sizes.subdomains if sizes else "–", times(sizes.subimage) if sizes else "–",
            *(short(one.seconds.get(phase)) for phase in phases), *map(short, in_all), short(one.communication.get("global")),
            batch, number(ddp / first if first and ddp else None, "{:.3g}"),
        ))  # fmt: skip
    in_alls = [f"**{'DDP' if method == 'global' else method}** total s" for method in methods]
    header = ("ranks", "subdomains", "subimage", *(f"{phase} s" for phase in phases), *in_alls, "all-reduce of DDP s", "batch of DDP")
    return table((*header, f"DDP s over {methods[0]} s"), rows)


def short(seconds: float | None) -> str:
    return number(seconds, "{:.3g}" if seconds and seconds < 100 else "{:.0f}")


def rate_table(model: Model) -> str:
    """The machine of the study and the one that is predicted."""

    def shown(machine: Counts, name: str) -> str:
        _, factor, unit, inverse = RATES[name]
        value = getattr(machine, name)
        return f"{(1 / value / factor if inverse else value * factor):.4g} {unit}" if value else "–"

    rows = [(title, shown(model.measured, name), shown(model.predicted, name)) for name, (title, *_) in RATES.items()]
    return table(("rate", "measured machine", "predicted machine"), rows)


def undetermined(model: Model) -> str:
    """Notes on the rates that the study does not determine."""
    notes = {
        "layer_steps": "All steps are alike, so that t cannot be told from arithmetic and is taken as zero: the times of smaller "
        "subimages, and of small shares of a batch, are predicted too short. A study with the methods `dnn` and `global` tells.",
        "global_operations": "No global CNN was trained: R_g is taken to be R_l, which wider layers usually exceed.",
    }
    return "".join(f"\n{note}\n" for name, note in notes.items() if name in model.undetermined)


def csv_row(one: Predicted, workload: Workload) -> dict[str, Any]:
    """A row of predict.csv, by column."""
    sizes, kinds = one.sizes, {"seconds": one.seconds, "reading": one.reading, "communication": one.communication}
    return {
        "ranks": one.ranks, "subdomains": sizes and sizes.subdomains, "subimage": sizes and times(sizes.subimage),
        **{f"{phase}_{kind}": values.get(phase) for kind, values in kinds.items() for phase in workload.phases},
        **{f"method_{method}_seconds": workload.in_all(method, one.seconds) for method in workload.methods},
        "refusal": one.refusal,
    }  # fmt: skip
