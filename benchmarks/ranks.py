"""Two ranks against one on a fixed decomposition, one thread each: how much faster is the local phase?

    python benchmarks/ranks.py [--rounds 5] [--ranks 2] [-- further options of ddcnn run]

Starts whole runs in turn, 1, N, 1, N …, and prints JSON: the seconds of each phase, and the median and spread of the pairwise
speed-ups of the local phase (without the evaluations of the test images between epochs, --evaluate-every 0).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROBLEM = ["--data", "digits", "--grid", "2x2", "--epochs", "20", "--width", "64"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("further", nargs="*", help="the problem, after -- (default: digits, 20 epochs, width 64)")
    asked = parser.parse_args()
    problem = asked.further or PROBLEM
    with tempfile.TemporaryDirectory() as folder:
        pairs = [[phases(ranks, problem, Path(folder)) for ranks in (1, asked.ranks)] for _ in range(asked.rounds)]
    ratios = [alone["local"] / together["local"] for alone, together in pairs]
    print(json.dumps({
        "benchmark": "ranks", "ranks": asked.ranks, "problem": " ".join(problem), "phases": pairs,
        "local_speed_up": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }, indent=1))  # fmt: skip


def phases(ranks: int, problem: list[str], folder: Path) -> dict[str, float]:
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "ddcnn", "run", *problem, "--threads", "1", "--evaluate-every", "0"]
    command += ["--partitions", str(folder), "--output", str(folder / "run"), "--overwrite", "--progress", "none"]
    subprocess.run(command, check=True)
    results = json.loads((folder / "run" / "results.json").read_text())
    return {name: round(phase["seconds"], 3) for name, phase in results["phases"].items()}


if __name__ == "__main__":
    main()
