"""The rooms of the package, and the order of imports between them: from left to right in ROOMS, never back, never in a circle."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import ddcnn

ROOMS = """
__main__ | experiment inference scaling | method report | training | data | io | config parallel | networks | decomposition | errors
"""
PACKAGE = Path(ddcnn.__file__).parent
LEVEL = {room: level for level, rooms in enumerate(ROOMS.split("|")) for room in rooms.split()}
MODULES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path for path in PACKAGE.rglob("*.py")}


def imports(path: Path) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ddcnn":
            module = node.module.removeprefix("ddcnn").removeprefix(".")
            names |= {f"{module}.{alias.name}".strip(".") for alias in node.names} | {module}
        elif isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("ddcnn.") for alias in node.names if alias.name.startswith("ddcnn.")}
    return names & set(MODULES) - {"__init__"}


def test_at_most_fifteen_entries_each_with_a_place():
    entries = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert entries == set(LEVEL) | {"__init__"}
    assert len(entries) <= 15


def test_a_room_imports_only_from_rooms_to_its_right():
    wrong = [
        f"{name} imports {other}"
        for name, path in MODULES.items() if name != "__init__"
        for other in imports(path)
        for own, theirs in [(name.split(".")[0], other.split(".")[0])]
        if own != theirs and LEVEL[own] >= LEVEL[theirs]
    ]  # fmt: skip
    assert not wrong


def test_no_modules_import_each_other():
    list(TopologicalSorter({name: imports(path) - {name} for name, path in MODULES.items()}).static_order())


def test_a_room_says_what_is_in_it_and_what_is_not():
    for room in LEVEL:
        if (PACKAGE / room).is_dir():
            assert 2 <= len((ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text("utf-8"))) or "").splitlines()) <= 8, (
                room
            )


def test_the_page_on_the_architecture_names_every_module_in_its_room():
    layout = (Path(__file__).parent.parent / "docs" / "architecture.md").read_text("utf-8").split("\nsrc/ddcnn/\n")[1].split("\ntests/")[0]
    named = {text.split()[0].strip("/"): set(re.findall(r"\w+", text)) for text in re.split(r"^  (?=\w)", layout, flags=re.MULTILINE)[1:]}
    for name, path in MODULES.items():
        if path.name != "__init__.py" and "." in name:
            assert set(name.split(".")) <= named[name.split(".")[0]], name
