"""The report of a run with several seeds: mean and spread of every method."""

import statistics
from typing import Any

from rich.console import Console

from ddcnn.io.atomic import write_json
from ddcnn.io.results_schema import RunResults, Spread, dump
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import FinishedRun, load
from ddcnn.report import run_report
from ddcnn.report.pages import table


def write_reports(output: RunFolder, console: Console) -> None:
    """Makes the report of a finished run anew; with several seeds, that of each seed and their summary.

    Raises:
        InputError: as ``run_report.write_report``.
    """
    folders = output.seeds()
    for folder in folders:
        run_report.write_report(folder)
    if folders:
        write_summary(output, folders, console)
    else:
        run_report.write_report(output, console)


def write_summary(output: RunFolder, folders: list[RunFolder], console: Console | None, draw: bool = True) -> None:
    """Writes the results of several seeds (means, and the spread of the methods), the report and, if ``draw``, a figure."""
    runs = [load(folder) for folder in folders]
    report = text(runs)
    if draw:
        from ddcnn.report.figures import charts

        run_report.save_figures(output, {"accuracy_over_time": charts.accuracy_over_time([run.curves for run in runs])})
        report += f"\n## Figure\n{run_report.figure_text(output, 'accuracy_over_time', f'{run_report.CURVES_CAPTION} A curve a seed.')}"
    write_json(output.results, dump(summary([run.results for run in runs])))
    run_report.publish(output, report, [run.results for run in runs], console)


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


def text(runs: list[FinishedRun]) -> str:
    """report.md without its figure."""
    first = runs[0].results
    seeds = ", ".join(f"[{run.results.environment.seed}]({run.folder.report.relative_to(run.folder.path.parent)})" for run in runs)
    environment = first.environment
    return f"""# {run_report.title(first)}, {len(runs)} seeds

Seeds {seeds}; {environment.ranks} ranks, {environment.threads_per_rank} threads a rank, {environment.device}, \
{environment.precision}. Mean ± standard deviation. {run_report.sources_note(runs[0].folder)}

## Methods

{table(run_report.METHODS_HEADER, run_report.method_rows([run.results for run in runs]))}

{run_report.METHODS_NOTE}
"""
