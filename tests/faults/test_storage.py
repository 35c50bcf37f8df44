"""Storage that fails while ranks wait for each other: one line that says so, and all ranks end."""

from pathlib import Path

import pytest
from launching import launch, refusal
from quick import full, quick

STORAGE = (str(Path(__file__).with_name("storage.py")),)


@pytest.mark.parametrize(
    ("what", "most", "ranks", "rank", "options"),
    [
        ("read", 5, 2, 1, {}),
        ("read", 5, 4, 1, {"grid": "1x2"}),  # within a step that two ranks share
        ("full", 60_000, 2, 0, {}),  # within the gather: its own tables have 45 kB
        ("full", 3000, 4, 2, {"grid": "1x2", "dnn_data": "out-of-fold"}),
        full("read", 5, 2, 0, {"methods": "spatial"}),
        full("read", 5, 2, 1, {"methods": "global"}),
        full("read", 5, 2, 0, {"methods": "coherent"}),
        full("full", 3000, 2, 0, {"methods": "spatial"}),
    ],
)
def test_storage_that_fails_on_a_rank_ends_all_of_them(tmp_path, what, most, ranks, rank, options):
    arguments = quick(resident="stream", batch_size=16, **options)
    finished = launch(ranks, str(rank), what, str(most), "run", *arguments, "--output", "run", cwd=tmp_path, program=STORAGE)
    line = refusal(finished)
    assert ("its images cannot be read" if what == "read" else "No space left on device") in line
    assert not [path for path in tmp_path.glob("run/*") if path.name.startswith("tmp")]
