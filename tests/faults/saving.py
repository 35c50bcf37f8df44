"""Saves two steps; during the second one rank kills itself: python saving.py FOLDER RANK EVENT

EVENT is the number of a system call that touches the folder (an audit event of Python), before which it happens; ``copy`` copies the
folder to copies/EVENT beside it before each of them instead.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from ddcnn.io.checkpoints import Checkpoint, CheckpointManager
from ddcnn.parallel.world import World

folder, rank, when = sys.argv[1], int(sys.argv[2]), sys.argv[3]
world = World()
sequence, events = CheckpointManager(world, Path(folder), {}, 1), 0
copying = False


def step(value: int) -> Checkpoint:
    return Checkpoint({"value": value}, {f"local-{world.rank:04}": {"parameters/weight": np.full(1000, value)}})


def happening(name: str, arguments: tuple) -> None:
    global events, copying
    touched = name.split(".")[0] in ("open", "os", "shutil") and arguments and str(arguments[0]).startswith(folder)
    if not touched or copying:
        return
    events += 1
    if when == "copy":
        copying = True
        shutil.copytree(folder, Path(folder).with_name("copies") / str(events))
        copying = False
    elif events == int(when):
        os.kill(os.getpid(), signal.SIGKILL)


sequence.save(step(1))
world.barrier()
if world.rank == rank:
    sys.addaudithook(happening)
sequence.save(step(2))
world.barrier()
print("saved", flush=True)
