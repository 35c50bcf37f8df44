"""Draws docs/method.svg, the picture of the method:  python docs/method_figure.py

It needs the standard library alone, and writes the same bytes everywhere, so that a test can compare them. All numbers are in the
pixels of a page that is 800 wide, which is about what GitHub gives a README. The picture brings its own background, since a README
is shown on light and on dark pages.
"""

from itertools import pairwise
from pathlib import Path

OUTPUT = Path(__file__).with_name("method.svg")
WIDTH, HEIGHT = 800, 404
INK, MUTED, FAINT, PAPER, EDGE = "#1f2328", "#57606a", "#afb8c1", "#ffffff", "#d0d7de"
STRONG = ("#1f6fb5", "#c8591a", "#2b8a57", "#8452b0")  # of the ranks: told apart also by who sees few colours, and by their numbers
TINT = ("#eaf3fb", "#fdf0e7", "#e8f6ee", "#f4eefa")
IMAGE = [
    "000000000000",
    "000389998300",
    "003996469930",
    "002510005960",
    "000000018940",
    "000039999300",
    "000028899700",
    "000000004970",
    "002610003980",
    "003995469950",
    "000489998400",
    "000000000000",
]  # a digit: 0 is paper, 9 is ink
HALF, OVERLAP, CELL = 6, 1, 10.5  # pixels of the image, pixels of it, and how large they are drawn
BOXES = [(x, y) for y in (0, HALF - OVERLAP) for x in (0, HALF - OVERLAP)]  # where the subimages begin
SIDE = HALF + OVERLAP
LANE, GAP, TOP = 66, 10, 52  # of the ranks
LEFT, RIGHT = 186, 512
MIDDLE = TOP + (4 * LANE + 3 * GAP) / 2
LOCAL = ((0.22, 0.06, 0.12, 0.60), (0.10, 0.08, 0.16, 0.66), (0.42, 0.05, 0.10, 0.43), (0.18, 0.12, 0.20, 0.50))  # rank 2 is not sure


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def tag(name: str, text: str = "", **attributes: object) -> str:
    """One element; ``_`` in names stands for ``-``."""
    pairs = ((key.strip("_").replace("_", "-"), value) for key, value in attributes.items())
    named = "".join(f' {key}="{number(value) if isinstance(value, float) else value}"' for key, value in pairs)
    return f"<{name}{named}>{text}</{name}>" if text else f"<{name}{named}/>"


def words(x: float, y: float, text: str, size: float = 12.5, fill: str = INK, **further: object) -> str:
    return tag("text", text, x=float(x), y=float(y), font_size=float(size), fill=fill, text_anchor="middle", **further)


def indexed(letter: str, index: int) -> str:
    """A letter with an index below it, in one style: programs differ in how they place a centred text of several."""
    return letter + "\u2080\u2081\u2082\u2083"[index]


def box(x: float, y: float, width: float, height: float, **further: object) -> str:
    return tag("rect", x=float(x), y=float(y), width=float(width), height=float(height), **further)


def line(*points: tuple[float, float], color: str = MUTED, width: float = 1.5, arrow: bool = False) -> str:
    """A straight line, or through four points a curve; with ``arrow`` its head is drawn too, since not every program draws markers."""
    (x0, y0), *rest = points
    path = f"M{number(x0)} {number(y0)}" + ("C" if len(points) == 4 else "L") + " ".join(f"{number(x)} {number(y)}" for x, y in rest)
    drawn = tag("path", d=path, fill="none", stroke=color, stroke_width=float(width))
    x, y = points[-1]
    head = f"M{number(x + 1)} {number(y)}l-7.5 -4v8z"
    return drawn + tag("path", d=head, fill=color) if arrow else drawn


def pixels(x: float, y: float, cell: float, left: int, top: int, side: int) -> str:
    """A part of the image, a path for each of its grey values."""
    drawn = box(x, y, cell * side, cell * side, fill="#f6f8fa")
    for level in range(1, 10):
        places = [(j, i) for i in range(side) for j in range(side) if IMAGE[top + i][left + j] == str(level)]
        path = "".join(f"M{number(x + cell * j)} {number(y + cell * i)}h{cell}v{cell}h-{cell}z" for j, i in places)
        grey = round(246 - 20 * level)
        drawn += tag("path", d=path, fill=f"#{grey:02x}{grey + 2:02x}{grey + 5:02x}") if path else ""
    return drawn


def lane_top(rank: int) -> float:
    return TOP + rank * (LANE + GAP)


def image() -> str:
    """The image, with the subimages as frames that overlap."""
    x, y = 22.0, MIDDLE - 6 * CELL
    drawn = pixels(x, y, CELL, 0, 0, 12)
    for rank, (left, top) in enumerate(BOXES):
        inset = 1 if rank in (0, 3) else 2.5  # so that of two frames in one place both are seen
        place = (x + CELL * left + inset, y + CELL * top + inset, CELL * SIDE - 2 * inset, CELL * SIDE - 2 * inset)
        drawn += box(*place, fill=STRONG[rank], fill_opacity=0.07, stroke=STRONG[rank], stroke_width=2.0, rx=2)
    for rank, start in enumerate((0.12, 0.37, 0.63, 0.88)):
        begin, end = y + 12 * CELL * start, lane_top(rank) + LANE / 2
        drawn += line((x + 12 * CELL + 4, begin), (166, begin), (164, end), (LEFT - 3, end), color=STRONG[rank], arrow=True)
    left, right = x + CELL * (HALF - OVERLAP), x + CELL * (HALF + OVERLAP)
    drawn += tag("path", d=f"M{number(left)} {number(y - 5)}v-4H{number(right)}v4", fill="none", stroke=MUTED, stroke_width=1.2)
    drawn += words(x + 6 * CELL, y - 15, "overlap", 12, MUTED)
    return drawn + words(x + 6 * CELL, y + 12 * CELL + 20, "image x")


def cnn(x: float, y: float, color: str, tint: str) -> str:
    """Feature maps that become smaller and more, then a dense layer; ``y`` is the middle."""
    drawn = ""
    for left, side, maps in ((0, 27, 3), (40, 15, 4)):
        for k in range(maps):
            shift = 3.5 * (k - (maps - 1) / 2)
            drawn += box(x + left + 3.5 * k, y - side / 2 + shift, side, side, fill=tint, stroke=color, stroke_width=1.2)
    for k in range(4):
        drawn += tag("circle", cx=x + 79.0, cy=y + 9.0 * (k - 1.5), r=3.0, fill=color)
    return drawn


def lane(rank: int) -> str:
    """A rank: its subimage, its local CNN, and what that says."""
    color, top, (left, above) = STRONG[rank], lane_top(rank), BOXES[rank]
    middle = top + LANE / 2
    drawn = box(LEFT, top, RIGHT - LEFT, LANE, rx=8, fill=TINT[rank], stroke=color, stroke_width=1.2)
    drawn += words(LEFT + 31, middle + 4.5, f"rank {rank}", 13, color, font_weight=600)
    drawn += pixels(LEFT + 62, middle - 24.5, 7, left, above, SIDE)
    drawn += box(LEFT + 62, middle - 24.5, 49, 49, fill="none", stroke=color, stroke_width=1.5)
    drawn += line((LEFT + 117, middle), (LEFT + 135, middle), arrow=True)
    drawn += cnn(LEFT + 144, middle - 9, color, PAPER) + words(LEFT + 185, top + 59, f"local CNN {indexed('f', rank)}", 12)
    drawn += line((LEFT + 236, middle), (LEFT + 254, middle), arrow=True)
    for k, share in enumerate(LOCAL[rank]):
        drawn += box(
            LEFT + 266 + 12 * k, top + 43 - 50 * share, 9, 50 * share, fill=color, fill_opacity=1 if share == max(LOCAL[rank]) else 0.45
        )
    drawn += line((LEFT + 262, top + 43.5), (LEFT + 315, top + 43.5), width=1)
    drawn += words(LEFT + 289, top + 59, f"{indexed('p', rank)}(x)", 12)
    return drawn + line((RIGHT + 1, middle), (RIGHT + 26, middle), color=color, arrow=True)


def gather() -> str:
    x, height = RIGHT + 28, 4 * LANE + 3 * GAP
    drawn = box(x, TOP, 26, height, rx=6, fill="#424a53")
    mono = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    turned = f"rotate(-90 {number(x + 17.5)} {number(MIDDLE)})"
    return drawn + words(x + 17.5, MIDDLE, "MPI_Gather", 13.5, PAPER, font_family=mono, letter_spacing=1, transform=turned)


def decision() -> str:
    """On rank 0: all local classifications, a dense network, a class."""
    left, right = 588, 784
    drawn = box(left, MIDDLE - 116, right - left, 238, rx=8, fill=TINT[0], stroke=STRONG[0], stroke_width=1.2)
    drawn += words((left + right) / 2, MIDDLE - 96, "rank 0", 13, STRONG[0], font_weight=600)
    drawn += line((568, MIDDLE), (left - 2, MIDDLE), color=STRONG[0], arrow=True)
    values = [
        (rank, share, MIDDLE + 8.5 * (4 * rank + k - 7.5) + 3 * (rank - 1.5)) for rank in range(4) for k, share in enumerate(LOCAL[rank])
    ]
    layers = [[(648.0, MIDDLE + 21 * (k - 2.5)) for k in range(6)], [(680.0, MIDDLE + 21 * (k - 2)) for k in range(5)]]
    layers.append([(712.0, MIDDLE + 21 * (k - 1.5)) for k in range(4)])
    pairs = [((614.0, y), node) for _, _, y in values for node in layers[0]]
    pairs += [(one, other) for before, after in pairwise(layers) for one in before for other in after]
    path = "".join(f"M{number(a)} {number(b)}L{number(c)} {number(d)}" for (a, b), (c, d) in pairs)
    drawn += tag("path", d=path, fill="none", stroke=FAINT, stroke_width=0.6)
    for rank, share, y in values:
        drawn += box(602, y - 3.75, 12, 7.5, fill=PAPER) + box(602, y - 3.75, 12, 7.5, fill=STRONG[rank], fill_opacity=0.2 + share)
    for nodes in layers:
        for k, (x, y) in enumerate(nodes):
            chosen = nodes is layers[-1] and k == 3
            drawn += tag("circle", cx=x, cy=y, r=5.0, fill=STRONG[0] if chosen else PAPER, stroke=STRONG[0], stroke_width=1.4)
    x, y = layers[-1][3]
    drawn += line((x + 8, y), (x + 22, y), color=STRONG[0], arrow=True)
    drawn += box(738, y - 17, 34, 34, rx=6, fill=PAPER, stroke=STRONG[0], stroke_width=1.4) + words(755, y + 7.5, "3", 21, font_weight=600)
    drawn += words(755, y - 23, "class", 12)
    drawn += words((left + right) / 2, MIDDLE + 94, "small dense network (DNN)", 12.5)
    return drawn + words((left + right) / 2, MIDDLE + 111, "or majority vote, or average", 12, MUTED)


def transfer() -> str:
    y, color = TOP + 4 * LANE + 3 * GAP + 16, INK
    drawn = tag("path", d=f"M{LEFT} {y - 6}v6H784v-6", fill="none", stroke=color, stroke_width=1.5)
    return drawn + words(
        (LEFT + 784) / 2, y + 24, "transfer: all of them, once trained, are trained on as one coherent network over the ranks", 13
    )


def headings() -> str:
    drawn = ""
    for x, step, text in ((85, 1, "cut"), (349, 2, "train alone: no communication"), (553, 3, "gather"), (686, 4, "decide")):
        drawn += words(x, 34, f"{step}. {text}", 14, font_weight=600)
    return drawn


def drawing() -> str:
    """The whole file."""
    says = (
        "An image is cut into two by two subimages that overlap. Each of four ranks trains a small CNN on its own subimages, without "
        "communication. One MPI_Gather brings their classifications to rank 0, where a small dense network decides on the class. In "
        "transfer, all of them are trained on as one coherent network over the ranks."
    )
    parts = [
        tag("title", "Training by domain decomposition"),
        tag("desc", says),
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, rx=10, fill=PAPER, stroke=EDGE),
        headings(),
        image(),
        *(lane(rank) for rank in range(4)),
        gather(),
        decision(),
        transfer(),
    ]
    fonts = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'DejaVu Sans', sans-serif"
    about = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    return tag("svg", "\n" + "\n".join(parts) + "\n", **about, role="img", font_family=fonts) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(drawing(), "utf-8")
