"""The report of a run with several seeds: mean and spread of every method."""

import statistics
from typing import Any

from rich.console import Console

from ddcnn.config.methods import Method
from ddcnn.io.atomic import write_json
from ddcnn.io.results_schema import RunResults, Spread, dump
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import FinishedRun, curves_of, load
from ddcnn.report.markdown import human, table, write_pages
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


def write_reports(output: RunFolder, console: Console) -> None:
    """Makes the report of a finished run anew; with several seeds, that of each seed and their summary.

    Raises:
        InputError: as ``run_report.write_report``.
    """
    folders = output.seeds()
    for folder in folders:
        write_report(folder)
    if folders:
        write_summary(output, folders, console)
    else:
        write_report(output, console)


def write_summary(output: RunFolder, folders: list[RunFolder], console: Console | None, draw: bool = True) -> None:
    """Writes the results of several seeds (means, and the spread of the methods), the report and, if ``draw``, a figure."""
    runs = [load(folder) for folder in folders]
    report = text(runs)
    if draw:
        from ddcnn.report import figures

        save_figures(output, {"accuracy_over_time": figures.accuracy_over_time([curves_of(run.results) for run in runs])})
        report += f"\n## Figure\n{figure_text(output, 'accuracy_over_time', f'{CURVES_CAPTION} A curve a seed.')}"
    write_pages(output, report)
    write_json(output.results, dump(summary([run.results for run in runs])))
    if console:
        show_table(METHODS_HEADER, method_rows(runs), None, console)
        console.out(f"report: {output.report}", highlight=False)


def summary(results: list[RunResults]) -> RunResults:
    """Means over the seeds, with the spread of the methods and without their curves, which every seed has of its own."""
    mean = mean_of([dump(one) for one in results])
    mean["seeds"] = [one.environment.seed for one in results]
    mean["environment"]["seed"] = mean["seeds"][0]
    for name, method in mean["methods"].items():
        del method["curve"]
        each = [one.methods[name] for one in results]
        method["spread"] = {measure: spread([getattr(one, measure) for one in each]) for measure in Spread.model_fields}
    return RunResults.model_validate(mean)


def mean_of(values: list[Any]) -> Any:
    """The mean of JSON values of one form, number by number; other values, and those that are equal, are those of the first."""
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
    for name in runs[0].results.methods:
        methods = [run.results.methods[name] for run in runs]

        def both(values: list[float | None], pattern: str) -> str:
            numbers = [value for value in values if value is not None]
            return f"{pattern} ± {pattern}".format(statistics.mean(numbers), spread(values)) if numbers else "–"

        times = [both([getattr(method.seconds, kind) for method in methods], "{:.1f}") for kind in TIME_COLUMNS]
        target = [run.test_accuracy.get(Method.GLOBAL) for run in runs]
        when = [reached(method.curve or [], accuracy) for method, accuracy in zip(methods, target, strict=True)]
        rows.append([
            name, both([100 * method.test_accuracy for method in methods], "{:.2f}"),
            both([100 * method.balanced_accuracy for method in methods], "{:.2f}"),
            both([method.auc for method in methods], "{:.4f}"), both([method.test_loss for method in methods], "{:.4f}"),
            f"{methods[0].parameters:,}", str(methods[0].epochs), *times, human(methods[0].bytes_communicated),
            when[0] if len(set(when)) == 1 else " / ".join(when),
        ])  # fmt: skip
    return rows


def text(runs: list[FinishedRun]) -> str:
    """report.md without its figure."""
    first = runs[0].results
    seeds = ", ".join(f"[{run.results.environment.seed}]({run.folder.report.relative_to(run.folder.path.parent)})" for run in runs)
    environment = first.environment
    return f"""# {title(first)}, {len(runs)} seeds

Seeds {seeds}; {environment.ranks} ranks, {environment.threads_per_rank} threads a rank, {environment.device}, \
{environment.precision}. Mean ± standard deviation; {sources_note(runs[0].folder)}

## Methods

{table(METHODS_HEADER, method_rows(runs))}

{METHODS_NOTE}
"""
