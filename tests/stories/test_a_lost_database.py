"""The database is lost, without any copy: from git and the marks in the cloud everything is taken over again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from groundcontrol.kernel.errors import Conflict, Invalid
from groundcontrol.kernel.incarnation import give_back
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.store import Store
from groundcontrol.ports.cloud import Thing
from tests.capabilities.clouds.sky import KEY, furnish
from tests.federation import Federation
from tests.stories.conftest import REPOSITORY, ask, source

ADA = Subject("user:ada", frozenset(), frozenset({"read", "write", "approve"}))
HEAD = "apiVersion: ground/v1\nkind: {kind}\nmetadata: {{name: {name}{where}}}\nspec: {{site: bari{more}}}\n"


def declared(kind: str, name: str, **spec: object) -> str:
    """A manifest; in the namespace alpha when it has a project."""
    where = ", namespace: alpha" if "project" in spec and kind != "Quota" else ""
    more = "".join(f", {k}: {v}" for k, v in spec.items())
    return HEAD.format(kind=kind, name=name, where=where, more=more)


GIT = {
    "alpha.yaml": "apiVersion: ground/v1\nkind: Namespace\nmetadata: {name: alpha}\nspec: {group: experiments/alpha}\n",
    "bari.yaml": "apiVersion: ground/v1\nkind: Site\nmetadata: {name: bari}\n"
    "spec: {driver: memory-cloud, endpoint: 'memory:'}\n",
    "lab.yaml": declared("Project", "lab", namespaces="[alpha]"),
    "quota.yaml": declared("Quota", "lab", project="lab", limits="{instances: 7}"),
    "lan.yaml": declared("Network", "lan", project="lab"),
    "range.yaml": declared("Subnet", "lan", project="lab", network="lan", cidr="10.1.0.0/24"),
    "group.yaml": declared("SecurityGroup", "web", project="lab", rules="[{protocol: tcp}, {group: self}]"),
    "key.yaml": declared("Keypair", "ada", project="lab", publicKey=f"'{KEY}'"),
    "data.yaml": declared("Volume", "data", project="lab", size=10, attachedTo="web", description="ours",
                          drift="report"),
    "web.yaml": declared("Server", "web", project="lab", flavor="'cloud:small'", image="'cloud:debian'",
                         networks="[lan]", securityGroups="[web]", keypair="ada"),
}  # fmt: skip
THINGS = [("Project", "lab", ""), ("Quota", "lab", ""), ("Network", "lan", "alpha"), ("Subnet", "lan", "alpha"),
          ("SecurityGroup", "web", "alpha"), ("Keypair", "ada", "alpha"), ("Volume", "data", "alpha"),
          ("Server", "web", "alpha")]  # fmt: skip


@contextmanager
def installed(data: Path, before: Federation | None = None, installation: str = "") -> Iterator[Federation]:
    """An installation on the same clouds and repositories as the one before; with an id that was given back."""
    fed = Federation(data)
    if before is not None:
        fed.clouds, fed.repositories = before.clouds, before.repositories
        fed.runtime = fed._build()
    if installation:
        fed.open().close()
        store = Store(f"sqlite:///{data / 'ground.db'}", fed.runtime.kinds, restored="its database was lost")
        store.open()
        store.write(lambda tx: give_back(tx.conn, installation))
        store.close()
        fed.runtime = fed._build()
    fed.open()
    fed.runtime.turns._outcomes._seconds = 0.1
    try:
        yield fed
    finally:
        fed.close()


def all_ready(fed: Federation) -> None:
    for kind, name, namespace in THINGS:
        fed.until_ready(kind, name, namespace)


def there(fed: Federation) -> list[tuple[str, str, str]]:
    """What of the cloud is of anybody's making, or a keypair."""
    made = [t for t in fed.cloud("bari").things() if t.mark is not None or t.type == "keypair"]
    return [(t.type, t.id, _state(t)) for t in made]


def _state(thing: Thing) -> str:
    return thing.state


@pytest.fixture
def lost(tmp_path: Path) -> tuple[Federation, str]:
    """An installation that had everything, and lost its database."""
    with installed(tmp_path / "first") as fed:
        furnish(fed.cloud("bari"))
        source(fed)
        fed.repositories.push(REPOSITORY, GIT)
        ask(fed)
        all_ready(fed)
        # What somebody changed by hand, and is only to be reported, stays as it is through all this.
        (volume,) = fed.cloud("bari").things("volume")
        fed.cloud("bari").edit("volume", volume.id, description="by hand")
        installation = fed.runtime.store.installation
    return fed, installation


def test_without_its_id_nothing_is_made_twice(lost: tuple[Federation, str], tmp_path: Path) -> None:
    before, _ = lost
    had = there(before)
    with installed(tmp_path / "second", before) as fed:
        source(fed)
        ask(fed)
        fed.until(lambda: fed.ready("Project", "lab") == ("False", "Blocked"))
        fed.settled()
        assert there(fed) == had
        message = (fed.get("Project", "lab") or {})["status"]["conditions"][0]["message"]
        assert "ground admin installation" in message


def test_with_its_id_everything_is_taken_over_again(lost: tuple[Federation, str], tmp_path: Path) -> None:
    before, installation = lost
    had = there(before)
    before.cloud("bari").calls.clear()
    with installed(tmp_path / "second", before, installation) as fed:
        source(fed)
        ask(fed)
        plan = fed.until(
            lambda: next((p for p in fed.runtime.plans.list("held") if len(p["changes"]) >= len(GIT)), None)
        )
        assert plan["id"].startswith("restore:")
        assert fed.get("Project", "lab") is None, "nothing is done before a person has looked"
        fed.runtime.plans.approve(plan["id"], plan["digest"], ADA, "this is what we had")
        ask(fed)
        all_ready(fed)
        fed.settled()
        assert there(fed) == had
        made = [c for c in before.cloud("bari").calls if c[0] in ("create", "delete", "change")]
        assert made == [], "nothing was touched"
        assert len(fed.events("Adopted")) == len(THINGS)
        (volume,) = fed.cloud("bari").things("volume")
        assert volume.fields["description"] == "by hand"
        # From now on it is looked after as before.
        fed.cloud("bari").lose("server", next(i for t, i, _ in had if t == "server"))
        fed.until(lambda: fed.events("Recreated"))
        fed.until_ready("Server", "web", "alpha")


def test_an_id_is_not_given_to_who_owns_things_already(lost: tuple[Federation, str], tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'first' / 'ground.db'}", lost[0].runtime.kinds)
    store.open()
    try:
        with pytest.raises(Conflict, match="owns 8 things"):
            store.write(lambda tx: give_back(tx.conn, "0123456789ab"))
        with pytest.raises(Invalid):
            store.write(lambda tx: give_back(tx.conn, "../etc"))
        store.write(lambda tx: give_back(tx.conn, "0123456789ab", even_so=True))
    finally:
        store.close()
