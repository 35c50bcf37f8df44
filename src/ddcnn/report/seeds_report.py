"""The report of a run with several seeds: mean and spread of every method."""

import statistics
from typing import Any

from rich.console import Console

from ddcnn.io.atomic import write_json
from ddcnn.io.results_schema import RunResults, Spread, dump
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import curves_of, load_results
from ddcnn.report import run_report
from ddcnn.report.descriptions import curve_samples, curves_caption, curves_text
from ddcnn.report.methods_table import methods_text
from ddcnn.report.pages import figure_text
from ddcnn.report.verdict import verdict_of_seeds


def write_reports(output: RunFolder, console: Console) -> None:
    """Makes the report of a finished run anew; with several seeds, that of each seed and their summary.

    Raises:
        InputError: as ``run_report.write_report``.
    """
    folders = output.seeds()
    for folder in folders:
        run_report.write_report(folder)
    if folders:
        write_results(output, folders)
        write_summary(output, folders, console)
    else:
        run_report.write_report(output, console)


def write_results(output: RunFolder, folders: list[RunFolder]) -> None:
    """Writes the results of several seeds: means, and the spread of the methods."""
    write_json(output.results, dump(summary([load_results(folder) for folder in folders])))


def write_summary(output: RunFolder, folders: list[RunFolder], console: Console | None, draw: bool = True) -> None:
    """Writes the report of several seeds and, if ``draw``, a figure."""
    runs = [load_results(folder) for folder in folders]

    def figure() -> Any:
        from ddcnn.report.figures import charts

        return charts.accuracy_over_time([curves_of(run) for run in runs], runs[0].curves_on, curve_samples(runs[0]))

    curves = ""
    if draw and run_report.draw_figures(output, {"accuracy_over_time": figure}):
        caption = curves_caption(runs[0])
        caption += " Lines are means over the seeds; the bands reach a standard deviation to either side."
        curves = figure_text(output, "accuracy_over_time", caption, curves_text(runs))
    run_report.publish(output, text(folders, runs, curves), runs, console)


def summary(results: list[RunResults]) -> RunResults:
    """Means over the seeds, with the spread of the methods and without their curves, which every seed has of its own."""
    mean = mean_of([dump(one) for one in results])
    mean["schema_version"] = min(one.schema_version for one in results)  # a run may be gone on with by a newer version
    mean["seeds"] = [one.environment.seed for one in results]
    mean["environment"]["seed"] = mean["seeds"][0]
    for name, method in mean["methods"].items():
        method.pop("curve", None)
        each = [one.methods[name] for one in results]
        method["spread"] = {measure: spread([getattr(one, measure) for one in each]) for measure in Spread.model_fields}
    return RunResults.model_validate(mean)


def mean_of(values: list[Any]) -> Any:
    """The mean of JSON values of one form, number by number, without nulls; other values are those of the first."""
    first = values[0]
    if isinstance(first, dict):
        return {key: mean_of([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if isinstance(first, list) and all(len(value) == len(first) for value in values):
        return [mean_of(list(items)) for items in zip(*values, strict=True)]
    numbers = [value for value in values if value is not None]
    if all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers) and len(set(numbers)) > 1:
        return statistics.mean(numbers)
    return next(iter(numbers), None)


def spread(values: list[float | None]) -> float | None:
    """Standard deviation of a sample."""
    numbers = [value for value in values if value is not None]
    return statistics.stdev(numbers) if len(numbers) > 1 else None


def text(folders: list[RunFolder], runs: list[RunResults], curves: str) -> str:
    """report.md, with the figure of the ``curves``."""
    first = runs[0]
    links = (folder.report.relative_to(folder.path.parent) for folder in folders)
    seeds = ", ".join(f"[{run.environment.seed}]({link})" for run, link in zip(runs, links, strict=True))
    environment = first.environment
    return f"""# {run_report.title(first)}, {len(runs)} seeds

Seeds {seeds}; {environment.ranks} ranks, {environment.threads_per_rank} threads a rank, {environment.device}, \
{environment.precision}. Mean ± standard deviation. {run_report.sources_note(folders[0])}

## Verdict

{verdict_of_seeds(runs, summary(runs).best)}

{curves}## Methods

{methods_text(runs)}
"""
