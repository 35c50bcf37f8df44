"""What ``--dry-run`` estimates, over what the run then takes: time and memory of each phase.

    python benchmarks/dry_run.py [--ranks 1,4] -- the problem: options of ddcnn run

Starts a dry run and the run itself for every number of ranks, and prints JSON: seconds and bytes of each phase, estimated and measured, and
the quotients. The set is partitioned anew, but its files have been read before.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,4")
    parser.add_argument("problem", nargs="*", help="after --")
    asked = parser.parse_args()
    found = {ranks: compared(ranks, asked.problem) for ranks in asked.ranks.split(",")}
    print(json.dumps({"benchmark": "dry_run", "problem": " ".join(asked.problem), "ranks": found}, indent=1))


def compared(ranks: str, problem: list[str]) -> dict[str, dict[str, float]]:
    """Of each phase, and in all but the partitioning: estimated and measured seconds and bytes, and the quotients."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        command = ["mpirun", "-n", ranks, sys.executable, "-m", "ddcnn", "run", *problem, "--threads", "1", "--no-figures"]
        command += ["--partitions", folder, "--output", f"{folder}/run"]
        wide = os.environ | {"COLUMNS": "1000"}
        told = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True, env=wide).stdout
        subprocess.run([*command, "--progress", "none"], check=True, stdout=subprocess.DEVNULL)
        phases = json.loads(Path(folder, "run", "results.json").read_text("utf-8"))["phases"]
    rows = {}
    for line in told.split("\n phase ")[1].split("\n\n")[0].splitlines()[1:]:
        name, time, memory, *_ = re.split(r"\s{2,}", line.strip())
        if name in phases:
            measured = (phases[name]["seconds"], phases[name]["max_rank_memory_bytes"])
            rows[name] = quotients(amount(time, SECONDS), measured[0], amount(memory, BYTES), measured[1])
    trained = [row for name, row in rows.items() if name != "partition"]
    sums = [sum(row[what] for row in trained) for what in ("seconds", "measured_seconds")]
    most = [max(row[what] for row in rows.values()) for what in ("bytes", "measured_bytes")]
    return rows | {"in all": quotients(*sums, *most)}


def amount(text: str, units: dict[str, float]) -> float:
    """``2 h 05 min``, ``1.2 MB``; of ``< 0.1 s`` the bound."""
    words = text.removeprefix("< ").split()
    return sum(float(value) * units[unit] for value, unit in zip(words[::2], words[1::2], strict=True))


def quotients(seconds: float, measured_seconds: float, size: float, measured_size: float) -> dict[str, float]:
    return {
        "seconds": seconds, "measured_seconds": round(measured_seconds, 3), "time": round(seconds / measured_seconds, 3),
        "bytes": size, "measured_bytes": measured_size, "memory": round(size / measured_size, 3),
    }  # fmt: skip


if __name__ == "__main__":
    main()
