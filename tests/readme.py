"""The README, with the pages of benchmarks/ that it leads to, as its readers see them: code blocks, and the commands in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = "\n".join((ROOT / name).read_text("utf-8") for name in ("README.md", "benchmarks/README.md", "benchmarks/accuracy.md"))


@dataclass(frozen=True)
class Command:
    """One command of a shell: ``variables`` before it, and its words, without the ranks' launcher.

    Attributes:
        ranks: after ``mpirun -n``, or ``--ntasks`` of sbatch; 1 without.
    """

    text: str
    variables: dict[str, str]
    ranks: int
    words: list[str]

    @property
    def arguments(self) -> list[str] | None:
        """Of ``python -m ddcnn``, if that is what it starts."""
        return self.words[3:] if self.words[:3] == ["python", "-m", "ddcnn"] else None


def blocks(language: str, below: str | None = None) -> list[str]:
    """The code blocks of a language, of the whole text or of the section with this title."""
    text = README
    if below is not None:
        title = re.search(rf"^(#+) {re.escape(below)}\n", text, re.MULTILINE)
        assert title, below
        rest = text[title.end() :]
        end = re.search(rf"^#{{1,{len(title[1])}}} ", rest, re.MULTILINE)
        text = rest[: end.start()] if end else rest
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[Command]:
    """All commands, in the order of the text."""
    lines = (line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines())
    return [parsed(part) for line in lines if line.split("#")[0].strip() for part in shell_parts(line)]


def shell_parts(line: str) -> list[list[str]]:
    """The words of the commands between ``&&``; comments are left out."""
    parts: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def parsed(words: list[str]) -> Command:
    text, variables, ranks = shlex.join(words), {}, 1
    while re.match(r"[A-Z]+=", words[0]):
        name, _, variables[name] = words[0].partition("=")
        words = words[1:]
    if words[:2] == ["mpirun", "-n"]:
        ranks, words = int(words[2]), words[3:]
    return Command(text, variables, ranks, words)


def prose() -> str:
    """Everything that is no code block."""
    return re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
