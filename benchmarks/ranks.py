"""Several numbers of ranks on a fixed decomposition, one thread each: how much faster is the local phase, and the four phases in all?

    python benchmarks/ranks.py [--rounds 5] [--ranks 1,2] [--precision fp32] [--bare] [-- the problem: options of ddcnn run]

Starts whole runs in turn, 1, 2, 1, 2 …, and prints JSON: the seconds of each phase, and the median and spread of the pairwise speed-ups
to the first number (without the evaluations of the test images between epochs, --evaluate-every 0). ``--bare`` also tells what the
cores give at most: in every round as many processes as ranks run a bare training loop, without MPI, at once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROBLEM = ["--data", "digits", "--grid", "2x2", "--epochs", "20", "--width", "64", "--methods", "vote,average,dnn"]
PHASES = ("partition", "local", "gather", "dnn")
LOOP = """
import sys, time, torch
sys.path.insert(0, "benchmarks")
from engine import bare_epoch, random_subimages
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.precision import DevicePolicy
from ddcnn.parallel.allocator import keep_freed
from ddcnn.training.loop import build
keep_freed()
torch.set_num_threads(1)
policy = DevicePolicy(torch.device("cpu"), sys.argv[1])
network = build(lambda: make(Design("vgg9", 32, 2), Shape((16, 16), 3, 10)), Seeds(0, "bare"), policy)
batches = [random_subimages(128, (16, 16), policy.device).batch(torch.arange(128))] * 30
bare_epoch(network, batches, policy)
begin = time.perf_counter()
for _ in range(4):
    bare_epoch(network, batches, policy)
print(time.perf_counter() - begin)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("problem", nargs="*", default=PROBLEM, help=f"after -- (default: {' '.join(PROBLEM)})")
    asked = parser.parse_args()
    numbers, rounds = [int(number) for number in asked.ranks.split(",")], []
    for _ in range(asked.rounds):
        found = {ranks: phases(ranks, asked.precision, asked.problem) for ranks in numbers}
        if asked.bare:
            for ranks in numbers:
                found[ranks]["bare_loops"] = bare(ranks, asked.precision)
        rounds.append(found)
    first, *others = numbers
    print(json.dumps({
        "benchmark": "ranks", "precision": asked.precision, "problem": " ".join(asked.problem), "seconds": rounds,
        f"speed_up_to_{first}": {
            ranks: {name: spread([found[first][name] / found[ranks][name] for found in rounds]) for name in rounds[0][first]}
            for ranks in others
        },
    }, indent=1))  # fmt: skip


def phases(ranks: int, precision: str, problem: list[str]) -> dict[str, float]:
    """Seconds; the set is partitioned anew in every run."""
    command = ["mpirun", "-n", str(ranks), sys.executable, "-m", "ddcnn", "run", *problem, "--threads", "1", "--evaluate-every", "0"]
    command += ["--precision", precision]
    with tempfile.TemporaryDirectory(dir=".") as folder:
        command += ["--partitions", folder, "--output", f"{folder}/run", "--no-figures", "--progress", "none"]
        subprocess.run(command, check=True)
        results = json.loads(Path(folder, "run", "results.json").read_text("utf-8"))
    found = {name: round(results["phases"][name]["seconds"], 4) for name in PHASES}
    return found | {"all_four": round(sum(found.values()), 4)}


def bare(processes: int, precision: str) -> float:
    """Seconds a loop, of equal loops of which as many run at once as there are processes."""
    with ThreadPoolExecutor(processes) as pool:
        loops = [
            pool.submit(subprocess.run, [sys.executable, "-c", LOOP, precision], check=True, capture_output=True) for _ in range(processes)
        ]
        return round(statistics.mean(float(loop.result().stdout) for loop in loops) / processes, 4)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
