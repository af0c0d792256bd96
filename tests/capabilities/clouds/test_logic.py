"""What is wanted, what differs and what follows, without any cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundcontrol.assembly import kinds
from groundcontrol.capabilities.clouds.kinds import KINDS, TYPES, SecurityGroupSpec, ServerSpec, SubnetSpec
from groundcontrol.capabilities.clouds.logic import (
    SHAPES,
    SPECS,
    Reference,
    as_spec,
    cause_of,
    chosen,
    differences,
    digest,
    in_words,
    names_of,
    next_try,
    own_group,
    references,
    resource_name,
    sort_out,
    usable_by,
    wanted_fields,
)
from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.manifest import load_documents
from groundcontrol.kernel.resource import Doc
from groundcontrol.ports.cloud import FIELDS, IN_PLACE, Thing

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
PLACE: Doc = {"site": "s", "project": "p"}


def spec_of(kind: str, **fields: Any) -> Any:
    return SPECS[kind].model_validate(PLACE | fields)


def thing(type: str, **fields: Any) -> Thing:
    return Thing(type=type, id=f"{type}-1", project="p-1", fields=fields)


def test_every_kind_has_a_shape_and_a_type_of_the_port() -> None:
    names = {k.__name__ for k in KINDS}
    assert names == set(SHAPES) == set(TYPES)
    assert set(TYPES.values()) == set(FIELDS)
    for kind, shape in SHAPES.items():
        fields = FIELDS[TYPES[kind]]
        assert set(shape.refers) | shape.once | shape.empty <= fields, kind
        assert not (shape.once & IN_PLACE[TYPES[kind]] - {"image"}), kind
        assert shape.shield in {"", *fields}


@pytest.mark.parametrize("kind", [k.__name__ for k in KINDS if k.__name__ not in ("Quota", "Keypair")])
def test_what_is_wanted_is_found_again_in_what_was_made(kind: str) -> None:
    """A thing that was made as wanted differs in nothing, and its manifest says the same again."""
    (document,) = load_documents((EXAMPLES / f"{kind.lower()}.yaml").read_bytes(), kind)
    spec = SPECS[kind].model_validate(kinds().parse(document.value)["spec"])
    ids = {(r.kind, r.text): f"id-{r.text}" for r in references(kind, spec)}
    wanted, unknown = wanted_fields(kind, spec, "its-name", ids)
    assert not unknown
    assert wanted.keys() <= FIELDS[TYPES[kind]]
    made = thing(TYPES[kind], **{n: v for n, v in wanted.items() if n != "source"})
    if "rules" in wanted:
        made.fields["rules"] = own_group(wanted["rules"], made.id)
    assert differences(kind, wanted, made) == []
    texts = {id: text for (_, text), id in ids.items()}
    said = as_spec(kind, made, lambda named, id: texts.get(id, id.removeprefix("id-")))
    again = SPECS[kind].model_validate(spec.model_dump(mode="json", by_alias=True) | said)
    assert wanted_fields(kind, again, "its-name", ids)[0] == wanted


def test_a_field_that_is_left_out_is_not_wanted_and_an_empty_one_may_be() -> None:
    wanted, _ = wanted_fields("Network", spec_of("Network"), "n", {})
    assert wanted == {"name": "n"}
    wanted, _ = wanted_fields("Network", spec_of("Network", description=""), "n", {})
    assert wanted == {"name": "n", "description": ""}
    server = spec_of("Server", flavor="cloud:f", image="cloud:i", power="user")
    wanted, unknown = wanted_fields("Server", server, "n", {("Flavor", "cloud:f"): "f"})
    assert unknown == {"image"}
    assert wanted == {"name": "n", "flavor": "f", "locked": False, "networks": []}


def test_references_by_name_or_id_among_what_the_project_may_use() -> None:
    def image(id: str, name: str, **parts: Any) -> Thing:
        return Thing(type="image", id=id, name=name, **parts)

    images = [
        image("i-1", "one", project="p-1"),
        image("i-2", "two", project="p-2"),
        image("i-3", "two", project="p-2", fields={"visibility": "public"}),
        image("i-4", "i-1", project="p-1"),
        image("i-5", "many", project="p-1"),
        image("i-6", "many", project="p-1"),
    ]

    def found(text: str) -> tuple[str, str]:
        return chosen(images, Reference("image", "Image", f"cloud:{text}"), "p-1")

    assert found("one") == ("i-1", "")
    assert found("i-1") == ("i-1", ""), "an id comes before a name"
    assert found("two") == ("i-3", "")
    assert found("i-2")[0] == ""
    assert found("many") == ("", "2 images of the site are called many: i-5, i-6; give the id")
    assert not usable_by(Thing(type="flavor", id="f", fields={"public": False}), "p-1")


def test_rules_of_a_group() -> None:
    spec = SecurityGroupSpec.model_validate(PLACE | {"rules": [{"protocol": "tcp", "ports": "22"}, {"group": "web"}]})
    wanted, _ = wanted_fields("SecurityGroup", spec, "g", {("SecurityGroup", "web"): "g-2"})
    assert len(wanted["rules"]) == 4, "two of them let everything out"
    assert wanted["rules"][-1]["remote"] == "group:g-2"
    shuffled = thing("security_group", name="g", rules=wanted["rules"][::-1])
    assert differences("SecurityGroup", wanted, shuffled) == []
    only = SecurityGroupSpec.model_validate(PLACE | {"egress": "rules"})
    assert wanted_fields("SecurityGroup", only, "g", {})[0]["rules"] == []
    doc = {"spec": spec.model_dump(mode="json", by_alias=True)}
    assert [(r.kind, r.text) for r in names_of("SecurityGroup", doc)] == [("SecurityGroup", "web"), ("Project", "p")]


def test_a_volume_grows_in_place_and_shrinks_by_another() -> None:
    for size, in_place in ((5, True), (1, False)):
        wanted, _ = wanted_fields("Volume", spec_of("Volume", size=size), "v", {})
        (found,) = differences("Volume", wanted, thing("volume", name="v", size=3))
        assert (found.field, found.in_place) == ("size", in_place)


def test_field_by_field_what_is_done() -> None:
    def sorted_(drift: str, applied: dict[str, str], left: dict[str, str] | None = None, **drift_of: str) -> list[str]:
        spec = spec_of("Network", description="wanted", mtu=1400, drift=drift, driftOf=drift_of)
        wanted, _ = wanted_fields("Network", spec, "n", {})
        found = differences("Network", wanted, thing("network", name="n", description="found", mtu=1400))
        done = sort_out(spec, found, applied, left or {})
        parts = ("change", "replace", "by_hand", "propose", "left")
        return [part for part in parts if getattr(done, part)]

    hand = {"description": digest("wanted")}
    assert sorted_("report", {}) == ["change"], "the spec asks for it anew"
    assert sorted_("correct", hand) == ["change", "by_hand"]
    assert sorted_("report", hand) == ["by_hand"]
    assert sorted_("propose", hand) == ["by_hand", "propose"]
    assert sorted_("correct", hand, description="report") == ["by_hand"]
    assert sorted_("correct", hand, {"description": digest("found")}) == ["left"]
    assert sorted_("correct", hand, {"description": digest("else")}) == ["change", "by_hand"]
    assert sorted_("correct", {"description": digest("older")}, {"description": digest("found")}) == ["change"]


def test_what_the_cloud_does_not_tell_is_not_looked_at() -> None:
    wanted, _ = wanted_fields("Server", spec_of("Server", flavor="cloud:f", image="cloud:i"), "n", {
        ("Flavor", "cloud:f"): "f", ("Image", "cloud:i"): "i"})  # fmt: skip
    assert differences("Server", wanted, thing("server", name="n", image="")) == [], "it boots from a volume"
    assert [d.field for d in differences("Server", wanted, thing("server", name="n", image="j"))] == ["image"]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("No valid host was found. There are not enough hosts available.", "NoValidHost"),
        ("Exceeded maximum number of retries. Exhausted all hosts", "NoValidHost"),
        ("VolumeSizeExceedsAvailableQuota: Requested volume exceeds allowed gigabytes quota", "QuotaExceeded"),
        ("Image 12 could not be found", "BadImage"),
        ("something else", "Failed"),
    ],
)
def test_causes_of_faults(fault: str, cause: str) -> None:
    assert cause_of(Thing(type="server", id="s", fault=fault)) == cause
    assert cause_of(Thing(type="server", id="s", fault=fault, cause="RemoteBug")) == "RemoteBug"


def test_words_and_waits() -> None:
    assert in_words("QuotaExceeded", "5 of 5") == "the project's quota is used up: 5 of 5"
    assert in_words("", "boom") == "boom"
    assert [next_try(n, 3, 10) for n in (1, 2, 3)] == [10, 20, None]


@pytest.mark.parametrize(
    ("name", "taken", "found"),
    [
        ("Net 1", (), "net-1"),
        ("a" * 80, (), "a" * 50),
        ("web", ("web",), "web-"),
        ("", (), "network-"),
        ("é!", (), "network-"),
    ],
)
def test_names_for_resources(name: str, taken: tuple[str, ...], found: str) -> None:
    made = resource_name(Thing(type="network", id="n-1", name=name), taken)
    assert made.startswith(found)
    assert made not in taken


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("Subnet", {"network": "lan", "cidr": "10.0.0.1/24"}, "not a network"),
        ("Subnet", {"network": "lan", "cidr": "10.0.0.0/24", "gateway": "next"}, "not an IP address"),
        ("SecurityGroup", {"rules": [{"ports": "22"}]}, "ports need a protocol"),
        ("SecurityGroup", {"rules": [{"remote": "10.0.0.0/8", "group": "web"}]}, "either remote or group"),
        ("SecurityGroup", {"rules": [{"remote": "10.0.0.0/8", "ethertype": "IPv6"}]}, "is not IPv6"),
        ("Keypair", {"publicKey": "ssh-ed25519 AAAA", "name": "mine"}, "NAMESPACE.NAME"),
        ("Keypair", {"publicKey": "-----BEGIN PRIVATE KEY-----"}, "pattern"),
        ("Server", {"flavor": "cloud:f", "image": "cloud:i", "keypair": "cloud:theirs"}, "pattern"),
        ("Server", {"flavor": "f", "image": "i", "adopt": "../../etc"}, "pattern"),
        ("Quota", {"limits": {"instancse": 3}}, 'did you mean "instances"'),
        ("Quota", {"limits": {"instances": -2}}, "greater than or equal"),
    ],
)
def test_what_cannot_be_wanted_is_said(kind: str, fields: Doc, said: str) -> None:
    meta = {"name": "x"} | ({"namespace": "alpha"} if kind != "Quota" else {})
    doc = {"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": PLACE | fields}
    with pytest.raises(Invalid, match=said):
        kinds().parse(doc)


def test_defaults_are_the_careful_ones() -> None:
    server = ServerSpec.model_validate(PLACE | {"flavor": "f", "image": "i"})
    assert (server.replace, server.deletion, server.drift, server.power) == ("ask", "delete", "correct", "on")
    assert SubnetSpec.model_validate(PLACE | {"network": "n", "cidr": "10.0.0.0/24"}).dns is None
