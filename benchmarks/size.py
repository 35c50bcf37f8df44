"""Size of the image: memory, speed and traffic of the ways to train, and the largest image that each trains in so much memory a rank.

    python benchmarks/size.py [--sides 64,128,256,512] [--dimensions 2] [--ranks 4] [--ways transfer,global] [--limits 1,2,4] …
    python benchmarks/size.py --least --limits 2 --ways transfer,global …
    python benchmarks/size.py --of benchmarks/results/size.json --figure size.png

Ways: local training and transfer (--parts subdomains along each axis), spatial (exact spatial parallelism), global
(DistributedDataParallel), of two epochs on synthetic images each, of which the second one is timed; bytes are those of the run over its
steps. With --least each takes the largest --accumulate that its batch normalisation allows, and recomputes its activations. Every run is a
job of its own; finished ones are kept and not repeated. The largest side, a multiple of 32 (in 3-D 8), is found by trying: its peak stays
below the limit, that of the next one does not. Prints JSON and tables; --figure FILE.png draws peak and speed over the side, with --of from
what was printed before, one output or a list of them, and nothing is measured.
"""

import argparse
import json
import zlib
from pathlib import Path
from typing import Any

from study import finished

from ddcnn.decomposition import times
from ddcnn.report.figures import draw
from ddcnn.report.figures.charts import LOCAL, LOCAL_MARKER, MARKERS, METHOD_COLOURS

GIB = 1 << 30
RUNS = {"local": "transfer", "transfer": "transfer", "spatial": "spatial", "global": "global"}  # phases, and the methods that have them
MAPS = ["--interface", "maps", "--share", "all", "--dnn-epochs", "0"]


class Study:
    def __init__(self, asked: argparse.Namespace):
        self.asked, self.found = asked, dict[tuple[str, int], dict[str, Any]]()

    def row(self, way: str, side: int) -> dict[str, Any]:
        """Of a way to train, for images of this side."""
        if (way, side) not in self.found:
            self.found[way, side] = self._measured(way, side)
        return self.found[way, side]

    def _measured(self, way: str, side: int) -> dict[str, Any]:
        asked, method = self.asked, RUNS[way]
        samples = asked.batch_size * asked.steps
        shape = times((*(side,) * asked.dimensions, 1, 10, 2 * samples))
        options = ["--data", f"synthetic:{shape}", "--grid", times((asked.parts,) * asked.dimensions), "--overlap", str(asked.overlap)]
        options += ["--volumes"] if asked.dimensions == 3 else []
        options += ["--train-samples", str(samples), "--test-samples", "8", "--validation-fraction", "0"]
        options += ["--batch-size", str(asked.batch_size)]
        options += ["--epochs", "2", "--transfer-epochs", "2", "--global-epochs", "2", "--precision", "fp32", "--threads", "1"]
        options += ["--no-figures", "--evaluate-every", "0", "--methods", method, *MAPS, *self._least(method), *asked.further]
        folder = asked.output / f"{method}-{side}-{asked.ranks}-ranks-{zlib.crc32(' '.join(options).encode()):08x}"
        results = finished(folder, asked.ranks, [*options, "--partitions", str(asked.output / "partitions")])
        epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
        seconds = max(epoch["seconds"] for epoch in epochs if (epoch["phase"], epoch["epoch"]) == (way, 2))  # of the slowest subdomain
        sent = 0 if way == "local" else results["methods"][method]["bytes_communicated"]
        return {
            "way": way, "side": side, "peak_bytes": results["phases"][way]["max_rank_memory_bytes"],
            "bytes_per_step": sent / asked.steps / 2,
            "images_per_second": samples / seconds * (min(1, asked.ranks / asked.parts**asked.dimensions) if way == "local" else 1),
        }  # fmt: skip

    def _least(self, method: str) -> list[str]:
        if not self.asked.least:
            return []
        share = self.asked.batch_size // (self.asked.ranks if method == "global" else 1)
        return ["--accumulate", str(share // 2), "--recompute"]

    def largest(self, way: str, limit: float) -> int:
        """The largest side whose peak stays below so many GiB a rank."""
        unit = 32 if self.asked.dimensions == 2 else 8
        known = sorted(side for found, side in self.found if found == way and side % unit == 0)
        peaks = {side // unit: self.row(way, side)["peak_bytes"] / GIB for side in (known if len(known) > 1 else (2 * unit, 4 * unit))}
        while True:
            fits = max((side for side, peak in peaks.items() if peak <= limit), default=0)
            too_large = min((side for side, peak in peaks.items() if peak > limit and side > fits), default=2 * fits)  # leaps are bounded
            if too_large == fits + 1:
                return unit * fits
            side = too_large // 2
            if fits:  # the next try is where a line through two peaks, over the pixels, reaches the limit
                (a, first), (b, second) = sorted(sorted(peaks.items(), key=lambda tried: abs(tried[1] - limit))[:2])
                slope = (b**self.asked.dimensions - a**self.asked.dimensions) / max(second - first, 1e-6)
                pixels = a**self.asked.dimensions + (limit - first) * slope
                side = min(max(int(max(pixels, 0) ** (1 / self.asked.dimensions)), fits + 1), too_large - 1)
            peaks[side] = self.row(way, unit * side)["peak_bytes"] / GIB


def figure_of(rows: list[dict[str, Any]], ranks: int) -> Any:
    """Peak memory of a rank, and images a second, over the side of the image: a line for each way."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure((9, 3.8), layout="constrained")
    memory, speed = figure.subplots(1, 2)
    quantities = ((memory, "peak_bytes", GIB, "peak memory of a rank in GiB"), (speed, "images_per_second", 1, "images a second"))
    for axes, quantity, unit, label in quantities:
        for way in RUNS:
            sides, values = zip(*((row["side"], row[quantity] / unit) for row in rows if row["way"] == way), strict=True)
            style = {"color": METHOD_COLOURS.get(way, LOCAL), "marker": MARKERS.get(way, LOCAL_MARKER), "label": way}
            axes.plot(sides, values, lw=1.8, ms=5, **style)
        axes.set(xscale="log", xlabel=f"side of the image in pixels, on {ranks} ranks", ylabel=label)
        axes.set_xticks(sorted({row["side"] for row in rows}), sorted({row["side"] for row in rows}))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    memory.set_ylim(0, None)
    speed.set_yscale("log")
    speed.yaxis.set_major_formatter("{x:g}")
    memory.legend(frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="64,128,256,512")
    parser.add_argument("--dimensions", type=int, default=2)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--overlap", type=int, default=8)
    parser.add_argument("--limits", default="")
    parser.add_argument("--ways", type=lambda text: text.split(","), default=[*RUNS])
    parser.add_argument("--least", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/size"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--of", type=Path, help="draw --figure from this output, of images of --dimensions")
    parser.add_argument("further", nargs="*", help="further options of ddcnn run, after --")
    asked = parser.parse_args()
    if asked.of:
        kept = json.loads(asked.of.read_text("utf-8"))
        outputs = [one for one in (kept if isinstance(kept, list) else [kept]) if one["options"]["dimensions"] == str(asked.dimensions)]
        draw(asked.figure, lambda: figure_of([row for one in outputs for row in one["rows"]], int(outputs[0]["options"]["ranks"])))
        return
    study = Study(asked)
    rows = [study.row(way, side) for side in map(int, filter(None, asked.sides.split(","))) for way in asked.ways]
    limits = list(map(float, filter(None, asked.limits.split(","))))
    largest = {way: {limit: study.largest(way, limit) for limit in limits} for way in asked.ways}
    options = {name: str(value) for name, value in vars(asked).items()}
    tried = list(study.found.values())
    if asked.figure:
        draw(asked.figure, lambda: figure_of(rows, asked.ranks))
    print(json.dumps({"benchmark": "size", "options": options, "rows": rows, "largest": largest, "tried": tried}, indent=1))
    print("\n| side | way | peak a rank in MiB | images/s | MB sent a step |\n| --: | :-- | --: | --: | --: |")
    for row in rows:
        cells = (f"{row['peak_bytes'] / 2**20:.0f}", f"{row['images_per_second']:.3g}", f"{row['bytes_per_step'] / 1e6:.3g}")
        print(f"| {row['side']} | {row['way']} | " + " | ".join(cells) + " |")
    if limits:
        print(f"\n| largest side in | {' | '.join(f'{limit:g} GiB' for limit in limits)} |\n| :-- |{' --: |' * len(limits)}")
        for way, sides in largest.items():
            print(f"| {way} | {' | '.join(map(str, sides.values()))} |")


if __name__ == "__main__":
    main()
