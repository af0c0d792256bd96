"""What is at a site: discovered things by type, in pages."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.responses import Response

from groundcontrol.interfaces.api.answers import encoded
from groundcontrol.interfaces.api.derive import API, LIMIT, ref
from groundcontrol.interfaces.api.operation import Call, Operation, Param
from groundcontrol.kernel.errors import NotFound, Unavailable
from groundcontrol.kernel.resource import NAME


def operations() -> Iterator[Operation]:
    """What was discovered at a site."""
    one = f"{API}/sites/{{name}}/inventory"
    yield Operation("GET", one, "summariseInventory", "sites", "How many things of each type there are, and how old"
                    " that knowledge is.", _inventory, answers={200: ref("Inventory")}, kind="Site",
                    verb="get")  # fmt: skip
    yield Operation("GET", f"{one}/{{type}}", "listInventory", "sites", "Things of one type. Other projects' things and"
                    " hypervisors are for those who may update the Site.", _inventory,
                    (LIMIT, Param("continue", "string", "The `continue` of the page before.")),
                    answers={200: ref("Inventory")}, kind="Site", verb="get")  # fmt: skip


async def _inventory(call: Call) -> Response:
    key, reader = call.key("Site"), call.backend.inventory
    entry = call.backend.store.entry(key)
    call.backend.access.require(call.subject, "get", "Site", name=key.name, labels=entry.labels if entry else {})
    if entry is None:
        raise NotFound(f"there is no {key}")
    if reader is None:
        raise Unavailable("this server keeps no inventory; it was assembled without one")
    type_, limit, proceed = call.path.get("type", ""), call.query.get("limit", 0), call.query.get("continue") or ""
    if "type" in call.path and not NAME.fullmatch(type_):
        raise NotFound(f"no type of thing is called {type_!r}")
    return encoded(await call.blocking(lambda: reader(call.subject, key.name, type_, limit, proceed)))
