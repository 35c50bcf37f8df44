"""A run's folder: what may be used as one, who holds it, what an earlier run has left there."""

import os
import re
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import tomli_w

from ddcnn.config.load import MARK, OF_AN_ATTEMPT, is_run
from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.io.atomic import disk_errors, short_name, write_text
from ddcnn.io.lock import locked

TRAINING = "checkpoints/training"  # of trainings that go on; parameters of trained networks lie beside it
LEFT_BY_A_RUN = {
    "": ("results.json", "details.h5", "metrics.jsonl", "report.md", "report.html", "config.toml", ".config.toml.*", "tensorboard"),
    "checkpoints": ("*.h5", ".*.h5.*", "training"),
    "figures": ("*.png",),
}


def is_finished(settings: RunSettings) -> bool:
    """Whether a run that is to be resumed has nothing left to do."""
    output = settings.output
    return (
        settings.resume
        and output is not None
        and is_run(output)
        and all((output / name).is_file() for name in ("results.json", "report.md"))
    )


def check_output(settings: RunSettings) -> None:
    """Refuses an output folder that holds a finished run, or something else."""
    output = settings.output
    if settings.resume and output is None:
        raise InputError("--resume: name the folder of the run with --output")
    if output is None or not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"--output {output} is a file: name a folder, which the run makes")
    with locked(output):
        check_folder(settings, output)
    start = settings.start_from.resolve() if settings.start_from else None
    if start and (output.resolve() in (start, *start.parents) or start in output.resolve().parents):
        raise InputError(f"--output {output}: --start-from reads from there; name another folder")


def check_folder(settings: RunSettings, output: Path) -> None:
    """Refuses a folder with something in it that would be lost."""
    if settings.overwrite:
        return
    unfinished = any(output.glob(f"{TRAINING}/*")) or any(output.glob(f"seed-*/{TRAINING}/*"))
    if settings.resume and unfinished and not is_run(output):
        raise InputError(f"--output {output}: its config.toml is missing or damaged: bring it back, or add --overwrite to begin anew")
    if settings.resume and is_run(output):
        return
    if any(output.glob("results.json")) or any(output.glob("seed-*/results.json")):
        raise InputError(f"--output {output} holds a finished run: name another folder, or add --overwrite")
    if unfinished:
        raise InputError(
            f"--output {output} holds a run that has not finished: add --resume to go on with it, or --overwrite to begin anew"
        )
    names = [entry.name for entry in output.iterdir() if entry.name != "checkpoints" or any(entry.iterdir())]
    if not is_run(output) and any(not re.fullmatch(r"\.lock.*|\.config\.toml\.\d+", name) for name in names):
        raise InputError(f"--output {output} holds files that are not of a run: name another folder, or add --overwrite")


def take_output(settings: RunSettings, held: ExitStack) -> Path:
    """Makes the output folder, holds it for this job, and prepares it.

    Raises:
        InputError: another job holds it.
    """
    name = f"{short_name(settings.data)}-{'x'.join(map(str, settings.grid))}-{time.strftime('%Y%m%d-%H%M%S')}"
    output = settings.output or Path("runs") / name
    with disk_errors(output):
        if settings.output is None and output.exists():  # of another run that was started in the same second
            output = output.with_name(f"{output.name}-{os.getpid()}")
        output.mkdir(parents=True, exist_ok=True)
    held.enter_context(locked(output))
    check_folder(settings, output)  # another job may have used it meanwhile
    if settings.resume and not is_run(output):
        print(f"{output}: no run to go on with; a new one, on {settings.data}, begins", flush=True)
    if not is_finished(settings):
        prepare_output(settings, output)
    return output


def prepare_output(settings: RunSettings, output: Path) -> None:
    """Clears a run's folder of what an earlier run has left there, unless that goes on, and writes the resolved settings into it."""
    with disk_errors(output):
        if not settings.resume:
            for folder in (output, *(entry for entry in output.glob("seed-*") if re.fullmatch(r"seed-\d+", entry.name))):
                _clear(folder)
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_text(output / "config.toml", config_of(settings.model_copy(update={"output": output})))


def _clear(folder: Path) -> None:
    """Removes what a run leaves, and nothing that links lead to."""
    for part, names in LEFT_BY_A_RUN.items():
        if any(path.is_symlink() for path in (folder, folder / part)):
            continue
        for name in names:
            for old in (folder / part).glob(name):
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()


def config_of(settings: RunSettings) -> str:
    """The config.toml of a run."""
    resolved = settings.model_copy(update=OF_AN_ATTEMPT)
    values = {name.replace("_", "-"): value for name, value in resolved.model_dump(mode="json", exclude_none=True).items()}
    return f"{MARK}\n{tomli_w.dumps(values)}"
