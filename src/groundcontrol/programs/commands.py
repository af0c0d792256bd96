"""The reference page of the command line, from what the commands say of themselves."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import click

from groundcontrol.interfaces.cli.main import SECTIONS, cli
from groundcontrol.kernel.errors import GroundError

WIDTH = 100
PROGRAMS = {
    "init": "groundcontrol.programs.init",
    "serve": "groundcontrol.programs.serve",
    "doctor": "groundcontrol.programs.doctor",
    "admin": "groundcontrol.programs.admin",
    "agent": "groundcontrol.drivers.local.agent",
}
"""Commands that are programs of their own, with parsers of their own."""


class _Found(Exception):
    """The parser of a program, at the moment it would have parsed."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def commands_page(made: str) -> str:
    """`cli.md`. `made` is the line that says where the page is from."""
    lines = [
        made,
        "# Commands",
        "",
        "What `ground COMMAND --help` says. See [the guide](../guides/cli.md) for how they",
    ]
    lines += ["belong together.", ""]
    root = click.Context(cli, info_name="ground", terminal_width=WIDTH, max_content_width=WIDTH)
    lines += _options(cli, root)
    for title, section in SECTIONS.items():
        lines += ["", f"## {title}"]
        for name, lazy in section.items():
            if name in PROGRAMS:
                lines += _parser(parser_of(name), f"ground {name}", lazy.help, 3)
                continue
            command = cli.get_command(root, name)
            assert command is not None
            lines += _command(command, root, name)
    return "\n".join(lines).rstrip() + "\n"


def _command(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    ctx = click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    usage = " ".join(command.get_usage(ctx).removeprefix("Usage: ").split())
    yield from ("", f"### {ctx.command_path}", "", _help(command), "", f"    {usage}")
    options = _options(command, ctx)
    if options:
        yield from ("", *options)
    if isinstance(command, click.Group):
        for below in command.list_commands(ctx):
            inner = command.get_command(ctx, below)
            if inner is not None and not inner.hidden:
                yield from _command(inner, ctx, below)


def _help(command: click.Command) -> str:
    """The help text; what click must not wrap (after a backspace) is shown as it was typed."""
    out = []
    for paragraph in inspect.cleandoc(command.help or command.short_help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            out.append("\n".join(f"    {line}" for line in paragraph.splitlines()[1:]))
        else:
            out.append(" ".join(paragraph.split()))
    return "\n\n".join(out)


def _options(command: click.Command, ctx: click.Context) -> list[str]:
    found = []
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record and "--help" not in parameter.opts:
            found.append(_row(*record))
    return ["| option | meaning |", "|---|---|", *found] if found else []


def _row(option: str, meaning: str) -> str:
    shown = option.replace("|", "\\|")
    about = " ".join(meaning.split()).replace("|", "\\|")
    return f"| `{shown}` | {about} |"


# ── programs ────────────────────────────────────────────────────────────────────────────────────────────────────


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command that is a program of its own."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Found(parser)

    main, parses = import_module(PROGRAMS[name]).main, argparse.ArgumentParser.parse_args
    # A program makes its parser when it is called; nothing behind the parsing is reached.
    argparse.ArgumentParser.parse_args = stop  # type: ignore[method-assign, assignment]
    try:
        main([])
    except _Found as found:
        return found.parser
    finally:
        argparse.ArgumentParser.parse_args = parses  # type: ignore[method-assign]
    raise GroundError(f"{PROGRAMS[name]}.main does not parse its words")


def _parser(parser: argparse.ArgumentParser, path: str, about: str, depth: int) -> Iterator[str]:
    yield from ("", f"{'#' * min(depth, 3)} {path}", "", " ".join((parser.description or about).split()))
    rows = []
    below: list[tuple[str, argparse.ArgumentParser, str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            below = [(name, inner, told.get(name, "")) for name, inner in action.choices.items()]
        elif action.help != argparse.SUPPRESS and action.dest != "help":
            rows.append(_row(_spelled(action), _expanded(action)))
    if rows:
        yield from ("", "| option | meaning |", "|---|---|", *rows)
    for name, inner, help_ in below:
        yield from _parser(inner, f"{path} {name}", help_[:1].upper() + help_[1:], depth + 1)


def _spelled(action: argparse.Action) -> str:
    word = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
    if not action.option_strings:
        return word
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {word}")


def _expanded(action: argparse.Action) -> str:
    choices = ", ".join(map(str, action.choices or ()))
    return (action.help or "").replace("%(choices)s", choices).replace("%(default)s", str(action.default))
