"""`ground token`: tokens for programs, shown once when they are made."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from groundcontrol.interfaces.cli.client import API
from groundcontrol.interfaces.cli.failure import OK
from groundcontrol.interfaces.cli.groups import Group
from groundcontrol.interfaces.cli.options import DURATION, output_option
from groundcontrol.interfaces.cli.output import age, as_json, note, safe, say, table
from groundcontrol.interfaces.cli.session import session


@click.group(cls=Group)
def token() -> None:
    """Tokens for programs."""


@token.command()
@click.argument("description", metavar="WHAT-FOR")
@click.option("--expires", type=DURATION, metavar="TIME", help="Let it end after this long (30d).")
@click.option("--scope", multiple=True, type=click.Choice(["read", "write", "approve", "admin"]),
              help="What it may do; may be repeated. Without it: what you may do.")  # fmt: skip
@output_option("text", "json", default="text")
def create(description: str, expires: float | None, scope: tuple[str, ...], output: str) -> int:
    """Make a token; it is printed this once: `TOKEN=$(ground token create ci --scope read --expires 30d)`."""
    body: dict[str, Any] = {"description": description}
    if expires:
        body["expires"] = int(expires)
    if scope:
        body["scope"] = list(scope)
    answer = session().client.send("POST", f"{API}/tokens", body)
    if output == "json":
        say(as_json(answer))
        return OK
    say(safe(answer["token"]))
    ends = f", ends {age(str(answer['expires']))}" if answer.get("expires") else ""
    note(f"token {answer.get('id')}{ends}; it is not shown again")
    return OK


@token.command("list")
@output_option("table", "json")
def list_tokens(output: str) -> int:
    """Your tokens, without what is secret."""
    items = session().client.get(f"{API}/tokens").get("items") or []
    if output == "json":
        say(as_json(items))
        return OK
    if not items:
        note("no tokens")
        return OK
    rows = [
        [t.get("id"), t.get("description"), t.get("scope"), age(t["expires"]) if t.get("expires") else "never"]
        for t in items
    ]
    say(table(["Id", "For", "Scope", "Ends"], rows))
    return OK


@token.command()
@click.argument("identity", metavar="ID")
def revoke(identity: str) -> int:
    """End a token now."""
    session().client.send("DELETE", f"{API}/tokens/{quote(identity, safe='')}")
    say(f"token {safe(identity)} revoked")
    return OK
