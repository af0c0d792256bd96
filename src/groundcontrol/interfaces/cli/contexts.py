"""`ground config`: the servers this command knows, and which one is in use."""

from __future__ import annotations

from pathlib import Path

import click

from groundcontrol.interfaces.cli.config import Context, clean_url
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure
from groundcontrol.interfaces.cli.groups import Group
from groundcontrol.interfaces.cli.options import completed_by, output_option
from groundcontrol.interfaces.cli.output import as_json, note, safe, say, table
from groundcontrol.interfaces.cli.session import session


@click.group(cls=Group)
def config() -> None:
    """Contexts: a server, a token and a namespace under one name."""


def _name_argument(command: click.decorators.FC) -> click.decorators.FC:
    return click.argument("name", metavar="CONTEXT", shell_complete=completed_by("context_names"))(command)


@config.command("list")
@output_option("table", "name", "json")
def list_contexts(output: str) -> int:
    """The contexts, with a * at the one in use."""
    found = session().config
    if output == "json":
        say(as_json([{"name": n, "url": c.url, "user": c.user, "namespace": c.namespace, "current": n == found.current}
                     for n, c in found.contexts.items()]))  # fmt: skip
        return OK
    if not found.contexts:
        note(f"no contexts in {found.path}; `ground login URL` makes one")
        return OK
    if output == "name":
        say("\n".join(safe(name) for name in found.contexts))
        return OK
    rows = [
        ["*" if n == found.current else "", n, c.url, c.user, c.namespace, bool(c.token)]
        for n, c in found.contexts.items()
    ]
    say(table(["", "Name", "Url", "User", "Namespace", "Token"], rows))
    return OK


@config.command()
@_name_argument
def use(name: str) -> int:
    """Work with this context from now on."""
    found = session().config
    found.context(name)
    found.current = name
    found.save()
    say(f"using context {safe(name)} ({safe(found.contexts[name].url)})")
    return OK


@config.command("set")
@click.argument("name", metavar="[CONTEXT]", required=False, shell_complete=completed_by("context_names"))
@click.option("--url", metavar="URL", help="Address of the server.")
@click.option("--namespace", metavar="NAME", help="Namespace to work in without -n; empty for none.")
@click.option("--ca", metavar="FILE", help="Certificate authorities to trust for it; empty for the machine's.")
def set_context(name: str | None, url: str | None, namespace: str | None, ca: str | None) -> int:
    """Make or change a context (the one in use, without a name)."""
    found = session().config
    if url is None and namespace is None and ca is None:
        raise Failure("nothing to set", "give --url, --namespace or --ca", code=USAGE)
    name = name or found.current
    entry = found.contexts.setdefault(name, Context())
    if url is not None and clean_url(url) != entry.url:
        entry.url = clean_url(url)
        if entry.token:
            note("the token was for the old address and is forgotten; run `ground login`")
        entry.token = entry.token_id = entry.expires = ""
    if namespace is not None:
        entry.namespace = namespace
    if ca is not None:
        if ca and not Path(ca).is_file():
            raise Failure(f"no file {ca}", code=USAGE)
        entry.ca = str(Path(ca).absolute()) if ca else ""
    found.save()
    say(
        f"context {safe(name)}: {safe(entry.url)}" + (f", namespace {safe(entry.namespace)}" if entry.namespace else "")
    )
    return OK


@config.command()
@_name_argument
def remove(name: str) -> int:
    """Forget a context and its token (`ground logout` revokes it first)."""
    found = session().config
    found.context(name)
    del found.contexts[name]
    if found.current == name:
        found.current = next(iter(found.contexts), "default")
    found.save()
    say(f"context {safe(name)} forgotten")
    return OK


@config.command()
def path() -> int:
    """Where the configuration is kept."""
    say(safe(session().config.path))
    return OK
