"""What is told of the figures of a run: captions, which say how to read them, and texts in their place, which say what they show."""

from dataclasses import dataclass

import numpy as np

from ddcnn.decomposition import times
from ddcnn.io.results_schema import RunResults
from ddcnn.io.run_reader import FinishedRun
from ddcnn.report.analysis import disagreements
from ddcnn.report.analysis_report import RIGHT
from ddcnn.report.intervals import decimals
from ddcnn.report.metrics import confusion
from ddcnn.report.pages import plain

CURVES_CAPTION = (
    "Accuracy on the {} images against the wall time of a method's own phases (evaluation included); that of `average` "
    "averages the local CNNs as they are then, those whose training has begun; a mark without a line is a method without a curve, and the "
    "dotted line is the final accuracy of `global`."
)
MANY_NAMES = 20  # classes or phases that a text names one by one


@dataclass(frozen=True)
class Described:
    caption: str
    instead: str


def described(run: FinishedRun) -> dict[str, Described]:
    """By name, of all figures that there may be of a run."""
    texts = captions(run)
    return {name: Described(texts[name], " ".join(instead.split())) for name, instead in alternatives(run).items()}


def captions(run: FinishedRun) -> dict[str, str]:
    slices = "; of a volume, the middle slice along each axis is shown" if run.details.examples.ndim == 5 else ""
    splitting = run.results.decomposition.splitting
    best = f"the most accurate method{' on the validation images' if run.results.data.validation_samples else ''}"
    names = [plain(name) for name in run.details.class_names]
    often = [f"most often, {names[true]} is taken for {names[found]} ({share:.0%})" for true, found, share in confused(run)[:1]]
    over = "; the image behind is one of the test images" if splitting.cuts_images else ""
    return {
        "decomposition": f"{splitting.caption}{slices}. Tables and maps name the subdomains by their numbers, which count row by row.",
        "local_accuracy": f"On the left, each cell is {splitting.cell}, with its number in the corner: the brighter, the more test samples "
        "its local CNN classifies correctly alone; on the right, what the methods make of them all. Where intervals overlap widely, the "
        "test samples do not tell which is better.",
        "accuracy_over_time": CURVES_CAPTION.format(run.results.curves_on),
        "learning_curves": "A line is a training, that of the local CNNs their mean with a band from the least to the most; training "
        "accuracy far above validation accuracy means overfitting.",
        "confusion": f"Of the samples of a true class (row), the percentage that `{run.results.best}`, {best}, puts into "
        f"each class (column): the diagonal is right{''.join(f'; {text}' for text in often)}. In brackets, the test samples of the class.",
        "timeline": "What the ranks do when, in every step of time from below: the more blue, the better they are used "
        "(what is empty was not recorded). The start-up (imports, opening files) stands apart; the percentages are of the time after it.",
        "reliance": "What the accuracy of a method loses, in points, if a subdomain's classifications are exchanged between test samples: "
        f"the brighter, the more it relies on the subdomain, whose number is in the corner{over}.",
        "disagreement": f"Some of the test samples that vote and DNN decide differently, by who is right{slices}.",
        "reliability": "Accuracy of the decisions of like confidence, with 95 % intervals; hatched where there are fewer than ten. On the "
        "dashed line the confidence is right, below it a method is too sure, above it not sure enough. Beneath, how many decisions have "
        "which confidence, on a logarithmic axis.",
    }


def alternatives(run: FinishedRun) -> dict[str, str]:
    results, details = run.results, run.details
    texts = {
        "decomposition": decomposition_text(run), "accuracy_over_time": curves_text([results]), "learning_curves": learning_text(run),
        "confusion": confusion_text(run), "timeline": timeline_text(run),
    }  # fmt: skip
    if (local := run.local_accuracy) is not None:
        places, flat = decimals(results.data.test_samples), local.ravel()
        methods = ", ".join(f"{name} {accuracy:.{places}%}" for name, accuracy in run.test_accuracy.items())
        texts["local_accuracy"] = (
            f"Test accuracies on {results.data.test_samples} samples: local CNNs from {flat.min():.{places}%} (subdomain {flat.argmin()}) "
            f"to {flat.max():.{places}%} (subdomain {flat.argmax()}), in the mean {flat.mean():.{places}%}; {methods}."
        )
    if not (analysis := results.analysis):
        return texts
    lost = {name: 100 * np.array(one.reliance) for name, one in analysis.influence.items()}
    ranges = (
        f"{name} from {most.min():z.1f} (subdomain {most.argmin()}) to {most.max():z.1f} (subdomain {most.argmax()})"
        for name, most in lost.items()
    )
    differing = ", ".join(f"{RIGHT[kind]} {len(rows)}" for kind, rows in disagreements(details.labels, details.classes).items())
    errors = (f"{name} {error:.1%}" for name, error in analysis.calibration_error.items())
    return texts | {
        "reliance": f"Points of accuracy lost by subdomain: {'; '.join(ranges)}.",
        "disagreement": f"Test samples that vote and DNN decide differently: {differing}.",
        "reliability": f"Accuracy over confidence; expected calibration errors: {', '.join(errors)}.",
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
            seconds, accuracy = np.mean([curve[-1] for curve in curves], axis=0)
            ends.append(f"{name} at {accuracy:.1%} after {seconds:.1f} s")
    return f"Accuracy on the {runs[0].curves_on} images over wall time; the curves end: {', '.join(ends)}."


def learning_text(run: FinishedRun) -> str:
    texts = []
    for phase in list(dict.fromkeys(line.phase for line in run.epochs))[:MANY_NAMES]:
        lines = [line for line in run.epochs if line.phase == phase]
        last = max(line.epoch for line in lines)
        losses = [line.loss for line in lines if line.epoch == last and line.loss is not None]
        accuracies = [line.accuracy for line in lines if line.epoch == last and line.accuracy is not None]
        told = [f"training loss {np.mean(losses):.3f}"] if losses else []
        told += [f"training accuracy {np.mean(accuracies):.1%}"] if accuracies else []
        told += [f"{run.results.curves_on} accuracy {run.curve_ends[phase]:.1%}"] if phase in run.curve_ends else []
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
    often = "".join(f"; of {names[true]}, {share:.0%} are taken for {names[found]}" for true, found, share in confused(run))
    return f"Test samples that {run.results.best} puts into their class, the worst class first: {right}{often}."


def timeline_text(run: FinishedRun) -> str:
    from ddcnn.report.figures.timeline import percentages

    details = run.details
    percent, start = percentages(details.timeline, details.phases, details.kinds)
    shares = ", ".join(f"{name} {share} %" for name, share in percent.items())
    phases = ", ".join(f"{name} {phase.seconds:.1f} s" for name, phase in run.results.phases.items() if phase.seconds > 0)
    return f"After a start-up of {start:.1f} s, the {run.results.environment.ranks} ranks spend their time so: {shares}. Phases: {phases}."
