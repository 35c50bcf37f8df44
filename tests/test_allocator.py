import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddcnn.parallel.allocator import USER_SETTINGS

# 16 MiB come and go after a command has begun: how many MiB of them does the process still have? Then eight threads allocate a little: how
# many MiB of the address space do they take?
PROGRAM = """
import resource
import sys
import threading
from pathlib import Path
import numpy as np
from ddcnn.__main__ import main


def pages(kind):
    return int(Path("/proc/self/statm").read_text().split()[kind]) * resource.getpagesize() >> 20


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


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="needs glibc")
@pytest.mark.parametrize(
    "chosen", [{}, {"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": ""}], ids=["default", "threshold", "tunables"]
)
def test_freed_memory_is_kept_and_threads_share_arenas_unless_the_user_says_otherwise(chosen):
    environment = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment | chosen, capture_output=True, text=True, check=True)
    kept, taken = map(int, found.stdout.split()[-2:])
    assert (kept > 8) == (not chosen)
    assert (taken < 4 * 64) == (not chosen)
