"""Sections of a report on the decisions: reliance on subdomains, accuracy without one, vote against DNN, calibration."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ddcnn.io.results_schema import Analysis, Influence
from ddcnn.io.run_reader import FinishedRun
from ddcnn.report.analysis import disagreements
from ddcnn.report.intervals import percent
from ddcnn.report.metrics import reliability
from ddcnn.report.pages import plain, table

MANY_SUBDOMAINS = 16  # of more, those on which the methods rely most
MANY_CLASSES = 20  # of more, those in which vote and DNN disagree most
LONGEST_NAME = 14  # below a picture
RIGHT = {"dnn": "only the DNN is right", "vote": "only the vote is right", "neither": "neither is right"}
INFLUENCE_NOTE = (
    "Which subdomains does a method need? To see it, what one subdomain's local CNN says is shuffled over the test images: each image gets "
    "what was said of another one, while all other subdomains keep theirs. The **reliance** on the subdomain is the test accuracy that is "
    "lost by this, in points (permutation importance). A large value: the decisions hang on this subdomain. Near 0: the method hardly uses "
    "it, or others say the same. Below 0: it misleads, or the difference is noise."
)
ABSENT_NOTE = (
    "The columns **one absent** have the test accuracy if a subdomain is missing altogether, as with `ddcnn predict --without`: `vote` and "
    "`average` then decide by the others; for other methods the mean of the others stands in its place."
)
CALIBRATION_NOTE = (
    "Can the probabilities be believed? The **confidence** of a decision is the probability of the class that is decided for. It should be "
    "how often such decisions are right: of those with 80 % confidence, 80 %. The **expected calibration error** (ECE) is how far "
    "confidence and accuracy are apart, in the mean over decisions of like confidence; 0 is best."
)


def analysis_text(run: FinishedRun, figures: Mapping[str, str]) -> str:
    """The sections with those of their figures that have been drawn; none for a run of an older version."""
    analysis = run.results.analysis
    if analysis is None:
        return ""
    sections = {
        "Reliance on subdomains": influence_text(run, analysis.influence) if analysis.influence else "",
        "Vote and DNN": disagreement_text(run, analysis) if analysis.disagreement else "",
        "Calibration": f"{CALIBRATION_NOTE}\n\n{calibration_table(run, analysis)}" if analysis.calibration_error else "",
    }
    drawn = {"Reliance on subdomains": "reliance", "Vote and DNN": "disagreement", "Calibration": "reliability"}
    return "".join(f"## {title}\n\n{text}\n\n{figures.get(drawn[title], '')}" for title, text in sections.items() if text)


def influence_text(run: FinishedRun, influence: dict[str, Influence]) -> str:
    fewer = ", ".join(f"{name} {one.samples}" for name, one in influence.items() if one.samples < run.results.data.test_samples)
    note = f"{INFLUENCE_NOTE}{f' Only a part of the test images was used: {fewer}.' if fewer else ''}"
    absent = f"\n\n{ABSENT_NOTE}" if any(one.without for one in influence.values()) else ""
    return f"{note}{absent}\n\n{absent_table(run, influence)}\n\n{reliance_table(influence)}"


def absent_table(run: FinishedRun, influence: dict[str, Influence]) -> str:
    """A row per method: most and least relied on, accuracy with any one subdomain absent."""
    rows = []
    for name, one in influence.items():
        lost, rest, used = np.array(one.reliance), None if one.without is None else np.array(one.without), one.samples
        most, least = (f"{percent(lost[k], used)} (on {k})" for k in (lost.argmax(), lost.argmin()))
        absent = ("–", "–") if rest is None else (percent(rest.mean(), used), f"{percent(rest.min(), used)} (without {rest.argmin()})")
        rows.append([name, percent(run.test_accuracy[name], run.results.data.test_samples), most, least, *absent])
    header = ("method", "test accuracy in %", "largest reliance", "smallest reliance", "one absent: mean in %", "one absent: worst in %")
    return table(header, rows)


def reliance_table(influence: dict[str, Influence]) -> str:
    """A row per subdomain: the reliance of every method; of many, those with the largest mean."""
    lost = np.array([one.reliance for one in influence.values()]).T  # (N, methods)
    samples = [one.samples for one in influence.values()]
    shown, note = np.arange(len(lost)), ""
    if len(lost) > MANY_SUBDOMAINS:
        shown = np.argsort(-lost.mean(axis=1), kind="stable")[:MANY_SUBDOMAINS]
        note = f"The {MANY_SUBDOMAINS} of {len(lost)} subdomains on which the methods rely most, in the mean.\n\n"
    return note + table(
        ("subdomain", *(f"reliance of {name}" for name in influence)), ([k, *map(percent, lost[k], samples)] for k in shown)
    )


def disagreement_text(run: FinishedRun, analysis: Analysis) -> str:
    differ, samples = sum(analysis.disagreement.values()), run.results.data.test_samples
    text = f"Vote and DNN decide differently on {differ} of {samples} test images ({percent(differ / samples, samples)} %)"
    if not differ:
        return f"{text}."
    by_kind = ", ".join(f"{RIGHT[kind]} on {number}" for kind, number in analysis.disagreement.items())
    return (
        f"{text}: {by_kind}. Scripts find them where `classes/vote` and `classes/dnn` in {run.folder.details.name} differ. "
        f"By true class:\n\n"
        f"{disagreement_table(run)}"
    )


def disagreement_table(run: FinishedRun) -> str:
    """A row per true class in which vote and DNN disagree."""
    kinds = disagreements(run.details.labels, run.details.classes)
    labels, classes = run.details.labels, run.results.data.classes
    counts = np.stack([np.bincount(labels[kinds[kind]], minlength=classes) for kind in RIGHT], axis=1)  # (K, 3)
    order = np.argsort(-counts.sum(axis=1), kind="stable")
    shown = [k for k in order[:MANY_CLASSES] if counts[k].any()]
    samples = np.bincount(labels, minlength=classes)
    rows = ([plain(run.details.class_names[k]), samples[k], counts[k].sum(), *counts[k]] for k in shown)
    return table(("true class", "test images", "decided differently", *RIGHT.values()), rows)


def calibration_table(run: FinishedRun, analysis: Analysis) -> str:
    samples = run.results.data.test_samples
    rows = (
        (name, *(percent(share, samples) for share in (confidence.mean(), run.test_accuracy[name], analysis.calibration_error[name])))
        for name, confidence in run.details.confidence.items()
    )
    return table(("method", "mean confidence in %", "test accuracy in %", "ECE in %"), rows)


def analysis_figures(run: FinishedRun) -> dict[str, Callable[[], Any]]:
    """What draws the figures, by name."""
    from ddcnn.report.figures import charts, images, maps

    analysis, details = run.results.analysis, run.details
    if analysis is None:
        return {}

    def reliance() -> Any:
        lost = {name: np.reshape(one.reliance, run.map_shape) for name, one in analysis.influence.items()}
        cut = run.results.decomposition.splitting.cuts_images  # else there are no places in an image
        samples = min(one.samples for one in analysis.influence.values())
        return maps.reliance(lost, samples, maps.Behind(details.examples[0], run.cores) if cut else None)

    def reliability_of_methods() -> Any:
        correct = {name: details.classes[name] == details.labels for name in details.confidence}
        bins = {name: reliability(confidence, correct[name]) for name, confidence in details.confidence.items()}
        return charts.reliability(bins, analysis.calibration_error)

    figures: dict[str, Callable[[], Any]] = {"reliance": reliance} if analysis.influence else {}
    if len(details.pictures):
        figures["disagreement"] = lambda: images.disagreement(disagreement_pictures(run))
    return figures | ({"reliability": reliability_of_methods} if details.confidence else {})


def disagreement_pictures(run: FinishedRun) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Per kind of disagreement: pictures (n, h, w, C), and what is said of each."""
    shown = {}
    for kind, rows in disagreements(run.details.labels, run.details.classes).items():
        chosen = np.isin(run.details.picture_rows, rows)
        texts = [picture_text(run, row) for row in run.details.picture_rows[chosen]]
        shown[f"{RIGHT[kind]} ({len(rows)})"] = run.details.pictures[chosen], texts
    return shown


def picture_text(run: FinishedRun, row: int) -> str:
    from ddcnn.report.figures.fonts import label

    said = {"true": run.details.labels[row], "vote": run.details.classes["vote"][row], "dnn": run.details.classes["dnn"][row]}
    lines = (f"{name}: {label(run.details.class_names[k], LONGEST_NAME)}" for name, k in said.items())
    return "\n".join((f"sample {row}", *lines))
