"""Random seeds, derived from (seed, purpose, subdomain, epoch) and never from the rank or the time."""

import zlib
from dataclasses import dataclass

import numpy as np


def seed_for(seed: int, purpose: str, subdomain: int = 0, epoch: int = 0) -> int:
    """A 63-bit seed; different arguments give independent streams (NumPy's SeedSequence)."""
    words = [seed, zlib.crc32(purpose.encode()), subdomain, epoch]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, purpose: str, subdomain: int = 0, epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, purpose, subdomain, epoch))


@dataclass(frozen=True)
class Seeds:
    """Seeds of one network, of its role and its subdomain (0 for networks of the whole image)."""

    seed: int
    role: str
    subdomain: int = 0

    def at(self, purpose: str, epoch: int = 0) -> int:
        return seed_for(self.seed, f"{self.role} {purpose}", self.subdomain, epoch)
