"""Accuracy of vote, average and CNN-DNN over several seeds, for each way to choose the DNN's samples.

    python benchmarks/accuracy.py --data-root DIR [--sets cifar10 fashion-mnist] [--seeds 3] [--ranks 2] [--output runs/accuracy]

Starts ``mpirun -n RANKS python -m ddcnn run`` for every set, seed and choice (finished runs are kept and not repeated), and prints
JSON and a table of mean ± standard deviation over the seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

OPTIONS = {
    "cifar10": ["--train-samples", "20000", "--epochs", "8"],
    "fashion-mnist": ["--train-samples", "20000", "--epochs", "5", "--width", "16"],
}
CHOICES = ("train", "holdout", "out-of-fold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--sets", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--choices", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    found = []
    for name in asked.sets:
        for choice in asked.choices:
            runs = [run(asked, name, choice, seed) for seed in range(asked.seeds)]
            found.append({"data": name, "dnn_data": choice, "options": OPTIONS[name] + asked.further, "seeds": asked.seeds} | summary(runs))
    print(json.dumps({"benchmark": "accuracy", "environment": runs[0]["environment"], "results": found}, indent=1))
    print("\n| set | DNN trained on | best local CNN | vote | average | dnn | local phase, s |")
    print("| :-- | :-- | --: | --: | --: | --: | --: |")
    for row in found:
        cells = [row["data"], row["dnn_data"], *(percent(row[name]) for name in ("local", "vote", "average", "dnn"))]
        print("| " + " | ".join([*cells, f"{row['local_seconds']:.0f}"]) + " |")


def run(asked: argparse.Namespace, name: str, choice: str, seed: int) -> dict:
    folder = asked.output / "-".join([name, choice, str(seed), *(word.strip("-") for word in asked.further)])
    if not (folder / "results.json").is_file():
        command = ["mpirun", "-n", str(asked.ranks), sys.executable, "-m", "ddcnn", "run", "--data", name, "--data-root", asked.data_root]
        command += [*OPTIONS[name], "--methods", "vote,average,dnn", "--dnn-data", choice, "--seed", str(seed)]
        command += ["--threads", "1", "--output", str(folder), "--progress", "none"]
        subprocess.run(command + asked.further, check=True, stdout=sys.stderr)
    return json.loads((folder / "results.json").read_text("utf-8"))


def summary(runs: list[dict]) -> dict:
    accuracies = {name: [run["methods"][name]["test_accuracy"] for run in runs] for name in ("vote", "average", "dnn")}
    accuracies["local"] = [max(part["test_accuracy"] for part in run["decomposition"]["subdomains"]) for run in runs]
    return accuracies | {"local_seconds": statistics.mean(run["phases"]["local"]["seconds"] for run in runs)}


def percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


if __name__ == "__main__":
    main()
