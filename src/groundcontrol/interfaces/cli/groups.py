"""Groups of commands that load a command's module only when it is called, and know what a mistyped one meant."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

from groundcontrol.interfaces.cli.failure import did_you_mean


class Lazy(NamedTuple):
    """Where a command is and what it says of itself, so that `--help` need not load it."""

    module: str
    help: str
    name: str = ""
    """Name of the command object in the module; empty means that of the command."""


class Group(click.Group):
    """A group whose mistyped commands get a suggestion."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word = args[0]
        if self.get_command(ctx, word) is None and not ctx.resilient_parsing and not word.startswith("-"):
            hint = did_you_mean(word, self.list_commands(ctx)) or f"`{ctx.command_path} --help` lists them"
            ctx.fail(f"no command {word!r}; {hint}")
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """The root: sections of commands from a table."""

    def __init__(self, *args: Any, sections: Mapping[str, Mapping[str, Lazy]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sections = sections
        self._table = {name: lazy for section in sections.values() for name, lazy in section.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = self._table.get(cmd_name)
        if lazy is None:
            return None
        command = getattr(import_module(f"groundcontrol.interfaces.cli.{lazy.module}"), lazy.name or cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self._table))
        for title, section in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), lazy.help) for name, lazy in section.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Like click's, without loading every command for its help."""
        from click.shell_completion import CompletionItem

        found = [
            CompletionItem(name, help=lazy.help) for name, lazy in self._table.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)
