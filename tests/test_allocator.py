import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddcnn.parallel.allocator import USER_SETTINGS

# 16 MiB come and go after a command has begun: how many MiB of them does the process still have?
PROGRAM = """
import resource
import sys
from pathlib import Path
import numpy as np
from ddcnn.__main__ import main


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20


sys.argv = ["ddcnn", "run", "--data", "nowhere"]
assert main() == 2
before = resident()
np.ones(1 << 21)
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or "glibc" not in str(os.confstr("CS_GNU_LIBC_VERSION")), reason="needs glibc")
@pytest.mark.parametrize(
    "chosen", [{}, {"MALLOC_MMAP_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": ""}], ids=["default", "threshold", "tunables"]
)
def test_freed_memory_is_kept_unless_the_user_says_otherwise(chosen):
    environment = {name: value for name, value in os.environ.items() if name not in USER_SETTINGS}
    found = subprocess.run([sys.executable, "-c", PROGRAM], env=environment | chosen, capture_output=True, text=True, check=True)
    assert (int(found.stdout.split()[-1]) > 8) == (not chosen)
