"""Images per second of ``predict`` on one process, file to file, against a bare loop over the same module with all images in memory.

    mpirun -n 2 python -m ddcnn run --data cifar10 --data-root data --output runs/cifar10 …
    python benchmarks/prediction.py runs/cifar10 cifar10 --data-root data

Prints JSON: images/s of both sides and their ratio in every round, in which they follow each other in alternating order, and the median
of the ratios. Both use one thread.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from ddcnn.config.trained_settings import PredictSettings
from ddcnn.inference.network import assemble
from ddcnn.inference.predict import BATCH, predict, select_images
from ddcnn.inference.trained_run import TrainedRun
from ddcnn.parallel.allocator import keep_freed
from ddcnn.parallel.devices import choose_device
from ddcnn.parallel.world import World
from ddcnn.training.precision import DevicePolicy

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run", type=Path)
parser.add_argument("source")
parser.add_argument("--data-root", type=Path, default=Path("data"))
parser.add_argument("--method")
parser.add_argument("--rounds", type=int, default=7)
given = parser.parse_args()


def images_per_second(images: int, work) -> float:
    begin = time.perf_counter()
    work()
    return images / (time.perf_counter() - begin)


keep_freed()  # for both sides
with tempfile.TemporaryDirectory() as folder:
    world = World()
    settings = PredictSettings(
        run=given.run, source=given.source, data_root=given.data_root, method=given.method, output=Path(folder) / "p.csv",
        overwrite=True, threads=1, progress="none",
    )  # fmt: skip
    run = TrainedRun.open(given.run)
    policy = DevicePolicy.choose(choose_device(world, "auto"), run.results.environment.precision)
    network = assemble(run, given.method).eval()
    policy.place(network)
    selection = select_images(settings, run)
    images = torch.from_numpy(selection.images.read(selection.chosen)).to(policy.device).movedim(-1, 1)

    @torch.inference_mode()
    def bare() -> None:
        for batch in images.split(BATCH):
            with policy.autocast():
                network(batch).argmax(1).cpu()

    predict(world, settings)  # warms up, and sets the threads
    sides = {"bare": bare, "predict": partial(predict, world, settings)}
    rounds = []
    for number in range(given.rounds):
        speeds = {side: images_per_second(len(images), sides[side]) for side in list(sides)[:: (-1) ** number]}
        rounds.append(speeds | {"ratio": speeds["predict"] / speeds["bare"]})
    found = {"benchmark": "prediction", "network": run.settings.network, "method": network.method, "images": len(images)}
    print(json.dumps(found | {"ratio": statistics.median(each["ratio"] for each in rounds), "rounds": rounds}, indent=1))
