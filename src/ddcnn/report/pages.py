"""Reports in Markdown, and the same as an HTML page with its figures inside, which opens anywhere without a network."""

import base64
import html
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ddcnn.errors import escaped
from ddcnn.io.run_folder import RunFolder

STYLE = """
:root { color-scheme: light dark; --text: #222; --back: #fff; --line: #ddd; --strong: #888; --code: #f0f0f0; --link: #0059a5; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --back: #16181b; --line: #3a3d42; --strong: #777; --code: #26292e; --link: #7fbfff; }
  .curves img { filter: invert(0.9) hue-rotate(180deg) brightness(1.25); } .figure:not(.curves) img { filter: brightness(0.88); }
}
* { box-sizing: border-box; }
body { max-width: 76rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--back); overflow-wrap: break-word; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; } a { color: var(--link); } p { max-width: 52rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; padding: 0; list-style: none; }
table { border-collapse: collapse; display: block; overflow-x: auto; margin-bottom: 1.5rem; font-size: 0.875rem;
  font-variant-numeric: tabular-nums; }
td { white-space: nowrap; } th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 2px solid var(--strong); vertical-align: bottom; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--back); }
.figure { max-width: none; overflow-x: auto; } img { max-width: 100%; height: auto; border-radius: 4px; }
code, pre { background: var(--code); } code { padding: 0 0.2em; } summary { cursor: pointer; padding: 0.3rem 0; }
pre { max-height: 30rem; overflow: auto; padding: 0.6rem; font-size: 0.8rem; }
@media (max-width: 40rem) { body { margin: 1rem auto; } h1 { font-size: 1.5rem; } td:first-child { white-space: normal; } }
@media print { table { font-size: 0.6rem; } nav, details { display: none; } }
"""
FILES = "Settings and results"
CURVES = ("accuracy_over_time", "learning_curves", "reliability", "timeline")  # whose colours may be turned for a dark page
DOTS_PER_INCH, OF_A_PAGE = 150, 96  # of figures, and of what a browser calls a pixel
LEAST_SIZE = 0.6  # of a figure: on a narrow page its letters stay readable, and it is to be scrolled


def table(header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; numbers to the right, the first column to the left. Columns with nothing but dashes are left out."""
    names, *columns = zip(header, *rows, strict=True)
    columns = [names, *(column for column in columns if set(column[1:]) != {"–"})]
    head, *body = zip(*columns, strict=True)
    lines = [head, [":--"] + ["--:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(' '.join(str(cell).split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def number(value: float | None, pattern: str, missing: str = "–") -> str:
    return missing if value is None else pattern.format(value)


def seconds(value: float) -> str:
    """Seconds without their unit, the same in tables and in texts."""
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


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


def figure_text(run: RunFolder, name: str, caption: str, instead: str) -> str:
    """A figure in Markdown, with a text ``instead`` for those who do not see it."""
    return f"![{instead}]({run.figure(name).relative_to(run.path)})\n\n{caption}\n\n"


def page(run: RunFolder, text: str) -> str:
    """An HTML page that loads nothing: HTML in the text is escaped; the run's figures, settings and results are embedded."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    files = {file.name: file for file in (run.config, run.results) if file.is_file()}
    sections: list[str] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before and before.type == "heading_open" and before.tag == "h2":
            before.attrs["id"] = f"section-{len(sections) + 1}"
            sections.append(token.content)
        if before and token.children:
            if token.children[0].type == "image":
                name = Path(str(token.children[0].attrs["src"])).stem
                before.attrs["class"] = f"figure{' curves' if name in CURVES else ''}"
            token.children = _inside(run, token.children, files)
    title = html.escape("".join(part.content for part in tokens[1].children or ()))
    start = next((k for k, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"), len(tokens))
    head, body = (markdown.renderer.render(part, markdown.options, {}) for part in (tokens[:start], tokens[start:]))
    links = [(f"section-{k}", name) for k, name in enumerate(sections, 1)] + ([("files", FILES)] if files else [])
    contents = "".join(f'<li><a href="#{place}">{html.escape(name)}</a></li>\n' for place, name in links)
    embedded = "".join(
        f'<details><summary>{name}</summary><pre id="{name}" tabindex="0">{html.escape(file.read_text("utf-8"))}</pre></details>\n'
        for name, file in files.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
{head}<nav aria-label="contents"><ul>
{contents}</ul></nav>
{body}{f'<h2 id="files">{FILES}</h2>{chr(10)}{embedded}' if files else ""}</main>
</body>
</html>
"""


def _inside(run: RunFolder, tokens: Iterable[Token], files: Collection[str]) -> list[Token]:
    """Embeds figures of the run, and replaces other images by their texts; a link stays if its target is in the page, too."""
    shown: list[Token] = []
    for token in tokens:
        if token.type == "image":
            shown.append(_embedded(run, token))
        elif token.type == "link_open":
            kept = str(token.attrs["href"]) in files
            token.attrs["href"] = f"#{token.attrs['href']}"
            shown += [token] if kept else []
        elif token.type != "link_close" or kept:  # links lie in no others
            shown.append(token)
    return shown


def _embedded(run: RunFolder, image: Token) -> Token:
    """A figure of the run as a part of the page; of any other image, its text."""
    instead = Token("text", "", 0, content="".join(child.content for child in image.children or ()))
    source = str(image.attrs["src"])
    if not re.fullmatch(r"\w+/\w+\.png", source) or Path(source) != run.figure(Path(source).stem).relative_to(run.path):
        return instead
    content = (run.path / source).read_bytes()
    width = int.from_bytes(content[16:20], "big") * OF_A_PAGE // DOTS_PER_INCH  # as the header of a PNG file has it
    size: dict[str, str | int | float] = {"width": width, "style": f"min-width: {LEAST_SIZE * width:.0f}px"}
    image.attrs |= {"src": f"data:image/png;base64,{base64.b64encode(content).decode()}"} | size
    image.children = [instead]
    return image
