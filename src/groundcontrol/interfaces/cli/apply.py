"""`ground apply` and `ground diff`: make resources as files say, all or nothing, or propose it; show what changes."""

from __future__ import annotations

from typing import Any

import click

from groundcontrol.interfaces.cli.client import API, Doc
from groundcontrol.interfaces.cli.failure import CHANGES, OK, USAGE, Failure, Refused
from groundcontrol.interfaces.cli.kinds import must_have_namespace
from groundcontrol.interfaces.cli.manifests import Manifest, put_namespace, read, with_lines
from groundcontrol.interfaces.cli.options import (
    completed_by,
    dry_run_option,
    files_option,
    namespace_option,
    output_option,
)
from groundcontrol.interfaces.cli.output import as_json, fields_lines, paint, safe, say
from groundcontrol.interfaces.cli.propose import propose, say_proposals
from groundcontrol.interfaces.cli.session import Session, session

_COLOURS = {"created": "green", "changed": "yellow", "unchanged": "dim"}


@click.command()
@files_option()
@namespace_option
@dry_run_option
@click.option("--manager", metavar="NAME", help="Set the fields in this name instead of your own.")
@click.option("--propose", "proposing", is_flag=True, help="Propose it to the Sources that declare them instead.")
@output_option("text", "name", "json", default="text")
def apply(
    files: tuple[str, ...], namespace: str | None, dry_run: bool, manager: str | None, proposing: bool, output: str
) -> int:
    """Create or change resources until they are as the files say. Nothing is done when anything is wrong.

    With --propose nothing is changed here: what Sources declare is offered as a diff of their files and, where a Source
    allows it, as a branch of its repository. With --dry-run besides, only the diff is made.

    \b
    ground apply -f site.yaml
    ground apply -f platform/ --dry-run
    ground apply -f web.yaml --propose
    generate | ground apply -f -
    """
    here = session()
    if proposing:
        if manager:
            raise Failure("--manager and --propose exclude each other", code=USAGE)
        return _propose(here, read(files), here.namespace(namespace), dry_run, output)
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


def _propose(here: Session, manifests: list[Manifest], namespace: str, dry_run: bool, output: str) -> int:
    put_namespace(manifests, here.kinds, namespace)
    say_proposals(propose(here, manifests, dry_run=dry_run), output, dry_run=dry_run)
    return OK


@click.command()
@click.argument("what", nargs=-1, metavar="[KIND NAME]", shell_complete=completed_by("kind_or_name"))
@files_option(required=False)
@namespace_option
@click.option("--proposed", is_flag=True, help="What `--propose` would change in the files of Sources, as a diff.")
@output_option("text", "json", default="text")
def diff(what: tuple[str, ...], files: tuple[str, ...], namespace: str | None, proposed: bool, output: str) -> int:
    """What `apply` would change, field by field. Exit code 0: nothing; 2: something.

    \b
    ground diff -f web.yaml
    ground diff -f web.yaml --proposed
    ground diff --proposed instance web-0 -n alpha     what was changed there by hand
    """
    here = session()
    if bool(what) == bool(files) or (what and not proposed):
        raise Failure("give -f FILE, or --proposed and one resource", "ground diff -f FILE", code=USAGE)
    if proposed:
        return _proposed(here, what, files, here.namespace(namespace), output)
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


def _proposed(here: Session, what: tuple[str, ...], files: tuple[str, ...], namespace: str, output: str) -> int:
    if files:
        manifests = read(files)
        put_namespace(manifests, here.kinds, namespace)
        found = propose(here, manifests, dry_run=True)
    else:
        _, targets = here.kinds.targets(what, namespace)
        if len(targets) != 1 or "propose" not in targets[0].kind.actions:
            raise Failure("name one resource of a kind that proposes by itself", "ground kinds", code=USAGE)
        target = must_have_namespace(targets[0])
        answer = here.client.send("POST", f"{target.path}/actions/propose", {"dryRun": True})
        found = list(answer.get("proposals") or [])
    say_proposals(found, output, dry_run=True)
    return CHANGES if any(p.get("diff") for p in found) else OK


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
