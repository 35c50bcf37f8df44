"""report.html: report.md as one page, figures inside, that opens anywhere without a network."""

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ddcnn.io.atomic import write_text
from ddcnn.io.run_folder import RunFolder

STYLE = """
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin-bottom: 1.5rem; font-size: 0.875rem;
  font-variant-numeric: tabular-nums; }
td { white-space: nowrap; } th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; } thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; height: auto; } code { background: #f3f3f3; padding: 0 0.2em; }
@media print { table { font-size: 0.6rem; } }
"""


def write_pages(run: RunFolder, text: str) -> None:
    """Writes report.md, and as the same page report.html.

    Args:
        text: Markdown with a heading first.
    """
    write_text(run.html, page(run, text))
    write_text(run.report, text)


def page(run: RunFolder, text: str) -> str:
    """An HTML page that loads nothing: HTML in the text is shown as it is written, and the folder's figures are put inside."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.children:
            token.children = [_inside(run, child) for child in token.children]
    title = html.escape("".join(part.content for part in tokens[1].children or ()))
    body = markdown.renderer.render(tokens, markdown.options, {})
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}</body>
</html>
"""


def _inside(run: RunFolder, token: Token) -> Token:
    """A figure with its content, of any other image its text; a link to a report that leads to its page; the rest as it is."""
    if token.type == "image":
        source = str(token.attrs["src"])
        if not re.fullmatch(r"\w+/\w+\.png", source) or Path(source) != run.figure(Path(source).stem).relative_to(run.path):
            return Token("text", "", 0, content=token.content)
        token.attrs["src"] = f"data:image/png;base64,{base64.b64encode((run.path / source).read_bytes()).decode()}"
    elif token.type == "link_open":
        token.attrs["href"] = str(token.attrs["href"]).replace(run.report.name, run.html.name)
    return token
