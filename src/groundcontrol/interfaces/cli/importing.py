"""`ground import`: manifests of what is in a cloud already."""

from __future__ import annotations

from urllib.parse import quote

import click

from groundcontrol.interfaces.cli.client import API
from groundcontrol.interfaces.cli.failure import OK
from groundcontrol.interfaces.cli.options import completed_by, namespace_option, output_option
from groundcontrol.interfaces.cli.output import as_json, as_yaml, note, safe, say
from groundcontrol.interfaces.cli.session import session


@click.command(name="import")
@click.argument("site", metavar="SITE", shell_complete=completed_by("site_names"))
@click.option("--project", required=True, metavar="NAME_OR_ID", help="Project of the cloud, by name or id.")
@namespace_option
@output_option("yaml", "json", default="yaml")
def import_(site: str, project: str, namespace: str | None, output: str) -> int:
    """Write manifests of what is in a project of a cloud. Applied, or committed, they take it over as it is.

    \b
    ground import bari --project lab -n alpha > lab.yaml
    ground diff -f lab.yaml
    """
    here = session()
    body = {"project": project, "namespace": here.namespace(namespace)}
    path = f"{API}/sites/{quote(site.removeprefix('site/'), safe='')}/actions/import"
    found = here.client.send("POST", path, body)
    for left in found["leftOut"]:
        note(f"left out: {left['type']} {safe(left['name'] or left['id'])}: {safe(left['why'])}")
    if not found["documents"]:
        note(f"nothing in project {project} of {site} that no resource owns yet")
    elif output == "json":
        say(as_json(found["documents"]))
    else:
        say("\n---\n".join(as_yaml(document).rstrip("\n") for document in found["documents"]))
    return OK
