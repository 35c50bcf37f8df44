"""Where the module of a user's network, ``package.module:factory``, lies. Nothing is imported here, since an import runs the module."""

import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """The folder that a module was imported from, and the inode of its file, or of its package's.

    The inode tells the user's own file from one that somebody has sent together with a run: such a file is never executed.
    """

    folder: str
    inode: int


def module_locations(name: str) -> list[Path]:
    """Files and folders that a factory's module may be read from."""
    first, *rest = name.partition(":")[0].split(".")
    spec = find_spec(first) if first else None
    return [Path(root, *rest).resolve() for root in _roots(spec)]


def place_of(name: str) -> Place | None:
    """The place of a factory's module, as it would be imported now; None if it is nowhere, or the network is not the user's."""
    first = name.partition(":")[0].split(".")[0]
    try:
        roots = _roots(find_spec(first)) if ":" in name and first else []
    except ValueError:  # a module that was made, not read
        roots = []
    return Place(str(roots[0].parent.resolve()), roots[-1].stat().st_ino) if roots and roots[-1].exists() else None


def look_in(name: str, places: Iterable[Sequence]) -> None:
    """Lets a factory's module be imported from the first of these places where the same file still lies."""
    for folder, inode in places:
        roots = _roots(PathFinder.find_spec(name.partition(":")[0].split(".")[0], [folder]))
        if roots and roots[-1].exists() and roots[-1].stat().st_ino == inode:
            if sys.path[:1] != [folder]:
                sys.path.insert(0, folder)
            return


def _roots(spec: ModuleSpec | None) -> list[Path]:
    """The folder of a package, if it is one, and the file of a module or package, if there is one."""
    if not spec:
        return []
    return [
        Path(root) for root in (*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else ()))
    ]
