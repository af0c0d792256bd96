"""The directory of a demonstration: taken by one at a time, kept between runs, never somebody else's."""

import socket
from pathlib import Path

import pytest

from groundcontrol.demo import manifests, place
from groundcontrol.demo.place import SITES, Busy, Place


def prepared(root: Path, port: int = 0) -> Place:
    made = Place(root)
    made.take()
    made.prepare(port, passing=True)
    return made


def test_a_second_run_finds_the_same(tmp_path: Path) -> None:
    first = prepared(tmp_path / "d")
    password = first.password.read_text()
    first.release()
    again = prepared(tmp_path / "d")
    assert (again.ports, again.networks, again.password.read_text()) == (first.ports, first.networks, password)


def test_two_at_a_time_are_refused(tmp_path: Path) -> None:
    first = prepared(tmp_path)
    with pytest.raises(Busy, match="already runs"):
        Place(tmp_path).take()
    first.release()


def test_a_directory_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Busy, match="something else"):
        Place(tmp_path).take()


def test_ports_and_networks_are_all_different(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    assert len(set(made.ports.values())) == len(made.ports) == 1 + 2 * len(SITES)
    assert len(set(made.networks.values())) == len(SITES)


def test_a_port_that_was_taken_meanwhile_is_replaced(tmp_path: Path) -> None:
    first = prepared(tmp_path)
    first.release()
    with socket.create_server(("127.0.0.1", first.ports["agent-bari"])):
        assert prepared(tmp_path).ports["agent-bari"] != first.ports["agent-bari"]


def test_a_port_asked_for_is_used_or_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Busy, match="--port"):
            prepared(tmp_path, port)
    assert prepared(tmp_path / "other", port).url == f"http://127.0.0.1:{port}"


def test_networks_in_use_are_avoided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "_loopback_in_use", lambda: set(range(20, 217)))
    assert set(prepared(tmp_path).networks.values()) == {f"127.{n}.0.0/16" for n in (217, 218, 219)}


def test_secrets_are_for_the_owner_only(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    assert made.keys.stat().st_mode & 0o077 == 0
    assert made.password.stat().st_mode & 0o077 == 0


def test_no_secret_is_in_what_is_declared_or_set(tmp_path: Path) -> None:
    made = prepared(tmp_path)
    files = manifests.tree(made, manifests.State())
    text = "".join([*files.values(), manifests.settings(made), str(manifests.bootstrap(made, "file:///x"))])
    for secret in made.keys.iterdir():
        assert secret.read_text().strip() not in text


def test_what_is_declared_is_what_the_observer_wants(tmp_path: Path) -> None:
    files = manifests.tree(prepared(tmp_path), manifests.State(version="7"))
    wanted = manifests.wanted(manifests.State(version="7"))
    assert set(wanted) == set(manifests.ALL)
    assert len(wanted) == 6
    for name, one in wanted.items():
        text = files[manifests.path_of(name)]
        assert f"SERVICE: {name}" in text
        assert f'VERSION: "{one.version}"' in text
        assert ("replicas: 2" in text) == (one.replicas == 2)
        assert not one.port or f": {one.port}}}" in text
