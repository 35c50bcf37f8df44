"""Partitioning by N ranks against one: whole processes, start included, and the memory of a rank.

    python benchmarks/partitioning.py [--rounds 5] [--ranks 2] -- SOURCE [options of ddcnn partition]

Starts ``ddcnn partition`` in turn, 1, N, 1, N …, and prints JSON: seconds, the median and spread of the pairwise ratios, and by how much
the peak of a rank's resident memory exceeds what it has once Python, MPI and all libraries are loaded. Of a source that is one file, a
plain copy of as many bytes as the partitioned set has, to the same disk and synced, takes its turn too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    if sys.argv[1:2] == ["--one-rank"]:
        sys.exit(one_rank(sys.argv[2], sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("source", nargs="+", help="SOURCE and options of ddcnn partition, after --")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        pairs, copies = [], []
        for _ in range(asked.rounds):
            pairs.append([partition(ranks, asked.source, Path(folder)) for ranks in (1, asked.ranks)])
            if Path(asked.source[0]).is_file():
                copies.append(copy(Path(asked.source[0]), Path(folder)))
    ratios = [together["seconds"] / alone["seconds"] for alone, together in pairs]
    print(json.dumps({
        "benchmark": "partitioning", "ranks": asked.ranks, "source": " ".join(asked.source), "rounds": pairs, "copies": copies,
        "ratio": spread(ratios),
        "copy_to_partitioning": {
            ranks: spread([seconds / pair[place]["seconds"] for seconds, pair in zip(copies, pairs, strict=True)])
            for place, ranks in enumerate((1, asked.ranks))
            if copies
        },
        "mebibytes_above_start": max(run["mebibytes_above_start"] for pair in pairs for run in pair),
    }, indent=1))  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}


def copy(source: Path, folder: Path) -> float:
    """Seconds for as many bytes as there are in the partitioned set, out of the source, from its beginning again if it is smaller."""
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    begin = time.perf_counter()
    with source.open("rb") as file, (folder / "copy").open("wb") as target:
        while left:
            piece = file.read(min(left, 1 << 24))
            if not piece:
                file.seek(0)
            left -= target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    seconds = time.perf_counter() - begin
    (folder / "copy").unlink()
    return round(seconds, 2)


def partition(ranks: int, source: list[str], folder: Path) -> dict[str, float]:
    memory = folder / "memory"
    command = ["mpirun", "-n", str(ranks), sys.executable, __file__, "--one-rank", str(memory)]
    begin = time.perf_counter()
    command += ["partition", *source, "--output", str(folder / "set.h5"), "--progress", "none"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    above = max(int(path.read_text("utf-8")) for path in folder.glob("memory.*"))
    for path in folder.glob("memory.*"):
        path.unlink()
    return {"ranks": ranks, "seconds": round(seconds, 2), "mebibytes_above_start": above}


def one_rank(memory: str, arguments: list[str]) -> int:
    """A rank of ``ddcnn``, which writes down its memory at the end."""
    import ddcnn.experiment.plan  # noqa: F401  # not counted as memory of the partitioning
    from ddcnn.__main__ import main as run_ddcnn

    sys.argv = ["ddcnn", *arguments]
    start = resident("VmRSS")
    code = run_ddcnn()
    Path(f"{memory}.{os.getpid()}").write_text(str(resident("VmHWM") - start), "utf-8")
    return code


def resident(what: str) -> int:
    """Mebibytes, of Linux's own count."""
    line = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if line.startswith(what))
    return int(line.split()[1]) >> 10


if __name__ == "__main__":
    main()
