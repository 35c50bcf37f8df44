"""What it costs to read images while the networks train, against images on the device.

    python benchmarks/streaming.py [--data synthetic:32x32x3x10x20000] [--rounds 3] [--ranks 2] [-- further options of run]

Runs alternate between --resident device and --resident stream, of the same seed; the parameters must be the same, bit for bit. Prints JSON:
the median seconds of an epoch of each training, from the second epoch on, and the speed of streaming over that on the device.
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from study import finished

PLACES = ("device", "stream")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="synthetic:32x32x3x10x20000")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    seconds: dict[str, dict[str, list[float]]] = {}
    digests: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        common = ["--data", asked.data, "--partitions", f"{folder}/partitions", "--precision", "fp32", "--threads", "1"]
        common += ["--evaluate-every", "0", "--no-figures", "--epochs", "4", "--methods", "average,global", *asked.further]
        for number in range(asked.rounds):
            for place in PLACES:
                run = Path(folder) / f"{place}-{number}"
                results = finished(run, asked.ranks, [*common, "--resident", place])
                for line in map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines()):
                    if line["epoch"] > 1:
                        seconds.setdefault(line["phase"], {}).setdefault(place, []).append(line["seconds"])
                digests.add(digest(run))
    assert len(digests) == 1, "images that are read meanwhile made other parameters"
    median = {phase: {place: float(np.median(found)) for place, found in places.items()} for phase, places in seconds.items()}
    speed = {phase: places["device"] / places["stream"] for phase, places in median.items()}
    document: dict[str, Any] = {"benchmark": "streaming", "options": " ".join(common), "ranks": asked.ranks, "seconds": median}
    print(json.dumps(document | {"speed_of_stream": speed, "environment": results["environment"]}, indent=1))


def digest(run: Path) -> str:
    """Of the parameters of all networks."""
    found = hashlib.sha256()
    for path in sorted((run / "checkpoints").glob("*.h5")):
        with h5py.File(path) as file:
            for name, values in sorted(file["parameters"].items()):
                found.update(name.encode() + values[...].tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
