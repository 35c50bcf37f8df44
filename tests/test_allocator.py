import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddcnn.parallel.allocator import USER_SETTINGS

HEAD = """
import resource
import sys
import threading
from pathlib import Path
import numpy as np


def pages(kind):
    return int(Path("/proc/self/statm").read_text().split()[kind]) * resource.getpagesize() >> 20


"""  # MiB of the address space (0), and in memory (1)

# 16 MiB come and go after a command has begun: how many MiB of them does the process still have? Then eight threads allocate a little: how
# many MiB of the address space do they take?
KEEPING = """
from ddcnn.__main__ import main


def allocate():
    block = bytes(1 << 16)
    together.wait()


sys.argv = ["ddcnn", "run", "--data", "nowhere"]
assert main() == 2
before = pages(1)
np.ones(1 << 21)
kept = pages(1) - before
before = pages(0)
threading.stack_size(1 << 18)
together = threading.Barrier(9, action=lambda: print(kept, pages(0) - before))
for _ in range(8):
    threading.Thread(target=allocate).start()
together.wait()
"""


# 1.8 GiB of local classifications lie in a (sparse) file: how many MiB does their vote add?
VOTING = """
from ddcnn.io.rows import Room, Table
from ddcnn.method.aggregate import vote
from ddcnn.parallel.allocator import keep_freed

keep_freed()
table = Table(30_000, (16, 1000), np.dtype(np.float32), Room(Path(sys.argv[1])))
block = np.random.default_rng(0).random((262, 16, 1000), np.float32)
table.write(np.array([len(table) - 1]), block[:1])
assert not table.in_memory
vote(block)
before = pages(1)
assert len(table.mapped(vote)) == len(table)
print(pages(1) - before)
"""


def printed(program: str, environment: dict[str, str], *arguments: Path) -> list[str]:
    """The words that a program prints, with no other settings of the allocator than these in its environment."""
    others = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    command = [sys.executable, "-c", HEAD + program, *arguments]
    return subprocess.run(command, env=others | environment, capture_output=True, text=True, check=True).stdout.split()


NEEDS_GLIBC = pytest.mark.skipif(
    not Path("/proc/self/statm").exists() or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="needs glibc"
)


@NEEDS_GLIBC
@pytest.mark.parametrize(
    "chosen", [{}, {"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": ""}], ids=["default", "threshold", "tunables"]
)
def test_freed_memory_is_kept_and_threads_share_arenas_unless_the_user_says_otherwise(chosen):
    kept, taken = map(int, printed(KEEPING, chosen)[-2:])
    assert (kept > 8) == (not chosen)
    assert (taken < 4 * 64) == (not chosen)


@NEEDS_GLIBC
def test_results_of_blocks_do_not_take_the_holes_that_these_leave(tmp_path):
    assert int(printed(VOTING, {}, tmp_path)[-1]) < 200
