"""`ground login`, `logout`, `whoami` and `version`: who we are to which server."""

from __future__ import annotations

import getpass
import sys
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import click

from groundcontrol import __version__
from groundcontrol.interfaces.cli.client import API, Client
from groundcontrol.interfaces.cli.config import DEFAULT_CONTEXT, Context, clean_url
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure, Refused, Unreachable
from groundcontrol.interfaces.cli.options import DURATION, output_option
from groundcontrol.interfaces.cli.output import age, as_json, note, safe, say
from groundcontrol.interfaces.cli.session import session


@click.command()
@click.argument("url", required=False)
@click.option("-u", "--user", metavar="NAME", help="Sign in as; without it you are asked.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
@click.option("--expires", type=DURATION, metavar="TIME", help="Let the token end after this long (8h).")
@click.option("--scope", multiple=True, type=click.Choice(["read", "write", "approve", "admin"]),
              help="Let the token do no more than this; may be repeated.")  # fmt: skip
@click.option("--name", "context_name", metavar="CONTEXT", help="Keep it under this name.")
def login(
    url: str | None,
    user: str | None,
    password_stdin: bool,
    expires: float | None,
    scope: tuple[str, ...],
    context_name: str | None,
) -> int:
    """Sign in with a password and keep the token (never the password).

    \b
    ground login https://ground.example.org
    ground login --user ada --password-stdin < file
    """
    here = session()
    name = context_name or here.context or ("" if url else here.config.current) or DEFAULT_CONTEXT
    entry = here.config.contexts.get(name, Context())
    address = clean_url(url) if url else here.access.url if name == here.access.context else clean_url(entry.url)
    if address.startswith("http://") and not _is_local(address):
        note(f"warning: {address} is not encrypted; your password and token can be read on the way")
    user, password = _credentials(address, user or entry.user, given=user is not None, from_stdin=password_stdin)
    body: dict[str, Any] = {"user": user, "password": password, "description": f"ground on {_host()}"}
    if expires:
        body["expires"] = int(expires)
    if scope:
        body["scope"] = list(scope)
    try:
        with closing(Client(address, ca=here.access.ca or entry.ca, timeout=here.timeout)) as client:
            answer = client.send("POST", f"{API}/login", body)
    except Refused as refused:
        if refused.status == 401:
            raise Failure(
                f"{address} does not know user {user!r} with that password", refused.message, code=refused.code
            ) from refused
        raise
    except Unreachable as lost:
        raise Unreachable(f"cannot sign in at {address}: {lost.message}", *lost.details) from lost
    config = here.config
    config.contexts[name] = Context(
        address,
        answer["token"],
        str(answer.get("id") or ""),
        user,
        str(answer.get("expires") or ""),
        entry.namespace,
        entry.ca,
    )
    config.current = name
    config.save()
    until = f"; the token ends {age(str(answer['expires']))}" if answer.get("expires") else ""
    say(f"signed in at {safe(address)} as {safe(user)} (context {safe(name)}){until}")
    return OK


def _credentials(address: str, user: str, *, given: bool, from_stdin: bool) -> tuple[str, str]:
    if from_stdin:
        if not user:
            raise Failure("--password-stdin needs --user", code=USAGE)
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise Failure("no password on standard input", code=USAGE)
        return user, password
    if not sys.stdin.isatty():
        raise Failure("nobody is here to be asked for a password", "use --user NAME --password-stdin", code=USAGE)
    if not given:
        user = click.prompt(f"User at {address}", default=user or getpass.getuser(), err=True)
    return user, click.prompt(f"Password of {user}", hide_input=True, err=True)


def _is_local(url: str) -> bool:
    from urllib.parse import urlsplit

    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _host() -> str:
    import socket

    return socket.gethostname()


@click.command()
def logout() -> int:
    """Revoke the token and forget it."""
    here = session()
    access = here.access
    entry = here.config.contexts.get(access.context)
    if entry is None or not entry.token:
        note("you are not signed in")
        return OK
    revoked = False
    if entry.token_id:
        from urllib.parse import quote

        try:
            with closing(Client(clean_url(entry.url), entry.token, ca=entry.ca, timeout=here.timeout)) as client:
                client.send("DELETE", f"{API}/tokens/{quote(entry.token_id, safe='')}")
            revoked = True
        except (Refused, Unreachable) as failure:
            revoked = isinstance(failure, Refused) and failure.status in (401, 404)
            if not revoked:
                note(f"forgotten here, but not revoked there: {failure.message}")
    entry.token = entry.token_id = entry.expires = ""
    here.config.save()
    say(f"signed out of {safe(entry.url)}" + (" and the token revoked" if revoked else ""))
    return OK


@click.command()
@output_option("text", "json", default="text")
def whoami(output: str) -> int:
    """Who the server says you are, and what your token may do."""
    here = session()
    answer = here.client.get(f"{API}/whoami")
    if output == "json":
        say(as_json(answer))
        return OK
    say(f"{safe(answer.get('subject'))} at {safe(here.access.url)} ({safe(here.access.token_from or 'no token')})")
    say(f"groups: {safe(', '.join(answer.get('groups') or []) or 'none')}")
    say(f"scope: {safe(', '.join(answer.get('scope') or []) or 'everything you may do')}")
    if answer.get("expires"):
        say(f"expires: {age(str(answer['expires']))} ({safe(answer['expires'])})")
    return OK


@click.command()
@click.option("--client", "only_client", is_flag=True, help="Do not ask the server.")
@output_option("text", "json", default="text")
def version(only_client: bool, output: str) -> int:
    """The version of this command, and of the server when it answers."""
    found: dict[str, Any] = {"client": __version__}
    if not only_client:
        here = session()
        try:
            answer = here.client.get(f"{API}/healthz")
            found["server"] = str(answer.get("version") or "answers") if isinstance(answer, dict) else "answers"
        except (Failure, Refused) as failure:
            found["server"] = f"not known: {failure.message}"
        found["url"] = here.access.url
        found["time"] = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if output == "json":
        say(as_json(found))
        return OK
    say(f"ground {__version__}")
    if "server" in found:
        say(f"server {safe(found['server'])} ({safe(found['url'])})")
    return OK
