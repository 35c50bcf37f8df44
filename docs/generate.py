"""Writes the pages of docs/reference that follow from the program:  python docs/generate.py

options.md is made of the settings of all commands, results.md of docs/results.schema.json, and python.md of the names that ddcnn
offers, whose docstrings the site fills in. A test compares the pages with what this writes.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ddcnn import PUBLIC
from ddcnn.__main__ import COMMANDS
from ddcnn.config.load import bounds_of
from ddcnn.config.methods import Method
from ddcnn.config.parser import Command, extra
from ddcnn.config.types import Group, Settings

DOCS = Path(__file__).parent
MADE = "<!-- Written by docs/generate.py from the program: change that, and run it again. -->"
DEFAULT = re.compile(r" ?\(default: ((?:[^()]|\([^()]*\))*)\)")
RUN = COMMANDS[0]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, (":--",) * len(head), *rows))


def text(words: str) -> str:
    """Plain text in a cell of a table."""
    shown = words.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("*", "\\*")
    return re.sub(r"(?<![\w`=-])(--[a-z][a-z-]*[a-z](?:=(?:\"[\w:=-]+\"|[\w:=-]+))?|\$\w+)", r"`\1`", shown)


def code(word: str) -> str:
    return f"`{word}`" if "|" not in word else f"<code>{word.replace('|', '&#124;')}</code>"


def options() -> str:
    """The page of the options of all commands."""
    start = f"""{MADE}
# Options

A command is started as `python -m ddcnn COMMAND [options]`, with `mpirun -n N` before it where several ranks work on it. Without the
name of a command, `run` is meant. `python -m ddcnn COMMAND --help` shows the same options as this page.

An option that is switched on by `--name` is switched off by `--no-name`. Commands that take
`--config FILE.toml` read options from that file, too: each stands under its name without the dashes in front, such as
`batch-size = 64`. The command line wins over the file.
"""
    return "\n\n".join([start.rstrip(), *(part for command in COMMANDS for part in command_options(command))]) + "\n"


def command_options(command: Command) -> Iterator[str]:
    """The section of one command; options that it has in common with ``run`` are named only."""
    kind, prefix = command.settings, f"{command.name.replace(' ', '-')}-"
    yield f"## {command.name}"
    positional = " ".join(extra(kind, name)["metavar"] for name in kind.model_fields if extra(kind, name)["positional"])
    after = " -- OPTIONS OF RUN" if "run_options" in kind.model_fields else ""
    usage = f"python -m ddcnn {command.name} [options]{f' {positional}' if positional else ''}{after}"
    yield f"{command.summary[:1].upper()}{command.summary[1:]}." + (" All ranks run it together." if command.all_ranks else "")
    yield f"```text\n{'mpirun -n N ' if command.all_ranks else ''}{usage}\n```"
    shared: list[str] = []
    for group in Group:
        rows = []
        if group is Group.RUN and kind.from_file:
            if command is RUN:
                rows.append(('<a id="run-config"></a>`--config`', "FILE.toml", "file of options; the command line wins", "none"))
            else:
                shared.append("config")
        for name in own_first(kind):
            if extra(kind, name)["group"] == group and name != "run_options":
                if command is not RUN and same(kind, name):
                    shared.append(name)
                else:
                    rows.append(option_row(kind, name, prefix))
        if rows:
            title = f"{group.value[:1].upper()}{group.value[1:]}"
            yield f"### {title}" if command is RUN else f"**{title}**"
            yield table(("option", "value", "what it does", "default"), rows)
    if shared:
        yield f"As for [run](#run): {', '.join(f'[`--{dashed(name)}`](#run-{dashed(name)})' for name in shared)}."
    if not kind.model_fields:
        yield "It has no options."


def own_first(kind: type[Settings]) -> dict[str, None]:
    """The names of the settings in the order of the help: those of the command itself before those that several have."""
    return dict.fromkeys(name for one in kind.__mro__ for name in getattr(one, "__annotations__", {}) if name in kind.model_fields)


def same(kind: type[Settings], name: str) -> bool:
    """Whether ``run`` has the same option."""
    ours, theirs = kind.model_fields[name], RUN.settings.model_fields.get(name)
    return theirs is not None and (ours.description, ours.default) == (theirs.description, theirs.default)


def dashed(name: str) -> str:
    return name.replace("_", "-")


def option_row(kind: type[Settings], name: str, prefix: str) -> tuple[str, ...]:
    field, about = kind.model_fields[name], extra(kind, name)
    words = str(field.description)
    given = DEFAULT.search(words)
    if field.is_required():
        default = "required"
    elif given:
        default, words = text(given[1]), words[: given.start()] + words[given.end() :]
    else:
        value = field.default
        default = ("no", "yes")[value] if isinstance(value, bool) else code(str(value)) if str(value) else "none"
    shown = code(about["metavar"] if about["positional"] else f"--{dashed(name)}")
    return f'<a id="{prefix}{dashed(name)}"></a>{shown}', values(field, about["metavar"]), text(words), default


def values(field: Any, metavar: str | tuple[str, ...] | None) -> str:
    """What can be given, with its bounds."""
    if field.annotation is bool:
        return ""
    for kind in (field.annotation, *get_args(field.annotation)):
        if get_origin(kind) is Literal:
            return ", ".join(code(choice) for choice in get_args(kind))
    bounds = bounds_of(field)
    if field.annotation is tuple[Method, ...]:
        return f"any of {', '.join(map(code, Method))}, joined by commas"
    shown = " ".join(metavar) if isinstance(metavar, tuple) else text(str(metavar))
    return f"{shown}, {', '.join(bounds)}" if bounds else shown


def results() -> str:
    """The page of the fields of results.json and of a line of metrics.jsonl."""
    schema = json.loads((DOCS / "results.schema.json").read_text("utf-8"))
    models = schema["$defs"]
    start = f"""{MADE}
# Fields of results.json and metrics.jsonl

For scripts, [results.schema.json](../results.schema.json) is the JSON schema of both. This page has the same in tables; what the
files are for is said under [files](files.md). A field that is *optional* may be absent.

`results.json` is one object, [RunResults](#runresults). Each line of `metrics.jsonl` is one object, [EpochLine](#epochline).
"""
    first, last = schema["$ref"].split("/")[-1], "EpochLine"
    names = [first, *ordered(models, first), last]
    return "\n\n".join([start.rstrip(), *(part for name in names for part in model(name, models[name]))]) + "\n"


def ordered(models: dict[str, Any], name: str) -> list[str]:
    """The models within a model, each once, in the order in which it names them."""
    inside = [one for one in re.findall(r"#/\$defs/(\w+)", json.dumps(models[name])) if one != name]
    return list(dict.fromkeys(further for one in inside for further in (one, *ordered(models, one))))


def model(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield f"## {name}"
    if "description" in schema:
        yield text(schema["description"].replace("``", "`"))
    if "enum" in schema:
        yield "One of " + ", ".join(code(value) for value in schema["enum"]) + "."
        return
    required = schema.get("required", [])
    rows = [
        (code(field), kind(about) + ("" if field in required else ", optional"), text(about.get("description", "").replace("``", "`")))
        for field, about in schema["properties"].items()
    ]
    yield table(("field", "type", "meaning"), [tuple(" ".join(cell.split()) for cell in row) for row in rows])


def kind(about: dict[str, Any]) -> str:
    """The type of a JSON value in words."""
    if "$ref" in about:
        name = about["$ref"].split("/")[-1]
        return f"[{name}](#{name.lower()})"
    if "enum" in about:
        return " or ".join(code(json.dumps(value)) for value in about["enum"])
    if "anyOf" in about:
        kinds = [kind(one) for one in about["anyOf"]]
        return " or ".join(one for one in kinds if one != "integer" or "number" not in kinds)
    if "prefixItems" in about:
        return f"pair ({', '.join(kind(one) for one in about['prefixItems'])})"
    if about.get("type") == "array":
        items = kind(about["items"])
        return f"list of ({items})" if " or " in items else f"list of {items}"
    if about.get("type") == "object":
        keys = about.get("propertyNames", {})
        by = f" by {kind(keys)}" if keys else " by name"
        return f"object{by}: {kind(about['additionalProperties'])}"
    return about["type"]


SCRIPT = """import ddcnn

world = ddcnn.World()  # the ranks that mpirun has started, or this process alone
problem = ddcnn.decompose(world, data="digits", grid="2x2", overlap=1, network="vgg3", epochs=5)  # the options of `run`
local_cnns = [problem.train_local(i) for i in problem.owned]  # this rank's subdomains, without communication
train, test = (problem.gather(local_cnns, split) for split in ("train", "test"))  # all p_i, (S, N, K), on rank 0
if world.rank == 0:
    dnn, labels = problem.train_dnn(train), problem.labels["test"]
    decisions = {"vote": ddcnn.vote(test), "average": ddcnn.average(test).argmax(1), "dnn": problem.decide(dnn, test).argmax(1)}
    for method, classes in decisions.items():
        print(method, (classes == labels).mean())
"""


def python() -> str:
    """The page of the Python API; the site shows signatures and docstrings in place of the lines with ``:::``."""
    start = f"""{MADE}
# Python

`import ddcnn` gives the names below. PyTorch is imported only when one of them is used. The site shows the signature and the docstring
of each. On GitHub, lines with `:::` name only the module where they stand.

## In a script or a notebook

```python
{SCRIPT}```

Put these lines into a file and start it with `mpirun -n 4 python -m mpi4py script.py`: then they run on all ranks, and if one rank
fails, all end. Networks, seeds and numbers are those of `ddcnn run`. A wrong option raises `ddcnn.InputError`, in the words of the
command.

`problem.store` is a `PartitionedSet`. Its `decomposition` is a `Decomposition`: subdomains as boxes of pixels, the restriction
R_i (`restrict`) and its adjoint (`extend`). The steps themselves, also those of the coherent network, are functions of the package
`ddcnn.method`, with shapes in their docstrings. A finished run is loaded by `ddcnn.load`: [predict and export](../how-to/predict.md).

## Names
"""
    names = [f"ddcnn.{module}.{name}" for name, module in PUBLIC.items()]
    names.insert(names.index("ddcnn.inference.network.load") + 1, "ddcnn.inference.network.Assembled")
    return "\n\n".join([start.rstrip(), *(f"::: {name}" for name in names)]) + "\n"


PAGES = {"reference/options.md": options, "reference/results.md": results, "reference/python.md": python}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
