"""Options: from a TOML file, from the command line, refused, written and read again."""

import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import on_ranks

import ddcnn
from ddcnn.__main__ import COMMANDS, execute
from ddcnn.config.data_settings import PartitionSettings
from ddcnn.config.load import load
from ddcnn.config.parser import extra, find, parse
from ddcnn.config.settings import RunSettings
from ddcnn.config.trained_settings import ExportSettings
from ddcnn.config.types import Group
from ddcnn.data.partition import partition
from ddcnn.data.sources import SourceOptions, open_source
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.experiment.plan import prepare_run, resolved
from ddcnn.io.run_folder import OF_AN_ATTEMPT, take_output

# For every option: a value that is not its default, as a TOML file has it and as the program sees it.
DATA_VALUES = {
    "data_root": ("sets", Path("sets")), "download": (True, True), "volumes": (True, True), "grid": ("3x1", (3, 1)),
    "overlap": (3, 3), "augment": ("flip+shift", "flip+shift"), "shift": (2, 2), "train_samples": (100, 100),
    "test_samples": (50, 50), "subset_seed": (9, 9), "image_size": ("64x48", (64, 48)), "image_transform": ("resize", "resize"),
    "interpolation": ("bicubic", "bicubic"), "volume_size": ("8x9x10", (8, 9, 10)), "window": ([-160, 240], (-160, 240)),
    "test_fraction": (0.25, 0.25), "validation_fraction": (0.3, 0.3), "validation_samples": (20, 20),
    "skip_damaged": (True, True), "follow_links": (True, True), "mode": ("grey", "grey"),
    "nan": ("zero", "zero"), "progress": ("none", "none"),
    "decomposition": ("width", "width"), "stall_timeout": (60.5, 60.5),
}  # fmt: skip
VALUES = {
    PartitionSettings: DATA_VALUES | {"source": ("cifar10", "cifar10"), "output": ("set.h5", Path("set.h5"))},
    RunSettings: DATA_VALUES | {
        "data": ("cifar10", "cifar10"), "partitions": ("kept", Path("kept")), "output": ("results", Path("results")),
        "overwrite": (True, True), "network": ("vgg3", "vgg3"), "width": (16, 16), "width_divisor": (1.5, 1.5),
        "methods": ("vote,dnn", ("vote", "dnn")), "epochs": (3, 3), "batch_size": (64, 64), "optimizer": ("sgd", "sgd"),
        "weights": ("resnet50.pth", Path("resnet50.pth")), "normalise": ("imagenet", "imagenet"),
        "lr": (0.25, 0.25), "weight_decay": (0.125, 0.125), "schedule": ("cosine", "cosine"), "label_smoothing": (0.1, 0.1),
        "dnn_data": ("holdout", "holdout"), "folds": (3, 3), "dnn_epochs": (7, 7), "dnn_lr": (0.5, 0.5), "seed": (4, 4),
        "early_stopping": (3, 3), "keep": ("best", "best"),
        "figures": (False, False), "tensorboard": (True, True), "evaluate_every": (2, 2), "dry_run": (True, True),
        "device": ("cpu", "cpu"), "precision": ("bf16", "bf16"), "threads": (2, 2),
        "start_from": ("run", Path("run")), "interface": ("features", "features"), "features": (12, 12),
        "head": ("dense", "dense"), "coarse": ("dense", "dense"), "coarse_width": (64, 64), "coarse_stages": (2, 2),
        "coarse_image": (False, False), "accumulate": (2, 2), "recompute": (True, True),
        "capture": (False, False), "deterministic": (True, True),
        "resident": ("stream", "stream"), "share": ("early", "early"), "auxiliary": (0.25, 0.25),
        "transfer_epochs": (3, 3), "frozen_epochs": (2, 2), "coherent_epochs": (5, 5), "global_epochs": (6, 6),
        "transfer_lr": (0.5, 0.5), "coherent_lr": (0.5, 0.5), "global_lr": (0.5, 0.5), "global_width": (48, 48),
        "transfer_schedule": ("constant", "constant"), "flip_axes": ("depth+columns", "depth+columns"),
        "erase": (0.25, 0.25), "mixup": (1.5, 1.5), "clip_norm": (1.5, 1.5), "ema": (0.99, 0.99), "warmup": (0.5, 0.5),
        "seeds": (3, 3), "class_weights": ("balanced", "balanced"), "resume": (True, True), "checkpoint_every": ("5", "5"),
        "keep_checkpoints": (3, 3), "time_limit": (2.5, 2.5), "stop_signals": ("SIGUSR2", ("SIGUSR2",)),
    },
}  # fmt: skip
REQUIRED = {PartitionSettings: {"source": "digits", "output": "out.h5"}, RunSettings: {}}
NEEDED = {name: {"interface": "maps"} for name in ("coarse_width", "coarse_stages", "coarse_image")}  # beside an option
OPTIONS = [(kind, name) for kind, values in VALUES.items() for name in values]


@pytest.fixture
def toml(tmp_path):
    def write(**values) -> Path:
        path = tmp_path / "options.toml"
        path.write_text(tomli_w.dumps(values), "utf-8")
        return path

    return write


@pytest.mark.parametrize("kind", VALUES)
def test_every_option_is_tested_here(kind):
    assert set(VALUES[kind]) == set(kind.model_fields)


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
@pytest.mark.parametrize("dash", ["-", "_"])
def test_every_option_can_come_from_a_file_and_the_command_line_wins(toml, kind, name, dash):
    written, expected = VALUES[kind][name]
    always = REQUIRED[kind] | NEEDED.get(name, {})
    required = {key: value for key, value in always.items() if key != name}
    file = toml(**{name.replace("_", dash): written})
    assert getattr(load(kind, required, file), name) == expected
    default = getattr(load(kind, always), name)
    assert default != expected
    if default is not None:
        assert getattr(load(kind, required | {name: default}, file), name) == default


@pytest.mark.parametrize(("kind", "name"), OPTIONS)
def test_every_option_can_come_from_the_command_line_as_text(kind, name):
    written, expected = VALUES[kind][name]
    text = written if isinstance(written, bool) else [*map(str, written)] if isinstance(written, list) else str(written)
    assert getattr(load(kind, REQUIRED[kind] | NEEDED.get(name, {}) | {name: text}), name) == expected


def test_a_grid_can_be_a_list_and_methods_can_be_a_list(toml):
    found = load(RunSettings, {}, toml(grid=[1, 2, 3], methods=["dnn"]))
    assert (found.grid, found.methods) == ((1, 2, 3), ("dnn",))


@pytest.mark.parametrize(("optimizer", "lr", "weight_decay"), [("adamw", 0.005, 0.01), ("sgd", 0.1, 0.0005)])
def test_the_learning_rate_follows_the_optimizer_unless_it_is_given(optimizer, lr, weight_decay):
    found = load(RunSettings, {"optimizer": optimizer})
    assert (found.lr, found.weight_decay) == (lr, weight_decay)
    found = load(RunSettings, {"optimizer": optimizer, "lr": "0.5", "weight_decay": "0"})
    assert (found.lr, found.weight_decay) == (0.5, 0)


def test_pixels_are_normalised_as_those_of_trained_weights_unless_it_is_given():
    assert load(RunSettings, {"weights": "w.pth"}).normalise == "imagenet"
    assert "normalise" not in load(RunSettings, {"weights": "w.pth"}).model_fields_set
    assert load(RunSettings, {"weights": "w.pth", "normalise": "set"}).normalise == "set"


def test_augmentations_are_joined_in_any_order():
    found = load(RunSettings, {"augment": "mixup+ flip+flip", "flip_axes": "columns+depth"})
    assert (found.augment, found.augmentations, found.margin) == ("flip+mixup", ["flip", "mixup"], 0)
    assert (found.flip_axes, found.flipped_axes) == ("depth+columns", (-3, -1))
    assert load(RunSettings, {"augment": "shift+flip", "shift": "3"}).identity()["augment"] == "flip+shift"


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"methods": "transfer"}, ""), ({"methods": "transfer", "warmup": "4"}, "transfer ends after 4 epochs"),
        ({"methods": "transfer", "frozen_epochs": "1"}, "transfer ends after 1 epochs"),
        ({"methods": "transfer", "transfer_schedule": "one-cycle"}, "--warmup: the schedule one-cycle has a rise of its own"),
        ({"methods": "dnn"}, "--warmup: the schedule one-cycle has a rise of its own"), ({"methods": "dnn", "schedule": "cosine"}, ""),
        ({"methods": "dnn", "schedule": "constant", "epochs": "1"}, "local training ends after 1 epochs"),
        ({"methods": "global", "schedule": "cosine", "global_epochs": "1"}, "global ends after 1 epochs"),
        ({"methods": "global", "schedule": "cosine", "epochs": "1"}, ""),
    ],
)  # fmt: skip
def test_a_warmup_that_no_schedule_follows_to_its_end_is_refused(options, refused):
    if not refused:
        load(RunSettings, {"warmup": "1.5"} | options)
        return
    with pytest.raises(InputError, match=refused):
        load(RunSettings, {"warmup": "1.5"} | options)


@pytest.mark.parametrize(("key", "meant"), [("epoch", "epochs"), ("batch_sise", "batch-size"), ("learning", "")])
def test_an_unknown_key_is_refused_with_what_is_allowed(toml, key, meant):
    with pytest.raises(InputError) as error:
        load(RunSettings, {}, toml(**{key: 3}))
    message = str(error.value)
    assert f"unknown key '{key}'" in message
    assert f"did you mean {meant}?" in message or not meant
    assert all(name.replace("_", "-") in message for name in RunSettings.model_fields)


BAD = [
    ("checkpoint_every", "0", "10min"), ("checkpoint_every", "often", "10min"), ("stop_signals", "SIGKILL", "SIGUSR1,SIGTERM"),
    ("stop_signals", "USR1", "SIGUSR1,SIGTERM"), ("stop_signals", 5, "write it as NAMES"), ("time_limit", "0", "more than 0"),
    ("keep_checkpoints", "0", "at least 1"),
    ("epochs", "0", "at least 1"), ("epochs", "many", "a whole number, at least 1"), ("epochs", "1.5", "a whole number, at least 1"),
    ("batch_size", "1", "at least 2"), ("width", "3", "at least 4"), ("lr", "0", "more than 0"),
    ("lr", "nan", "a finite number, more than 0"), ("lr", "inf", "a finite number, more than 0"), ("width_divisor", "0.5", "at least 1"),
    ("label_smoothing", "1", "at least 0 and less than 1"), ("overlap", "-1", "at least 0"), ("seed", "-1", "at least 0"),
    ("optimizer", "adam", "none of adamw, sgd"), ("image_size", "64x64x64", "64x64"), ("volume_size", "a", "2x2x2"),
    ("methods", "vote,mean", "average"),
    ("methods", "", "average"), ("grid", "2,2", "such as 2x2"), ("grid", "2x", "such as 2x2"), ("grid", "two", "such as 2x2"),
    ("grid", "0x2", "at least 1"), ("grid", "2x-2", "at least 1"),
    ("threads", "0", "at least 1"), ("ema", "1", "less than 1"), ("clip_norm", "0", "more than 0"),
    ("warmup", "-1", "at least 0"), ("augment", "rotate", "none of none, flip, shift, erase, mixup"),
    ("augment", "none+flip", "none stands alone"), ("augment", "flip+", "an empty name is none of"),
    ("augment", "flip,shift", "joined by +"), ("flip_axes", "height", "none of depth, rows, columns"),
    ("erase", "0", "more than 0 and at most 1"), ("mixup", "0", "more than 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "allowed"), BAD)
def test_a_bad_value_is_refused_with_name_value_and_what_is_allowed(toml, name, value, allowed):
    option = name.replace("_", "-")
    with pytest.raises(InputError) as error:
        load(RunSettings, {name: value})
    assert str(error.value).startswith(f"--{option} {value}")
    assert allowed in str(error.value)
    file = toml(**{option: value})
    with pytest.raises(InputError) as error:
        load(RunSettings, {}, file)
    assert str(error.value).startswith(f"{file}: {option}")
    assert allowed in str(error.value)
    with pytest.raises(InputError) as error:
        load(RunSettings, {name: value}, toml(seed=1))
    assert str(error.value).startswith(f"--{option} {value}")


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_no_bad_value_of_any_option_is_refused_in_words_of_the_library(toml, command):
    kind = command.settings
    texts = ["0", "-1", "0.5", "1e999", "nan", "9" * 5000, "2x", "0x2", "word", "", ",", "-1,2"]
    others = [True, 3.5, -1, [], [0], ["a", "b"], {"a": 1}]
    for name, written in [(name, value) for name in kind.model_fields for value in (*texts, *others)]:
        for given_options, file in [({name: written}, None), ({}, toml(**{name: written}))][: 1 + kind.from_file]:
            try:
                load(kind, given_options, file)
            except InputError as error:
                said = str(error)
            else:
                continue
            assert not re.search(r"[Ii]nput|\bvalid\b|parse|Field required|Tuple|item", said), said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ema": "1"}, "--ema 1: must be a number, more than 0 and less than 1"),
        ({"epochs": "0"}, "--epochs 0: must be a whole number, at least 1"),
        ({"grid": "0x2"}, "--grid 0x2: 0 must be a whole number, at least 1"),
        ({"window": ["1", "a"]}, "--window 1 a: a must be a number"),
        ({"window": [1]}, "--window 1: write it as [LOW, HIGH]: clip intensities to this range (default: no clipping)"),
        ({"volumes": 3}, "--volumes 3: must be true or false"),
    ],
)
def test_a_bad_number_is_refused_with_all_its_bounds_and_a_bad_form_with_the_form(options, said):
    with pytest.raises(InputError) as error:
        load(RunSettings, options)
    assert str(error.value) == said


@pytest.mark.parametrize("content", [b"epochs = ", b"epochs", b"\xff\xfe", b"epochs = 1\nepochs = 2", None])
def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path, content):
    file = tmp_path / "options.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=f"--config {file}"):
        load(RunSettings, {}, file)
    with pytest.raises(InputError, match=rf"--config {tmp_path}: cannot be read \(.*\): name a TOML file of options"):
        load(RunSettings, {}, tmp_path)


# What a run writes


@pytest.fixture(scope="module")
def store(world, write_arrays, random_arrays, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    path = write_arrays(folder / "source.npz", **random_arrays((8, 12)))
    source = open_source(SourceOptions(str(path), Path()))
    everything = {name: np.arange(len(split)) for name, split in source.splits.items()}
    return partition(world, source, everything, Decomposition((8, 12), (2, 3), 1), folder / "set.h5")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    chosen=st.sets(st.sampled_from(sorted(set(VALUES[RunSettings]) - {"output", "grid", "overlap", "decomposition", "resume", *NEEDED}))),
    methods=st.lists(st.sampled_from(["vote", "average", "dnn"]), min_size=1, unique=True),
    lr=st.floats(1e-300, 1e300),
)
def test_the_config_of_a_run_loads_as_the_settings_of_the_run(store, tmp_path, chosen, methods, lr):
    others = {"methods": ",".join(methods), "dnn_lr": lr, "schedule": "cosine"}
    given_options = {name: VALUES[RunSettings][name][0] for name in chosen} | others
    run = load(RunSettings, given_options | {"grid": "2x3", "overlap": 1, "output": tmp_path / "a 'run' \"é\""})
    with ExitStack() as held:
        output = take_output(resolved(run, store), held)
    assert output.path == run.output
    assert load(RunSettings, {}, output.config) == run.model_copy(update=OF_AN_ATTEMPT)


def test_the_config_of_a_run_has_the_grid_of_its_partitioned_set(store, tmp_path):
    run = load(RunSettings, {"output": tmp_path / "run", "data": store.path})
    with ExitStack() as held:
        found = load(RunSettings, {}, take_output(resolved(run, store), held).config)
    assert (found.grid, found.overlap) == ((2, 3), 1)


def test_a_finished_run_is_kept_unless_it_may_be_overwritten(world, store, tmp_path):
    run = load(RunSettings, {"output": tmp_path / "run", "data": store.path})
    with ExitStack() as held:
        output = take_output(resolved(run, prepare_run(world, run)), held)
    output.results.write_text("{}", "utf-8")
    with pytest.raises(InputError, match="--overwrite"):
        prepare_run(world, run)
    assert output.results.read_text("utf-8") == "{}"
    prepare_run(world, run.model_copy(update={"overwrite": True}))


# The program as it is started


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_the_help_of_a_command_shows_each_option_in_one_group_with_its_default_and_examples(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as end:
        execute([*command.name.split(), "--help"], None)
    assert end.value.code == 0
    usage, _, *sections, examples = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: {'mpirun -n N ' * command.all_ranks}python -m ddcnn {command.name} [options]")
    groups = [section.partition(":\n")[0] for section in sections]
    groups = groups[groups.index("options") + 1 :]
    assert groups == [group for group in Group if group in groups]
    for name in set(command.settings.model_fields) - {"run_options"}:
        about = extra(command.settings, name)
        if about["positional"]:
            assert about["metavar"] in usage and f"\n  {about['metavar']} " in sections[0]
            continue
        shown = {
            section.partition(":\n")[0]: re.findall(rf"\n  --{name.replace('_', '-')}[ ,].*(?:\n   .*)*", section) for section in sections
        }
        ((group, (text,)),) = [item for item in shown.items() if item[1]]
        assert group == about["group"] and ("(required)" if command.settings.model_fields[name].is_required() else "(default: ") in text
    lines = examples.strip().splitlines()
    assert lines[0] == "examples:" and len(lines) >= 3
    for line in lines[1:]:
        named, own = find(COMMANDS, line.partition(" -m ddcnn ")[2].split())
        assert parse(named.settings, own, named.name)


@pytest.mark.parametrize("group", ["", "scaling"])
def test_the_help_without_a_command_lists_the_commands(group, capsys):
    assert execute([*group.split(), "--help"], None) == 0
    shown = capsys.readouterr().out
    listed = [line.strip() for line in shown.partition("commands:\n")[2].partition("\n\n")[0].splitlines()]
    names = [command.name for command in COMMANDS if command.name.startswith(group)]
    assert [line[: len(name)] for line, name in zip(listed, names, strict=True)] == names
    assert max(map(len, shown.splitlines())) <= 80


def test_a_run_without_a_command_says_what_it_runs(world, monkeypatch, caplog):
    monkeypatch.setattr("ddcnn.__main__.COMMANDS", [replace(COMMANDS[0], function=lambda *_: None)])
    caplog.set_level("INFO", "ddcnn")
    for arguments in ([], ["--grid", "1x2"]):
        assert execute(arguments, world) == 0
    (said,) = caplog.messages  # options say themselves what is meant
    assert "run --data digits --grid 2x2 --methods vote,average,dnn,coherent,transfer,global " in said and "--help" in said


def test_every_option_is_read_by_the_program():
    folder = Path(ddcnn.__file__).parent
    source = "".join(path.read_text("utf-8") for path in folder.rglob("*.py") if path.parent.name != "config")
    source += "".join(re.findall(r"self(\.\w+)", "".join(path.read_text("utf-8") for path in (folder / "config").glob("*settings.py"))))
    for kind in {command.settings for command in COMMANDS}:
        assert [name for name in kind.model_fields if not re.search(rf"""[."']{name}\b""", source)] == []
    read = set(re.findall(r"settings\.(\w+)", (folder / "inference" / "export.py").read_text("utf-8")))
    assert read == set(ExportSettings.model_fields)


@pytest.mark.parametrize("arguments", [("--help",), ("run", "--help"), ("--version",)])
def test_help_imports_none_of_the_large_libraries(arguments):
    program = [sys.executable, "-X", "importtime", "-m", "ddcnn"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert "ddcnn.config.settings" in imported
    assert not {"torch", "h5py", "sklearn", "torchvision", "matplotlib", "mpi4py.MPI"} & imported


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epoch", "3"), ("--epoch", "did you mean --epochs?")),
        (("run", "--epochs", "0"), ("--epochs 0", "at least 1")),
        (("--grid", "2by2"), ("--grid 2by2", "such as 2x2")),
        (("run", "--config", "nowhere.toml"), ("nowhere.toml",)),
        (("partition",), ("SOURCE", "required")),
        (("train",), ("train", "run")),
        (("partition", "digits", "--output", "a.h5", "--window", "3", "-1"), ("--window 3 -1", "the lower bound comes first")),
        (("run", "--decomposition", "width", "--overlap", "2"), ("--overlap", "--decomposition image")),
        (("run", "--dnn-data", "out-of-fold", "--interface", "features"), ("--dnn-data out-of-fold", "--interface features", "holdout")),
        (("run", "--progress", "none", "--network", "resnet21"), ("--network resnet21", "resnet20")),
        (("run", "--progress", "none", "--data", "cifr10"), ("--data cifr10", "cifar10")),
    ],
)
def test_bad_usage_ends_with_code_2_and_one_line(tmp_path, arguments, words):
    done = on_ranks(None, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ddcnn: error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_a_partitioned_set_brings_its_own_grid_to_a_run(store, tmp_path):
    done = on_ranks(
        None, "run", "--data", store.path, "--output", "run", "--no-figures", "--network", "vgg3", "--width", 4, "--epochs", 1,
        "--dnn-epochs", 1, "--batch-size", 4, "--device", "cpu", "--threads", 1, "--progress", "none",
        cwd=tmp_path,
    )  # fmt: skip
    assert "leave --grid out" not in done.stderr
    assert "but a subimage has" not in done.stderr
    assert done.returncode == 0, done.stderr
