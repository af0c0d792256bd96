"""`ground apply` and `ground diff`: make resources as files say, all or nothing, and show which fields that changes."""

from __future__ import annotations

from typing import Any

import click

from groundcontrol.interfaces.cli.client import API, Doc
from groundcontrol.interfaces.cli.failure import CHANGES, OK, Refused
from groundcontrol.interfaces.cli.manifests import Manifest, put_namespace, read, with_lines
from groundcontrol.interfaces.cli.options import dry_run_option, files_option, namespace_option, output_option
from groundcontrol.interfaces.cli.output import as_json, fields_lines, paint, safe, say
from groundcontrol.interfaces.cli.session import Session, session

_COLOURS = {"created": "green", "changed": "yellow", "unchanged": "dim"}


@click.command()
@files_option()
@namespace_option
@dry_run_option
@click.option("--manager", metavar="NAME", help="Set the fields in this name instead of your own.")
@output_option("text", "name", "json", default="text")
def apply(files: tuple[str, ...], namespace: str | None, dry_run: bool, manager: str | None, output: str) -> int:
    """Create or change resources until they are as the files say. Nothing is done when anything is wrong.

    \b
    ground apply -f site.yaml
    ground apply -f platform/ --dry-run
    generate | ground apply -f -
    """
    here = session()
    results = _send(here, read(files), here.namespace(namespace), dry_run=dry_run, manager=manager or "")
    if output == "json":
        say(as_json(results))
    for result in results if output != "json" else ():
        verdict = str(result.get("result"))
        if output == "name":
            say(safe(_key(result)))
            continue
        tail = " (dry run)" if dry_run else ""
        say(f"{safe(_key(result))} {paint(safe(verdict), _COLOURS.get(verdict, ''))}{tail}")
        if verdict == "changed":
            say_fields(result)
    return OK


@click.command()
@files_option()
@namespace_option
@output_option("text", "json", default="text")
def diff(files: tuple[str, ...], namespace: str | None, output: str) -> int:
    """What `apply` would change, field by field. Exit code 0: nothing; 2: something."""
    here = session()
    results = _send(here, read(files), here.namespace(namespace), dry_run=True, manager="")
    changing = [result for result in results if result.get("result") != "unchanged"]
    if output == "json":
        say(as_json(changing))
    else:
        for result in changing:
            say(
                f"{safe(_key(result))} {paint(safe(result.get('result')), _COLOURS.get(str(result.get('result')), ''))}"
            )
            say_fields(result)
    return CHANGES if changing else OK


def _send(here: Session, manifests: list[Manifest], namespace: str, *, dry_run: bool, manager: str) -> list[Doc]:
    if namespace:
        put_namespace(manifests, here.kinds, namespace)
    body: dict[str, Any] = {"documents": [manifest.value for manifest in manifests]}
    if manager:
        body["manager"] = manager
    try:
        answer = here.client.send("POST", f"{API}/apply", body, params={"dryRun": dry_run})
    except Refused as refused:
        raise with_lines(refused, manifests) from refused
    return list(answer.get("results") or [])


def _key(result: Doc) -> str:
    """`Service alpha/web`, whether the key came as a text or as its parts."""
    key = result.get("key")
    if isinstance(key, dict):
        return f"{key.get('kind')} " + "/".join(part for part in (key.get("namespace"), key.get("name")) if part)
    if isinstance(key, list):
        return f"{key[0]} " + "/".join(str(part) for part in key[1:] if part)
    return str(key)


def say_fields(result: Doc) -> None:
    lines = fields_lines(result.get("fields") or {})
    if lines:
        say("\n".join(lines))
