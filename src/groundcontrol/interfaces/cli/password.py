"""`ground password`: change one's own password, or set somebody's whose account one may change."""

from __future__ import annotations

import getpass
import sys
from urllib.parse import quote

import click

from groundcontrol.interfaces.cli.client import API
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure
from groundcontrol.interfaces.cli.output import safe, say
from groundcontrol.interfaces.cli.session import session


@click.command()
@click.argument("user", required=False)
@click.option("--password-stdin", is_flag=True, help="Read from standard input: your own old password, then the new.")
def password(user: str | None, password_stdin: bool) -> int:
    """Change your password, or set that of USER; all tokens of the account end.

    \b
    ground password
    ground password ada --password-stdin < file
    """
    here = session()
    me = str(here.client.get(f"{API}/whoami").get("subject") or "").removeprefix("user:")
    name = user or me
    own = name == me
    if password_stdin:
        lines = [line.rstrip("\r\n") for line in sys.stdin]
    elif sys.stdin.isatty():
        lines = [getpass.getpass(f"Password of {name} now: ")] if own else []
        lines.append(getpass.getpass(f"New password of {name}: "))
        if getpass.getpass("Again: ") != lines[-1]:
            raise Failure("the two differ; nothing was changed", code=USAGE)
    else:
        raise Failure("nobody is here to be asked for a password", "use --password-stdin", code=USAGE)
    if len(lines) != 1 + own or not all(lines):
        expected = "the old and the new password, a line each" if own else "the new password, one line"
        raise Failure(f"standard input should hold {expected}", code=USAGE)
    body = {"password": lines[-1], **({"old": lines[0]} if own else {})}
    here.client.send("PUT", f"{API}/accounts/{quote(name, safe='')}/password", body)
    say(f"the password of {safe(name)} is set; its tokens have ended{': sign in again' if own else ''}")
    return OK
