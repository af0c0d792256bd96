"""What `--propose` and `--proposed` share: sends documents to be proposed, and shows diff, branch and commit."""

from __future__ import annotations

from typing import Any

from groundcontrol.interfaces.cli.client import API, Doc
from groundcontrol.interfaces.cli.failure import Refused
from groundcontrol.interfaces.cli.manifests import Manifest, with_lines
from groundcontrol.interfaces.cli.output import as_json, coloured, note, paint, safe, safe_text, say
from groundcontrol.interfaces.cli.session import Session

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def propose(here: Session, manifests: list[Manifest], *, dry_run: bool, whole: bool = False) -> list[Doc]:
    """One proposal per Source that declares some of the documents."""
    body: dict[str, Any] = {"documents": [manifest.value for manifest in manifests]}
    if whole:
        body["whole"] = True
    try:
        answer = here.client.send("POST", f"{API}/propose", body, params={"dryRun": dry_run})
    except Refused as refused:
        raise with_lines(refused, manifests) from refused
    return list(answer.get("proposals") or [])


def say_proposals(proposals: list[Doc], output: str, *, dry_run: bool) -> None:
    """The diff on standard output, so that it can be piped on; what became of it beside that."""
    if output == "json":
        say(as_json(proposals))
        return
    for found in proposals:
        names = ", ".join(map(str, found.get("resources") or ()))
        where = f"{found.get('branch')} of {found.get('repository')}"
        if output == "name":
            say(safe(found.get("branch") or names))
            continue
        for line in str(found.get("diff") or "").removesuffix("\n").split("\n") if found.get("diff") else ():
            say(paint(safe_text(line), _COLOURS.get(line[:1], "")) if coloured() else safe_text(line))
        match found.get("state"):
            case "unchanged":
                words = f"{names}: the files of Source {found.get('source')} say so already"
            case "pushed":
                words = f"{names}: proposed as branch {where}, commit {str(found.get('commit'))[:12]}"
            case "exists":
                words = f"{names}: proposed already, as branch {where}, commit {str(found.get('commit'))[:12]}"
            case _ if dry_run and found.get("branch"):
                words = f"{names}: would be branch {where} (dry run)"
            case _:
                words = f"{names}: Source {found.get('source')} takes no branches (spec.proposals): pass the diff on"
        note(words)
