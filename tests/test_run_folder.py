"""The folder of a run: its names stand in one module, and its settings come back on ``--resume``."""

import ast
from pathlib import Path

import pytest

import ddcnn
from ddcnn.config.load import load
from ddcnn.config.settings import RunSettings
from ddcnn.errors import InputError
from ddcnn.io.run_folder import RunFolder, with_stored

FILES = ("results.json", "config.toml", "metrics.jsonl", "details.h5", "report.md", "report.html", "seed-")
FOLDERS = ("checkpoints", "figures", "tensorboard", "training")
OWNER, HELP = "io/run_folder.py", "config/"  # the help of options may name files


def names_in(source: Path) -> list[str]:
    """String constants of a module, but docstrings, that name files of a run's folder; or folders, if they are parts of a path."""
    tree = ast.parse(source.read_text("utf-8"))
    texts = [
        ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    ]
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)} - set(texts)
    divided = [side for node in ast.walk(tree) if isinstance(node, ast.BinOp) for side in (node.left, node.right)]
    parts = {node.value for node in divided if isinstance(node, ast.Constant)}
    return [text for text in constants if any(name in text for name in FILES)] + [part for part in parts if part in FOLDERS]


def test_no_other_module_names_the_files_of_a_run():
    package = Path(ddcnn.__file__).parent
    found = {str(path.relative_to(package)): names_in(path) for path in package.rglob("*.py")}
    assert set(FILES[:6]) <= set(found[OWNER])
    assert {module: names for module, names in found.items() if names and module != OWNER and not module.startswith(HELP)} == {}


@pytest.fixture
def stored(tmp_path) -> RunFolder:
    """The folder of a run with other than the default settings."""
    folder = RunFolder(tmp_path)
    folder.prepare(load(RunSettings, {"network": "vgg3", "optimizer": "sgd", "width": 8, "epochs": 3, "seed": 4, "seeds": 2}))
    return folder


def test_a_resumed_run_has_its_stored_settings_and_those_given_ones_that_may_change(stored):
    given = load(RunSettings, {"output": stored.path, "resume": True, "threads": 3, "epochs": 3})
    assert with_stored(given) == stored.settings().model_copy(update={"resume": True, "threads": 3})


def test_automatic_precision_of_a_resumed_run_is_what_the_run_has_found(stored):
    stored.prepare(stored.settings().model_copy(update={"precision": "bf16"}))
    assert with_stored(load(RunSettings, {"output": stored.path, "resume": True, "precision": "auto"})).precision == "bf16"


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"epochs": 4}, {"width": 16}, {"optimizer": "adamw"}, {"network": "vgg9"}])
def test_a_given_setting_that_is_not_that_of_the_run_is_refused(stored, other):
    given = load(RunSettings, other | {"output": stored.path, "resume": True})
    with pytest.raises(InputError, match=f"--{next(iter(other))} .* leave it out"):
        with_stored(given)


def test_without_a_run_or_resume_the_given_settings_stay(stored, tmp_path):
    for options in ({"output": tmp_path / "nothing", "resume": True}, {"output": stored.path}):
        given = load(RunSettings, options)
        assert with_stored(given) is given


def test_seeds_have_folders(stored, tmp_path):
    assert [folder.path for folder in stored.seeds()] == [tmp_path / "seed-4", tmp_path / "seed-5"]
    assert RunFolder(tmp_path / "nothing").seeds() == []


@pytest.mark.parametrize("keep", [0, 0.5])
def test_settings_of_a_damaged_file_are_refused(stored, keep):
    content = stored.config.read_text("utf-8")
    stored.config.write_text(content[: int(keep * len(content))], "utf-8")
    with pytest.raises(InputError, match=r"config\.toml"):
        stored.settings()
