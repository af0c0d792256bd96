"""The rules of joining as pure functions: what holds, what does not, what is not known, and that nothing leaks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundcontrol.capabilities.inventory.kinds import JoinPolicy, JoinPolicySpec, RuleResult, rule_names
from groundcontrol.capabilities.inventory.logic import (
    Dated,
    Known,
    Verdict,
    clean,
    described,
    evaluate,
    joined,
    placed,
    results,
)
from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.resource import Kinds
from groundcontrol.ports.cloud import PROBES, CloudFacts, Endpoint, Probe, QuotaUse, Thing
from groundcontrol.ports.web import Answered
from tests.capabilities.inventory.clouds import DAY, endpoint, facts, flavor, image

AT = 1_800_000_000.0
THINGS = (flavor("small", 2, 2048), flavor("large", 8, 16_384, gpu="yes"), image("debian-12", os="linux"))


def spec(**rules: Any) -> JoinPolicySpec:
    return JoinPolicySpec.model_validate(rules)


def known(**changes: Any) -> Known:
    probes = {n: Dated(Probe(r, f"GET /x: {r}"), AT) for n, r in (("own-servers", "allowed"), ("all-users", "refused"))}  # type: ignore[arg-type]
    return Known(**{"facts": facts(AT), "things": THINGS, "probes": probes, **changes})


def answered(**answer: Any) -> dict[str, Dated[Answered]]:
    return {"accounting": Dated(Answered(**answer), AT)}


def only(rules: dict[str, Any], seen: Known) -> Verdict:
    (verdict,) = evaluate(spec(**rules), seen, AT)
    return verdict


COMPUTE = {"endpoints": {"services": ["compute"], "validDays": 14}}
URL = {"urls": [{"name": "accounting", "url": "https://accounting.example.org/health"}]}
PLAIN = {"urls": [{"name": "accounting", "url": "http://accounting.example.org/"}]}
ROLES = {"roles": {"exactly": ["member"], "allowed": "own-servers", "refused": "all-users"}}


def with_compute(**changes: Any) -> Known:
    return known(facts=facts(AT, endpoints=(endpoint("compute", AT, **changes),)))


CASES: dict[str, tuple[dict[str, Any], Known, str, str]] = {
    "endpoint good": (COMPUTE, known(), "True", "certificate until 2027-04-15"),
    "endpoint missing": (COMPUTE, known(facts=facts(AT, endpoints=(endpoint("image", AT),))), "False", "has none"),
    "endpoint never listed": (COMPUTE, known(facts=facts(AT, endpoints=(), looked={})), "Unknown", "not been listed"),
    "endpoint plain": (COMPUTE, with_compute(url="http://compute.example.org"), "False", "not over TLS"),
    "endpoint silent": (COMPUTE, with_compute(problem="503"), "False", "503"),
    "endpoint ended": (COMPUTE, with_compute(expires=AT - DAY), "False", "ended on"),
    "endpoint ends soon": (COMPUTE, with_compute(expires=AT + 13.9 * DAY), "False", "in less than 14 days"),
    "endpoint ends in time": (COMPUTE, with_compute(expires=AT + 14 * DAY), "True", "certificate until"),
    "endpoint untrusted": (COMPUTE, with_compute(trusted=False), "False", "no authority"),
    "endpoint unchecked": (COMPUTE, with_compute(trusted=None), "Unknown", "not checked"),
    "endpoint no end seen": (COMPUTE, with_compute(expires=0.0), "Unknown", "not seen"),
    "one of two is bad": (
        COMPUTE,
        known(facts=facts(AT, endpoints=(endpoint("compute", AT), endpoint("compute", AT, problem="401")))),
        "False",
        "401",
    ),
    "too old": (COMPUTE, known(facts=facts(AT, looked={"endpoints": AT - 7300})), "Unknown", "too long ago"),
    "version": ({"versions": [{"service": "compute", "atLeast": "2.79"}]}, known(), "True", "2.96"),
    "version is no text": ({"versions": [{"service": "compute", "atLeast": "2.100"}]}, known(), "False", "2.96"),
    "version too new": ({"versions": [{"service": "compute", "atMost": "2.95"}]}, known(), "False", "2.96"),
    "version untold": ({"versions": [{"service": "volume", "atLeast": "1"}]}, known(), "Unknown", "did not tell"),
    "version v3": (
        {"versions": [{"service": "compute", "atLeast": "3.0", "atMost": "3"}]},
        with_compute(version="v3"),
        "True",
        "v3",
    ),
    "image": ({"images": [{"name": "debian-*", "properties": {"os": "linux"}}]}, known(), "True", "debian-12"),
    "image of other property": (
        {"images": [{"name": "debian-*", "properties": {"os": "bsd"}}]},
        known(),
        "False",
        "lack the properties",
    ),
    "image missing": ({"images": [{"name": "rocky*"}]}, known(), "False", "none is like this"),
    "image missing in half a list": ({"images": [{"name": "rocky*"}]}, known(complete=False), "Unknown", "listed"),
    "flavor": ({"flavors": [{"cores": 8, "memoryMb": 16_384, "diskGb": 20}]}, known(), "True", "large"),
    "flavor too small": ({"flavors": [{"name": "small", "cores": 4}]}, known(), "False", "large enough"),
    "flavor of other specs": ({"flavors": [{"properties": {"gpu": "no"}}]}, known(), "False", "large enough"),
    "quota": ({"quotas": [{"resource": "cores", "limit": 100, "free": 60}]}, known(), "True", "100"),
    "quota used": ({"quotas": [{"resource": "cores", "free": 61}]}, known(), "False", "60 of 100 are free"),
    "quota small": ({"quotas": [{"resource": "cores", "limit": 101}]}, known(), "False", "101 is asked"),
    "quota untold": ({"quotas": [{"resource": "volumes", "limit": 1}]}, known(), "Unknown", "did not tell"),
    "quota of another project": (
        {"quotas": [{"resource": "cores", "limit": 1}]},
        known(facts=facts(AT, project="p-2")),
        "Unknown",
        "did not tell",
    ),
    "quota without end": (
        {"quotas": [{"resource": "cores", "free": 10**9}]},
        known(facts=facts(AT, quotas=(QuotaUse(project="p-1", resource="cores", limit=-1, used=5),))),
        "True",
        "not limited",
    ),
    "clock": ({"maxSkew": 1}, known(), "True", "within 1 s"),
    "clock behind": ({"maxSkew": 1}, with_compute(skew=-90.0), "False", "compute is 90 s off"),
    "clock not measured": ({"maxSkew": 1}, with_compute(skew=None), "Unknown", "no service told"),
    "url": (URL, known(answers=answered(status=200, expires=AT + 90 * DAY)), "True", "certificate until"),
    "url without TLS": (PLAIN, known(answers=answered(status=204)), "True", "answers"),
    "url ends soon": (URL, known(answers=answered(status=200, expires=AT + DAY)), "False", "less than 14 days"),
    "url silent": (URL, known(answers=answered(problem="no answer in time")), "False", "no answer in time"),
    "url unwell": (URL, known(answers=answered(status=500, expires=AT + 90 * DAY)), "False", "answers 500"),
    "url not allowed": (URL, known(answers=answered(asked=False, problem="not named")), "Unknown", "was not asked"),
    "url not asked yet": (URL, known(), "Unknown", "not been asked yet"),
    "url of a dead site": (
        URL,
        known(blind="gone", facts=None, answers=answered(status=200, expires=AT + 90 * DAY)),
        "True",
        "until",
    ),
    "url asked long ago": (
        URL,
        known(answers={"accounting": Dated(Answered(status=200, expires=AT + 90 * DAY), AT - 1000)}),
        "Unknown",
        "too long ago",
    ),
    "region": ({"regions": ["one"]}, known(), "True", "there"),
    "region missing": ({"regions": ["two"]}, known(), "False", "there is one"),
    "zone missing": ({"zones": ["gpu"]}, known(), "False", "there is nova"),
    "no answer": ({"zones": ["nova"]}, known(blind="it does not answer"), "Unknown", "does not answer"),
    "no cloud": ({"zones": ["nova"]}, known(facts=None), "Unknown", "tells nothing"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_rule(case: str) -> None:
    rules, seen, result, word = CASES[case]
    verdict = only(rules, seen)
    assert (verdict.result, word in verdict.evidence) == (result, True), verdict
    assert bool(verdict.remedy) == (result != "True"), "what does not hold says what to do"


ROLE_CASES: dict[str, tuple[Known, tuple[str, str, str]]] = {
    "as stated": (known(), ("True", "True", "True")),
    "one more": (known(facts=facts(AT, roles=("admin", "member"))), ("False", "True", "True")),
    "one fewer": (known(facts=facts(AT, roles=("reader",))), ("False", "True", "True")),
    "not told": (known(facts=facts(AT, roles=())), ("Unknown", "True", "True")),
    "may too much": (
        known(probes={"own-servers": Dated(Probe("allowed", ""), AT), "all-users": Dated(Probe("allowed", "200"), AT)}),
        ("True", "True", "False"),
    ),
    "may too little": (
        known(probes={"own-servers": Dated(Probe("refused", "403"), AT), "all-users": Dated(Probe("refused", ""), AT)}),
        ("True", "False", "True"),
    ),
    "could not ask": (
        known(
            probes={"own-servers": Dated(Probe("unknown", "503"), AT), "all-users": Dated(Probe("refused", ""), 0.0)}
        ),
        ("True", "Unknown", "Unknown"),
    ),
    "no such calls": (known(no_probes="the driver makes none"), ("True", "Unknown", "Unknown")),
    "not asked yet": (known(probes={}), ("True", "Unknown", "Unknown")),
}


@pytest.mark.parametrize("case", ROLE_CASES)
def test_roles_are_neither_more_nor_fewer_and_proved(case: str) -> None:
    seen, expected = ROLE_CASES[case]
    assert tuple(v.result for v in evaluate(spec(**ROLES), seen, AT)) == expected


def test_what_went_well_is_not_told_with_numbers_that_change() -> None:
    """A status is written when it differs: use, ages and skew of a site in order must not make it differ."""
    rules = spec(**{**COMPUTE, **ROLES, "maxSkew": 5, "quotas": [{"resource": "cores", "free": 10}], **URL})
    later = facts(AT, endpoints=(endpoint("compute", AT, skew=0.9),))
    later = facts(
        AT, endpoints=later.endpoints, quotas=(QuotaUse(project="p-1", resource="cores", limit=100, used=77),)
    )
    good = answered(status=200, expires=AT + 90 * DAY)
    first = evaluate(rules, known(facts=facts(AT, endpoints=(endpoint("compute", AT),)), answers=good), AT)
    second = evaluate(rules, known(facts=later, answers=good), AT + 60)
    assert {v.result for v in first} == {"True"}
    assert first == second


# ── total, whatever a cloud says ────────────────────────────────────────────────────────────────────────────────

SECRETS = (
    "gAAAAABkZ3JvdW5kLWNvbnRyb2wtdG9rZW4tMDEyMzQ1Njc4OWFiY2RlZg==",
    "hunter2-the-password",
    "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJncm91bmQifQ.c2lnbmF0dXJl",
)
LEAKS = tuple(
    leak
    for s in SECRETS
    for leak in (
        f"X-Auth-Token: {s}",
        f"HTTP 500 {{'password': '{s}'}}",
        f"Authorization: Bearer {s}",
        f"GET https://svc:{s}@compute.example.org/v2?token={s} failed",
        f"https://compute.example.org/?X-Amz-Signature={s}#{s}",
        f'{{"auth": {{"application_credential_secret": "{s}"}}}}',
        f"client_secret={s}&grant_type=password",
        f"bearer {s}",
        f"\x1b[31mapi_key = {s}\n",
    )
)
times = st.one_of(st.floats(), st.floats(AT - 1e7, AT + 1e7))
words = st.one_of(st.sampled_from(["compute", "2.79", "v3", "debian-12", "nova", "", "…", "2.x"]), st.text(max_size=20))
said = st.one_of(words, st.sampled_from(LEAKS))
fields = st.dictionaries(
    st.sampled_from(["cores", "memory_mb", "disk_gb", "properties", "public", "visibility"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), said, st.dictionaries(words, said, max_size=2)),
)
endpoints = st.builds(
    Endpoint,
    service=st.sampled_from(["compute", "identity", "image"]),
    url=st.one_of(said, st.just("https://svc:hunter2-the-password@compute.example.org/?token=hunter2-the-password")),
    version=said,
    problem=said,
    expires=times,
    trusted=st.sampled_from([True, False, None]),
    skew=st.one_of(st.none(), times),
)
observed = st.builds(
    CloudFacts,
    regions=st.lists(said, max_size=2).map(tuple),
    zones=st.lists(said, max_size=2).map(tuple),
    endpoints=st.lists(endpoints, max_size=3).map(tuple),
    quotas=st.lists(
        st.builds(
            QuotaUse,
            project=st.sampled_from(["p-1", ""]),
            resource=st.just("cores"),
            limit=st.integers(),
            used=st.integers(),
            reserved=st.integers(),
        ),
        max_size=2,
    ).map(tuple),
    roles=st.lists(said, max_size=2).map(tuple),
    project=st.sampled_from(["p-1", ""]),
    looked=st.dictionaries(st.sampled_from(["endpoints", "image", "flavor", "quotas", "zones"]), times),
)
things = st.lists(
    st.builds(Thing, type=st.sampled_from(["image", "flavor"]), id=st.text(max_size=3), name=said, fields=fields),
    max_size=4,
)
worlds = st.builds(
    Known,
    facts=st.one_of(st.none(), observed),
    things=things,
    complete=st.booleans(),
    blind=st.one_of(st.just(""), said),
    pending=st.booleans(),
    no_probes=st.one_of(st.just(""), said),
    probes=st.dictionaries(
        st.sampled_from(sorted(PROBES)),
        st.builds(Dated, st.builds(Probe, st.sampled_from(["allowed", "refused", "unknown", "odd"]), said), at=times),
    ),
    answers=st.dictionaries(
        st.just("accounting"),
        st.builds(
            Dated,
            st.builds(Answered, asked=st.booleans(), status=st.integers(), expires=times, problem=said),
            at=times,
        ),
    ),
)
EVERYTHING = spec(
    **COMPUTE,
    **ROLES,
    **URL,
    versions=[{"service": "compute", "atLeast": "2.79", "atMost": "3"}],
    images=[{"name": "debian-*", "properties": {"os": "linux"}}, {}],
    flavors=[{"cores": 4}, {"name": "l*", "properties": {"a": "b"}}],
    quotas=[{"resource": "cores", "limit": 10, "free": 5}],
    maxSkew=5,
    regions=["one"],
    zones=["nova"],
)


@settings(max_examples=400, deadline=None)
@given(worlds)
def test_every_rule_gets_exactly_one_result_and_no_evidence_has_a_secret(seen: Known) -> None:
    verdicts = evaluate(EVERYTHING, seen, AT)
    assert [v.rule for v in verdicts] == rule_names(EVERYTHING)
    for verdict in verdicts:
        assert verdict.result in ("True", "False", "Unknown")
        assert len(verdict.evidence) <= 200
        assert verdict.evidence.isprintable()
        assert not any(s in verdict.evidence + verdict.remedy for s in SECRETS), verdict
    truth, _, message = joined(results("p", verdicts, (), "2030-01-01T00:00:00Z", keep=False))
    assert truth == ("False" if any(v.result == "False" for v in verdicts) else truth)
    assert message


@settings(max_examples=200, deadline=None)
@given(observed)
def test_what_is_shown_of_a_cloud_has_no_secret(found: CloudFacts) -> None:
    assert not any(s in str(described(found, {}, {})) for s in SECRETS)


@pytest.mark.parametrize("leak", LEAKS)
def test_what_looks_like_a_secret_is_taken_out(leak: str) -> None:
    assert not any(s in clean(leak) for s in SECRETS)


def test_what_is_plain_stays_readable() -> None:
    for text in ("GET /os-hypervisors: 403", "no token was sent", "its name is not known", "the password has expired"):
        assert clean(text) == text
    assert clean("https://u:p@h:5000/v3?x=1 said 503") == "https://h:5000/v3 said 503"
    assert len(clean("x" * 1000)) == 200


def test_a_time_of_looking_is_told_anew_after_a_minute_only() -> None:
    first = described(facts(AT), {}, {})["looked"]
    assert described(facts(AT + 59), {}, first)["looked"] == first
    later = described(facts(AT + 60), {}, first)["looked"]
    assert later == described(facts(AT + 60), {}, {})["looked"] != first


# ── results over time ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_result_keeps_its_since_until_it_becomes_another() -> None:
    rule = [Verdict("zone nova", "True", "it is there")]
    first = results("p", rule, (), "2030-01-01T00:00:00Z", keep=False)
    again = results("p", [rule[0]._replace(evidence="still")], first, "2030-01-02T00:00:00Z", keep=False)
    assert (again[0].since, again[0].evidence) == ("2030-01-01T00:00:00Z", "still")
    gone = results("p", [rule[0]._replace(result="False")], again, "2030-01-03T00:00:00Z", keep=False)
    assert gone[0].since == "2030-01-03T00:00:00Z"
    assert results("q", rule, first, "2030-01-04T00:00:00Z", keep=False)[0].since == "2030-01-04T00:00:00Z"


def test_a_program_that_just_began_forgets_no_result_but_believes_a_new_one() -> None:
    old = [RuleResult(policy="p", rule="clock", result="True", evidence="was", since="2030-01-01T00:00:00Z")]
    pending, real = (Verdict("clock", "Unknown", "not yet", pending=p) for p in (True, False))
    assert results("p", [pending], old, "now", keep=True) == old
    assert results("p", [pending], old, "now", keep=False)[0].result == "Unknown"
    assert results("p", [real], old, "now", keep=True)[0].result == "Unknown"


def test_joined_counts() -> None:
    def rules(*found: str) -> list[RuleResult]:
        return [RuleResult(policy="p", rule=f"r{n}", result=r) for n, r in enumerate(found)]  # type: ignore[arg-type]

    assert joined(rules("True", "True")) == ("True", "RulesHold", "all 2 rules hold")
    assert joined(rules("True", "False", "Unknown")) == (
        "False",
        "RulesFail",
        "1 of 3 rules do not hold; 1 are not known: r1",
    )
    assert joined(rules("True", "Unknown"))[:2] == ("Unknown", "RulesUnknown")


def test_the_name_of_the_site_stands_in_addresses() -> None:
    rules = spec(urls=[{"name": "m", "url": "https://{site}.example.org/{site}"}])
    assert placed(rules, "bari").urls[0].url == "https://bari.example.org/bari"


# ── what may be written ─────────────────────────────────────────────────────────────────────────────────────────

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no rule": ({"selector": "a=b"}, "it has no rule"),
    "twice": ({"zones": ["a", "a"]}, "said twice: zone a"),
    "selector": ({"selector": "=", "zones": ["a"]}, "selector"),
    "call": ({"roles": {**ROLES["roles"], "allowed": "own-server"}}, 'did you mean "own-servers"'),
    "same call": ({"roles": {**ROLES["roles"], "allowed": "all-users"}}, "must be refused"),
    "resource": ({"quotas": [{"resource": "core"}]}, 'did you mean "cores"'),
    "nothing bounded": ({"versions": [{"service": "compute"}]}, "atLeast or atMost"),
    "password": ({"urls": [{"name": "a", "url": "https://u:p@h/"}]}, "shown to many"),
    "query": ({"urls": [{"name": "a", "url": "https://h/?t=1"}]}, "shown to many"),
    "scheme": ({"urls": [{"name": "a", "url": "file:///etc/passwd"}]}, "https://host/path"),
    "control": ({"urls": [{"name": "a", "url": "https://h/\r\nHost: x"}]}, "https://host/path"),
    "backslash": ({"urls": [{"name": "a", "url": "https://good\\@evil/"}]}, "https://host/path"),
    "port": ({"urls": [{"name": "a", "url": "https://h:99999/"}]}, "ort"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_policy_is_told_what_is_wrong(case: str) -> None:
    rules, word = WRONG[case]
    doc = {"apiVersion": "ground/v1", "kind": "JoinPolicy", "metadata": {"name": "p"}, "spec": rules}
    with pytest.raises(Invalid) as refused:
        Kinds([JoinPolicy]).parse(doc)
    assert word in str(refused.value), refused.value
