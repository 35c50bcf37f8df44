"""The figures of a report, one function each: arrays in, a figure out. N subdomains, K classes, S samples, d = 2 or 3 dimensions.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart too, as they can the maps cividis and Blues. A figure only
adorns results: one that cannot be drawn or written is a warning. Matplotlib is imported by the modules of the figures, not here.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ddcnn.errors import InputError, cause
from ddcnn.io.atomic import disk_errors, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#999999"
logger = logging.getLogger(__name__)


def can_draw(where: Path) -> bool:
    """Whether Matplotlib can be imported; if not, a warning says why."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of a folder that it cannot write, which does no harm
    window = os.environ.pop("MPLBACKEND", None)  # figures go to files; a name that Matplotlib does not know would be an error
    try:
        import matplotlib.figure  # noqa: F401
    except Exception as error:
        logger.warning("%s: not drawn (%s)", where, cause(error))
        return False
    finally:
        if window is not None:
            os.environ["MPLBACKEND"] = window
    return True


def draw(path: Path, figure: "Callable[[], Figure]", names: Iterable[str] = ()) -> bool:
    """Draws a figure, in which these names occur, into a PNG file; if that fails, a warning says why."""
    if not can_draw(path):
        return False
    try:
        with disk_errors(path.parent):
            path.parent.mkdir(exist_ok=True)
        with drawing(names):
            figure().savefig(drawn := BytesIO(), format="png", dpi=150)
        write_bytes(path, drawn.getvalue())
    except Exception as error:
        logger.warning("%s", cause(error) if isinstance(error, InputError) else f"{path}: not drawn ({cause(error)})")
        return False
    return True


@contextmanager
def drawing(names: Iterable[str] = ()) -> Iterator[None]:
    """Context in which figures are made and saved: the same whatever the user's matplotlibrc says, with fonts for the names."""
    from matplotlib import rc_context, rcdefaults, rcParams

    from ddcnn.report.figures.fonts import fallbacks

    with warnings.catch_warnings(), rc_context():
        warnings.simplefilter("ignore")  # of Matplotlib, about what it has no room for
        rcdefaults()
        rcParams["font.family"] = ["sans-serif", *fallbacks(frozenset("".join(names)))[0]]
        yield
