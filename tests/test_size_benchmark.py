"""benchmarks/size.py finds the largest side in a limit of memory, whatever sides were measured before."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest


@pytest.fixture
def size(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.delitem(sys.modules, "size", raising=False)
    import size

    return size


@pytest.mark.parametrize("known", [(), (64, 128), (416, 928), (2016, 3008)])
def test_the_largest_side_fits_and_the_next_one_does_not(size, known):
    study = size.Study(Namespace(dimensions=2))

    def row(way: str, side: int) -> dict[str, int]:  # 0.45 GiB for the program, and so much a pixel
        study.found[way, side] = {"peak_bytes": int((0.45 + 4.3 * (side / 1024) ** 2) * size.GIB)}
        return study.found[way, side]

    study.row = row
    for side in known:
        row("global", side)
    assert {limit: study.largest("global", limit) for limit in (0.4, 1, 2, 4)} == {0.4: 0, 1: 352, 2: 608, 4: 928}
