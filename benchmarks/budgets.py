"""Transfer against the undecomposed CNN at several budgets: accuracy over multiply-adds, wall time and bytes.

    python benchmarks/budgets.py --data-root DIR [--budgets 3=1+3,7=2+8] [--rates 0.002,0.004] [--seeds 5] [--ranks 2] [-- options of run]

A budget is epochs of global = epochs of local training + epochs of transfer; the further options are those of all runs. With --rates, each
side first tries these learning rates at the first budget, with a seed of their own, and takes the one with the best validation accuracy
(one rate for both trainings of a side, so that both have as many trials); test images are not looked at. Then runs are made one after the
other, seed by seed and side by side. Finished runs are kept and not repeated. Prints JSON and a table: mean and standard deviation over the
seeds, and the difference of the two sides with the same seed: mean, 95 % interval and p value of Student's paired test.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import TRIAL_SEED, finished, paired, spread, told

from ddcnn.decomposition import Decomposition
from ddcnn.io.run_folder import RunFolder
from ddcnn.method.costs import networks

SIDES = ("transfer", "global")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--budgets", default="3=1+3,7=2+8")
    parser.add_argument("--rates", default="", help="learning rates that both sides try (default: that of the further options)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/budgets"))
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    common = ["--precision", "fp32", "--threads", "1", "--evaluate-every", "0", "--no-figures", "--data-root", asked.data_root]
    common += ["--partitions", str(asked.output / "partitions"), *asked.further]
    budgets = [tuple(map(int, budget.replace("=", "+").split("+"))) for budget in asked.budgets.split(",")]

    def run(method: str, budget: tuple[int, ...], seed: int, rate: list[str], further: Sequence[str] = ()) -> tuple[Path, dict[str, Any]]:
        whole, local, transfer = budget
        name, epochs = f"{local}+{transfer}", ["--epochs", str(local), "--transfer-epochs", str(transfer)]
        if method == "global":
            name, epochs = str(whole), ["--epochs", str(whole), "--global-epochs", str(whole)]
        folder = asked.output / "-".join([method, name, "seed", str(seed), *rate[1:2]])
        return folder, finished(folder, asked.ranks, [*common, *epochs, *rate, *further, "--methods", method, "--seed", str(seed)])

    trials: dict[str, dict[str, float]] = {method: {} for method in SIDES}
    chosen: dict[str, list[str]] = {method: [] for method in SIDES}
    for method in SIDES if asked.rates else ():
        for rate in asked.rates.split(","):
            _, results = run(method, budgets[0], TRIAL_SEED, ["--lr", rate, "--transfer-lr", rate], ["--test-samples", "100"])
            trials[method][rate] = 100 * results["methods"][method]["validation_accuracy"]
        best = max(trials[method], key=trials[method].__getitem__)
        chosen[method] = ["--lr", best, "--transfer-lr", best]
    found: dict[tuple[int, ...], dict[str, list[dict[str, Any]]]] = {budget: {method: [] for method in SIDES} for budget in budgets}
    for seed in range(asked.seeds):
        for budget, sides in found.items():
            for method, runs in sides.items():
                runs.append(summary(method, *run(method, budget, seed, chosen[method])))
    rows = [row(budget, sides) for budget, sides in found.items()]
    document = {"benchmark": "budgets", "ranks": asked.ranks, "options": " ".join(common), "trials": trials, "budgets": rows}
    print(json.dumps(document, indent=1))
    print(table(rows))


def summary(method: str, folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What a run has come to, and 10¹² multiply-adds of its trainings, forward and backward."""
    settings, shape, one = RunFolder(folder).settings(), results["data"]["shape"], results["methods"][method]
    grid = settings.grid if method == "transfer" else tuple(1 for _ in shape[:-1])
    local, whole, dnn = networks(settings, Decomposition(tuple(shape[:-1]), grid, settings.overlap), shape[-1], results["data"]["classes"])
    subdomains, operations = int(np.prod(grid)), settings.epochs * whole.operations
    if method == "transfer":
        of_locals = subdomains * local.operations
        operations = (settings.epochs + settings.transfer_epochs) * of_locals
        operations += (settings.dnn_epochs + settings.transfer_epochs) * dnn.operations
        operations += of_locals / 3 if settings.dnn_epochs else 0.0  # forward alone, for the gather
    return {
        "accuracy": 100 * one["test_accuracy"], "seconds": one["seconds"]["total"], "bytes": one["bytes_communicated"],
        "multiply_adds": operations * results["data"]["train_samples"] / 2e12,
    }  # fmt: skip


def row(budget: tuple[int, ...], sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    transfer, whole = ([run["accuracy"] for run in sides[method]] for method in SIDES)
    return {"epochs": budget, "sides": sides, "difference": paired(transfer, whole)}


def table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "epochs of global", "of local + transfer", "global in %", "transfer in %", "transfer − global, 95 % interval (p)",
        "10¹² multiply-adds", "seconds", "GB sent",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --: " * len(heads) + "|"]
    for one in rows:
        whole, local, transfer = one["epochs"]
        cells = [str(whole), f"{local} + {transfer}"]
        cells += [spread([run["accuracy"] for run in one["sides"][method]]) for method in reversed(SIDES)]
        cells.append(told(one["difference"]))
        for name, scale in (("multiply_adds", 1), ("seconds", 1), ("bytes", 1e9)):
            means = [np.mean([run[name] for run in one["sides"][method]]) / scale for method in reversed(SIDES)]
            cells.append(" → ".join(f"{mean:.3g}" for mean in means))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
