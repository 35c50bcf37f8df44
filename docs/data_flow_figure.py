"""Draws docs/data_flow.svg, what goes where in a run and who does it:  python docs/data_flow_figure.py

Made of the same parts as the picture of the method, in ``method_figure.py`` beside it.
"""

from pathlib import Path

from method_figure import EDGE, INK, MUTED, PAPER, STRONG, TINT, box, line, tag, words

OUTPUT = Path(__file__).with_name("data_flow.svg")
WIDTH, HEIGHT = 800, 436
MIDDLE = WIDTH / 2


def place(x: float, y: float, width: float, *texts: str, rank: int | None = None) -> str:
    """A box of work, or, without a rank's colours, of files, whose first text is its title."""
    fill, edge = (TINT[rank], STRONG[rank]) if rank is not None else (PAPER, MUTED)
    height = 20 + 18 * len(texts)
    drawn = box(
        x, y, width, height, rx=8, fill=fill, stroke=edge, stroke_width=1.3, **({} if rank is not None else {"stroke_dasharray": "5 3"})
    )
    for k, text in enumerate(texts):
        size, color, weight = (13.5, INK, 600) if k == 0 else (12, MUTED, 400)
        drawn += words(x + width / 2, y + 24 + 18 * k, text, size, color, font_weight=weight)
    return drawn


def down(x: float, begin: float, end: float, text: str = "", color: str = MUTED) -> str:
    """An arrow downwards, with a text to its right."""
    drawn = line((x, begin), (x, end - 1), color=color)
    drawn += tag("path", d=f"M{x:g} {end:g}l-4 -7.5h8z", fill=color)
    return drawn + (tag("text", text, x=x + 9, y=(begin + end) / 2 + 3, font_size=12.0, fill=MUTED) if text else "")


def drawing() -> str:
    """The whole file."""
    says = (
        "A source of images is partitioned into one HDF5 file with a data set for each subdomain. Every rank reads its own subdomains and "
        "trains their local CNNs without communication. One MPI_Gather brings the interface values to rank 0, where vote, average or the "
        "DNN decide. Then all ranks train the coherent network together, with an allgather in each step, or the undecomposed CNN, with "
        "all gradients or halos. All write to the run folder, which predict, export and ddcnn.load read."
    )
    parts = [
        tag("title", "Data flow of a run"),
        tag("desc", says),
        box(0.5, 0.5, WIDTH - 1, HEIGHT - 1, rx=10, fill=PAPER, stroke=EDGE),
        place(22, 20, 226, "source", "a named set, folders, arrays, scans"),
        line((252, 48), (524, 48), arrow=True),
        words(388, 40, "partition: R_i, overlap δ", 12, MUTED),
        words(388, 66, "data/, decomposition.py", 12, MUTED),
        place(528, 20, 250, "partitioned set (HDF5)", "a data set for each subdomain"),
        line((528, 70), (460, 92), (200, 84), (136, 118), color=MUTED),
        down(135, 112, 122),
        down(665, 78, 122, "whole images"),
        tag("text", "a rank's own subdomain", x=300.0, y=104.0, font_size=12.0, fill=MUTED),
        place(22, 124, 216, "local CNNs", "every rank, its own subdomains:", "no communication", rank=2),
        line((240, 161), (298, 161), color=STRONG[2], arrow=True),
        words(269, 153, "gather", 12, MUTED),
        place(301, 124, 211, "rank 0 decides", "vote, average,", "or trains the DNN", rank=0),
        place(552, 124, 226, "undecomposed CNN", "global: all gradients a step", "spatial: a halo a layer", rank=1),
        down(135, 200, 234, "parameters"),
        down(MIDDLE, 200, 234, "the DNN's"),
        place(
            22,
            236,
            490,
            "coherent network",
            "all ranks: local CNNs and DNN as one network; an allgather a step",
            "transfer starts from the trained parts, coherent from scratch",
            rank=3,
        ),
        down(267, 312, 344),
        down(665, 200, 344),
        place(
            22,
            346,
            756,
            "run folder",
            "config.toml, metrics.jsonl, checkpoints/, results.json, report.md, figures/  →  predict, export, ddcnn.load, report",
        ),
        words(MIDDLE, 424, "dashed: files; filled: work of ranks", 12, MUTED),
    ]
    fonts = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'DejaVu Sans', sans-serif"
    about = {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    return tag("svg", "\n" + "\n".join(parts) + "\n", **about, role="img", font_family=fonts) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(drawing(), "utf-8")
