"""The report of a finished run, made anew from the files in its folder."""

import base64
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import groupby

import h5py
import numpy as np
import pytest
from launching import on_ranks, refusal
from matplotlib.image import imread
from quick import quick

from ddcnn.__main__ import main
from ddcnn.decomposition import Decomposition
from ddcnn.errors import InputError
from ddcnn.io.run_folder import RunFolder
from ddcnn.io.run_reader import load
from ddcnn.report import pages
from ddcnn.report.descriptions import curves_caption
from ddcnn.report.figures import charts, images, maps
from ddcnn.report.figures.timeline import timeline
from ddcnn.report.methods_table import ACCURACY, COST
from ddcnn.report.pages import human
from ddcnn.report.run_report import write_report
from ddcnn.report.verdict import verdict

FILES = ("results.json", "metrics.jsonl", "config.toml", "details.h5")
FIGURES = {
    "decomposition", "accuracy_over_time", "local_accuracy", "learning_curves", "confusion", "timeline", "reliance", "disagreement",
    "reliability",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run, which no test changes."""
    folder = tmp_path_factory.mktemp("report")
    run = on_ranks(2, "run", *quick(no_figures=None, test_samples=100, overlap=1, output="run"), cwd=folder)
    assert run.returncode == 0, run.stderr
    return folder / "run"


@pytest.fixture
def bare(finished, tmp_path):
    """A copy of what the report is made from, and nothing else."""
    (tmp_path / "copy").mkdir()
    for name in FILES:
        shutil.copy(finished / name, tmp_path / "copy")
    return tmp_path / "copy"


def rows(text, title):
    """The cells of the first table below a title of report.md, without its header."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")][2:]


def tables(text, title):
    """The tables below a title of report.md, as rows by column."""
    lines = text.split(f"## {title}\n")[1].split("\n## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None for line in lines]
    blocks = [list(block) for in_table, block in groupby(cells, bool) if in_table]
    return [[dict(zip(header, row, strict=True)) for row in body] for header, _, *body in blocks]


def boxes(subdomains):
    """Start and stop of the cores and of the subimages: (N, 2, d) each."""
    return (np.array([[box.start, box.stop] for box in kind]) for kind in zip(*((s.core, s.subimage) for s in subdomains), strict=True))


def drawn(folder):
    """The figures in a run's folder by name, (h, w, RGBA) each."""
    return {path.stem: imread(path) for path in (folder / "figures").iterdir()}


def test_the_command_makes_it_anew_as_the_run_made_it_shows_the_methods_and_needs_no_torch(finished, bare):
    program = (
        "import sys; from ddcnn import __main__; sys.argv[1:] = ['report', 'copy']; code = __main__.main(); "
        "sys.exit(code or 3 * bool({'torch', 'mpi4py'} & set(sys.modules)))"
    )
    again = subprocess.run([sys.executable, "-c", program], cwd=bare.parent, capture_output=True, text=True)
    assert again.returncode == 0, (again.returncode, again.stderr)
    for name in ("report.md", "report.html"):
        assert (bare / name).read_text("utf-8") == (finished / name).read_text("utf-8")
    before, after = drawn(finished), drawn(bare)
    assert set(before) == set(after) == FIGURES
    for name in FIGURES:
        np.testing.assert_array_equal(before[name], after[name])
    for name, method in json.loads((bare / "results.json").read_text("utf-8"))["methods"].items():
        assert re.search(rf"\b{name} .*\b{100 * method['test_accuracy']:.1f}\b", again.stdout)
    assert again.stdout.splitlines()[-1].endswith(f"{bare.name}/report.md")


def test_tables_tell_the_numbers_of_the_results(finished):
    text, results = (finished / "report.md").read_text("utf-8"), json.loads((finished / "results.json").read_text("utf-8"))
    accurate, costs = ({row["method"]: row for row in table} for table in tables(text, "Methods"))
    assert set(accurate) == set(costs) == set(results["methods"])
    for name, method in results["methods"].items():
        row, cost = accurate[name], costs[name]
        accuracies = [method[f"{kind}_accuracy"] for kind in ("validation", "test", "balanced")]
        shown = [row[column] for column in ("validation in %", "test accuracy in %", "balanced in %")]
        assert [float(value) for value in shown] == pytest.approx([100 * value for value in accuracies], abs=0.05)
        assert float(cost["total s"]) == pytest.approx(method["seconds"]["total"], abs=0.005)
        assert cost["memory a rank"] == human(method["peak_memory_bytes"])
        kept = f"{method['kept_epoch']} of {method['own_epochs']}" if method["kept_epoch"] else "–"
        assert (row["epochs"], row["kept epoch"]) == (str(method["epochs"]), kept)
        for column, value in (("AUC", method["auc"]), ("test loss", method["test_loss"])):
            assert row[column] == "–" if value is None else float(row[column]) == pytest.approx(value, abs=1e-4)
        assert f"- `{name}` " in text  # what it does
    for column in {*ACCURACY, *COST} & {*accurate["global"], *costs["global"]} - {"communicate s", "wait s"}:
        assert f"- `{column}`: " in text
    for row, subdomain in zip(rows(text, "Subdomains"), results["decomposition"]["subdomains"], strict=True):
        assert int(row[0]) == subdomain["index"]
        accuracies = [subdomain[f"{kind}_accuracy"] for kind in ("validation", "test")]
        assert [float(value) for value in row[3:5]] == pytest.approx([100 * value for value in accuracies], abs=0.05)
        assert row[5] == f"{subdomain['kept_epoch']} of {subdomain['epochs']}"
    assert all(row[4] == human(results["phases"][row[0]]["max_rank_memory_bytes"]) for row in rows(text, "Phases"))
    assert [row[0] for row in rows(text, "Phases")] == [name for name, phase in results["phases"].items() if phase["seconds"]]
    assert dict(rows(text, "Environment"))["ranks"] == "2"


def test_embeds_every_figure_and_each_shows_something(finished):
    embedded = re.findall(r"!\[.*\]\((.*)\)", (finished / "report.md").read_text("utf-8"))
    assert sorted(embedded) == sorted(f"figures/{name}.png" for name in FIGURES)
    for name in embedded:
        picture = imread(finished / name)
        assert min(picture.shape[:2]) > 200
        assert picture[..., :3].var() > 0.001


class Page(HTMLParser):
    """What a page loads, its tags, its text, targets of links and places for them, and texts in place of figures."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.tags, self.text = [], set(), ""
        self.targets, self.places, self.instead = [], set(), []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.targets += [value for name, value in attributes if tag == "a" and name == "href"]
        self.places |= {value for name, value in attributes if name == "id"}
        self.instead += [value for name, value in attributes if name == "alt"]
        self.loads += [value for name, value in attributes if name in ("src", "srcset", "background", "data")]
        self.loads += [value for name, value in attributes if tag == "link" and name == "href"]

    def handle_data(self, data):
        self.text += data


def test_the_page_has_its_figures_inside_and_loads_nothing(finished):
    text = (finished / "report.html").read_text("utf-8")
    page = Page(text)
    start = "data:image/png;base64,"
    assert all(source.startswith(start) for source in page.loads)
    inside = {base64.b64decode(source.removeprefix(start)) for source in page.loads}
    assert inside == {path.read_bytes() for path in (finished / "figures").iterdir()}
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in text and "@import" not in text
    assert {"h1", "h2", "table", "th", "td"} <= page.tags
    markdown = (finished / "report.md").read_text("utf-8")
    sections = [line[3:] for line in markdown.splitlines() if line.startswith("## ")] + ["Settings and results"]
    assert re.findall(r"<h2 .*>(.*)</h2>", text) == sections
    assert re.findall(r'<li><a href="#.*">(.*)</a></li>', text) == sections
    assert text.count("<tr>") == sum(line.startswith("| ") for line in markdown.splitlines()) - markdown.count("| :--")


def test_the_page_can_be_sent_alone(finished):
    text = (finished / "report.html").read_text("utf-8")
    page = Page(text)
    assert {f"#{place}" for place in page.places} == set(page.targets)
    for name in ("config.toml", "results.json"):
        assert (finished / name).read_text("utf-8") in page.text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text


def test_who_does_not_see_a_figure_reads_its_numbers(finished):
    instead = Page((finished / "report.html").read_text("utf-8")).instead
    results = json.loads((finished / "results.json").read_text("utf-8"))
    assert len(set(instead)) == len(FIGURES)
    (curves,) = [text for text in instead if "over wall time" in text]
    for name, method in results["methods"].items():
        seconds, accuracy = method["curve"][-1]
        assert f"{name} at {100 * accuracy:.1f} % after {seconds:.2f} s" in curves
    (errors,) = [text for text in instead if "calibration errors" in text]
    for name, error in results["understanding"]["calibration_error"].items():
        assert f"{name} {100 * error:.1f} %" in errors
    (kinds,) = [text for text in instead if "decide differently" in text]
    assert [int(count) for count in re.findall(r"right (\d+)", kinds)] == list(results["understanding"]["disagreement"].values())


def test_the_verdict_names_the_best_method_by_how_much_and_at_what_cost(finished):
    run = load(RunFolder(finished))
    results, text = run.results, (finished / "report.md").read_text("utf-8")
    assert text.index("## Verdict") < text.index("## Methods")
    assert f"**`{results.best}` is the most accurate method** on the validation images" in text
    found = {row[0]: row[1:] for row in rows(text, "Verdict")}
    assert set(found) == set(results.methods)
    for name, (points, interval, told, seconds, sent, memory) in found.items():
        method = results.methods[name]
        assert (seconds, sent, memory) == (
            f"{method.seconds.total:.2f}", human(method.bytes_communicated), human(method.peak_memory_bytes),
        )  # fmt: skip
        if name == results.best:
            continue
        gained = (run.details.classes[name] == run.details.labels).mean() - (run.details.classes[results.best] == run.details.labels).mean()
        low, high = map(float, interval.split(" to "))
        assert float(points) == pytest.approx(100 * gained, abs=0.06) and low - 1 < float(points) < high + 1
        assert told == ("yes" if high < 0 else "yes, better on the test images" if low > 0 else "no")
    assert ("No other method is told apart" in text) == all(told == "no" for _, _, told, *_ in found.values() if told)


def test_the_verdict_names_no_winner_where_methods_are_equal(finished):
    run = load(RunFolder(finished))
    best, correct = run.results.best, {name: one == run.details.labels for name, one in run.details.classes.items()}
    other = next(name for name in run.results.methods if name != best and run.results.methods[name].validation_loss)
    equal = run.results.methods[other].model_copy(
        update={"validation_accuracy": run.results.accuracy_of(best), "validation_loss": 9.0}
    )  # fmt: skip
    text = verdict(run.results.model_copy(update={"methods": run.results.methods | {other: equal}}), correct)
    assert (
        f"**No single method is the most accurate**: `{best}` and `{other}` are equal" in text
        and f"`{best}` stands for them, with the smallest validation loss." in text
    )
    equal = equal.model_copy(update={"validation_loss": run.results.methods[best].validation_loss})
    text = verdict(run.results.model_copy(update={"methods": run.results.methods | {other: equal}}), correct)
    assert "stands for them, as the first of them." in text


def test_the_caption_of_the_curves_tells_of_methods_that_are_there(finished):
    results = load(RunFolder(finished)).results
    text = curves_caption(results)
    assert "`average`" in text and "`global`" in text
    only = results.model_copy(update={"methods": {"dnn": results.methods["dnn"]}})
    assert curves_caption(only) == text.split(" The line of")[0]


def test_without_its_settings_the_page_has_no_link_to_them(bare):
    (bare / "results.json").rename(bare / "kept")
    run = RunFolder(bare)
    page = Page(pages.page(run, "# a\n\n[config.toml](config.toml), [results.json](results.json), [x](http://host/x)\n"))
    assert page.targets == ["#config.toml", "#files"]
    assert "config.toml, results.json, x" in page.text


NAMES = ["<script>alert(1)</script>", "![x](http://host/x.png)", "*a* _b_ `c` | d", "$x_{", "&amp; <b>", "[l](javascript:x)", "a_b"]


def test_names_that_users_have_chosen_are_shown_as_they_are(bare):
    names = [*NAMES, "$a$ b^", "\\|", "\\"]
    with h5py.File(bare / "details.h5", "a") as file:
        file.attrs["class_names"] = json.dumps(names)
    results = json.loads((bare / "results.json").read_text("utf-8"))
    results["data"]["source"] = "/<i>/![s](file:///etc/passwd)"
    results["environment"]["mpi"] = "![m](/etc/passwd) ![f](figures/../results.json) <b>"
    (bare / "results.json").write_text(json.dumps(results), "utf-8")
    write_report(RunFolder(bare))
    page = Page((bare / "report.html").read_text("utf-8"))
    assert not page.tags & {"script", "b", "i", "em"} and page.targets.count("#config.toml") == 1
    (classes,) = [text for text in page.instead if "into their class" in text]
    assert all(f"{name}: " in classes for name in names)
    assert len(page.loads) == len(FIGURES) and all(source.startswith("data:image/png") for source in page.loads)
    assert "/<i>/![s](file:///etc/passwd), 2x2 subdomains" in page.text
    run = load(RunFolder(bare))
    differ = run.details.classes["vote"] != run.details.classes["dnn"]
    told = page.text.split("neither is right\n")[1].split("Calibration")[0].split("\n")
    assert {name for name in names if name in told} == {names[label] for label in run.details.labels[differ]}


def test_a_run_without_figures_has_a_page_without_them(bare):
    write_report(RunFolder(bare), draw=False)
    page = Page((bare / "report.html").read_text("utf-8"))
    assert not page.loads and "table" in page.tags
    assert "Figures" not in page.text


def test_a_run_of_an_older_version_is_reported_as_it_was(bare):
    results = json.loads((bare / "results.json").read_text("utf-8"))
    del results["understanding"]
    for part in (*results["methods"].values(), *results["phases"].values()):
        for name in [name for name in part if "memory" in name or "gpu" in name]:
            del part[name]
    (bare / "results.json").write_text(json.dumps(results), "utf-8")
    with h5py.File(bare / "details.h5", "a") as file:
        del file["confidence"], file["disagreement"]
    write_report(RunFolder(bare))
    assert set(drawn(bare)) == FIGURES - {"reliance", "disagreement", "reliability"}
    text = (bare / "report.md").read_text("utf-8")
    assert "Reliance" not in text
    assert "memory" not in text.split("## Environment")[0]  # no column of dashes, nor a word on it


@pytest.mark.parametrize(
    "damage",
    [
        {"influence": {"dnn": {"samples": 5, "reliance": [0.1], "without": None}}}, {"disagreement": 5}, {"influence": None},
        {"calibration_error": {"global": "x"}}, {"influence": {"dnn": {"samples": 5, "reliance": None, "without": None}}},
    ],
)  # fmt: skip
def test_damaged_numbers_are_named(bare, damage):
    results = json.loads((bare / "results.json").read_text("utf-8"))
    results["understanding"] |= damage
    (bare / "results.json").write_text(json.dumps(results), "utf-8")
    with pytest.raises(InputError, match=r"results\.json"):
        write_report(RunFolder(bare))


@pytest.mark.parametrize("name", ["confidence/dnn", "disagreement"])
def test_details_that_do_not_fit_are_named(bare, name):
    with h5py.File(bare / "details.h5", "a") as file:
        values, rows = file[name][...], file[name].attrs.get("rows", 0)
        del file[name]
        file[name] = values[:-1]
        file[name].attrs["rows"] = rows
    with pytest.raises(InputError, match=r"details\.h5"):
        write_report(RunFolder(bare))


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_a_folder_that_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    line = refusal(on_ranks(None, "report", name, cwd=tmp_path))
    assert name in line
    assert "give the folder of a finished run" in line


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(bare, name):
    (bare / name).unlink()
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(RunFolder(bare))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 0.4])
def test_a_damaged_file_is_named(bare, name, keep):
    content = (bare / name).read_bytes()
    (bare / name).write_bytes(content[: int(keep * len(content))].rstrip()[:-3])  # within a line
    with pytest.raises(InputError, match=re.escape(name)):
        write_report(RunFolder(bare))
    assert not (bare / "report.md").exists()


@pytest.mark.parametrize("place", ["report_text", "write_figures"])
def test_an_error_of_the_program_keeps_its_traceback_and_is_no_damaged_file(bare, place, monkeypatch, capsys):
    def broken(*arguments):
        raise TypeError("planted")

    monkeypatch.setattr(f"ddcnn.report.run_report.{place}", broken)
    monkeypatch.setattr(sys, "argv", ["ddcnn", "report", str(bare)])
    assert main() == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert any("in broken" in line for line in lines)
    assert lines[-1] == "ddcnn: failed: rank 0 of 1: TypeError: planted"


def test_another_schema_is_refused(bare):
    results = json.loads((bare / "results.json").read_text("utf-8"))
    (bare / "results.json").write_text(json.dumps(results | {"schema_version": 99}), "utf-8")
    with pytest.raises(InputError, match="99"):
        write_report(RunFolder(bare))


def test_details_of_another_run_are_refused(bare):
    with h5py.File(bare / "details.h5", "a") as file:
        labels = file["labels"][:-1]
        del file["labels"]
        file["labels"] = labels
    with pytest.raises(InputError, match=r"details\.h5"):
        write_report(RunFolder(bare))


@pytest.mark.parametrize("how", ["link", "virtual"])
def test_another_file_is_not_shown_as_examples(bare, how):
    with h5py.File(bare / "details.h5", "a") as file, h5py.File(bare / "other.h5", "w") as other:
        other["examples"] = file["examples"][...]
        shape, dtype = file["examples"].shape, file["examples"].dtype
        del file["examples"]
        if how == "link":
            file["examples"] = h5py.ExternalLink("other.h5", "examples")
        else:
            layout = h5py.VirtualLayout(shape, dtype)
            layout[...] = h5py.VirtualSource("other.h5", "examples", shape)
            file.create_virtual_dataset("examples", layout)
    with pytest.raises(InputError, match="another file"):
        write_report(RunFolder(bare))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize(
    ("shape", "grid", "overlap", "panels"),
    [
        ((8, 8, 1), (1, 1), 0, 2), ((8, 8, 1), (2, 2), 0, 4), ((32, 32, 3), (4, 4), 2, 4), ((30, 41, 2), (2, 3), 4, 4),
        ((12, 14, 16, 1), (2, 2, 2), 2, 6), ((900, 50, 1), (3, 1), 8, 4),
    ],
)  # fmt: skip
def test_decomposition_is_drawn_for_any_image(shape, grid, overlap, panels, dtype):
    subdomains = Decomposition(shape[:-1], grid, overlap).subdomains
    cores, subimages = boxes(subdomains)
    pixels = np.random.default_rng(0).integers(0, 100, (2, *shape)).astype(dtype)
    figure = images.decomposition(pixels, ["a", "b"], cores, subimages)
    figure.draw_without_rendering()
    assert len(figure.axes) == panels
    pictures = [axes.images[0].get_array() for axes in figure.axes]
    assert all(0 <= picture.min() < picture.max() <= 1 for picture in pictures)


def test_outliers_do_not_darken_an_image(caplog):
    image = np.random.default_rng(0).uniform(5, 6, (1, 100, 100, 1))
    image[0, 0, :3, 0] = 1e6, np.nan, np.inf
    picture = images.decomposition(image, ["a"], *boxes(Decomposition((100, 100), (1, 1)).subdomains)).axes[0].images[0].get_array()
    assert 0.4 < np.median(np.asarray(picture)) < 0.6
    assert not caplog.records  # matplotlib says when it has to clip


def test_drawn_apart_every_subimage_is_whole():
    subdomains = Decomposition((6, 8), (2, 2), 1).subdomains
    cores, subimages = boxes(subdomains)
    image = np.arange(48).reshape(1, 6, 8, 1)
    apart = images.decomposition(image, ["a"], cores, subimages).axes[1].images[0].get_array()
    grey = (apart == apart[..., :1]).all(-1)  # the gap has a colour
    assert grey.sum() == sum(np.prod(subdomain.subimage.shape) for subdomain in subdomains)


def texts(figure):
    """All that is written in the panels of a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_cores_have_the_numbers_by_which_tables_name_them():
    cores, subimages = boxes(Decomposition((12, 14, 16), (2, 2, 2), 2).subdomains)
    volume = np.random.default_rng(0).random((1, 12, 14, 16, 1))
    above = images.decomposition(volume, [], cores, subimages).axes[:3]
    assert [[text.get_text() for text in axes.texts] for axes in above] == [
        ["4", "5", "6", "7"],
        ["2", "3", "6", "7"],
        ["1", "3", "5", "7"],
    ]
    assert [text.xy for text in above[0].texts] == [(0, 0), (8, 0), (0, 7), (8, 7)]


def test_local_accuracies_stand_at_their_places_on_a_whole_scale_with_what_the_samples_support():
    accuracies = np.linspace(0.5, 0.55, 12).reshape(2, 2, 3)
    figure = maps.local_accuracy(accuracies, {"vote": 0.8}, 10)
    cells = [axes.collections[0] for axes in figure.axes if axes.collections and axes.get_title().startswith("depth")]
    np.testing.assert_allclose([cell.get_array() for cell in cells], 100 * accuracies)
    assert all(cell.get_clim() == (0, 100) for cell in cells)
    assert {"80.0  (49.0–94.3)", "0", "11", "50.0", "55.0"} <= set(texts(figure))  # Wilson's interval of 8 of 10
    many = texts(maps.local_accuracy(accuracies, {"vote": 0.8}, 10_000))
    assert "80.00  (79.20–80.77)" in many and "50.45" in many


@pytest.mark.parametrize(("depths", "panels"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 6)])
def test_no_panel_of_a_map_is_blank(depths, panels):
    figure = maps.local_accuracy(np.full((depths, 2, 2), 0.5), {"vote": 0.9}, 100)
    grid = figure.axes[0].get_gridspec()
    assert grid.nrows * grid.ncols == panels


def test_a_map_of_many_subdomains_has_their_numbers_at_its_edges():
    axes = maps.local_accuracy(np.full((20, 20), 0.5), {}, 100).axes[0]
    assert not axes.texts
    assert axes.get_yticklabels()[1].get_text() == "60" and axes.get_xticklabels()[1].get_text() == "+3"


def test_reliance_lies_over_the_image():
    cores, _ = boxes(Decomposition((30, 41), (2, 3)).subdomains)
    image = np.random.default_rng(0).random((30, 41, 3))
    axes = maps.reliance({"dnn": np.full((2, 3), 0.1)}, 100, maps.Behind(image, cores)).axes[0]
    assert axes.images[0].get_array().shape == (30, 41) and axes.images[0].get_extent() == [0, 41, 30, 0]
    corners = {text.get_text(): text.xy for text in axes.texts if text.get_style() == "italic"}
    assert corners == {str(k): tuple(core[0, ::-1]) for k, core in enumerate(cores)}
    assert axes.collections[0].get_clim()[1] >= 10


def test_curves_are_whole_and_the_legend_has_their_ends():
    curves = {
        "vote": np.array([[2, 0.3]]),
        "coherent": np.array([[1, 0.02], [2, 0.6], [3, 0.97]]),
        "global": np.array([[1, 0.5], [9, 0.975]]),
    }
    axes = charts.accuracy_over_time([curves], "validation", 200).axes[0]
    low, high = axes.get_ylim()
    assert low < 2 and high > 97.5
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["global 97.5", "coherent 97.0", "vote 30.0"]
    (again,) = charts.accuracy_over_time([curves], "validation", 10_000).legends
    assert again.get_texts()[0].get_text() == "global 97.50"  # as in the tables


def test_little_looks_like_little_on_the_axis_of_accuracies():
    axes = charts.accuracy_over_time([{"dnn": np.array([[1, 0.90], [2, 0.91]])}], "validation", 200).axes[0]
    assert np.ptp(axes.get_ylim()) >= 20


def test_of_several_seeds_the_mean_is_drawn_with_a_band():
    """The second seed has stopped early."""
    seeds = [{"dnn": np.array([[1, 0.2], [2, 0.4], [3, 0.6]])}, {"dnn": np.array([[2, 0.4], [6, 0.8]])}]
    axes = charts.accuracy_over_time(seeds, "validation", 200).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xydata(), [[1.5, 30], [3, 50], [4.5, 70]])
    band = axes.collections[0].get_paths()[0].vertices
    spread = 100 * np.std([0.2, 0.4], ddof=1)
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [30 - spread, 70 + spread])


@pytest.mark.parametrize("subdomains", [1, 3, 40])
def test_learning_curves_stand_side_by_side_in_few_panels(subdomains):
    epochs = [
        {"phase": "local", "subdomain": k, "epoch": e, "loss": (k + 1) / e, "accuracy": 0.5, "evaluated": 0.4 if e % 2 else None}
        for k in range(subdomains)
        for e in range(1, 6)
    ]
    epochs += [{"phase": "dnn", "subdomain": None, "epoch": e, "loss": 1, "accuracy": 0.5, "evaluated": None} for e in (1, 2)]
    loss, validation_loss, accuracy, evaluated = charts.learning_curves(epochs, {"dnn": 0.9}, "validation").axes
    assert len(loss.lines) == len(accuracy.lines) == len(evaluated.lines) == 2
    assert len(loss.collections) == (subdomains > 1)  # the band of the local CNNs
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [(subdomains + 1) / 2 / e for e in range(1, 6)])
    np.testing.assert_array_equal(evaluated.lines[0].get_xdata(), [1, 3, 5])
    np.testing.assert_allclose(evaluated.lines[1].get_xydata(), [[2, 90]])
    assert [text.get_text() for text in validation_loss.texts] == ["not recorded"]
    assert [text.get_text() for text in loss.figure.legends[0].get_texts()] == ["local CNNs", "DNN"]
    assert len(charts.learning_curves(epochs, {}, "training").axes) == 2


@pytest.mark.parametrize("classes", [2, 100])
def test_confusion_has_numbers_only_where_they_can_be_read_and_says_what_its_scale_is(classes):
    axes, scale = maps.confusion(7 * np.eye(classes), [f"class {k}" for k in range(classes)], "dnn").axes
    assert [text.get_text() for text in axes.texts] == (["100"] * classes if classes <= 20 else [])
    assert scale.get_ylabel() == "percent of the true class\n(colours on a square-root scale)"
    assert (axes.get_yticklabels()[0].get_text() == "class 0 (7)") == (classes <= 20)


KINDS = ["compute", "communicate", "wait"]


def test_timeline_shows_who_does_what_and_when_and_the_start_up_apart():
    spans = np.array(
        [[0, 0, 0, 0, 4], [0, 1, 0, 4, 8], [0, 1, 1, 8, 9], [1, 0, 0, 0, 4], [1, 1, 0, 4, 8], [1, 2, 2, 8, 9], [1, 2, 0, 9, 10]]
    )
    figure = timeline(spans.astype(float), ["start", "partition", "local"], KINDS)
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert told == ["compute 75 %", "communicate 9 %", "wait 8 %", "not recorded 8 %", "start-up 4.0 s, apart"]
    assert sum(int(text.split()[-2]) for text in told[:-1]) == 100
    together, rows = (axes.images[0].get_array() for axes in figure.axes if axes.images)  # (lines, time, RGB)
    middle = len(rows) // 2
    start, compute, communicate, wait = rows[0, 0], rows[0, rows.shape[1] // 2], rows[0, int(0.85 * rows.shape[1])], rows[-1, -41]
    assert len(np.unique([start, compute, communicate, wait], axis=0)) == 4
    np.testing.assert_allclose(rows[:middle, -1], 1)  # rank 0 has ended
    np.testing.assert_allclose(rows[middle:, -1], np.broadcast_to(compute, rows[middle:, -1].shape))
    upper, lower = np.split(together[:, int(0.85 * together.shape[1])], 2)  # one of two ranks communicates
    np.testing.assert_allclose(lower, np.broadcast_to(communicate, lower.shape))
    np.testing.assert_allclose(upper, np.broadcast_to(wait, upper.shape))


def test_a_little_communication_in_every_step_is_seen():
    steps = np.arange(0, 100, 0.1)
    spans = [(0, 0, kind, step + start, step + stop) for step in steps for kind, start, stop in ((0, 0, 0.095), (1, 0.095, 0.1))]
    picture = next(axes.images[0].get_array() for axes in timeline(np.array(spans), ["local"], KINDS).axes if axes.images)
    assert len(np.unique(picture[:, 200], axis=0)) == 2
    assert 1 <= (picture[:, 200] != picture[-1, 200]).any(-1).sum() <= 0.1 * len(picture)


def test_timeline_of_many_ranks_shows_some_and_says_so():
    spans = np.array([[rank, 0, 0, 0, 1] for rank in range(200)], dtype=float)
    axes = timeline(spans, ["local"], KINDS).axes[-1]
    assert axes.get_ylabel() == "rank (64 of 200 are shown)"
    assert len(axes.images[0].get_array()) % 64 == 0


def test_a_run_that_has_not_finished_is_told_from_no_run(bare):
    (bare / "results.json").unlink()
    with pytest.raises(InputError, match="has not finished: go on with python -m ddcnn run --resume --output"):
        write_report(RunFolder(bare))


def test_a_loss_that_is_no_number_is_named(bare):
    lines = (bare / "metrics.jsonl").read_text("utf-8").splitlines()
    (bare / "metrics.jsonl").write_text("\n".join([*lines, json.dumps(json.loads(lines[0]) | {"loss": "x"})]) + "\n", "utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        write_report(RunFolder(bare))


@pytest.mark.parametrize("box", [{"start": [10**9, 0]}, {"stop": [9, 4]}, {"core_start": [-1, 0]}])
def test_subdomains_beyond_the_image_are_named(bare, box):
    results = json.loads((bare / "results.json").read_text("utf-8"))
    results["decomposition"]["subdomains"][0] |= box
    (bare / "results.json").write_text(json.dumps(results), "utf-8")
    with pytest.raises(InputError, match="beyond the image"):
        write_report(RunFolder(bare))


def test_methods_that_put_all_into_one_class_are_named(bare):
    with h5py.File(bare / "details.h5", "a") as file:
        for name in ("vote", "dnn"):
            file[f"classes/{name}"][...] = 3
    write_report(RunFolder(bare), draw=False)
    assert "put into one class by `vote`, `dnn`: train longer" in (bare / "report.md").read_text("utf-8")
