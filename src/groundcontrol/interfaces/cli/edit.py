"""`ground edit`: a resource as YAML in somebody's editor and back, without ever losing what they typed."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from groundcontrol.interfaces.cli.client import Doc
from groundcontrol.interfaces.cli.failure import ERROR, OK, USAGE, Failure, Refused, Unreachable
from groundcontrol.interfaces.cli.kinds import Target, fetch
from groundcontrol.interfaces.cli.manifests import Manifest, read, with_lines
from groundcontrol.interfaces.cli.options import completed_by, namespace_option
from groundcontrol.interfaces.cli.output import as_yaml, safe, say
from groundcontrol.interfaces.cli.propose import propose, say_proposals
from groundcontrol.interfaces.cli.session import Session, session

# What the server sets itself; resourceVersion stays, so that nobody's change in between is overwritten.
_NOT_FOR_PEOPLE = (
    "generation", "uid", "creationTimestamp", "deletionTimestamp", "finalizers", "ownerReferences", "managers",
)  # fmt: skip
Send = Callable[[Target, list[Manifest]], None]
_HEAD = "# Save and leave the editor to apply; leave it unchanged (or empty) to give up.\n"


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="KIND NAME", shell_complete=completed_by("kind_or_name"))
@namespace_option
@click.option("--propose", "proposing", is_flag=True, help="Propose it to the Source that declares it instead.")
def edit(what: tuple[str, ...], namespace: str | None, proposing: bool) -> int:
    """Change a resource in your editor (VISUAL, EDITOR, else vi).

    With --propose nothing is changed here: the change is offered as a diff of the Source's file and, where the Source
    allows it, as a branch of its repository.
    """
    here = session()
    _, targets = here.kinds.targets(what, here.namespace(namespace))
    if len(targets) != 1:
        raise Failure("name one resource", f"ground edit {what[0]} NAME", code=USAGE)
    doc = fetch(here.client, targets[0])
    target = here.kinds.target_of(doc)
    before = as_yaml(editable(doc)) + "\n"
    handle, name = tempfile.mkstemp(prefix=f"ground-{target.kind.name.lower()}-", suffix=".yaml")
    file = Path(name)
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        out.write(_HEAD + before)
    keep = False
    try:
        keep = True
        send = partial(_propose, here) if proposing else partial(_put, here)
        code, keep = _until_right(file, before, target, send)
        return code
    finally:
        if keep:
            click.echo(f"what you typed is kept in {file}", err=True)
        else:
            file.unlink(missing_ok=True)


def editable(doc: Doc) -> Doc:
    """The document without what only the server sets."""
    meta = {k: v for k, v in doc["metadata"].items() if k not in _NOT_FOR_PEOPLE and v not in ("", {}, [])}
    return {**{k: v for k, v in doc.items() if k != "status"}, "metadata": meta}


def _until_right(file: Path, before: str, target: Target, send: Send) -> tuple[int, bool]:
    """Edit, send, and open again with what was wrong on top. Returns the exit code and whether to keep the file."""
    last = ""
    while True:
        _open_editor(file)
        text = _without_remarks(file.read_text(encoding="utf-8", errors="surrogateescape"))
        if not text.strip() or text == _without_remarks(before):
            say("nothing changed")
            return OK, False
        if text == last:
            raise Failure("the text is as wrong as before; giving up", code=ERROR)
        last = text
        try:
            return _send(file, target, send), False
        except Unreachable:
            raise
        except Failure as failure:
            if isinstance(failure, Refused) and failure.status not in (409, 422):
                raise
            if isinstance(failure, Refused) and failure.reason == "Conflict" and not failure.problems:
                raise Failure(
                    failure.message, *failure.details, "edit it again to start from what stands now", code=failure.code
                ) from failure
            remarks = "".join(f"# ! {safe(line)}\n" for line in (failure.message, *failure.details))
            file.write_text(_HEAD + remarks + text, encoding="utf-8", errors="surrogateescape")


def _send(file: Path, target: Target, send: Send) -> int:
    manifests = read([str(file)])
    if len(manifests) != 1:
        raise Failure("there are several documents in the text; leave one")
    doc = manifests[0].value
    meta = doc.get("metadata")
    meta = meta if isinstance(meta, dict) else {}
    named = (doc.get("kind"), meta.get("namespace") or "", meta.get("name"))
    if named != (target.kind.name, target.namespace, target.name):
        raise Failure(f"kind, name and namespace cannot be edited: this is {target}")
    send(target, manifests)
    return OK


def _put(here: Session, target: Target, manifests: list[Manifest]) -> None:
    try:
        here.client.send("PUT", target.path, manifests[0].value)
    except Refused as refused:
        if refused.problems and refused.status == 422:
            raise with_lines(refused, manifests) from refused
        raise
    say(f"{safe(target)} changed")


def _propose(here: Session, target: Target, manifests: list[Manifest]) -> None:
    say_proposals(propose(here, manifests, dry_run=False, whole=True), "text", dry_run=False)


def _without_remarks(text: str) -> str:
    """The text below the remarks we put on top of it."""
    lines = text.splitlines(keepends=True)
    while lines and (lines[0] == _HEAD or lines[0].startswith("# ! ")):
        lines.pop(0)
    return "".join(lines)


def _open_editor(file: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    try:
        code = subprocess.run([*shlex.split(editor), str(file)], check=False).returncode
    except (OSError, ValueError) as error:
        raise Failure(f"cannot start the editor {editor!r}: {error}", "set EDITOR", code=USAGE) from error
    if code:
        raise Failure(f"the editor {editor!r} ended with {code}")
