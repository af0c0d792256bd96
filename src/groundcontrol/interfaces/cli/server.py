"""The commands that run on a server: passed on, words and all, to the programs that know them."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click

from groundcontrol.interfaces.cli.failure import Failure

# With these click takes no option of its own, not even --help: the program behind answers it.
_PASS = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
    "help_option_names": [],
}


def _passed_on(name: str, module: str, help_: str, first: tuple[str, ...] = ()) -> click.Command:
    @click.command(name, help=help_, context_settings=_PASS, add_help_option=False)
    @click.argument("words", nargs=-1, type=click.UNPROCESSED)
    def command(words: tuple[str, ...]) -> int:
        return call(name, module, [*first, *words])

    return command


def call(name: str, module: str, words: list[str]) -> int:
    """Run `main(words)` of the module; GroundError comes out as any other failure."""
    from groundcontrol.kernel.errors import GroundError

    try:
        program: Any = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(error.name + ".")):
            raise Failure(f"`ground {name}` needs {error.name}, which is not installed") from error
        raise Failure(f"this installation cannot `ground {name}`: it has no {module}") from error
    shown, sys.argv[0] = sys.argv[0], f"ground {name}"
    try:
        result = program.main(words)
    except GroundError as error:
        raise Failure(
            error.message, *(str(problem) for problem in error.problems if str(problem) != error.message)
        ) from error
    except SystemExit as end:
        if isinstance(end.code, str):
            raise Failure(end.code) from end
        return end.code or 0
    finally:
        sys.argv[0] = shown
    return result if isinstance(result, int) else 0


_PROGRAMS = "groundcontrol.programs"
serve = _passed_on("serve", f"{_PROGRAMS}.serve", "Run the control plane on this machine.")
agent = _passed_on("agent", "groundcontrol.drivers.local.agent", "Run an agent on this host.")
init = _passed_on("init", f"{_PROGRAMS}.init", "Prepare a new installation.")
doctor = _passed_on("doctor", f"{_PROGRAMS}.doctor", "Check an installation and say what is wrong with it.")
admin = _passed_on("admin", f"{_PROGRAMS}.admin", "Passwords, ledger files and pages, on the server's machine.")


@click.command("demo", help="Bring up a demonstration.", context_settings=_PASS, add_help_option=False)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def demo(words: tuple[str, ...]) -> int:
    """The demonstration stands outside: it is another program, which this one becomes."""
    os.execv(sys.executable, [sys.executable, "-m", "groundcontrol.demo", *words])
