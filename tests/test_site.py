"""The site of docs/ builds strictly, loads nothing from elsewhere, and shows what the program has; the README is short."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
GENERATED = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
NOTEBOOKS = sorted(DOCS.glob("*/*.ipynb"))
EXTRA = ("ipykernel", "latex2mathml", "material", "mkdocs", "mkdocstrings_handlers.python", "nbclient")


def lacks(module: str) -> bool:
    try:
        return find_spec(module) is None
    except ModuleNotFoundError:
        return True


lacking = [module for module in EXTRA if lacks(module)]
with_extra = pytest.mark.skipif(bool(lacking), reason=f"the extra docs is not installed: no {', '.join(lacking)}")


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", checkout / "mkdocs.yml", "--site-dir", site]
    environment = os.environ | {"NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    finished = build(ROOT, folder)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of docs/, with all else of this checkout linked to."""
    for path in ROOT.iterdir():
        if path.name not in ("docs", "build", ".git"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(DOCS, tmp_path / "docs")
    return tmp_path


def test_all_raw_output_stands_beside_its_commit():
    page = (DOCS / "benchmarks" / "index.md").read_text("utf-8")
    table = re.findall(r"^\| [0-9a-f]{7} \| \d{4}-\d\d-\d\d \| (.+) \|$", page, re.MULTILINE)
    named = [name for names in table for name in names.split(", ")]
    assert sorted(named) == sorted(path.name for path in (ROOT / "benchmarks" / "results").iterdir())


def test_figures_without_raw_output_name_their_commit():
    pages = " ".join(" ".join(path.read_text("utf-8").lower().split()) for path in (ROOT / "README.md", *DOCS.rglob("*.md")))
    assert 0 < pages.count("raw output not kept") == len(re.findall("commit [0-9a-f]{7}, raw output not kept", pages))


@with_extra
def test_site_has_every_page_and_every_formula(site):
    sources = [path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb")]
    for source in sources:
        place = source.relative_to(DOCS).with_suffix("")
        page = site / (place.parent if place.name == "index" else place) / "index.html"
        shown = page.read_text("utf-8")
        assert 'class="arithmatex"' not in shown, page
    assert "<math" in (site / "explanation" / "method" / "index.html").read_text("utf-8")


@with_extra
def test_site_loads_nothing_from_elsewhere(site):
    loading = re.compile(r"<(?:script|img|iframe|source|video|audio|object|embed)\b[^>]*\b(?:src|data)\s*=\s*[\"']?(?:https?:)?//[^>]*")
    linked = re.compile(r"<link\b(?![^>]*rel=[\"']?canonical)[^>]*href=[\"']?(?:https?:)?//[^>]*")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    texts = {page: page.read_text("utf-8") for page in pages}
    assert {page: hits for page, text in texts.items() if (hits := [*loading.findall(text), *linked.findall(text)])} == {}
    styles = "".join(path.read_text("utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"url\(\s*[\"']?(?:https?:)?//[^)]*\)", styles) == []
    assert not any('class="mermaid"' in page.read_text("utf-8") for page in pages)  # the theme would load what draws it


@with_extra
def test_planted_mistakes_fail_the_build(checkout, tmp_path_factory):
    page = checkout / "docs" / "how-to" / "watch.md"
    links = "[a](no-page.md) [b](resume.md#no-heading) [c](../../src/no_file.py) [d](/absolute.md) [`ddcnn.nothing`][]"
    planted = f"{links} $\\nosuchcommand{{x}}$"
    page.write_text(f"{page.read_text('utf-8')}\n{planted}\n", "utf-8")
    (checkout / "docs" / "orphan.md").write_text("# In no navigation\n", "utf-8")
    finished = build(checkout, tmp_path_factory.mktemp("site"))
    assert finished.returncode != 0
    for named in ("no-page.md", "#no-heading", "src/no_file.py", "ddcnn.nothing", "nosuchcommand", "/absolute.md", "orphan.md"):
        assert named in finished.stderr


@pytest.mark.parametrize("name", GENERATED)
def test_generated_page_is_that_of_the_program(name):
    assert (DOCS / name).read_text("utf-8") == GENERATED[name](), "python docs/generate.py writes it anew"


@with_extra
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_shows_what_it_has_made_and_no_paths_of_a_machine(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert any(cell.get("outputs") for cell in cells)
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", path.read_text("utf-8"))


def test_there_is_a_notebook():
    assert NOTEBOOKS


def test_readme_is_short():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 180
    assert [line for line in lines if len(line) > 120] == []


def anchors(page: Path) -> set[str]:
    """Of the headings of a page in Markdown, as GitHub makes them, and those that it names itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip() for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE))
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
    return slugs | set(re.findall(r'<a id="(.+?)">', text))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_outside_of_the_site_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            other = page.parent / path if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target
