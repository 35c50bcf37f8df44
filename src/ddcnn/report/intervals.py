"""How shares of samples are written, in tables, figures and texts alike, and how sure they are: 95 % intervals."""

import numpy as np

LEVEL = 0.95
NORMAL = 1.96  # standard deviations to either side that hold LEVEL of a normal distribution


def of_share(share: float | np.ndarray, samples: int | np.ndarray) -> np.ndarray:
    """Wilson's interval of shares that so many samples have shown: (2, ...) low and high ends, within 0 and 1 also for few samples."""
    share, samples = np.asarray(share, dtype=float), np.maximum(samples, 1)
    weight = 1 / (1 + NORMAL**2 / samples)
    middle = weight * (share + NORMAL**2 / (2 * samples))
    half = weight * NORMAL * np.sqrt(share * (1 - share) / samples + NORMAL**2 / (4 * samples**2))
    return np.stack([np.minimum(middle - half, share).clip(0), np.maximum(middle + half, share).clip(max=1)])


def of_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Of the accuracy of ``first`` less that of ``second``, right or not (S,) on the same samples.

    As Agresti and Min (2005) do, half a sample is added to each of the four kinds, or few differing decisions would look too sure.
    """
    samples = len(first) + 2
    won, lost = np.sum(first & ~second) + 0.5, np.sum(second & ~first) + 0.5
    middle, half = (won - lost) / samples, NORMAL * np.sqrt(won + lost - (won - lost) ** 2 / samples) / samples
    return float(middle - half), float(middle + half)


def of_mean(values: np.ndarray) -> tuple[float, float]:
    """Of the mean of a few values, at least two, by Student's distribution."""
    from scipy.stats import t

    half = t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def decimals(samples: int) -> int:
    """Of a percentage of so many samples, wherever it stands: one where a sample is 0.1 points or more, else two."""
    return 1 if samples <= 1000 else 2


def percent(share: float | None, samples: int) -> str:
    """A share of so many samples in percent, without the sign; a dash for none."""
    return "–" if share is None else f"{100 * share:z.{decimals(samples)}f}"
