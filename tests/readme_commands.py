"""Runs commands of ddcnn one after the other in one process, of which torch is imported once: python readme_commands.py < commands.json

Each has a "folder", where it is done, and is {"ranks": 4, "arguments": ["run", …]}, {"python": "script.py"}, or {"copy": "a/run",
"to": "a run"}; out come, as JSON, an exit code, what was said, and the seconds that this process took, for each.
The ranks are only looked at: whether they fit. Scaling studies are checked and described, but start nothing, and are not collected.
"""

import contextlib
import io
import json
import os
import runpy
import shutil
import sys
import time
import traceback
from typing import Any

import torch

from ddcnn.__main__ import execute, needs_ranks
from ddcnn.errors import InputError
from ddcnn.experiment import fitting
from ddcnn.parallel.world import World
from ddcnn.scaling import collect, slurm, study
from ddcnn.scaling import extrapolation_report as prediction

asked = {"ranks": 1}
check_ranks = fitting.check_ranks
fitting.check_ranks = lambda ranks, *subdomains: check_ranks(asked["ranks"], *subdomains)  # one rank refuses subdomains as these would


def do(command: dict[str, Any], world: World) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            os.chdir(command["folder"])
            if "copy" in command:
                shutil.copytree(command["copy"], command["to"])
                return 0, ""
            if "python" in command:
                runpy.run_path(command["python"], {"images": torch.zeros(2, 1, 8, 8)})
                return 0, ""
            asked["ranks"] = command["ranks"]
            code = execute(command["arguments"], world if needs_ranks(command["arguments"]) else None)
        except InputError as error:
            return 2, str(error)
        except SystemExit as end:  # argparse's, of --help
            code = int(end.code or 0)
        except Exception:  # the test of this command shows it
            return 1, traceback.format_exc()
    return code, said.getvalue()


for module, name in ((collect, "collect"), (prediction, "predict")):
    setattr(module, name, lambda *arguments: None)
study.start = lambda described, launcher: described.describe()
slurm.submit = lambda described, launcher, options: slurm.script(described, launcher, options, "")

sys.path.insert(0, "")  # as with python -m
pretending, found = World(), []
for command in json.load(sys.stdin):
    begin = time.process_time()
    found.append((*do(command, pretending), time.process_time() - begin))
print(json.dumps(found))
