"""What is told of the figures of a run: captions, which say how to read them, and texts in their place, which say what they show."""

from dataclasses import dataclass

import numpy as np

from ddcnn.config.methods import Method
from ddcnn.decomposition import times
from ddcnn.io.results_schema import RunResults
from ddcnn.io.run_reader import FinishedRun
from ddcnn.report.analysis import disagreements
from ddcnn.report.analysis_report import RIGHT
from ddcnn.report.intervals import percent
from ddcnn.report.metrics import confusion
from ddcnn.report.pages import plain, seconds

CURVES_CAPTION = (
    "How accurate a method is on the {} images after how many seconds of its training (all its phases, evaluation included); the legend "
    "has the accuracies at the end. A single mark stands for a method that is evaluated only at its end."
)
CAPTIONS_OF = {
    Method.AVERAGE: " The line of `average` is the mean of the local CNNs trained so far.",
    Method.GLOBAL: " The dotted line is the final accuracy of `global`.",
}  # what they add to that
MANY_NAMES = 20  # classes or phases that a text names one by one


@dataclass(frozen=True)
class Described:
    caption: str
    instead: str


def curves_caption(results: RunResults) -> str:
    """Of the figure of accuracy over time."""
    added = [text for method, text in CAPTIONS_OF.items() if method in results.methods]
    return CURVES_CAPTION.format(results.curves_on) + "".join(added)


def described(run: FinishedRun) -> dict[str, Described]:
    """By name, of all figures that there may be of a run."""
    texts = captions(run)
    return {name: Described(texts[name], " ".join(instead.split())) for name, instead in alternatives(run).items()}


def captions(run: FinishedRun) -> dict[str, str]:
    slices = "; of a volume, the middle slice along each axis is shown" if run.details.examples.ndim == 5 else ""
    splitting = run.results.decomposition.splitting
    best = f"the most accurate method{' on the validation images' if run.results.data.validation_samples else ''}"
    names = [plain(name) for name in run.details.class_names]
    often = [f"most often, {names[true]} is taken for {names[found]} ({100 * share:.0f} %)" for true, found, share in confused(run)[:1]]
    over = "; the image behind is one of the test images" if splitting.cuts_images else ""
    return {
        "decomposition": f"{splitting.caption}{slices}. The numbers of the subdomains count row by row; tables and maps below use them.",
        "local_accuracy": f"On the left, each cell is {splitting.cell}, with its number in the corner, the test accuracy of its local CNN "
        "alone and, where there is room, the 95 % interval. On the right, the accuracies of the methods. Where intervals overlap widely, "
        "these test images do not show which is better.",
        "accuracy_over_time": curves_caption(run.results),
        "learning_curves": "Each line is one training. Of the local CNNs it is the mean, and the band reaches from the least to the most "
        "of them. A training accuracy far above the validation accuracy means overfitting.",
        "confusion": f"A row is a true class, with the number of its test images in brackets; a column is a class that "
        f"`{run.results.best}`, {best}, decides for. A cell is the percentage of the row's images that it puts into the column's class. "
        f"What is on the diagonal is right{''.join(f'; {text}' for text in often)}.",
        "timeline": "What each rank does at which time: blue is computing, so the more blue, the better the ranks are used. Gaps were "
        "not recorded. Above, all ranks together. The percentages are of the time after the start-up (imports, opening files).",
        "reliance": "The reliance of each method on each subdomain, in points of accuracy: the brighter, the more would be lost"
        f". The subdomain's number is in the corner{over}.",
        "disagreement": f"Some of the test images on which vote and DNN differ, by who is right{slices}. The text below a picture has its "
        "true class and what the two methods say.",
        "reliability": "Above, how often a method is right (a bar, with its 95 % interval) when it is so confident (axis below). Bars on "
        "the dashed line: the confidence is right. Below it: the method is too sure; above it: not sure enough. Hatched bars stand for "
        "fewer than ten images, which say little. Beneath, how many images have which confidence, on a logarithmic axis.",
    }


def alternatives(run: FinishedRun) -> dict[str, str]:
    results, details, tested = run.results, run.details, run.results.data.test_samples

    def told(share: float) -> str:
        return f"{percent(share, tested)} %"

    texts = {
        "decomposition": decomposition_text(run), "accuracy_over_time": curves_text([results]), "learning_curves": learning_text(run),
        "confusion": confusion_text(run), "timeline": timeline_text(run),
    }  # fmt: skip
    if (local := run.local_accuracy) is not None:
        flat = local.ravel()
        methods = ", ".join(f"{name} {told(accuracy)}" for name, accuracy in run.test_accuracy.items())
        texts["local_accuracy"] = (
            f"Test accuracies on {tested} images: local CNNs from {told(flat.min())} (subdomain {flat.argmin()}) "
            f"to {told(flat.max())} (subdomain {flat.argmax()}), in the mean {told(flat.mean())}; {methods}."
        )
    if not (analysis := results.analysis):
        return texts
    lost = {name: (np.array(one.reliance), one.samples) for name, one in analysis.influence.items()}
    ranges = (
        f"{name} from {percent(most.min(), used)} (subdomain {most.argmin()}) to {percent(most.max(), used)} (subdomain {most.argmax()})"
        for name, (most, used) in lost.items()
    )
    differing = ", ".join(f"{RIGHT[kind]} {len(rows)}" for kind, rows in disagreements(details.labels, details.classes).items())
    errors = (f"{name} {told(error)}" for name, error in analysis.calibration_error.items())
    return texts | {
        "reliance": f"Maps of the reliance on each subdomain, in points of accuracy: {'; '.join(ranges)}.",
        "disagreement": f"Pictures of test images that vote and DNN decide differently; in all: {differing}.",
        "reliability": f"Bars of accuracy over confidence for each method; expected calibration errors: {', '.join(errors)}.",
    }


def decomposition_text(run: FinishedRun) -> str:
    details, decomposition = run.details, run.results.decomposition
    names = ", ".join(plain(details.class_names[k]) for k in details.labels[details.example_rows])
    images = f"Test images of {names}"
    if not decomposition.splitting.cuts_images:
        return f"{images}, which all thin networks see whole."
    largest = [times(tuple(np.diff(boxes, axis=1).max((0, 1)))) for boxes in (run.cores, run.subimages)]
    return (
        f"{images}, cut into {times(decomposition.grid)} cores of up to {largest[0]} pixels, numbered from 0 to {len(run.cores) - 1} "
        f"row by row; with the overlap of {decomposition.overlap} the subimages have up to {largest[1]} pixels."
    )


def curves_text(runs: list[RunResults]) -> str:
    """Where the curves end; of several seeds, in the mean."""
    ends = []
    for name in runs[0].methods:
        curves = [curve for run in runs if (curve := run.methods[name].curve)]
        if curves:
            time, accuracy = np.mean([curve[-1] for curve in curves], axis=0)
            ends.append(f"{name} at {percent(accuracy, len(runs) * curve_samples(runs[0]))} % after {seconds(time)} s")
    return f"Accuracy on the {runs[0].curves_on} images over wall time; the curves end: {', '.join(ends)}."


def curve_samples(results: RunResults) -> int:
    """How many images the accuracies of the curves are of."""
    data = results.data
    return {"training": data.train_samples, "validation": data.validation_samples, "test": data.test_samples}[results.curves_on]


def learning_text(run: FinishedRun) -> str:
    texts = []
    for phase in list(dict.fromkeys(line.phase for line in run.epochs))[:MANY_NAMES]:
        lines = [line for line in run.epochs if line.phase == phase]
        last = max(line.epoch for line in lines)
        losses = [line.loss for line in lines if line.epoch == last and line.loss is not None]
        accuracies = [line.accuracy for line in lines if line.epoch == last and line.accuracy is not None]
        told = [f"training loss {np.mean(losses):.3f}"] if losses else []
        told += [f"training accuracy {percent(float(np.mean(accuracies)), run.results.data.train_samples)} %"] if accuracies else []
        if phase in run.curve_ends:
            told.append(f"{run.results.curves_on} accuracy {percent(run.curve_ends[phase], curve_samples(run.results))} %")
        texts.append(f"{phase} after epoch {last}: {', '.join(told)}")
    return f"Loss and accuracy over epochs. {'; '.join(texts)}."


def confusion_counts(run: FinishedRun) -> np.ndarray:
    """(K, K) how many test samples of a class (row) the best method puts into a class (column)."""
    return confusion(run.details.labels, run.details.classes[run.results.best], run.results.data.classes)


def confused(run: FinishedRun) -> list[tuple[int, int, float]]:
    """True class, found class and share of the true class of the most frequent confusions, the most frequent first."""
    counts = confusion_counts(run)
    wrong = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * (1 - np.eye(len(counts)))
    order = np.argsort(-wrong, axis=None, kind="stable")[:3]
    return [(int(true), int(found), wrong[true, found]) for true, found in zip(*np.unravel_index(order, wrong.shape), strict=True)
            if wrong[true, found]]  # fmt: skip


def confusion_text(run: FinishedRun) -> str:
    counts, names = confusion_counts(run), [plain(name) for name in run.details.class_names]
    samples = counts.sum(axis=1)
    order = np.argsort(counts.diagonal() / np.maximum(samples, 1), kind="stable")[:MANY_NAMES]
    right = ", ".join(f"{names[k]}: {counts[k, k]} of {samples[k]}" for k in order if samples[k])
    often = "".join(f"; of {names[true]}, {100 * share:.0f} % are taken for {names[found]}" for true, found, share in confused(run))
    return f"Test images that {run.results.best} puts into their class, the worst class first: {right}{often}."


def timeline_text(run: FinishedRun) -> str:
    from ddcnn.report.figures.timeline import percentages

    details = run.details
    percent, start = percentages(details.timeline, details.phases, details.kinds)
    shares = ", ".join(f"{name} {share} %" for name, share in percent.items())
    phases = ", ".join(f"{name} {seconds(phase.seconds)} s" for name, phase in run.results.phases.items() if phase.seconds > 0)
    ranks = f"What {run.results.environment.ranks} ranks do over time, after a start-up of {start:.1f} s"
    return f"{ranks}: {shares}. Phases: {phases}."
