"""The options that many commands share, with their completion, so that `-n` means the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from groundcontrol.interfaces.cli.failure import USAGE, Failure
from groundcontrol.interfaces.cli.output import seconds_of

Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def completed_by(what: str) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """A completion that loads its code (and asks the server) only when a shell wants it."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from groundcontrol.interfaces.cli import completion

        found: list[Any] = getattr(completion, what)(ctx, param, incomplete)
        return found

    return complete


def namespace_option(command: Command) -> Command:
    return click.option(
        "-n", "--namespace", metavar="NAME", help="Work in this namespace.", shell_complete=completed_by("namespaces")
    )(command)


def everywhere_option(command: Command) -> Command:
    return click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Look in every namespace.")(command)


def selector_option(command: Command) -> Command:
    return click.option(
        "-l", "--selector", metavar="LABELS", help="Only those with these labels: a=b,c!=d,e in (f,g)."
    )(command)


def output_option(*choices: str, default: str = "table") -> Callable[[Command], Command]:
    return click.option(
        "-o", "--output", type=click.Choice(choices), default=default, show_default=True, help="How to print it."
    )


def files_option(*, required: bool = True) -> Callable[[Command], Command]:
    return click.option(
        "-f",
        "--filename",
        "files",
        multiple=True,
        required=required,
        metavar="FILE|DIR|-",
        type=click.Path(),
        help="YAML to read: a file, a directory with everything below it, or - for standard input.",
    )


def dry_run_option(command: Command) -> Command:
    return click.option("--dry-run", is_flag=True, help="Let the server check and say what would happen.")(command)


def yes_option(command: Command) -> Command:
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(command)


if TYPE_CHECKING:
    Number = click.ParamType[float]
else:  # click before 8.2 has no types of types
    Number = click.ParamType


class Duration(Number):
    """`30s`, `5m`, `1h30m`; a bare number is seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        found = seconds_of(str(value))
        if found is None:
            self.fail(f"{value!r} is not a length of time; write 30s, 5m or 1h30m", param, ctx)
        return found


DURATION = Duration()


def key_value(text: str) -> tuple[str, str]:
    """`name=value`, as typed after an option."""
    key, found, value = text.partition("=")
    if not found or not key:
        raise Failure(f"{text!r} is not NAME=VALUE", code=USAGE)
    return key, value
