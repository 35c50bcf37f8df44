"""Variants of a run against each other, seed by seed: what a choice of options brings on a set.

    python benchmarks/compare.py --data-root DIR --variant NAME="OPTIONS" --variant … [--seeds 5] [--ranks 2] [-- options of all]
    python benchmarks/compare.py --variant global="--methods global" --variant maps="--methods transfer --interface maps" -- --data cifar10

Runs are made one after the other, seed by seed, variant by variant. Finished runs are kept and not repeated. Prints JSON and a table of all
methods: validation and test accuracy (or, with --measure auc, the AUC of the test images), mean and standard deviation over the seeds, and
the difference in the latter to the method --against of the first variant that has it: mean, 95 % interval and p value of Student's paired
test.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from study import finished, paired, spread, told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--variant", action="append", required=True, metavar="NAME=OPTIONS")
    parser.add_argument("--against", default="", help="method of the first variant that has it (default: the first one's first method)")
    parser.add_argument("--measure", choices=("test_accuracy", "auc"), default="test_accuracy")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    common = ["--precision", "fp32", "--threads", "1", "--no-figures", "--data-root", asked.data_root]
    common += ["--partitions", str(asked.output / "partitions"), *asked.further]
    variants = dict(variant.split("=", 1) for variant in asked.variant)
    rows: dict[str, dict[str, Any]] = {}
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        for name, options in variants.items():
            results = finished(asked.output / f"{name}-seed-{seed}", asked.ranks, [*common, *options.split(), "--seed", str(seed)])
            for method, one in results["methods"].items():
                row = rows.setdefault(
                    f"{name}: {method}", {"validation_accuracy": [], asked.measure: [], "seconds": [], "epochs": one["epochs"]}
                )
                for measure in ("validation_accuracy", asked.measure):
                    row[measure].append(100 * one[measure] if one[measure] is not None else None)
                row["seconds"].append(one["seconds"]["total"])
    base = next(row[asked.measure] for name, row in rows.items() if name.endswith(f": {asked.against}") or not asked.against)
    for row in rows.values():
        if row[asked.measure] is not base and None not in row[asked.measure]:
            row["difference"] = paired(row[asked.measure], base)
    document = {"benchmark": "compare", "ranks": asked.ranks, "options": " ".join(common), "variants": variants, "methods": rows}
    print(json.dumps(document, indent=1))
    print(table(rows, asked.measure))


def table(rows: dict[str, dict[str, Any]], measure: str) -> str:
    name = measure.replace("_", " ").replace("auc", "AUC")
    lines = [f"| | validation accuracy in % | {name} in % | difference, 95 % interval (p) | seconds |", "| :-- | --: | --: | --: | --: |"]
    for title, row in rows.items():
        cells = (spread(row["validation_accuracy"]), spread(row[measure]), told(row.get("difference")), f"{np.mean(row['seconds']):.0f}")
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
