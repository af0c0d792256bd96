"""A night on call: a site goes dark in the middle of a roll-out, the git server is down, and morning comes."""

from __future__ import annotations

from groundcontrol.kernel.errors import Unavailable
from tests.federation import Federation
from tests.stories.conftest import REPOSITORY, ask, pushed, service, source


def versions(fed: Federation) -> list[str]:
    return sorted(u.spec.env["VERSION"] for u in fed.units())


def go_dark(fed: Federation, site: str) -> None:
    """Nothing that is asked of the site is answered any more."""
    host = fed.hosts[site]

    def silent(*_: object, **__: object) -> None:
        raise Unavailable(f"{site} does not answer")

    for call in ("look", "wait", "get", "create", "update", "start", "stop", "delete", "find"):
        setattr(host, call, silent)


def come_back(fed: Federation, site: str) -> None:
    for call in ("look", "wait", "get", "create", "update", "start", "stop", "delete", "find"):
        delattr(fed.hosts[site], call)


def test_a_site_goes_dark_during_a_roll_out_and_comes_back(fed: Federation) -> None:
    # Evening: an archive with a copy at every site is rolled out anew.
    source(fed)
    pushed(fed, {"archive.yaml": service("archive", replicas=3, placement="{spread: site}")})
    fed.until_ready("Service", "archive", "alpha")
    assert {d["spec"]["site"] for d in fed.instances("archive")} == {"cnaf", "bari", "recas"}

    # A transceiver dies at bari just as the commit of the evening arrives.
    there = [u.id for u in fed.units("bari")]
    before = {name: dict(fed.hosts[name]._units) for name in fed.hosts}
    go_dark(fed, "bari")
    pushed(fed, {"archive.yaml": service("archive", replicas=3, version="2", placement="{spread: site}")})
    fed.until(lambda: fed.ready("Site", "bari") == ("Unknown", "Unreachable"), "bari is unreachable")
    fed.until(lambda: fed.ready("Service", "archive", "alpha", "Available")[0] == "True", "the archive is available")
    assert fed.ready("Service", "archive", "alpha")[0] != "True", "and not as it should be"
    open_ = fed.until(lambda: [i for i in fed.all("Incident") if i["spec"]["subject"]["name"] == "bari"], "it is told")
    assert open_[0]["metadata"]["namespace"] == "platform"
    fed.settled(1.0)
    assert list(fed.hosts["bari"]._units) == list(before["bari"]) == there, "nobody touched what cannot be seen"
    assert len(fed.instances("archive")) <= 4, "and nothing was made twice to replace it"

    # Morning: the line is mended, and the roll-out goes on where it stopped.
    come_back(fed, "bari")
    fed.until_ready("Site", "bari")
    fed.until(lambda: versions(fed) == ["2", "2", "2"], "everything is of the new version")
    fed.until_ready("Service", "archive", "alpha")
    assert {d["spec"]["site"] for d in fed.instances("archive")} == {"cnaf", "bari", "recas"}
    fed.until(lambda: all(i["status"]["phase"] == "Closed" for i in fed.all("Incident")), "the incidents are over")


def test_the_git_server_is_down_at_night(fed: Federation) -> None:
    source(fed)
    pushed(fed, {"web.yaml": service("web")})
    fed.until_ready("Service", "web", "alpha")
    fed.until_ready("Source", "platform")

    # 02:00: the git server reboots for its updates, and does not come up.
    fed.repositories.broken[REPOSITORY] = Unavailable("git.example.org does not answer")
    ask(fed)
    fed.until(lambda: fed.ready("Source", "platform") == ("Unknown", "CannotFetch"), "it is said")
    assert fed.ready("Service", "web", "alpha")[0] == "True", "what runs goes on"

    # 03:00: a process dies meanwhile. Nobody needs git to start it again.
    (unit,) = fed.units()
    host = next(h for h in fed.hosts.values() if unit.id in [u.id for u in h.look().units])
    host.kill(unit.id)
    fed.until(lambda: [u.starts for u in fed.units()] == [2], "it is healed")

    # 04:00: and we ourselves are restarted, with git still down: what is declared is still known.
    fed.restart()
    fed.until_ready("Service", "web", "alpha")
    fed.settled()
    assert [u.starts for u in fed.units()] == [2], "a restart touches nothing"

    # 08:00: it is up again, and in the meantime somebody had pushed.
    commit = fed.repositories.push(REPOSITORY, {"web.yaml": service("web", version="2")})
    del fed.repositories.broken[REPOSITORY]
    ask(fed)
    fed.until(lambda: (fed.get("Source", "platform") or {})["status"]["commit"] == commit, "the push is applied")
    fed.until(lambda: versions(fed) == ["2"], "and live")
    fed.until_ready("Source", "platform")
