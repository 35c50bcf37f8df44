"""Seeds from (seed, purpose, subdomain, epoch): never from the rank or the time."""

import tomllib
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddcnn.errors import InputError


def seed_for(seed: int, purpose: str, subdomain: int = 0, epoch: int = 0) -> int:
    """A 63-bit seed; different arguments give independent streams (NumPy's SeedSequence)."""
    words = [seed, zlib.crc32(purpose.encode()), subdomain, epoch]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, purpose: str, subdomain: int = 0, epoch: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed_for(seed, purpose, subdomain, epoch))


@dataclass(frozen=True)
class Seeds:
    """The seeds of one network: of subdomain ``subdomain`` (0 for networks of the whole image) and of its role."""

    seed: int
    role: str
    subdomain: int = 0

    def at(self, purpose: str, epoch: int = 0) -> int:
        return seed_for(self.seed, f"{self.role} {purpose}", self.subdomain, epoch)


def seed_names(output: Path) -> list[str]:
    """Names of the folders of the single seeds in a run's folder; none if the run has had one seed.

    Raises:
        InputError: config.toml is damaged.
    """
    config = output / "config.toml"
    if not config.is_file():
        return []
    try:
        settings = tomllib.loads(config.read_text())
        first, seeds = int(settings["seed"]), int(settings.get("seeds", 1))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config}: missing, damaged or foreign ({error})") from None
    return [seed_name(first + k) for k in range(seeds)] if seeds > 1 else []


def seed_name(seed: int) -> str:
    return f"seed-{seed}"
