"""The figures of a report, one function each: arrays in, a figure out. N subdomains, K classes, S samples, d = 2 or 3 dimensions.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart too, as they can the maps cividis and Blues.
"""

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure

from ddcnn.io.atomic import write_bytes

BLUE, ORANGE, GREEN, SKY, GREY = "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#999999"


def save(figure: Figure, path: Path) -> None:
    figure.savefig(drawn := BytesIO(), format="png", dpi=150)
    write_bytes(path, drawn.getvalue())
