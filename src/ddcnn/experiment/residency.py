"""Where the images of a run are: in the device's memory, in the host's, or read from the partitioned set as they are needed.

Parameters are the same, bit for bit, wherever they are. By themselves (``--resident auto``) images are as near as there is room for them
beside all else, which is taken to be half of what a rank has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import cast

import numpy as np
import torch

from ddcnn.data.augmentation import Augmentation
from ddcnn.data.batches import stored_boxes
from ddcnn.data.partitioned_set import PartitionedSet
from ddcnn.data.stand_in import stored_bytes
from ddcnn.data.stored import Resident
from ddcnn.decomposition import Box
from ddcnn.parallel.devices import ranks_on
from ddcnn.parallel.memory import left
from ddcnn.parallel.world import World
from ddcnn.report.pages import human

PLACES: tuple[Resident, ...] = ("device", "host", "stream")  # from near to far
WORDS = {
    "device": "in the memory of the device",
    "host": "in the host's memory",
    "stream": "read from the partitioned set as they are needed",
}
ROOM = 0.5  # of what is left, for images


@dataclass(frozen=True)
class Residency:
    """Of the images of one local CNN after the other, of all local CNNs of a rank or its part of whole images, and of whole images.

    Attributes:
        why: those of local CNNs are far away, if nobody has asked for it.
    """

    local: Resident = "device"
    joint: Resident = "device"
    whole: Resident = "device"
    why: str = ""

    def __str__(self) -> str:
        local, joint, whole = WORDS[self.local], WORDS[self.joint], WORDS[self.whole]
        return f"for local training {local}, for coherent, transfer and spatial {joint}, whole ones {whole}"


def widening(store: PartitionedSet) -> float:
    """Bytes of a pixel in a tensor, over those in the set: torch computes with no large unsigned integers."""
    dtype = np.dtype(store.dtype)
    return 2.0 if dtype.kind == "u" and dtype.itemsize in (2, 4) else 1.0


def bytes_of_subimages(
    store: PartitionedSet, mirrors: Sequence[tuple[int, ...]], places: Sequence[int], most: float = float("inf")
) -> float:
    """Of all splits of these subdomains, with the mirror subdomains that training needs; of arrays of so many bytes at most."""
    mirrored = {store.decomposition.mirror(place, axes) for place in places for axes in mirrors}
    sizes = [
        stored_bytes(store, split, place) * widening(store)
        for split in store.samples
        for place in ({*places, *mirrored} if split == "train" else places)
    ]
    return sum(size for size in sizes if size <= most)


def bytes_of_two(store: PartitionedSet, mirrors: Sequence[tuple[int, ...]], places: Sequence[int]) -> float:
    """Of the two largest of these subdomains: the next one is loaded while the one before is worked on."""
    return sum(sorted(bytes_of_subimages(store, mirrors, [place]) for place in places)[-2:])


def bytes_of_whole(store: PartitionedSet) -> float:
    """Of the whole images of all splits."""
    return prod(store.shape) * np.dtype(store.dtype).itemsize * sum(store.samples.values()) * widening(store)


def bytes_of_part(store: PartitionedSet, box: Box, augmentation: Callable[[str], Augmentation]) -> float:
    """Of the part ``box`` of the whole images of all splits, with the mirror parts that training needs."""
    total = 0
    for split, samples in store.samples.items():
        total += samples * sum(one.pixels for one in {*stored_boxes(store, box, augmentation(split)).values()})
    return total * store.shape[-1] * np.dtype(store.dtype).itemsize * widening(store)


def choose(world: World, asked: str, needed: tuple[float, float, float], device: torch.device) -> Residency:
    """As asked, or as far away as the rank with the least room needs; all ranks together.

    Args:
        asked: an option ``--resident``.
        needed: bytes of the images of two local CNNs, of all of this rank or of its part of whole ones, and of whole ones.
    """
    if asked != "auto":
        return Residency(*[cast(Resident, asked)] * 3)
    host = left(world.local_size)
    on_device = torch.cuda.mem_get_info(device)[0] / ranks_on(world, device) if device.type == "cuda" else host
    found = [next((k for k, room in enumerate((on_device, host)) if size <= ROOM * room), 2) for size in needed]
    if world.size > 1 and device.type == "cpu":
        found[2] = 2  # else each rank would hold all images, of which a step needs its share
    chosen = Residency(*(PLACES[k] for k in world.largest_of(found)))
    if {chosen.local, chosen.joint} == {"device"}:
        return chosen
    most, least = world.largest(int(needed[1])), -world.largest(-int(on_device))
    return replace(chosen, why=f"up to {human(most)} a rank, which has at least {human(least)} left")
