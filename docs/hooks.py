"""What MkDocs does beyond its plugins, so that the pages in docs/ are the same on GitHub and on the site.

- Formulas, $…$ and $$…$$, become MathML, which browsers show without any script.
- A notebook is a page: its text, its code and the outputs that are stored in it.
- A bar in code in a table, which GitHub wants to be escaped, is shown without its backslash.
- A link to a file of the repository outside of docs/ becomes its text and the path, since the site has no such file; a picture is copied.

Whatever cannot be done is a warning, which ends a strict build.
"""

import html
import json
import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

logger = logging.getLogger("mkdocs.hooks.ddcnn")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
CELL = re.compile(r"<td.*?</td>", re.DOTALL)  # in code, GitHub wants a bar as \|, and Python-Markdown as it is
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>\.\./[^\s)]+)\)")
ELSEWHERE = "repository"  # the site's folder of pictures from outside of docs/
FENCE = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)[^\S\n]*$", re.MULTILINE | re.DOTALL)


class Notebook(File):
    """A notebook, which MkDocs would copy, as a page in Markdown."""

    def is_documentation_page(self) -> bool:
        return True

    @property
    def content_string(self) -> str:
        return notebook_markdown(json.loads(Path(str(self.abs_src_path)).read_text("utf-8")))


def notebook_markdown(notebook: dict[str, Any]) -> str:
    return "\n\n".join(part for cell in notebook["cells"] for part in cell_markdown(cell))


def cell_markdown(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"]).strip("\n")
    if cell["cell_type"] != "code":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if picture := data.get("image/png"):
            shown = html.escape("".join(data.get("text/plain", "figure")))
            yield f'<img alt="{shown}" src="data:image/png;base64,{"".join(picture).strip()}">'
        elif text := "".join(output.get("text", data.get("text/plain", ""))).strip("\n"):
            yield f"```text\n{text}\n```"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        files.append(Notebook(file.src_uri, file.src_dir, file.dest_dir, file.use_directory_urls))
    for page in files.documentation_pages():
        for link in LINK.finditer(FENCE.sub("", page.content_string)):
            path = outside(link["target"], page)
            if link["image"] and path and (root(config) / path).is_file() and f"{ELSEWHERE}/{path}" not in files.src_uris:
                files.append(File.generated(config, f"{ELSEWHERE}/{path}", abs_src_path=str(root(config) / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    def shown(link: re.Match) -> str:
        path = outside(link["target"], page.file)
        if path is None:
            return link[0]
        if not (root(config) / path).exists():
            logger.warning("%s: links to %s, which is not in the repository", page.file.src_uri, path)
        if link["image"]:
            start = posixpath.dirname(page.file.src_uri) or "."
            return f"![{link['text']}]({posixpath.relpath(f'{ELSEWHERE}/{path}', start)})"
        return link["text"] if link["text"].strip("`") in (path, posixpath.basename(path)) else f"{link['text']} (`{path}`)"

    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [LINK.sub(shown, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, LINK.sub(shown, markdown[end:])])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    html = CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)
    return FORMULA.sub(lambda formula: mathml(formula, page), html)


def outside(target: str, file: File) -> str | None:
    """The path in the repository of a link that leads out of docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(file.src_uri), target.split("#")[0]))
    return None if path == "docs" or path.startswith("docs/") else path


def root(config: MkDocsConfig) -> Path:
    return Path(config.docs_dir).parent


def mathml(formula: re.Match, page: Page) -> str:
    latex = html.unescape(formula[2]).strip()
    try:
        shown = convert(latex, display="block" if formula[1] == "div" else "inline")
    except Exception as error:
        logger.warning("%s: $%s$ is no formula: %r", page.file.src_uri, latex, error)
        return formula[0]
    if "\\" in html.unescape(shown):  # the name of a command that latex2mathml does not know
        logger.warning("%s: $%s$ has a command that cannot be shown", page.file.src_uri, latex)
    return shown
