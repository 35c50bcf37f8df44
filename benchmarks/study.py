"""A study of accuracy that a referee can follow: learning rates chosen on validation images, as many trials for each side, several seeds.

    python benchmarks/study.py --study NAME --data-root DIR [--output runs/study] [--seeds 5] [--ranks 2] [--jobs 1] [-- options]

1. *Trials*, with a seed of their own: for every side of the comparison, each learning rate of a grid. The best is that with the highest
   validation accuracy; the test images are not looked at (a few are classified, which nobody reads). The trials of transfer start from the
   local CNNs of the best local trial, so it has had the trials of both; coherent and the baseline have as many as these together.
2. *The study*: a run of all methods with the learning rates that were chosen, with other seeds; its report has the curves of accuracy over
   wall time. What goes through maps is a second run. Only now the test images are looked at.
3. For each method mean and standard deviation over the seeds, and the difference to the baseline, the undecomposed CNN, with the same
   seed: mean, 95 % interval and p value of Student's paired test.

With --rates-of the rates are those that another study has chosen, and there are no trials. Finished runs are kept and not repeated.
Prints JSON, with every trial, and on standard error the table. With --jobs several runs are made at a time: their seconds are then worth
nothing.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

FEW, MANY = (0.4, 1.0, 2.5), (0.2, 0.4, 0.7, 1.0, 1.6, 2.5)  # learning rates that are tried, over the one in the middle
TRIAL_SEED = 1000


@dataclass(frozen=True)
class Side:
    """Of a comparison.

    Attributes:
        decides: method whose validation accuracy decides.
        rate: option of the learning rate.
        factors: rates that are tried, over the one in the middle.
        methods: that the chosen rate is for.
        start: side whose best trial the trials start from.
        maps: whether they go through maps.
    """

    decides: str
    rate: str
    factors: tuple[float, ...]
    methods: tuple[str, ...]
    start: str = ""
    maps: bool = False


SIDES = {
    "local": Side("dnn", "--lr", FEW, ("vote", "average", "dnn")),
    "transfer": Side("transfer", "--transfer-lr", FEW, ("transfer",), "local"),
    "coherent": Side("coherent", "--coherent-lr", MANY, ("coherent",)),
    "global": Side("global", "--global-lr", MANY, ("global", "spatial")),
    "local, maps": Side("dnn", "--lr", FEW, ("dnn",), maps=True),
    "transfer, maps": Side("transfer", "--transfer-lr", FEW, ("transfer",), "local, maps", True),
    "coherent, maps": Side("coherent", "--coherent-lr", MANY, ("coherent",), maps=True),
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """Of one set and network.

    Attributes:
        options: of all runs.
        middle: of the grid of learning rates of a side, if it is not 0.002; the best has to lie inside of the grid.
        imbalanced: whether trials are judged by the validation loss, and methods by the AUC, since the accuracy says little.
        maps: options of what goes through maps, if that is asked, too.
        spatial: whether `spatial` is trained, too, with the learning rate of `global`, whose network it trains.
    """

    options: str
    middle: dict[str, float] = field(default_factory=dict)
    imbalanced: bool = False
    maps: str = ""
    spatial: bool = False

    @property
    def sides(self) -> dict[str, Side]:
        return {name: side for name, side in SIDES.items() if self.maps or not side.maps}

    def methods(self, side: Side) -> tuple[str, ...]:
        return tuple(method for method in side.methods if self.spatial or method != "spatial")

    @property
    def measure(self) -> str:
        return "auc" if self.imbalanced else "test_accuracy"

    def worth(self, trial: dict[str, float]) -> tuple[float, float]:
        loss, accuracy = trial["validation_loss"], trial["validation_accuracy"]
        return (-loss, accuracy) if self.imbalanced else (accuracy, -loss)

    def rates(self, side: str) -> list[float]:
        return [float(f"{factor * self.middle.get(side, 0.002):.3g}") for factor in SIDES[side].factors]


HIGH = {"local": 0.005, "coherent": 0.005, "global": 0.005, "local, maps": 0.005, "coherent, maps": 0.005}
STUDIES = {
    "cifar10": Study(
        "--data cifar10 --train-samples 20000 --head dense --overlap 8 --augment flip --epochs 3 --transfer-epochs 4"
    ),
    "flowers": Study(
        "--data flower_photos --image-size 96 --width 16 --head dense --overlap 8 --batch-size 32 --augment flip "
        "--epochs 5 --transfer-epochs 3", {"local": 0.0008, "transfer": 0.0008, "global": 0.0008},
    ),
    "adrenal": Study(
        "--data adrenalmnist3d_64.npz --volumes --volume-size 32 --grid 2x2x2 --overlap 4 --network vgg3 --width 8 --head dense "
        "--batch-size 16 --class-weights balanced --epochs 6 --transfer-epochs 3",
        {"local": 0.0008, "transfer": 0.0004, "coherent": 0.0008, "global": 0.0008}, imbalanced=True,
    ),
    "flowers-144": Study(
        "--data flower_photos --image-size 144 --width 16 --overlap 16 --batch-size 32 --augment flip --epochs 5 --transfer-epochs 3",
        maps="--interface maps --share all", spatial=True,
    ),
    "adrenal-64": Study(
        "--data adrenalmnist3d_64.npz --volumes --grid 2x2x2 --overlap 8 --network vgg3 --width 8 --batch-size 16 "
        "--class-weights balanced --epochs 6 --transfer-epochs 3", imbalanced=True, maps="--interface maps --share all",
    ),
    "digits-256": Study(
        "--data scattered-digits:256x256x6700 --width 8 --overlap 32 --batch-size 32 --epochs 4 --transfer-epochs 8", HIGH,
        maps="--interface maps --share all --coarse-stages 0",
    ),
}  # fmt: skip
DIGITS = "--data scattered-digits:{0}x{0}x6700 --network resnet18 --width 16 --overlap {1} --batch-size 32 --epochs 4 --transfer-epochs 8"
STUDIES |= {
    f"digits-{side}-resnet18": Study(DIGITS.format(side, overlap), HIGH, maps="--interface maps --share all")
    for side, overlap in ((256, 32), (512, 64), (1024, 128))
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=STUDIES, required=True)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=5, help="0: only the trials")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--rates-of", type=Path, metavar="JSON", help="output of the study whose learning rates are taken")
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    study, folder = STUDIES[asked.study], asked.output / asked.study
    common = [*f"{study.options} --precision fp32 --threads 1".split(), "--data-root", asked.data_root]
    common += ["--partitions", str(asked.output / "partitions"), *asked.further]
    vectors, maps = [*common, "--interface", "features"], [*common, *study.maps.split()]
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in study.sides}
    chosen: dict[str, float] = {}

    def tried(name: str, rate: float) -> dict[str, Any]:
        side = SIDES[name]
        options = [*(maps if side.maps else vectors), "--seed", str(TRIAL_SEED), "--methods", side.decides, side.rate, str(rate)]
        start = f"{side.start}-{chosen[side.start]}" if side.start else ""
        if start:
            options += ["--start-from", str(folder / start), SIDES[side.start].rate, str(chosen[side.start])]
        trial = folder / "-".join(filter(None, (name, str(rate), start)))
        found = finished(trial, asked.ranks, [*options, "--evaluate-every", "0", "--test-samples", "100"])["methods"][side.decides]
        return {"lr": rate} | {one: found[one] for one in ("validation_accuracy", "validation_loss")}

    def trained(through_maps: bool, seed: int) -> dict[str, Any]:
        sides = {name: side for name, side in study.sides.items() if side.maps == through_maps}
        methods = [method for side in sides.values() for method in study.methods(side)]
        options = [*(maps if through_maps else vectors), "--seed", str(seed), "--methods", ",".join(methods)]
        options += [word for name, side in sides.items() for word in (side.rate, str(chosen[name]))]
        return finished(folder / f"{'maps' if through_maps else 'vectors'}-seed-{seed}", asked.ranks, options)

    with ThreadPoolExecutor(asked.jobs) as pool:
        if asked.rates_of:
            chosen |= json.loads(asked.rates_of.read_text("utf-8"))["chosen"]
        for first in () if asked.rates_of else (True, False):  # then what starts from the best of them
            names = [name for name, side in study.sides.items() if bool(side.start) != first]
            rates = [(name, rate) for name in names for rate in study.rates(name)]
            for (name, _), trial in zip(rates, pool.map(tried, *zip(*rates, strict=True)), strict=True):
                trials[name].append(trial)
            chosen |= {name: max(trials[name], key=study.worth)["lr"] for name in names}
        if not asked.seeds:
            print(json.dumps({"trials": trials, "chosen": chosen}, indent=1))
            return
        kinds = (False, True) if study.maps else (False,)
        runs = [(kind, seed) for kind in kinds for seed in range(asked.seeds)]
        results = dict(zip(runs, pool.map(trained, *zip(*runs, strict=True)), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for name, side in study.sides.items():
        for method in study.methods(side):
            each, whole = ([results[kind, seed]["methods"] for seed in range(asked.seeds)] for kind in (side.maps, False))
            tries = len(trials[name]) + (len(trials[side.start]) if side.start else 0)
            rows[f"{method}, maps" if side.maps else method] = {
                "trials": tries, "lr": chosen[name],
                **row([one[method] for one in each], None if method == "global" else [one["global"] for one in whole], study.measure),
            }  # fmt: skip
    document = {
        "benchmark": "study", "name": asked.study, "options": " ".join(common), "maps": study.maps, "trials": trials, "chosen": chosen,
        "methods": rows, "environment": results[False, 0]["environment"],
    }  # fmt: skip
    print(json.dumps(document, indent=1))
    print(table(rows, study.measure), file=sys.stderr)


def finished(folder: Path, ranks: int, options: list[str]) -> dict[str, Any]:
    """The results of a run, which is made, or gone on with, unless it has finished; one of other options ends the study."""
    asked, text = folder.with_name(f"{folder.name}.options"), " ".join([f"{ranks} ranks", *options])
    folder.parent.mkdir(parents=True, exist_ok=True)
    if asked.is_file() and asked.read_text("utf-8") != text:
        sys.exit(f"{folder} is of other options: give another --output, or delete it")
    asked.write_text(text, "utf-8")
    if not (folder / "results.json").is_file():
        command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "ddcnn", "run", *options, "--output", str(folder), "--resume"]
        subprocess.run([*command, "--progress", "none"], check=True, stdout=sys.stderr)
    return json.loads((folder / "results.json").read_text("utf-8"))


def row(each: list[dict[str, Any]], base: list[dict[str, Any]] | None, measure: str) -> dict[str, Any]:
    """What the seeds have come to, in percent, and the difference to the baseline of the same seed in the measure of the study."""
    found: dict[str, Any] = {
        "test_accuracy": [100 * one["test_accuracy"] for one in each], "auc": [100 * one["auc"] if one["auc"] else None for one in each],
        "total_seconds": [one["seconds"]["total"] for one in each], "bytes": [one["bytes_communicated"] for one in each],
        "parameters": each[0]["parameters"], "epochs": each[0]["epochs"],
    }  # fmt: skip
    if base and None not in found[measure]:  # vote has no AUC
        found["difference"] = paired(found[measure], [100 * one[measure] for one in base])
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


def table(rows: dict[str, dict[str, Any]], measure: str) -> str:
    name = measure.replace("_", " ").replace("auc", "AUC")
    heads = (
        "method", "trials (chosen)", f"{name} in %", "against `global`: difference, 95 % interval (p)", "parameters", "epochs", "total s",
        "MB sent",
    )  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "| :-- " + "| --: " * (len(heads) - 1) + "|"]
    for method, found in rows.items():
        results = (spread(found[measure]), told(found.get("difference")))
        cells = [f"{found['trials']} ({found['lr']:g})", *results, f"{found['parameters']:,}", str(found["epochs"])]
        cells += [spread(found["total_seconds"]), f"{np.mean(found['bytes']) / 1e6:.3g}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
