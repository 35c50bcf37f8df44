"""``--tensorboard``: the epochs of metrics.jsonl as points, each once, however often the run was stopped."""

import json
import os
from pathlib import Path

import pytest
from launching import launch, refusal
from quick import quick
from resuming import start

OPTIONS = quick(test_samples=50, width=8, epochs=3, transfer_epochs=2, batch_size=32, tensorboard=True)
SCALARS = ("loss", "accuracy", "validation_accuracy", "validation_loss", "seconds")
TRAININGS = {*(f"local-000{i}" for i in range(4)), "dnn", "coherent", "transfer", "global"}


def points(run: Path) -> list[tuple[str, str, int, float]]:
    """TrainState, scalar, epoch and value of all points that are there, sorted."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader", reason="pip install 'ddcnn[tensorboard]'")
    found = []
    for file in (run / "tensorboard").glob("*/events.out.tfevents.*"):
        for event in loading.LegacyEventFileLoader(str(file)).Load():
            found += [(file.parent.name, value.tag, event.step, value.simple_value) for value in event.summary.value]
    return sorted(found)


def expected(run: Path) -> list[tuple[str, str, int, float]]:
    """The same out of metrics.jsonl."""
    found = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text("utf-8").splitlines()):
        training = line["phase"] if line["subdomain"] is None else f"{line['phase']}-{line['subdomain']:04}"
        found += [(training, name, line["epoch"], line[name]) for name in SCALARS if line[name] is not None]
    return sorted(found)


def test_every_epoch_is_a_point_once(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'ddcnn[tensorboard]'")
    killed = start(2, tmp_path, *OPTIONS, interrupted=("local-0001", 14, 0, "SIGKILL"))  # in its third epoch; nothing has been kept
    assert killed.returncode not in (0, 75)
    stopped = start(2, tmp_path, "--resume", interrupted=("transfer", 3, 0, "SIGUSR1"))
    assert stopped.returncode == 75, stopped.stderr
    assert {point[0] for point in points(tmp_path / "run")} >= {"local-0000", "local-0001", "coherent"}
    finished = start(2, tmp_path, "--resume")
    assert finished.returncode == 0, finished.stderr
    found, wanted = points(tmp_path / "run"), expected(tmp_path / "run")
    assert [point[:3] for point in found] == [point[:3] for point in wanted]
    assert [point[3] for point in found] == pytest.approx([point[3] for point in wanted])
    assert {point[0] for point in found} == TRAININGS


def test_without_the_package_it_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboard'] = None\n", "utf-8")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    words = refusal(launch(2, "run", *OPTIONS, "--output=run", cwd=tmp_path, PYTHONPATH=path))
    assert "--tensorboard needs the package tensorboard: pip install 'ddcnn[tensorboard]'" in words
    assert not (tmp_path / "run").exists()
