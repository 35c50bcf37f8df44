"""The README and the pages of docs/ as their readers see them: code blocks, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = {path.relative_to(ROOT).as_posix(): path for path in PAGES}
FENCED = re.MULTILINE | re.DOTALL
TEXT = "\n".join(path.read_text("utf-8") for path in PAGES)


@dataclass(frozen=True)
class Command:
    """One command of a shell: ``variables`` before it, and its words, without the ranks' launcher.

    Attributes:
        page: the name of the page that it stands on.
        ranks: after ``mpirun -n``, or ``--ntasks`` of sbatch; 1 without.
    """

    page: str
    text: str
    variables: dict[str, str]
    ranks: int
    words: list[str]

    @property
    def arguments(self) -> list[str] | None:
        """Of ``python -m ddcnn``, if that is what it starts."""
        return self.words[3:] if self.words[:3] == ["python", "-m", "ddcnn"] else None


def blocks(language: str, below: str | None = None, text: str = TEXT) -> list[str]:
    """The code blocks of a language, of the whole text or of the section with this title."""
    if below is not None:
        title = re.search(rf"^(#+) {re.escape(below)}\n", text, re.MULTILINE)
        assert title, below
        rest = text[title.end() :]
        headings = re.sub(r"^```.*?^```$", lambda block: "x" * len(block[0]), rest, flags=FENCED)  # a comment in a block is none
        end = re.search(rf"^#{{1,{len(title[1])}}} ", headings, re.MULTILINE)
        text = rest[: end.start()] if end else rest
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[Command]:
    """All commands, page by page, in the order of the text."""
    found = []
    for name, path in NAMES.items():
        for block in blocks("bash", text=path.read_text("utf-8")):
            lines = block.replace("\\\n", " ").splitlines()
            found += [parsed(name, part) for line in lines if line.split("#")[0].strip() for part in shell_parts(line)]
    return found


def shell_parts(line: str) -> list[list[str]]:
    """The words of the commands between ``&&``; comments are left out."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def parsed(page: str, words: list[str]) -> Command:
    text, variables, ranks = shlex.join(words), {}, 1
    while re.match(r"[A-Z_]+=", words[0]):
        name, _, variables[name] = words[0].partition("=")
        words = words[1:]
    if words[0] == "srun" and words[1].startswith("--mpi="):
        del words[1]
    if words[:2] in (["mpirun", "-n"], ["srun", "-n"]):
        ranks, words = int(words[2]), words[3:]
    return Command(page, text, variables, ranks, words)


def prose() -> str:
    """Everything that is no code block."""
    return re.sub(r"^```.*?^```$", "", TEXT, flags=FENCED)
