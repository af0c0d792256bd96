"""What a cloud says of itself: endpoints with their certificates, hosts, zones, quotas with use."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from groundcontrol.drivers.openstack.listing import Doc, OverBudget
from groundcontrol.drivers.openstack.options import Verify
from groundcontrol.drivers.openstack.session import PLAIN, Answer, Connection, root_of
from groundcontrol.drivers.openstack.things import QUOTA
from groundcontrol.kernel.errors import GroundError, NotFound, Refused, Unavailable
from groundcontrol.ports.cloud import Endpoint, Host, QuotaUse, Thing

HANDSHAKE = 5.0
"""Seconds for looking at a certificate."""
HYPERVISORS = "2.53"
"""Microversion: the first with UUIDs; from 2.88 on they no longer tell their use."""


# ── endpoints ───────────────────────────────────────────────────────────────────────────────────────────────────


def versions(body: Any) -> tuple[str, str]:
    """Highest and lowest version in the document at the root of a service; empty when there is none."""
    if not isinstance(body, Mapping):
        return "", ""
    listed: Any = body.get("versions", body.get("version", ()))
    if isinstance(listed, Mapping):
        listed = listed.get("values", [listed])
    found: list[tuple[tuple[int, ...], str]] = []
    lowest: list[tuple[tuple[int, ...], str]] = []
    for entry in listed if isinstance(listed, list) else ():
        if not isinstance(entry, Mapping) or str(entry.get("status", "")).upper() in ("DEPRECATED", "EXPERIMENTAL"):
            continue
        own = str(entry.get("id", "")).lstrip("v")
        high = str(entry.get("version") or entry.get("max_version") or own)
        low = str(entry.get("min_version") or own)
        found.append((_number(high), high))
        lowest.append((_number(low), low))
    if not found:
        return "", ""
    # The range of the newest: an older one beside it (v2.0 of Nova) has no microversions.
    best = max(range(len(found)), key=lambda n: found[n])
    ranged = found[best][1] != lowest[best][1]
    return found[best][1], lowest[best][1] if ranged else min(lowest)[1]


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def endpoint(connection: Connection, service: str, address: str, region: str) -> Endpoint:
    """One service, asked for its versions without a token."""
    root = root_of(address)
    problem, version, minimum, skew = "", "", "", None
    until = time.monotonic() + min(connection.options.longest, 10.0)
    before = time.time()
    try:
        arguments = {"headers": PLAIN}
        answer = connection.send(service, "GET", root, f"{connection.name}: versions of {service}", until, arguments)
    except GroundError as error:
        problem = error.message.removeprefix(f"{connection.name}: versions of {service}: ")
    else:
        skew = _skew(answer, before, time.time())
        if answer.status >= 500:
            problem = f"it answers HTTP {answer.status}"
        version, minimum = versions(answer.body)
    expires, trusted = certificate(root, connection.options.verify)
    return Endpoint(
        service=service, url=address, region=region, version=version, minimum=minimum, problem=problem,
        expires=expires, trusted=trusted, skew=skew,
    )  # fmt: skip


def _skew(answer: Answer, before: float, after: float) -> float | None:
    """Its clock minus ours. It tells whole seconds: what lies within those and the time of the call is no skew."""
    try:
        told = parsedate_to_datetime(answer.headers.get("Date", "")).timestamp()
    except (TypeError, ValueError):
        return None
    if told > after:
        return told - after
    return min(0.0, told + 1.0 - before)


def certificate(address: str, verify: Verify) -> tuple[float, bool | None]:
    """When the certificate at an address ends (0: none seen); whether an authority vouches for it (None: unasked)."""
    parts = urlsplit(address)
    if parts.scheme != "https":
        return 0.0, None
    host, port = parts.hostname or "", parts.port or 443
    trusted: bool | None = None
    if verify is not False:
        context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
        try:
            return _ends(host, port, context), True
        except ssl.SSLCertVerificationError:
            trusted = False
        except (OSError, ValueError):
            return 0.0, None
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    try:
        return _ends(host, port, blind), trusted
    except (OSError, ValueError):
        return 0.0, trusted


def _ends(host: str, port: int, context: ssl.SSLContext) -> float:
    with (
        socket.create_connection((host, port), HANDSHAKE) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        held = secured.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(held).not_valid_after_utc.timestamp() if held else 0.0


# ── hosts and zones ─────────────────────────────────────────────────────────────────────────────────────────────


def hosts(hypervisors: Iterable[Doc], services: Iterable[Doc], aggregates: Iterable[Doc]) -> tuple[Host, ...]:
    """The hypervisors, with what their services and the aggregates say of them."""
    by_host = {str(s.get("host")): s for s in services}
    groups: dict[str, list[str]] = {}
    for aggregate in aggregates:
        for name in aggregate.get("hosts") or ():
            groups.setdefault(str(name), []).append(str(aggregate.get("name", "")))
    found = []
    for one in hypervisors:
        held = one.get("service") or {}
        name = str(held.get("host") or one.get("hypervisor_hostname"))
        service = by_host.get(name, {})
        found.append(
            Host(
                name=name,
                zone=str(service.get("zone", "")),
                aggregates=tuple(sorted(groups.get(name, ()))),
                up=_up(str(service.get("state", one.get("state", "")))),
                enabled=service.get("status", one.get("status")) == "enabled",
                disabled_reason=str(service.get("disabled_reason") or ""),
                forced_down=bool(service.get("forced_down")),
                cores=int(one.get("vcpus") or 0),
                cores_used=int(one.get("vcpus_used") or 0),
                memory_mb=int(one.get("memory_mb") or 0),
                memory_used_mb=int(one.get("memory_mb_used") or 0),
                disk_gb=int(one.get("local_gb") or 0),
                disk_used_gb=int(one.get("local_gb_used") or 0),
                servers=int(one.get("running_vms") or 0),
            )
        )
    return tuple(sorted(found, key=lambda host: host.name))


def _up(state: str) -> bool | None:
    return {"up": True, "down": False}.get(state)


def zones(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Availability zones that take servers."""
    listed = body.get("availabilityZoneInfo") or ()
    return tuple(sorted(str(z["zoneName"]) for z in listed if (z.get("zoneState") or {}).get("available")))


# ── quotas ──────────────────────────────────────────────────────────────────────────────────────────────────────

QUOTA_PATHS: Mapping[str, tuple[str, str, str]] = {
    "compute": ("/os-quota-sets/{}/detail", "quota_set", "in_use"),
    "block-storage": ("/os-quota-sets/{}?usage=True", "quota_set", "in_use"),
    "network": ("/quotas/{}/details.json", "quota", "used"),
}
"""Service to where the quota of a project stands, in which member, and what it calls use."""
QUOTA_VERSION = {"compute": "2.36", "block-storage": "3.0"}


def quota(connection: Connection, project: str, take: Any = lambda service: True) -> dict[str, Mapping[str, Any]]:
    """Raw quotas of one project, by service. A service the cloud has not is left out."""
    found: dict[str, Mapping[str, Any]] = {}
    there = connection.endpoints(connection.sign_in(connection.own))
    for service, (path, member, _) in QUOTA_PATHS.items():
        if service not in there:
            continue
        if not take(service):
            raise OverBudget("the budget of calls is used up")
        answer = connection.call(
            service, "GET", path.format(project), what=f"look at the quota of project {project}",
            version=QUOTA_VERSION.get(service, ""),
        )  # fmt: skip
        held = answer.body.get(member) if isinstance(answer.body, Mapping) else None
        if not isinstance(held, Mapping):
            raise Unavailable(f"{connection.name}: {service} answered something else than a quota")
        found[service] = held
    return found


def uses(project: str, raw: Mapping[str, Mapping[str, Any]]) -> list[QuotaUse]:
    """What a project may use and does."""
    found = []
    for resource, (service, name) in QUOTA.items():
        held = raw.get(service, {}).get(name)
        if isinstance(held, Mapping):
            used = int(held.get(QUOTA_PATHS[service][2]) or 0)
            reserved, limit = int(held.get("reserved") or 0), int(held.get("limit", -1))
            found.append(QuotaUse(project=project, resource=resource, limit=limit, used=used, reserved=reserved))
    return found


def quota_thing(project: str, raw: Mapping[str, Mapping[str, Any]]) -> Thing:
    """The quota of a project as a thing; its id is the project's."""
    fields = {use.resource: use.limit for use in uses(project, raw)}
    return Thing(type="quota", id=project, project=project, fields=fields)


def allowed(problem: GroundError) -> bool:
    """False when it cannot be read because our account may not: that is no failure of the cloud."""
    return not (isinstance(problem, Refused) and problem.cause == "NotAuthorised") and not isinstance(problem, NotFound)
