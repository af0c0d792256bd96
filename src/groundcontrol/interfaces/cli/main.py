"""The command `ground`: what there is to type, and how every command ends.

Nothing heavy is imported here: the table of commands carries their help, and a command's module is loaded when it is
called.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from groundcontrol import __version__
from groundcontrol.interfaces.cli.failure import BROKEN_PIPE, ERROR, INTERRUPTED, USAGE, Failure
from groundcontrol.interfaces.cli.groups import Lazy, LazyGroup
from groundcontrol.interfaces.cli.output import coloured, paint, safe_text

SECTIONS = {
    "Look": {
        "status": Lazy("status", "What is wrong, since when, who is affected, what is being done."),
        "get": Lazy("get", "List resources, or print some."),
        "describe": Lazy("describe", "Everything about one resource, in words."),
        "inventory": Lazy("inventory", "What was discovered at a site."),
        "explain": Lazy("explain", "What a kind and its fields mean."),
        "kinds": Lazy("explain", "The kinds there are."),
        "watch": Lazy("get", "Changes as they happen."),
        "logs": Lazy("logs", "What a service or an instance wrote."),
        "events": Lazy("happened", "The timeline: what happened to what."),
        "audit": Lazy("happened", "Who did what."),
    },
    "Change": {
        "apply": Lazy("apply", "Make resources as files say."),
        "diff": Lazy("apply", "What apply would change."),
        "import": Lazy("importing", "Manifests of what is in a cloud already.", "import_"),
        "edit": Lazy("edit", "Change a resource in your editor."),
        "delete": Lazy("delete", "Ask for resources to be deleted."),
        "wait": Lazy("wait", "Wait until something is so."),
        "plan": Lazy("plans", "Plans that wait for a person; what a tree would change."),
        "approve": Lazy("plans", "Approve exactly the changes of a plan."),
        "refuse": Lazy("plans", "Refuse a plan."),
        "act": Lazy("act", "Do what a kind can do: restart, sync, set, acknowledge, …"),
        "run": Lazy("runs", "Start procedures, answer what they ask."),
    },
    "Sign in": {
        "login": Lazy("login", "Sign in and keep the token."),
        "logout": Lazy("login", "Revoke and forget the token."),
        "whoami": Lazy("login", "Who the server says you are."),
        "password": Lazy("password", "Change your password, or set somebody's."),
        "token": Lazy("tokens", "Tokens for programs."),
        "config": Lazy("contexts", "Servers and the one in use."),
        "completion": Lazy("completion", "Completion for bash, zsh or fish."),
        "version": Lazy("login", "Versions of this command and of the server."),
    },
    "Run a server": {
        "init": Lazy("server", "Prepare a new installation."),
        "serve": Lazy("server", "Run the control plane."),
        "agent": Lazy("server", "Run an agent on a host."),
        "doctor": Lazy("server", "Check an installation and say what is wrong with it."),
        "admin": Lazy("server", "Passwords, ledger files and pages, on the server's machine."),
        "demo": Lazy("server", "Bring up a demonstration."),
    },
}


class Root(LazyGroup):
    """The root group; a reader that went away (`ground get | head`) ends a command without a word."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _drop_output()
            return BROKEN_PIPE


@click.group(
    cls=Root,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 fine, 1 error, 2 wrong use (plan, diff: changes), 3 would be held, 4 not found, 5 refused, "
    "6 unreachable. GROUND_URL, GROUND_TOKEN and GROUND_CONFIG override what `ground login` stored.",
)
@click.version_option(__version__, message="ground %(version)s")
@click.option("--context", metavar="NAME", help="Use this context of the configuration.")
@click.option("--url", metavar="URL", help="Address of the server.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=40.0, metavar="SECONDS", help="Wait this long for an answer."
)
def cli(context: str | None, url: str | None, timeout: float) -> None:
    """Ground Control: look after a federation of science clouds."""


def main(argv: list[str] | None = None) -> int:
    """Run `ground` and return its exit code; the only place where failures become words."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        result = cli.main(args=argv, prog_name="ground", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    except click.ClickException as error:
        return _report(*_usage(error), code=error.exit_code, error=error)
    except Failure as failure:
        return _report(failure.message, *failure.details, code=failure.code, error=failure)
    except Exception as error:
        if os.environ.get("GROUND_DEBUG"):
            raise
        what = f"{type(error).__name__}: {error}".strip(": ")
        return _report(f"a defect in ground itself: {what}", "GROUND_DEBUG=1 shows where", code=ERROR, error=error)


def _usage(error: click.ClickException) -> list[str]:
    lines = [error.format_message()]
    if isinstance(error, click.UsageError) and error.ctx is not None:
        lines.append(f"`{error.ctx.command_path} --help` shows how")
    return lines if error.exit_code == USAGE else lines[:1]


def _report(message: str, *details: str, code: int, error: Exception) -> int:
    """The message, then the details below it; with GROUND_DEBUG also where it came from."""
    try:
        sys.stdout.flush()
        if os.environ.get("GROUND_DEBUG"):
            import traceback

            traceback.print_exception(error)
        head = paint("ground:", "red", on=coloured(sys.stderr))
        print(head, safe_text(message), file=sys.stderr)
        for line in details:
            print("  " + safe_text(line).replace("\n", "\n  "), file=sys.stderr)
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE
    return code


def _drop_output() -> None:
    """Nobody reads any more; what Python flushes at its end must not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (BrokenPipeError, ValueError):
            os.dup2(nowhere, stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
