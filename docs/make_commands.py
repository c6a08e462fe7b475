"""Write `docs/commands.md` from the command line's own help.

python docs/make_commands.py > docs/commands.md
"""

import enum
import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from edgeline.flows.cli.main import app

INTRODUCTION = """\
# Commands

Written by `python docs/make_commands.py > docs/commands.md`; do not edit by hand.

Every command prints its help with `--help`. Exit codes: 0 for success, 1 for an error (one line on stderr, its code in
brackets), 2 for an invalid command line, 130 after an interrupt.

| command | what it does |
|---|---|
"""


def commands_markdown() -> str:
    """The page."""
    group: Any = typer.main.get_command(app)
    commands = {name: command for name, command in group.commands.items() if not command.hidden}
    table = "".join(f"| [`{name}`](#edgeline-{name}) | {_paragraphs(each)[0]} |\n" for name, each in commands.items())
    return INTRODUCTION + table + "".join(_section(name, command) for name, command in commands.items())


def _section(name: str, command: Any) -> str:
    parts = [f"## edgeline {name}"]
    examples: list[str] = []
    for paragraph in _paragraphs(command):
        # An example is a paragraph that is a command: of `edgeline`, perhaps behind a pipe.
        if re.match(rf"(\S+ .*\| )?edgeline {name}\b", paragraph):
            examples.append(paragraph)
        else:
            parts.append(paragraph)
    if examples:
        parts.append("```console\n" + "\n".join(f"$ {example}" for example in examples) + "\n```")
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False) and parameter.name != "help"]
    if rows := [_row(parameter) for parameter in shown]:
        parts.append("| argument or option | values | default | what it does |\n|---|---|---|---|\n" + "\n".join(rows))
    return "\n" + "\n\n".join(parts) + "\n"


def _paragraphs(command: Any) -> list[str]:
    text = inspect.cleandoc(command.help or "").replace("\x08", "")
    return [re.sub(r"\s+", " ", paragraph).strip() for paragraph in re.split(r"\n\s*\n", text)]


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    else:
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"| {names} | {_values(parameter)} | {_default(parameter)} | {_cell(parameter.help or '')} |"


def _values(parameter: Any) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    kind = parameter.type_descriptor.annotation
    several = typing.get_origin(kind) is list
    [kind] = typing.get_args(kind) if several else [kind]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        text = ", ".join(f"`{choice.value}`" for choice in kind)
    else:
        text = {str: "text", int: "whole number", float: "number", Path: "path"}[kind]
    text += "" if parameter.min is None else f" ≥ {parameter.min:g}"
    text += "" if parameter.max is None else f" ≤ {parameter.max:g}"
    return f"{text}; several" if several else text


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "required"
    if default in (None, (), []):
        return ""
    if isinstance(default, enum.Enum):
        default = default.value
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"`{default}`"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip()


if __name__ == "__main__":
    print(commands_markdown(), end="")
