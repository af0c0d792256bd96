"""Decisions about sites, as pure functions of what was seen: whose things are there, and whether the rules hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Generic, NamedTuple, TypeVar

from groundcontrol.capabilities.inventory.kinds import (
    DAY,
    EndpointRule,
    FlavorRule,
    ImageRule,
    JoinPolicySpec,
    QuotaRule,
    RoleRule,
    RuleResult,
    SiteSpec,
    UrlRule,
    VersionRule,
    flavor_name,
    image_name,
    rule_names,
)
from groundcontrol.kernel.resource import Truth, seconds
from groundcontrol.ports.cloud import PROBES, CloudFacts, Endpoint, Probe, Thing
from groundcontrol.ports.web import Answered

T = TypeVar("T")
OLD = 7200.0
"""Seconds after which what a cloud said of a type of thing says nothing any more."""
LOOKED_EVERY = 60.0
"""Seconds by which a time of looking is told anew."""
ASKED_LONG_AGO = 900.0
"""Seconds after which what was asked for a rule says nothing any more."""


def identity(spec: SiteSpec) -> str:
    """What makes a connection another one."""
    parts = [spec.driver, spec.endpoint, spec.credentials or "", *(f"{k}={v}" for k, v in sorted(spec.options.items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def described(facts: CloudFacts, counts: Mapping[str, int], looked_before: Mapping[str, str]) -> dict[str, Any]:
    """What a cloud says of itself, as fields of a Site's status. `counts` are things by type. A time of looking is told
    anew when it is a minute later, so that a status is not written at every look."""
    looked = {}
    for type_, at in sorted(facts.looked.items()):
        before = looked_before.get(type_, "")
        looked[type_] = before if before and 0 <= at - seconds(before) < LOOKED_EVERY else _time(at)
    up, down = (sum(h.up is truth for h in facts.hosts) for truth in (True, False))
    hosts = {
        "up": up,
        "down": down,
        "unknown": len(facts.hosts) - up - down,
        "disabled": sum(not h.enabled for h in facts.hosts),
    }
    services = [
        {
            "service": clean(e.service),
            "url": clean(e.url),
            "version": clean(e.version),
            "minimum": clean(e.minimum),
            "problem": clean(e.problem),
            "certificate_until": _time(e.expires) if e.expires > 0 else "",
        }
        for e in sorted(facts.endpoints, key=lambda e: (e.service, e.url))
    ]
    return {
        "regions": [clean(r) for r in sorted(facts.regions)],
        "zones": [clean(z) for z in sorted(facts.zones)],
        "services": services,
        "hosts": hosts,
        "found": dict(sorted(counts.items())),
        "looked": looked,
    }


# ── joining ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Verdict(NamedTuple):
    """The result of one rule."""

    rule: str
    result: Truth
    evidence: str
    remedy: str = ""
    pending: bool = False
    """Unknown only because nobody has looked yet."""


@dataclass(frozen=True)
class Dated(Generic[T]):
    """What was asked, and when that was answered; seconds since the epoch."""

    value: T
    at: float


@dataclass(frozen=True)
class Known:
    """What is known of a site when its rules are judged."""

    facts: CloudFacts | None = None
    """None: it is no cloud, or has never answered."""
    things: Sequence[Thing] = ()
    """Images and flavors, at least."""
    complete: bool = True
    """Whether all things are among `things`."""
    blind: str = ""
    """Why nothing can be told of it now; empty when it can."""
    pending: bool = False
    """Blind only because it has not been looked at yet."""
    probes: Mapping[str, Dated[Probe]] = field(default_factory=dict)
    """Name of a call to what it came to; missing: not made yet."""
    no_probes: str = ""
    """Why calls cannot be made at all; empty when they can."""
    answers: Mapping[str, Dated[Answered]] = field(default_factory=dict)
    """Name of a URL rule to what its address answered; missing: not asked yet."""


def evaluate(spec: JoinPolicySpec, known: Known, at: float) -> list[Verdict]:
    """Every rule of a policy, judged once, in the order of `rule_names`. Total: whatever a cloud says has a result."""
    found: list[Verdict] = []
    if spec.endpoints:
        found += [_endpoint(spec.endpoints, s, known, at) for s in spec.endpoints.services]
    found += [_version(rule, known, at) for rule in spec.versions]
    found += _roles(spec.roles, known, at) if spec.roles else []
    found += [_image(rule, known, at) for rule in spec.images]
    found += [_flavor(rule, known, at) for rule in spec.flavors]
    found += [_quota(rule, known, at) for rule in spec.quotas]
    found += [_clock(spec.max_skew, known, at)] if spec.max_skew is not None else []
    found += [_url(rule, known.answers.get(rule.name), at) for rule in spec.urls]
    found += [_among("region", r, known, lambda facts: facts.regions) for r in spec.regions]
    found += [_among("zone", z, known, lambda facts: facts.zones) for z in spec.zones]
    assert [v.rule for v in found] == rule_names(spec)
    return [v._replace(evidence=clean(v.evidence), remedy="" if v.result == "True" else v.remedy) for v in found]


_TOKEN = re.compile(
    r"(?i)([\w-]*(?:token|secret|passw|passphrase|api[_-]?key|authorization|credential|signature)[\w-]*"
    r"[\"']?\s*[:=]\s*(?:bearer\s+|basic\s+)?)[\"']?[^\s\"',;}]+|\b(bearer|basic)\s+\S+|gAAAAA[\w=-]{20,}"
    r"|eyJ[\w-]{10,}\.[\w.-]+"
)
_ADDRESS = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)([^\s/?#@\"']*@)?([^\s?#\"'<>]*)([?#][^\s\"'<>]*)?")


def clean(text: str, most: int = 200) -> str:
    """Short, on one line, and without what looks like a secret: names and queries of addresses, tokens, passwords."""
    text = "".join(c if c.isprintable() else " " for c in text[: most * 20])
    text = _ADDRESS.sub(lambda m: f"{m[1]}{m[3]}", text)
    text = _TOKEN.sub(lambda m: f"{m[1]}***" if m[1] else "***", text)
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


def day(at: float) -> str:
    """The day of a time in seconds since the epoch; whatever number it is."""
    return _time(at)[:10]


def _time(at: float) -> str:
    """RFC 3339 of seconds since the epoch; whatever number it is."""
    good = min(max(at, 0.0), 253_402_300_799.0) if at == at else 0.0
    return datetime.fromtimestamp(good, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _blind(rule: str, known: Known, type_: str, at: float) -> Verdict | None:
    """Unknown, when the cloud cannot be spoken of; `type_` is what of it is needed."""
    if known.blind:
        return Verdict(rule, "Unknown", known.blind, "see why the site does not answer", known.pending)
    if known.facts is None:
        remedy = "take the rule out, or select clouds only (spec.drivers)"
        return Verdict(rule, "Unknown", "the site's driver tells nothing of this", remedy)
    looked = known.facts.looked.get(type_)
    if looked is not None and at - looked > OLD:
        remedy = "see the problems in the site's Ready"
        return Verdict(rule, "Unknown", f"last listed on {day(looked)}, too long ago", remedy)
    return None


def _unlisted(rule: str, type_: str) -> Verdict:
    return Verdict(rule, "Unknown", f"{type_} have not been listed yet", "see the problems in the site's Ready", True)


def _of(service: str, facts: CloudFacts) -> list[Endpoint]:
    return [e for e in facts.endpoints if e.service == service]


def _endpoint(rule: EndpointRule, service: str, known: Known, at: float) -> Verdict:
    name = f"endpoint {service}"
    if blind := _blind(name, known, "endpoints", at):
        return blind
    assert known.facts is not None
    found = _of(service, known.facts)
    if not found:
        if not known.facts.endpoints and "endpoints" not in known.facts.looked:
            return _unlisted(name, "endpoints")
        return Verdict(name, "False", "the catalogue has none in this region", f"put {service} into the catalogue")
    judged = [_answers(name, e, rule.valid_days, at) for e in found]
    return min(judged, key=lambda v: _WORST_FIRST[v.result])


_WORST_FIRST: Mapping[Truth, int] = {"False": 0, "Unknown": 1, "True": 2}


def _answers(name: str, endpoint: Endpoint, days: int, at: float) -> Verdict:
    url = endpoint.url
    if not url.lower().startswith("https://"):
        return Verdict(name, "False", f"{url} is not over TLS", "serve it over https and change the catalogue")
    if endpoint.problem:
        return Verdict(name, "False", f"{url}: {endpoint.problem}", "make it answer, with a certificate we trust")
    if endpoint.trusted is False:
        remedy = "name the authority that signed it in options.caCert of the Site"
        return Verdict(name, "False", f"{url}: no authority of the site vouches for its certificate", remedy)
    if endpoint.trusted is None:
        remedy = "let the site check certificates (options.verify), and name its authority (options.caCert)"
        return Verdict(name, "Unknown", f"{url}: its certificate was not checked", remedy)
    return _valid(name, url, endpoint.expires, days, at)


def _valid(name: str, what: str, expires: float, days: int, at: float) -> Verdict:
    remedy = "renew the certificate"
    if not expires > 0:
        return Verdict(name, "Unknown", f"{what}: when its certificate ends was not seen", "look at it by hand", True)
    if expires <= at:
        return Verdict(name, "False", f"{what}: its certificate ended on {day(expires)}", remedy)
    if expires < at + days * DAY:
        return Verdict(
            name, "False", f"{what}: its certificate ends on {day(expires)}, in less than {days} days", remedy
        )
    return Verdict(name, "True", f"{what}, certificate until {day(expires)}")


_NUMBER = re.compile(r"v?(\d{1,6}(?:\.\d{1,6}){0,2})")


def _numbers(text: str) -> tuple[int, ...] | None:
    """`2.96` and `v3` as three numbers; None when it is no version."""
    match = _NUMBER.fullmatch(text.strip().lower())
    parts = [int(n) for n in match[1].split(".")] if match else []
    return (*parts, 0, 0)[:3] if match else None


def _version(rule: VersionRule, known: Known, at: float) -> Verdict:
    name = f"version {rule.service}"
    if blind := _blind(name, known, "endpoints", at):
        return blind
    assert known.facts is not None
    told = [e.version for e in _of(rule.service, known.facts) if e.version]
    versions = [(v, n) for text in told for v, n in [(text, _numbers(text))] if n is not None]
    if not versions:
        return Verdict(name, "Unknown", "the service did not tell its version", f"see endpoint {rule.service}")
    low, high = _numbers(rule.at_least), _numbers(rule.at_most)
    for text, numbers in versions:
        if low is not None and numbers < low:
            return Verdict(name, "False", f"it speaks up to {text}", f"upgrade it: {rule.at_least} is asked for")
        if high is not None and numbers > high:
            remedy = f"it was tried up to {rule.at_most}: try it, then change the policy"
            return Verdict(name, "False", f"it speaks up to {text}", remedy)
    return Verdict(name, "True", f"it speaks up to {versions[0][0]}")


def _roles(rule: RoleRule, known: Known, at: float) -> list[Verdict]:
    name = "roles"
    verdict = _blind(name, known, "roles", at)
    if verdict is None:
        assert known.facts is not None
        wanted, has = set(rule.exactly), set(known.facts.roles)
        lacks, more = sorted(wanted - has), sorted(has - wanted)
        if not has:
            verdict = Verdict(name, "Unknown", "the cloud did not tell its roles", "see endpoint identity", True)
        elif lacks or more:
            parts = [f"it lacks {', '.join(lacks)}"] * bool(lacks) + [f"it has {', '.join(more)} besides"] * bool(more)
            remedy = "give the service account exactly the roles of the policy, and make its credential anew"
            verdict = Verdict(name, "False", "; ".join(parts), remedy)
        else:
            verdict = Verdict(name, "True", f"it has {', '.join(sorted(has))} and no other")
    return [verdict, _call(rule.allowed, "allowed", known, at), _call(rule.refused, "refused", known, at)]


def _call(probe: str, wanted: str, known: Known, at: float) -> Verdict:
    name = f"call {probe} is {wanted}"
    if known.blind:
        return Verdict(name, "Unknown", known.blind, "see why the site does not answer", known.pending)
    if known.no_probes:
        return Verdict(name, "Unknown", known.no_probes, "take the rule out, or select other sites (spec.drivers)")
    made = known.probes.get(probe)
    if made is None:
        return Verdict(name, "Unknown", "the call has not been made yet", "wait a moment", True)
    if at - made.at > ASKED_LONG_AGO:
        return Verdict(name, "Unknown", "the call was last made too long ago", "see why the site does not answer")
    result, evidence = made.value.result, made.value.evidence
    if result not in ("allowed", "refused"):
        return Verdict(name, "Unknown", evidence or "the call could not be made", "see why the site does not answer")
    if result == wanted:
        return Verdict(name, "True", evidence or f"it was {result}")
    act = "give the service account the right to" if wanted == "allowed" else "take from it the right to"
    return Verdict(name, "False", evidence or f"it was {result}", f"{act} {PROBES.get(probe, probe)}")


def _image(rule: ImageRule, known: Known, at: float) -> Verdict:
    name = image_name(rule)
    if blind := _blind(name, known, "image", at):
        return blind
    like = [t for t in known.things if t.type == "image" and fnmatchcase(t.name, rule.name)]
    good = [t for t in like if _has(t.fields.get("properties"), rule.properties)]
    ready = sorted(t.name for t in good if t.state == "ready")
    if ready:
        return Verdict(name, "True", f"{ready[0]} is there")
    if not known.complete:
        return _unlisted(name, "images")
    why = (
        "none is like this" if not like else "those of this name lack the properties" if not good else "none is usable"
    )
    return Verdict(name, "False", why, "upload the image, or share it with our project")


def _flavor(rule: FlavorRule, known: Known, at: float) -> Verdict:
    name = flavor_name(rule)
    if blind := _blind(name, known, "flavor", at):
        return blind
    like = [t for t in known.things if t.type == "flavor" and fnmatchcase(t.name, rule.name)]
    sizes = (("cores", rule.cores), ("memory_mb", rule.memory_mb), ("disk_gb", rule.disk_gb))
    good = sorted(
        t.name
        for t in like
        if all(_number(t.fields.get(n)) >= least for n, least in sizes)
        and _has(t.fields.get("properties"), rule.properties)
    )
    if good:
        return Verdict(name, "True", f"{good[0]} is there")
    if not known.complete:
        return _unlisted(name, "flavors")
    why = "none is of this name" if not like else f"of {len(like)} of this name none is large enough"
    return Verdict(name, "False", why, "make such a flavor, or give our project access to it")


def _has(properties: Any, wanted: Mapping[str, str]) -> bool:
    there = properties if isinstance(properties, Mapping) else {}
    return all(name in there and str(there[name]) == value for name, value in wanted.items())


def _number(value: Any) -> float:
    """A size as a cloud says it; 0 for what is none."""
    return (
        float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e18 else 0.0
    )


def _quota(rule: QuotaRule, known: Known, at: float) -> Verdict:
    name = f"quota {rule.resource}"
    if blind := _blind(name, known, "quotas", at):
        return blind
    assert known.facts is not None
    own = [q for q in known.facts.quotas if q.resource == rule.resource and q.project == known.facts.project]
    if not known.facts.project or not own:
        return Verdict(name, "Unknown", "the cloud did not tell our project's quota", "see the site's problems", True)
    quota = own[0]
    if quota.limit < 0:
        return Verdict(name, "True", "it is not limited")
    left = quota.limit - quota.used - quota.reserved
    remedy = "raise the quota of our project, or free what is not needed"
    if quota.limit < rule.limit:
        return Verdict(name, "False", f"it is {quota.limit}, and {rule.limit} is asked for", remedy)
    if left < rule.free:
        return Verdict(name, "False", f"{max(left, 0)} of {quota.limit} are free, {rule.free} are asked for", remedy)
    return Verdict(name, "True", f"it is {quota.limit}, and enough is free")


def _clock(bound: float, known: Known, at: float) -> Verdict:
    if blind := _blind("clock", known, "endpoints", at):
        return blind
    assert known.facts is not None
    told = [(abs(e.skew), e.service) for e in known.facts.endpoints if e.skew is not None and e.skew == e.skew]
    if not told:
        return Verdict("clock", "Unknown", "no service told its time", "see the rules of endpoints", True)
    skew, service = max(told)
    if skew > bound:
        return Verdict(
            "clock", "False", f"{service} is {skew:.0f} s off", "let its clock, or ours, follow a time server"
        )
    return Verdict("clock", "True", f"all are within {bound:g} s")


def _url(rule: UrlRule, found: Dated[Answered] | None, at: float) -> Verdict:
    name = f"url {rule.name}"
    if found is None:
        return Verdict(name, "Unknown", "it has not been asked yet", "wait a moment", True)
    if at - found.at > ASKED_LONG_AGO:
        return Verdict(name, "Unknown", "it was last asked too long ago", "see the server's log")
    answer, url = found.value, rule.url
    if not answer.asked:
        remedy = "let the operator of this server put its origin into joining.origins of the settings"
        return Verdict(name, "Unknown", f"{url} was not asked: {answer.problem}", remedy)
    if answer.problem:
        return Verdict(name, "False", f"{url}: {answer.problem}", "make it answer, or change the policy")
    good = answer.status in rule.statuses if rule.statuses else 200 <= answer.status < 400
    if not good:
        return Verdict(name, "False", f"{url} answers {answer.status}", "make it answer well, or change the policy")
    if url.lower().startswith("http://"):
        return Verdict(name, "True", f"{url} answers")
    return _valid(name, url, answer.expires, rule.valid_days, at)


def _among(what: str, wanted: str, known: Known, of: Any) -> Verdict:
    name = f"{what} {wanted}"
    if blind := _blind(name, known, f"{what}s", 0.0):
        return blind
    assert known.facts is not None
    there: tuple[str, ...] = of(known.facts)
    if not there:
        return Verdict(name, "Unknown", f"the cloud told no {what}s", "see the site's problems", True)
    if wanted in there:
        return Verdict(name, "True", "it is there")
    shown = ", ".join(sorted(there)[:5])
    return Verdict(name, "False", f"there is {shown}", f"make the {what}, or change the policy")


def placed(spec: JoinPolicySpec, site: str) -> JoinPolicySpec:
    """The policy as it is for one site: `{site}` in addresses is its name."""
    urls = [u.model_copy(update={"url": u.url.replace("{site}", site)}) for u in spec.urls]
    return spec.model_copy(update={"urls": urls})


def results(
    policy: str, verdicts: Sequence[Verdict], before: Sequence[RuleResult], stamp: str, *, keep: bool
) -> list[RuleResult]:
    """What goes into the status. `before` is what stood there, `stamp` the time now (RFC 3339). `keep`: what has only
    not been looked at yet stays as it was, since this program has just begun."""
    known = {r.rule: r for r in before if r.policy == policy}
    found = []
    for verdict in verdicts:
        old = known.get(verdict.rule)
        if old and keep and verdict.pending:
            found.append(old)
            continue
        since = old.since if old and old.result == verdict.result else stamp
        found.append(
            RuleResult(
                policy=policy,
                rule=verdict.rule,
                result=verdict.result,
                evidence=verdict.evidence,
                remedy=verdict.remedy,
                since=since,
            )
        )
    return found


def joined(rules: Sequence[RuleResult]) -> tuple[Truth, str, str]:
    """The condition `Joined`: every rule of every policy that selects the site."""
    bad = [r.rule for r in rules if r.result == "False"]
    unknown = [r.rule for r in rules if r.result == "Unknown"]
    if bad:
        more = f"; {len(unknown)} are not known" if unknown else ""
        return "False", "RulesFail", f"{len(bad)} of {len(rules)} rules do not hold{more}: {_few(bad)}"
    if unknown:
        return "Unknown", "RulesUnknown", f"{len(unknown)} of {len(rules)} rules are not known: {_few(unknown)}"
    return "True", "RulesHold", f"all {len(rules)} rules hold"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
