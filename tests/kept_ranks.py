"""ddcnn, command after command, on ranks that are started once: [mpirun -n RANKS] python kept_ranks.py FOLDER

What ``launching.on_ranks`` starts. Every rank reads orders from its pipe FOLDER/RANK, one in a line, until nobody can write there any more,
executes them as ``python -m ddcnn`` would, and writes its exit code into FOLDER/codes. Signals, working folder, environment and modules are
as before afterwards. A rank that aborts or is killed ends this program, whose exit code is then the command's.
"""

import json
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from interrupting import interrupted

from ddcnn import __main__
from ddcnn.parallel.launcher import launched_rank

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def redirected(folder: Path) -> Iterator[None]:
    """What this process writes, C libraries included, goes to FOLDER/stdout and FOLDER/stderr."""
    kept = {number: os.dup(number) for number in (1, 2)}
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, file in kept.items():
            os.dup2(file, number)
            os.close(file)


@contextmanager
def as_before() -> Iterator[None]:
    environment, modules, path = dict(os.environ), set(sys.modules), list(sys.path)
    handlers, mask = {number: signal.getsignal(number) for number in SIGNALS}, signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        folders = (os.getcwd(), *(folder for folder in sys.path if folder not in path))
        sys.path[:] = path
        for name in sys.modules.keys() - modules:  # networks of the test's own
            if str(getattr(sys.modules[name], "__file__", None)).startswith(folders):
                del sys.modules[name]
        os.environ.clear()
        os.environ.update(environment)


def execute(order: dict, folder: Path) -> int:
    os.chdir(order["cwd"])
    with redirected(folder), as_before(), interrupted(*order["interrupted"]) if order["interrupted"] else nullcontext():
        os.environ.update(order["environment"])
        sys.argv[1:] = order["arguments"]
        try:
            if order["script"]:
                runpy.run_path(order["script"], run_name="__main__")
                return 0
            return __main__.main()
        except SystemExit as end:  # argparse's, of --help
            return int(end.code or 0)


if __name__ == "__main__":
    place, rank = Path(sys.argv[1]), launched_rank()
    sys.path.insert(0, "")  # as with python -m
    with (place / str(rank)).open(encoding="utf-8") as orders, (place / "codes").open("w", buffering=1, encoding="utf-8") as codes:
        for line in orders:
            code = execute(json.loads(line), place)
            codes.write(f"{code}\n")
