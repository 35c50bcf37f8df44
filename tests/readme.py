"""The README as its readers see it: its code blocks."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str, below: str | None = None) -> list[str]:
    """The code blocks of a language, of the whole README or of the section with this title."""
    text = README.read_text()
    if below is not None:
        title = re.search(rf"^(#+) {re.escape(below)}\n", text, re.MULTILINE)
        assert title, below
        rest = text[title.end() :]
        end = re.search(rf"^#{{1,{len(title[1])}}} ", rest, re.MULTILINE)
        text = rest[: end.start()] if end else rest
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
