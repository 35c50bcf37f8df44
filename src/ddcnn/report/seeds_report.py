"""Several seeds of one run, put together: mean and spread of every method."""

import logging
import statistics
from typing import Any

from ddcnn.io.atomic import write_json
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import FinishedRun, curves_of, load
from ddcnn.report.markdown import human, table
from ddcnn.report.page import write_pages
from ddcnn.report.run_report import (
    CURVES_CAPTION,
    METHODS_HEADER,
    METHODS_NOTE,
    TIME_COLUMNS,
    figure_text,
    reached,
    save_figures,
    show_table,
    sources_note,
    title,
    write_report,
)

MEASURES = ("test_accuracy", "balanced_accuracy", "auc", "test_loss")
logger = logging.getLogger(__name__)


def write_reports(output: RunFolder) -> None:
    """The report of a finished run made anew or, if it has had several seeds, that of each and of all.

    Raises:
        InputError: as ``report.write_report``.
    """
    folders = output.seeds()
    if not folders:
        write_report(output)
        return
    for folder in folders:
        write_report(folder, show=False)
    write_summary(output, folders)


def write_summary(output: RunFolder, folders: list[RunFolder], show: bool = True, draw: bool = True) -> None:
    """Writes results.json (means over the runs, ``seeds``, ``spread``), the report and, if ``draw``, a figure beside the runs' folders."""
    runs = [load(folder) for folder in folders]
    documents = [run.results for run in runs]
    together = mean_of(documents)
    together["seeds"] = [document["environment"]["seed"] for document in documents]
    together["environment"]["seed"] = together["seeds"][0]
    for name, method in together["methods"].items():
        del method["curve"]  # every run has its own
        method["spread"] = {value: spread([document["methods"][name][value] for document in documents]) for value in MEASURES}
    report = text(runs)
    if draw:
        from ddcnn.report import figures

        curves = figures.accuracy_over_time([curves_of(document) for document in documents])
        save_figures(output, {"accuracy_over_time": curves})
        report += f"\n## Figure\n{figure_text(output, 'accuracy_over_time', f'{CURVES_CAPTION} A curve a seed.')}"
    write_pages(output, report)
    write_json(output.results, together)
    if show:
        rows = method_rows(runs)
        show_table(METHODS_HEADER, rows, None)
        logger.info("report: %s", output.report)


def mean_of(values: list[Any]) -> Any:
    """Of documents of one form, number by number; what is no number, or the same everywhere, is taken as it is."""
    first = values[0]
    if isinstance(first, dict):
        return {key: mean_of([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if isinstance(first, list) and all(len(value) == len(first) for value in values):
        return [mean_of(list(items)) for items in zip(*values, strict=True)]
    if isinstance(first, (int, float)) and not isinstance(first, bool) and any(value != first for value in values):
        return statistics.mean(values)
    return first


def spread(values: list[float | None]) -> float | None:
    """Standard deviation of a sample."""
    numbers = [value for value in values if value is not None]
    return statistics.stdev(numbers) if len(numbers) > 1 else None


def method_rows(runs: list[FinishedRun]) -> list[list[str]]:
    rows = []
    for name in runs[0].results["methods"]:
        methods = [run.results["methods"][name] for run in runs]

        def both(values: list[float | None], pattern: str) -> str:
            numbers = [value for value in values if value is not None]
            return f"{pattern} ± {pattern}".format(statistics.mean(numbers), spread(values)) if numbers else "–"

        times = [both([method["seconds"][kind] for method in methods], "{:.1f}") for kind in TIME_COLUMNS]
        target = [run.test_accuracy.get("global") for run in runs]
        when = [reached(method["curve"], accuracy) for method, accuracy in zip(methods, target, strict=True)]
        rows.append([
            name, *(both([100 * method[value] for method in methods], "{:.2f}") for value in ("test_accuracy", "balanced_accuracy")),
            *(both([method[value] for method in methods], "{:.4f}") for value in ("auc", "test_loss")),
            f"{methods[0]['parameters']:,}", str(methods[0]["epochs"]), *times, human(methods[0]["bytes_communicated"]),
            when[0] if len(set(when)) == 1 else " / ".join(when),
        ])  # fmt: skip
    return rows


def text(runs: list[FinishedRun]) -> str:
    """report.md without its figure."""
    first = runs[0].results
    seeds = ", ".join(f"[{run.results['environment']['seed']}]({run.folder.report.relative_to(run.folder.path.parent)})" for run in runs)
    environment = first["environment"]
    return f"""# {title(first)}, {len(runs)} seeds

Seeds {seeds}; {environment["ranks"]} ranks, {environment["threads_per_rank"]} threads a rank, {environment["device"]}, \
{environment["precision"]}. Mean ± standard deviation; {sources_note(runs[0].folder)}

## Methods

{table(METHODS_HEADER, method_rows(runs))}

{METHODS_NOTE}
"""
