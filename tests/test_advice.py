"""Advice is true: what a message names is tried. Each wrong call is refused with the advice, and the calls that follow it work."""

import ast
import re
import shutil
from pathlib import Path

import pytest
from launching import on_ranks
from quick import quick

import ddcnn
from ddcnn.__main__ import COMMANDS, execute, needs_ranks
from ddcnn.config.load import option_names
from ddcnn.errors import InputError

FAST = quick(width=4, train_samples=None, epochs=1, dnn_epochs=1, batch_size=8, methods="vote")
RUN = " ".join(("run", *FAST, "--partitions=sets"))
ARRAYS = f"{RUN} --data images.npz"
VOLUMES = f"{RUN} --data volumes.npz"
# (the wrong call, words of its refusal, calls that follow the advice)
CALLS = [
    (f"{ARRAYS} --grid 9x9", "choose a coarser grid", [f"{ARRAYS} --grid 2x2"]),
    (f"{ARRAYS} --grid 2x2x2", r"such as --grid 2x2\b", [f"{ARRAYS} --grid 2x2"]),
    (f"{ARRAYS} --grid 2by2", "such as 2x2, or depth", [f"{ARRAYS} --grid 2x2", f"{VOLUMES} --volumes --grid 2x2x2"]),
    (f"{VOLUMES} --grid 1x2x2", "or --volumes if the arrays are volumes", [f"{VOLUMES} --volumes --grid 1x2x2"]),
    (f"{ARRAYS} --grid 4x4", "choose a coarser --grid or a larger --overlap", [f"{ARRAYS} --grid 2x2", f"{ARRAYS} --grid 4x4 --overlap 2"]),
    (f"{RUN} --data small.npz --grid 1x1", "choose another --network, or larger images", [f"{ARRAYS} --grid 1x1"]),
    (f"{RUN} --data small.npz --methods global", "another --network, or larger images", [f"{ARRAYS} --methods global"]),
    (f"{RUN} --data wide.npz --augment flip", "another --grid, or an --augment without flip",
     [f"{RUN} --data wide.npz --augment flip --grid 2x1", f"{RUN} --data wide.npz --augment shift --shift 1"]),
    (f"{ARRAYS} --decomposition width --overlap 1", "--overlap needs --decomposition image",
     [f"{ARRAYS} --decomposition width", f"{ARRAYS} --decomposition image --overlap 1"]),
    (f"{ARRAYS} --decomposition width --frozen-epochs 1 --methods transfer", "leave it out",
     [f"{ARRAYS} --decomposition width --methods transfer --width 16"]),
    (f"{ARRAYS} --decomposition width --methods transfer --width 10", "a --width that is a multiple of 4 N",
     [f"{ARRAYS} --decomposition width --methods transfer --width 16", f"{ARRAYS} --decomposition width --methods vote --width 10"]),
    (f"{ARRAYS} --interface features --dnn-data out-of-fold --methods dnn", "probabilities or logits, or --dnn-data holdout",
     [f"{ARRAYS} --interface logits --dnn-data out-of-fold --methods dnn",
      f"{ARRAYS} --interface features --dnn-data holdout --methods dnn"]),
    (f"{ARRAYS} --train-samples 4 --dnn-data holdout --methods dnn", "give more, or a smaller --folds",
     [f"{ARRAYS} --train-samples 8 --dnn-data holdout --methods dnn",
      f"{ARRAYS} --train-samples 4 --dnn-data holdout --methods dnn --folds 2",
      f"{ARRAYS} --train-samples 4"]),
    (f"{ARRAYS} --precision fp16", "take bf16 or fp32", [f"{ARRAYS} --precision bf16", f"{ARRAYS} --precision fp32"]),
    (f"{ARRAYS} --precision fp16 --methods coherent", "take bf16 or fp32", [f"{ARRAYS} --precision fp32 --methods coherent"]),
    (f"{ARRAYS} --image-transform center-crop", "give --image-size too", [f"{ARRAYS} --image-transform center-crop --image-size 8"]),
    (f"{VOLUMES} --volumes --image-size 8", "give --volume-size DEPTHxROWSxCOLUMNS",
     [f"{VOLUMES} --volumes --volume-size 6x6x6 --grid 1x1x1"]),
    (f"{ARRAYS} --volume-size 6", "give --image-size", [f"{ARRAYS} --image-size 8"]),
    (f"{ARRAYS} --image-size 6x6x6", "write one number of pixels, or 2 such as 64x64",
     [f"{ARRAYS} --image-size 8", f"{ARRAYS} --image-size 8x8"]),
    (f"{ARRAYS} --checkpoint-every often", "such as 5, or of minutes, such as 10min",
     [f"{ARRAYS} --checkpoint-every 5", f"{ARRAYS} --checkpoint-every 10min"]),
    (f"{ARRAYS} --stop-signals SIGKILL", "such as SIGUSR1,SIGTERM", [f"{ARRAYS} --stop-signals SIGUSR1,SIGTERM"]),
    (f"{RUN} --data synthetic:32", "such as synthetic:32x32x10x5000",
     [f"{RUN} --data synthetic:32x32x10x5000 --train-samples 10 --test-samples 10"]),
    (f"{RUN} --data synthetic:32 --volumes", "such as synthetic:32x32x32x10x5000", []),
    (f"{ARRAYS} --output old", "holds a finished run: name another folder, or add --overwrite", [f"{ARRAYS} --output old --overwrite"]),
    (f"{ARRAYS} --output old --resume --overwrite", "give only one of them", [f"{ARRAYS} --output old --overwrite"]),
    (f"{ARRAYS} --output files", "name another folder, or add --overwrite", [f"{ARRAYS} --output files --overwrite"]),
    (f"{ARRAYS} --output images.npz", "name a folder", [f"{ARRAYS} --output new"]),
    (f"{RUN} --resume --output old --lr 0.1", "leave it out, or name another --output",
     [f"{RUN} --resume --output old", f"{ARRAYS} --output new --lr 0.1"]),
    (f"{ARRAYS} --start-from old --seeds 2", "leave --seeds out", [f"{ARRAYS} --start-from old"]),
    (f"{ARRAYS} --start-from seeds --seed 7", "take the seeds of that run", [f"{ARRAYS} --start-from seeds --seeds 2"]),
    (f"{ARRAYS} --start-from files", "give the folder of a finished run", [f"{ARRAYS} --start-from old"]),
    (f"{RUN} --data set.h5 --grid 1x2", "leave --grid out", [f"{RUN} --data set.h5"]),
    (f"{RUN} --data set.h5 --train-samples 8", "give it to the partition command",
     ["partition images.npz --output new.h5 --train-samples 8"]),
    (f"{RUN} --data set.h5 --augment shift --shift 1", "partition again with --augment",
     ["partition images.npz --output shifts.h5 --augment shift --shift 1", f"{RUN} --data shifts.h5 --augment shift --shift 1"]),
    (f"{RUN} --data set.h5 --decomposition width", "partition with 1x1",
     ["partition images.npz --output whole.h5 --grid 1x1", f"{RUN} --data whole.h5 --decomposition width"]),
    ("partition images.npz --output set", r"ends in \.h5", ["partition images.npz --output set2.h5"]),
    ("predict old images.npz --output p.txt", r"must end in \.csv or \.h5",
     ["predict old images.npz --output p.csv", "predict old images.npz --output p.h5"]),
    ("predict old images.npz --output old.csv", "name another file, or add --overwrite",
     ["predict old images.npz --output old.csv --overwrite"]),
    ("predict old images.npz --output no/p.csv", "there is no folder no; make it first", []),
    ("predict old images.npz --output p.csv --divide subdomains --method global", "leave it out",
     ["predict old images.npz --output p.csv --method global"]),
    ("predict old images.npz --output p.csv --without 9", "are 0 to 3",
     ["predict old images.npz --output p.csv --without 0", "predict old images.npz --output q.csv --without 3"]),
    ("predict old images.npz --output p.csv --method transfer", "it has vote, dnn, global",
     ["predict old images.npz --output p.csv --method vote"]),
    ("predict old images.npz --output p.csv --without 1 --method global", "take --method dnn",
     ["predict old images.npz --output p.csv --without 1 --method dnn"]),
    ("export old --format onxx --output n", "none of torch-export, onnx, state-dict",
     ["export old --format state-dict --output n", "export old --format torch-export --output m"]),
    ("export old --format state-dict --output old.csv", "name another file, or add --overwrite",
     ["export old --format state-dict --output old.csv --overwrite"]),
    ("report --follow old seeds", "name one folder", ["report --follow old", "report --follow seeds"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def brought(world, write_arrays, random_arrays, tmp_path_factory):
    """What a user has: arrays, a partitioned set, finished runs."""
    folder = tmp_path_factory.mktemp("brought")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, shape in {"images": (8, 8), "small": (3, 3), "wide": (8, 9), "volumes": (8, 8, 8)}.items():
            write_arrays(Path(f"{name}.npz"), **random_arrays(shape, train=24, test=8))
        execute(["partition", "images.npz", "--output=set.h5", "--progress=none"], world)
        for options in ("--output old --methods vote,dnn,global", "--output seeds --seeds 2"):
            execute(f"{ARRAYS} {options}".split(), world)
        Path("files").mkdir()
        Path("files/mine.txt").write_text("mine", encoding="utf-8")
        Path("old.csv").write_text("mine", encoding="utf-8")
    return folder


@pytest.fixture
def here(brought, tmp_path, monkeypatch):
    """A copy of what the user has, as the working directory."""
    for path in brought.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)


def obey(call: str, world) -> None:
    arguments = call.split()
    if arguments[0] == "run" and "--output" not in arguments:
        arguments += ["--output", f"output{len(list(Path().iterdir()))}"]  # the default's would be the same within a second
    execute(arguments, world if needs_ranks(arguments) else None)


@pytest.mark.parametrize(("call", "words", "advised"), CALLS, ids=[f"{call.replace(RUN, 'run')}" for call, *_ in CALLS])
@pytest.mark.usefixtures("here")
def test_what_a_refusal_advises_works(world, call, words, advised):
    with pytest.raises(InputError, match=words):
        obey(call, world)
    for other in advised:
        obey(other, world)


def noted(caplog) -> str:
    """What ddcnn has logged since the last call."""
    text = "".join(f"{message}\n" for message in caplog.messages)
    caplog.clear()
    return text


@pytest.mark.parametrize("samples", [7, 29, 150, 400])
def test_a_note_on_small_sets_names_a_batch_that_makes_ten_steps(
    samples, world, write_arrays, random_arrays, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "ddcnn")
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("images.npz"), **random_arrays((8, 8), train=samples, test=8))
    call = " ".join(
        ("run", *quick(width=4, train_samples=None, epochs=1, methods="vote", validation_fraction=0, progress="lines"), "--data=images.npz")
    )
    obey(call, world)
    made = r"note: batches of 128 make (\d+) steps? an epoch of the (\d+) training images(?:, too few to learn much)?"
    note = re.search(rf"{made}(?:; (--batch-size \d+) makes (\d+))?\n", noted(caplog))
    assert (int(note[1]), int(note[2])) == (max(1, samples // 128), samples)
    if samples < 8:  # of so few there is no batch to name
        assert note[3] is None
        return
    assert int(note[4]) >= 10 or note[3] == "--batch-size 8"
    obey(f"{call} {note[3]} --output small", world)
    assert "note: batches" not in noted(caplog) or int(note[4]) < 10


@pytest.mark.usefixtures("here")
def test_notes_on_a_batch_of_more_than_all_images_and_on_few_validation_images(world, caplog):
    caplog.set_level("INFO", "ddcnn")
    call = f"{ARRAYS} --methods vote,average --progress lines --validation-fraction 0.3"
    obey(f"{call} --batch-size 500", world)
    said = noted(caplog)
    assert re.search(r"note: batches of 500 make 1 step an epoch of .*, too few to learn much; --batch-size \d+ makes", said)
    count, points = re.search(r"with (\d+) validation images .* steps of (\S+) points, .* the method that predict", said).groups()
    assert float(points) == round(100 / int(count), 1)
    obey(f"{call} --batch-size 4 --methods vote --output other", world)
    said = noted(caplog)
    assert "note: batches" not in said and "validation images" not in said  # which decide nothing


@pytest.mark.parametrize(("samples", "batch"), [(7, 2), (23, 12), (150, 64)])
def test_a_note_on_images_that_are_left_over_names_a_batch_that_leaves_fewer(
    samples, batch, world, write_arrays, random_arrays, tmp_path, monkeypatch, caplog
):  # fmt: skip
    caplog.set_level("INFO", "ddcnn")
    monkeypatch.chdir(tmp_path)
    write_arrays(Path("images.npz"), **random_arrays((8, 8), train=samples, test=8))
    call = " ".join(
        ("run", *quick(width=4, train_samples=None, epochs=1, methods="vote", validation_fraction=0, progress="lines"), "--data=images.npz")
    )
    obey(f"{call} --batch-size {batch}", world)
    said = noted(caplog)
    assert f"batches of {batch} leave {samples % batch} of the {samples} training images out of every epoch" in said
    advice = re.search(r"--batch-size (\d+) takes (all but (\d+)|all)\n", said)
    assert advice or all(samples % other >= samples % batch for other in range(max(2, batch // 2), batch + 1))
    if advice:
        assert samples % int(advice[1]) == int(advice[3] or 0) < samples % batch
        obey(f"{call} --batch-size {advice[1]} --output other", world)


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("vote", "--lr"),
        ("dnn", "--dnn-lr"),
        ("coherent", "--coherent-lr"),
        ("transfer", "--transfer-lr"),
        ("global", "--global-lr"),
        ("spatial", "--global-lr"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_learning_rate_that_was_too_large_is_named_by_its_option(world, method, option):
    call = f"{ARRAYS} --methods {method} --dnn-epochs 3 --optimizer sgd"
    with pytest.raises(FloatingPointError, match=rf"smaller learning rate \({option}\)"):
        obey(f"{call} {option} 1e30", world)
    obey(f"{call} {option} 1e-3", world)


def messages() -> dict[str, str]:
    """Text of every message of the program that names an option, by its place; what is computed in it is {}."""
    source = Path(ddcnn.__file__).parent
    found = {}
    for path in sorted(source.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if "--" in text:
                found[f"{path.relative_to(source)}:{node.lineno}"] = text
    return found


def test_every_option_that_a_message_names_is_one_of_ddcnn():
    known = {"help", "version", "config", "mpi", "time", "name"}.union(*(option_names(command.settings) for command in COMMANDS))
    texts = {place: text for place, text in messages().items() if not place.startswith("scaling/slurm.py")}  # options of sbatch
    texts = {place: text for place, text in texts.items() if not text.startswith("\n:root {")}  # CSS has names like options
    assert len(texts) > 100
    for place, text in texts.items():
        for option in re.findall(r"(?<![-\w])--(?:no-)?([a-z][a-z-]*)", text):
            assert option in known, f"{place}: --{option}"


def test_a_note_says_that_each_rank_needs_two_images_of_a_batch(tmp_path):
    options = quick(methods="global", batch_size=2, progress="lines", validation_fraction=0)
    told = on_ranks(2, "run", *options, "--dry-run", cwd=tmp_path).stdout
    assert "batches of global have 4 images, not 2: each of 2 ranks needs two, for its batch normalisation" in told
    assert "batches of global" not in on_ranks(2, "run", *options, "--batch-size", "4", "--dry-run", cwd=tmp_path).stdout
