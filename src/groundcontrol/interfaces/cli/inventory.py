"""`ground inventory`: what was discovered at a site, and how old that knowledge is."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from groundcontrol.interfaces.cli.client import API, Doc
from groundcontrol.interfaces.cli.failure import OK
from groundcontrol.interfaces.cli.options import completed_by, output_option
from groundcontrol.interfaces.cli.output import age, as_json, as_yaml, note, safe, say, table
from groundcontrol.interfaces.cli.session import session

PAGE = 1000
COLUMNS: dict[str, tuple[str, ...]] = {
    "": ("name", "count", "age:looked"),
    "server": ("name", "state", "status", "task", "host", "fields.flavor", "project", "id"),
    "volume": ("name", "state", "status", "fields.size", "fields.type", "project", "id"),
    "network": ("name", "state", "fields.shared", "fields.external", "id"),
    "image": ("name", "state", "fields.visibility", "fields.min_disk", "id"),
    "flavor": ("name", "fields.cores", "fields.memory_mb", "fields.disk_gb", "fields.public", "id"),
    "hosts": ("name", "zone", "up", "enabled", "cores", "cores_used", "memory_mb", "memory_used_mb", "servers"),
    "quotas": ("name", "resource", "limit", "used", "reserved"),
    "endpoints": ("service", "url", "version", "expires", "problem"),
}
"""What a table shows of each type, left to right; other types show `OTHERS`."""
OTHERS = ("name", "state", "project", "id")


@click.command()
@click.argument("site", metavar="SITE", shell_complete=completed_by("site_names"))
@click.argument("type_", metavar="[TYPE]", default="")
@click.option("--limit", type=click.IntRange(min=1), default=None, help="At most this many.")
@click.option("--no-headers", is_flag=True, help="Leave the titles out.")
@output_option("table", "json", "yaml")
def inventory(site: str, type_: str, limit: int | None, no_headers: bool, output: str) -> int:
    """What was discovered at a site: without TYPE how much there is of each type, with it the things themselves.

    \b
    ground inventory bari
    ground inventory bari flavor
    ground inventory bari hosts -o json
    """
    client = session().client
    path = f"{API}/sites/{quote(site.removeprefix('site/'), safe='')}/inventory"
    if not type_:
        return _print(client.get(path), "", output, headers=not no_headers)
    params: dict[str, Any] = {"limit": min(limit or PAGE, PAGE)}
    found = client.get(f"{path}/{quote(type_, safe='')}", params)
    items: list[Doc] = found["items"]
    while found.get("continue") and (limit is None or len(items) < limit):
        params |= {"continue": found["continue"], "limit": min(PAGE, limit - len(items)) if limit else PAGE}
        found = client.get(f"{path}/{quote(type_, safe='')}", params)
        items += found["items"]
    return _print({**found, "items": items}, type_, output, headers=not no_headers)


def _print(found: Doc, type_: str, output: str, *, headers: bool) -> int:
    if output in ("json", "yaml"):
        shown = {name: value for name, value in found.items() if name != "continue"}
        say(as_json(shown) if output == "json" else as_yaml(shown))
        return OK
    columns = COLUMNS.get(type_, OTHERS)
    if found["items"]:
        titles = [c.removeprefix("age:").removeprefix("fields.").replace("_", " ") for c in columns]
        say(table(titles, [[_value(item, c) for c in columns] for item in found["items"]], headers=headers))
    else:
        note(f"nothing known of {type_ or 'what is'} at {found['site']} (driver {found['driver']})")
    more = f"; {found['total'] - len(found['items'])} more" if found.get("total", 0) > len(found["items"]) else ""
    looked = f"listed {age(found['looked'])} ago" if found.get("looked") else "never listed"
    note(f"{looked}{more}" + ("" if found["answers"] else "; the site does not answer now"))
    if not found["complete"] and found.get("looked"):
        note("the last listing was not complete")
    for problem in found["problems"][:5]:
        note(f"problem: {safe(problem)}")
    return OK


def _value(item: Doc, column: str) -> Any:
    if column.startswith("age:"):
        told = item.get(column.removeprefix("age:"))
        return age(str(told)) if told else None
    if column.startswith("fields."):
        return (item.get("fields") or {}).get(column.removeprefix("fields."))
    return item.get(column)
