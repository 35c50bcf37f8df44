"""Transfer against the undecomposed CNN at several budgets: accuracy over multiply-adds, wall time and bytes.

    python benchmarks/budgets.py --data-root DIR [--budgets 3=1+3,7=2+6] [--seeds 5] [--ranks 2] [--output runs/budgets] [-- options of run]

A budget is epochs of global = epochs of local training + epochs of transfer; the further options are those of all runs. Runs are made
one after the other, seed by seed and side by side. Finished runs are kept and not repeated. Prints JSON and a table: mean and standard
deviation over the seeds, and the difference of the two sides with the same seed: mean, 95 % interval and p value of Student's paired test.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from study import finished

from ddcnn.config.load import load
from ddcnn.config.settings import RunSettings
from ddcnn.decomposition import Decomposition
from ddcnn.method.costs import networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--budgets", default="3=1+3,7=2+6")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/budgets"))
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    common = ["--precision", "fp32", "--threads", "1", "--evaluate-every", "0", "--no-figures", "--data-root", asked.data_root]
    common += ["--partitions", str(asked.output / "partitions"), *asked.further]
    budgets = [tuple(map(int, budget.replace("=", "+").split("+"))) for budget in asked.budgets.split(",")]
    found: dict[tuple[int, ...], dict[str, list[dict[str, Any]]]] = {budget: {"transfer": [], "global": []} for budget in budgets}
    for seed in range(asked.seeds):
        for (whole, local, transfer), sides in found.items():
            epochs = {
                "transfer": ["--epochs", str(local), "--transfer-epochs", str(transfer)],
                "global": ["--epochs", str(whole), "--global-epochs", str(whole)],
            }  # fmt: skip
            for method, runs in sides.items():
                folder = asked.output / f"{method}-{'+'.join(epochs[method][1::2]) if method == 'transfer' else whole}-seed-{seed}"
                options = [*common, *epochs[method], "--methods", method, "--seed", str(seed)]
                runs.append(summary(method, folder, finished(folder, asked.ranks, options)))
    rows = [row(budget, sides) for budget, sides in found.items()]
    print(json.dumps({"benchmark": "budgets", "ranks": asked.ranks, "options": " ".join(common), "budgets": rows}, indent=1))
    print(table(rows))


def summary(method: str, folder: Path, results: dict[str, Any]) -> dict[str, Any]:
    """What a run has come to, and 10¹² multiply-adds of its trainings, forward and backward."""
    settings, shape, one = load(RunSettings, {}, folder / "config.toml"), results["data"]["shape"], results["methods"][method]
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
    differences = [a["accuracy"] - b["accuracy"] for a, b in zip(sides["transfer"], sides["global"], strict=True)]
    found: dict[str, Any] = {"epochs": budget, "sides": sides, "difference": {"mean": float(np.mean(differences))}}
    if len(differences) > 1:
        paired = stats.ttest_1samp(differences, 0)
        found["difference"] |= {"interval": list(paired.confidence_interval(0.95)), "p": float(paired.pvalue)}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    heads = (
        "epochs of global", "of local + transfer", "global in %", "transfer in %", "transfer − global, 95 % interval (p)",
        "10¹² multiply-adds", "seconds", "GB sent",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| --: " * len(heads) + "|"]
    for one in rows:
        (whole, local, transfer), difference = one["epochs"], one["difference"]
        cells = [str(whole), f"{local} + {transfer}"]
        for method in ("global", "transfer"):
            values = [run["accuracy"] for run in one["sides"][method]]
            cells.append(f"{np.mean(values):.2f}{f' ± {np.std(values, ddof=1):.2f}' if len(values) > 1 else ''}")
        told = f"{difference['mean']:+.2f}"
        if "interval" in difference:
            told += f", {difference['interval'][0]:+.2f} to {difference['interval'][1]:+.2f} ({difference['p']:.2g})"
        cells.append(told)
        for name, scale in (("multiply_adds", 1), ("seconds", 1), ("bytes", 1e9)):
            means = [np.mean([run[name] for run in one["sides"][method]]) / scale for method in ("global", "transfer")]
            cells.append(" → ".join(f"{mean:.3g}" for mean in means))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
