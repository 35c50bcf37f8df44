"""Reports in Markdown, and the same as an HTML page with its figures inside, which opens anywhere without a network."""

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ddcnn.errors import escaped
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


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; numbers to the right, the first column to the left."""
    header = list(header)
    lines = [header, [":--"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: float | None, pattern: str, missing: str = "–") -> str:
    return missing if value is None else pattern.format(value)


def human(number: float) -> str:
    """Bytes with a unit: ``1.23 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def plain(name: str) -> str:
    """A name chosen by a user, in one line, escaped for Markdown."""
    return re.sub(r"[\\`*\[\]<>&~]|(?<!\w)_|_(?!\w)", r"\\\g<0>", escaped(" ".join(name.split())) or '""')


def page(run: RunFolder, text: str) -> str:
    """An HTML page that loads nothing: HTML in the text is escaped, and the run's figures are embedded."""
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
    """Embeds a figure of the run, replaces any other image by its text, and a link to a report by a link to its page."""
    if token.type == "image":
        source = str(token.attrs["src"])
        if not re.fullmatch(r"\w+/\w+\.png", source) or Path(source) != run.figure(Path(source).stem).relative_to(run.path):
            return Token("text", "", 0, content=token.content)
        token.attrs["src"] = f"data:image/png;base64,{base64.b64encode((run.path / source).read_bytes()).decode()}"
    elif token.type == "link_open":
        token.attrs["href"] = str(token.attrs["href"]).replace(run.report.name, run.html.name)
    return token
