"""A private SLURM of one node on loopback, as root and without systemd, beside any other that runs.

    python tests/slurm/cluster.py start FOLDER     prints the line that sbatch, srun and squeue need: export SLURM_CONF=…
    python tests/slurm/cluster.py stop  FOLDER     cancels its jobs and ends it

Needs: apt-get install --no-install-recommends slurm-wlm munge
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

DAEMONS = ("slurmd", "slurmctld", "munged")
CPUS = 8  # that SLURM believes in; tests may ask for more than there are
START, STOP = 30, 15  # seconds
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}  # states of a job that has ended

# MPICH names shared memory after the job's number, so no two SLURMs on a machine may have a job of the same number;
# KillWait and cred_expire (after which a requeued job may start) are short, so that the tests are
CONF = """\
ClusterName=ddcnn
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
FirstJobId={ports[0]}000
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
KillWait=10
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why SLURM cannot be started here, or nothing."""
    programs = [name for name in (*DAEMONS, "sbatch", "srun", "scontrol") if not shutil.which(name, path=_path())]
    if programs:
        return f"SLURM is not installed: no {', '.join(programs)} (apt-get install --no-install-recommends slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "a SLURM of one's own is started as root"


def environment(folder: Path) -> dict[str, str]:
    """For the commands of this SLURM: nothing of another job that this process may run in."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "PMI_"))}
    return own | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}


def start(folder: Path, cpus: int = CPUS) -> None:
    """Starts the daemons in a new folder with a short name, since that of a socket may have 107 characters."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=_free_ports(2), cpus=cpus), "utf-8")
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    files = {option: f"munge.{ending}" if ending in ("key", "socket") else f"munged.{ending}" for option, ending in files.items()}
    _run(folder, "munged", "--force", *(f"--{option}={folder / name}" for option, name in files.items()))
    _run(folder, "slurmctld")
    _run(folder, "slurmd", "-N", host)
    end = time.monotonic() + START
    while "idle" not in _run(folder, "sinfo", "--noheader", "--format=%T", check=False):
        if time.monotonic() > end:
            raise RuntimeError(f"the node did not become idle; see {folder}/*.log")
        time.sleep(0.1)


def stop(folder: Path) -> None:
    """Cancels all jobs, waits for them, and ends the daemons."""
    end = time.monotonic() + STOP
    _run(folder, "scancel", "--user=root", check=False)
    while _run(folder, "squeue", "--noheader", check=False) and time.monotonic() < end:
        time.sleep(0.1)
    for name in DAEMONS:
        _end(folder / f"{name}.pid")


def _end(pid_file: Path) -> None:
    if not pid_file.exists():
        return
    pid = int(pid_file.read_text("utf-8"))
    try:
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + STOP
        while time.monotonic() < end:
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _run(folder: Path, *command: str, check: bool = True) -> str:
    done = subprocess.run(command, env=environment(folder), capture_output=True, text=True, timeout=START)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("start", "stop"):
        sys.exit(__doc__)
    if reason := missing():
        sys.exit(reason)
    where = Path(sys.argv[2]).resolve()
    (start if sys.argv[1] == "start" else stop)(where)
    if sys.argv[1] == "start":
        print(f"export SLURM_CONF={where / 'slurm.conf'}")
