"""What makes narrow CNNs fast: operations a second of a built-in network by its width and batch.

    python benchmarks/narrow.py [--widths 4,8,12,16,20,24,32] [--batch-sizes 128,512] [--sides 20,20] [--coarse-stages 1] [--rounds 5]

All run in turn in one process, forward, backward and step, A B C C B A …, one thread. Prints JSON and a table of medians:
the time of 512 samples, and 10⁹ multiplications and additions a second, forward and backward.
"""

import argparse
import json
import statistics
from functools import partial

import torch
from engine import bare_epoch, random_subimages, timed_in_turn

from ddcnn.networks.operations import trained_operations
from ddcnn.networks.registry import Design, make
from ddcnn.networks.shape import Shape
from ddcnn.parallel.allocator import keep_freed
from ddcnn.parallel.seeding import Seeds
from ddcnn.training.loop import build
from ddcnn.training.precision import DevicePolicy

SAMPLES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", default="4,8,12,16,20,24,32")
    parser.add_argument("--batch-sizes", default="128,512")
    parser.add_argument("--sides", default="20,20")
    parser.add_argument("--network", default="vgg9")
    parser.add_argument("--coarse-stages", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    keep_freed()
    torch.set_num_threads(1)
    spatial = tuple(map(int, asked.sides.split(",")))
    shape, policy = Shape(spatial, 3, 10), DevicePolicy.choose(torch.device("cpu"), asked.precision)
    samples = random_subimages(SAMPLES, spatial, policy.device)
    sides, operations = {}, {}
    for width in map(int, asked.widths.split(",")):
        new = partial(make, Design(asked.network, width, coarse_stages=asked.coarse_stages), shape)
        with torch.device("meta"):
            operations[width] = trained_operations(new(), (3, *spatial))
        for size in map(int, asked.batch_sizes.split(",")):
            batches = [(samples.batch(index)[0], samples.labels[index]) for index in torch.arange(SAMPLES).split(size)]
            sides[width, size] = partial(bare_epoch, build(new, Seeds(0, "benchmark"), policy), batches, policy)
    medians = {side: statistics.median(seconds) for side, seconds in timed_in_turn(sides, asked.rounds).items()}
    rows = [
        {"width": width, "batch_size": size, "milliseconds": 1e3 * seconds, "operations_per_second": operations[width] * SAMPLES / seconds}
        for (width, size), seconds in medians.items()
    ]
    print(json.dumps({"benchmark": "narrow", **vars(asked), "torch": torch.__version__, "rows": rows}, indent=1))
    print("| width | batch | ms | 10⁹ operations a second |\n| --: | --: | --: | --: |")
    for row in rows:
        print(f"| {row['width']} | {row['batch_size']} | {row['milliseconds']:.0f} | {row['operations_per_second'] / 1e9:.0f} |")


if __name__ == "__main__":
    main()
