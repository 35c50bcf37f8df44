"""A study of accuracy that a referee can follow: learning rates chosen on validation images, as many trials for each side, several seeds.

    python benchmarks/study.py --study NAME --data-root DIR [--output runs/study] [--seeds 5] [--ranks 2] [-- further options of ddcnn run]

1. *Trials*, with a seed of their own: for every side of the comparison, each learning rate of a grid. The best is that with the highest
   validation accuracy; the test images are not looked at (a few are classified, which nobody reads). The trials of transfer start from the
   local CNNs of the best local trial, so it has had the trials of both; coherent and the baseline have as many as these together.
2. *The study*: one run of all methods with the learning rates that were chosen, with other seeds; its report has the curves of accuracy
   over wall time. Only now the test images are looked at.
3. For each method mean and standard deviation over the seeds, and the difference to the baseline, the undecomposed CNN, with the same
   seed: mean, 95 % interval and p value of Student's paired test.

Finished runs are kept and not repeated. Prints JSON, with every trial, and the table.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

FEW, MANY = (0.4, 1.0, 2.5), (0.2, 0.4, 0.7, 1.0, 1.6, 2.5)  # learning rates that are tried, over the one in the middle
TRIAL_SEED = 1000
SIDES = {  # of a comparison: the method whose validation accuracy decides, the option of its learning rate, and what is tried
    "local": ("dnn", "--lr", FEW), "transfer": ("transfer", "--transfer-lr", FEW),
    "coherent": ("coherent", "--coherent-lr", MANY), "global": ("global", "--global-lr", MANY),
}  # fmt: skip
METHODS = {"vote": "local", "average": "local", "dnn": "local", "coherent": "coherent", "transfer": "transfer", "global": "global"}


@dataclass(frozen=True)
class Study:
    """Of one set and network.

    Attributes:
        options: of all runs.
        middle: of the grid of learning rates of a side, if it is not 0.002; the best has to lie inside of the grid.
        imbalanced: whether trials are judged by the validation loss, and methods by the AUC, since the accuracy says little.
    """

    options: str
    middle: dict[str, float] = field(default_factory=dict)
    imbalanced: bool = False

    @property
    def measure(self) -> str:
        return "auc" if self.imbalanced else "test_accuracy"

    def worth(self, trial: dict[str, float]) -> tuple[float, float]:
        loss, accuracy = trial["validation_loss"], trial["validation_accuracy"]
        return (-loss, accuracy) if self.imbalanced else (accuracy, -loss)

    def rates(self, side: str) -> list[float]:
        return [float(f"{factor * self.middle.get(side, 0.002):.3g}") for factor in SIDES[side][2]]


STUDIES = {
    "cifar10": Study(
        "--data cifar10 --train-samples 20000 --head dense --overlap 8 --interface features --augment flip --epochs 3 --transfer-epochs 4"
    ),
    "flowers": Study(
        "--data flower_photos --image-size 96 --width 16 --head dense --overlap 8 --batch-size 32 --interface features --augment flip "
        "--epochs 5 --transfer-epochs 3", {"local": 0.0008, "transfer": 0.0008, "global": 0.0008},
    ),
    "adrenal": Study(
        "--data adrenalmnist3d_64.npz --volumes --volume-size 32 --grid 2x2x2 --overlap 4 --network vgg3 --width 8 --head dense "
        "--batch-size 16 --class-weights balanced --interface features --epochs 6 --transfer-epochs 3",
        {"local": 0.0008, "transfer": 0.0004, "coherent": 0.0008, "global": 0.0008}, imbalanced=True,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=5, help="0: only the trials")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    study, folder = STUDIES[asked.study], asked.output / asked.study
    common = [*f"{study.options} --precision fp32 --threads 1".split(), "--data-root", asked.data_root]
    common += ["--partitions", str(asked.output / "partitions"), *asked.further]

    trials: dict[str, list[dict[str, float]]] = {}
    chosen: dict[str, float] = {}
    for side, (method, option, _) in SIDES.items():
        options = [*common, "--seed", str(TRIAL_SEED), "--methods", method, "--evaluate-every", "0", "--test-samples", "100"]
        start = f"local-{chosen['local']}" if side == "transfer" else ""
        if start:
            options += ["--start-from", str(folder / start), "--lr", str(chosen["local"])]
        trials[side] = []
        for rate in study.rates(side):
            trial = folder / "-".join(filter(None, (side, str(rate), start)))
            found = finished(trial, asked.ranks, [*options, option, str(rate)])["methods"][method]
            trials[side].append({"lr": rate} | {name: found[name] for name in ("validation_accuracy", "validation_loss")})
        chosen[side] = max(trials[side], key=study.worth)["lr"]

    if not asked.seeds:
        print(json.dumps({"trials": trials, "chosen": chosen}, indent=1))
        return
    best = [word for side, rate in chosen.items() for word in (SIDES[side][1], str(rate))]
    run = folder / "study"
    finished(run, asked.ranks, [*common, *best, "--seeds", str(asked.seeds), "--methods", ",".join(METHODS)])
    seeds = [run / f"seed-{seed}" for seed in range(asked.seeds)] if asked.seeds > 1 else [run]
    results = [json.loads((seed / "results.json").read_text("utf-8")) for seed in seeds]
    rows = {method: row(method, results, study.measure) for method in METHODS}
    document = {
        "benchmark": "study", "name": asked.study, "options": " ".join(common), "trials": trials, "chosen": chosen, "methods": rows,
        "environment": results[0]["environment"],
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    print(table(rows, trials, chosen, study.measure))


def finished(folder: Path, ranks: int, options: list[str]) -> dict[str, Any]:
    """The results of a run, which is made, or gone on with, unless it has finished."""
    if not (folder / "results.json").is_file():
        command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "ddcnn", "run", *options, "--output", str(folder), "--resume"]
        subprocess.run([*command, "--progress", "none"], check=True, stdout=sys.stderr)
    return json.loads((folder / "results.json").read_text("utf-8"))


def row(method: str, results: list[dict[str, Any]], measure: str) -> dict[str, Any]:
    """What the seeds have come to, in percent, and the difference to the baseline of the same seed in the measure of the study."""
    each = [one["methods"][method] for one in results]
    values, baseline = ([one["methods"][name][measure] for one in results] for name in (method, "global"))
    found: dict[str, Any] = {
        "test_accuracy": [100 * one["test_accuracy"] for one in each], "auc": [100 * one["auc"] if one["auc"] else None for one in each],
        "total_seconds": [one["seconds"]["total"] for one in each], "parameters": each[0]["parameters"], "epochs": each[0]["epochs"],
    }  # fmt: skip
    if method != "global" and len(results) > 1 and None not in values:  # vote has no AUC
        found["difference"] = paired(*([100 * value for value in side] for side in (values, baseline)))
    return found


def paired(values: list[float], base: list[float]) -> dict[str, Any]:
    """Mean of the differences of the same seed; of several, its 95 % interval and p value of Student's paired test."""
    differences = np.subtract(values, base)
    found: dict[str, Any] = {"mean": float(differences.mean())}
    if len(differences) > 1:
        test = stats.ttest_1samp(differences, 0)
        found |= {"interval": list(test.confidence_interval(0.95)), "p": float(test.pvalue)}
    return found


def told(difference: dict[str, Any] | None) -> str:
    """A difference as a cell of a table."""
    if not difference:
        return "–"
    if "interval" not in difference:
        return f"{difference['mean']:+.2f}"
    low, high = difference["interval"]
    return f"{difference['mean']:+.2f}, {low:+.2f} to {high:+.2f} ({difference['p']:.2g})"


def spread(values: Sequence[Any]) -> str:
    """Mean and standard deviation over the seeds, as a cell of a table."""
    if None in values:
        return "–"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


def table(rows: dict[str, dict[str, Any]], trials: dict[str, list[dict[str, float]]], chosen: dict[str, float], measure: str) -> str:
    name = measure.replace("_", " ").replace("auc", "AUC")
    heads = (
        "method", "trials (chosen)", f"{name} in %", "against `global`: difference, 95 % interval (p)", "parameters", "epochs",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| :-- " + "| --: " * (len(heads) - 1) + "|"]
    for method, found in rows.items():
        side = METHODS[method]
        tried = len(trials[side]) + (len(trials["local"]) if side == "transfer" else 0)
        results = (spread(found[measure]), told(found.get("difference")))
        cells = (f"{tried} ({chosen[side]:g})", *results, f"{found['parameters']:,}", str(found["epochs"]))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
