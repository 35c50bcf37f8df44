"""Many ranks for real, more than there are cores: that nothing breaks, what a rank's memory is, how long start and gather take.

    python benchmarks/many_ranks.py [--grid 8x8] [--side 128] [--samples 1280] [-- further options of ddcnn run]

Starts one run with as many ranks as subdomains, watches the memory of its processes (proportional set size: what they share is divided
among them), and prints JSON: seconds in all, of every phase and beside them (start of the processes, reports), and the largest mebibytes
of a rank and of all of them.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="8x8")
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--samples", type=int, default=1280)
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    ranks = math.prod(map(int, asked.grid.split("x")))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "ddcnn", "run", "--grid", asked.grid, "--threads", "1"]
        command += ["--data", f"synthetic:{asked.side}x{asked.side}x10x{asked.samples}", "--network", "vgg3", "--epochs", "1"]
        command += ["--dnn-epochs", "2", "--methods", "vote,average,dnn", "--no-figures", "--progress", "none"]
        command += ["--partitions", folder, "--output", f"{folder}/run", *asked.further]
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        largest, in_all = 0.0, 0.0
        while process.poll() is None:
            sizes = [mebibytes(path) for path in Path("/proc").iterdir() if path.name.isdigit() and is_rank(path, folder)]
            largest, in_all = max([largest, *sizes]), max(in_all, sum(sizes))
            time.sleep(2)
        seconds = time.perf_counter() - begin
        if process.returncode:
            sys.exit(process.returncode)
        results = json.loads(Path(folder, "run", "results.json").read_text("utf-8"))
        phases = {name: round(phase["seconds"], 2) for name, phase in results["phases"].items()}
    print(json.dumps({
        "benchmark": "many_ranks", "ranks": ranks, "command": " ".join(command[5:]), "seconds": round(seconds, 1),
        "phases": phases, "beside_phases": round(seconds - sum(phases.values()), 1),
        "mebibytes": {"largest_rank": round(largest), "all_ranks": round(in_all), "mean_rank": round(in_all / ranks)},
        "results": {name: round(method["test_accuracy"], 4) for name, method in results["methods"].items()},
    }, indent=1))  # fmt: skip


def is_rank(path: Path, folder: str) -> bool:
    try:
        words = (path / "cmdline").read_text("utf-8").split("\0")
    except OSError:  # it has ended
        return False
    return "ddcnn" in words and folder in words and "-n" not in words


def mebibytes(path: Path) -> float:
    try:
        lines = (path / "smaps_rollup").read_text("utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
