"""What the OpenStack test bed writes and shows without a cloud: settings, certificates, its command line, its guide."""

from __future__ import annotations

import configparser
import datetime
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from testbed.openstack import certificates, contents, front, settings
from testbed.openstack.__main__ import arguments
from testbed.openstack.layout import HERE, Bed, BedError, Cloud, home, write
from tests.docs.markdown import GUIDES, blocks

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def bed() -> Iterator[Bed]:
    """In a place whose name is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        yield Bed(Path(place))


@pytest.fixture(params=["north", "south"])
def cloud(bed: Bed, request: pytest.FixtureRequest) -> Cloud:
    return bed.cloud(request.param)


def test_clouds_share_no_port_no_release_and_no_password(bed: Bed) -> None:
    north, south = bed.clouds
    assert not set(north.ports) & set(south.ports)
    assert north.release != south.release
    assert not set(north.passwords.values()) & set(south.passwords.values())


def test_ports_and_places_are_the_callers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GROUND_TESTBED_PORT", "20000")
    monkeypatch.setenv("GROUND_TESTBED_DIR", str(tmp_path))
    assert min(Bed(home()).clouds[0].ports) == 20000
    assert home() == tmp_path
    monkeypatch.setenv("GROUND_TESTBED_PORT", "many")
    with pytest.raises(BedError, match="GROUND_TESTBED_PORT is 'many'; give a number"):
        _ = Bed(home()).clouds


def test_a_directory_too_deep_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(BedError, match="too long a name for a socket; set GROUND_TESTBED_DIR"):
        Bed(tmp_path / ("deep" * 30)).clouds[0].socket("mariadb")


def test_settings_are_well_formed_and_name_no_other_cloud(cloud: Cloud) -> None:
    made = {name: make(cloud) for name, make in settings.SERVICES.items()}
    made |= {host: settings.hypervisor(cloud, host) for host in cloud.hosts}
    made |= {"proxy": settings.swift_proxy(cloud), "swift": settings.swift(cloud)}
    other = next(c for c in cloud.bed.clouds if c != cloud)
    for name, values in made.items():
        text = settings.text(values)
        parser = configparser.RawConfigParser()
        parser.read_string(text)
        assert str(other.root) not in text
        assert not any(f":{port}" in text for port in other.ports)
        if name in cloud.hosts:
            assert "mysql" not in text, "a hypervisor knows no database"


def test_filters_of_the_object_store_are_all_described(cloud: Cloud) -> None:
    values = settings.swift_proxy(cloud)
    for name in settings.FILTERS.split():
        assert values[f"filter:{name}"]


def test_the_front_has_every_service(cloud: Cloud) -> None:
    text = front.config(cloud)
    for service in cloud.services:
        assert f"listen 127.0.0.1:{cloud.public_port(service)} ssl;" in text
    assert ("object-store" in cloud.services) == (f":{cloud.public_port('object-store')}" in text)
    assert text.count("{") == text.count("}")


@needs_openssl
def test_certificates_are_valid_or_expired(cloud: Cloud) -> None:
    certificates.authority(cloud.bed)
    authority = x509.load_pem_x509_certificate(cloud.bed.authority.read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    for state in ("valid", "expired", "valid"):
        certificates.server(cloud, state)
        found = x509.load_pem_x509_certificate(certificates.chain(cloud).read_bytes())
        found.verify_directly_issued_by(authority)
        assert (found.not_valid_after_utc > now) == (state == "valid")
        assert found.not_valid_before_utc < now
    assert certificates.private_key(cloud).stat().st_mode & 0o77 == 0
    with pytest.raises(BedError, match="valid or expired, not 'stale'"):
        certificates.server(cloud, "stale")


def test_what_is_written_is_for_its_owner_only_and_stays_when_it_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a" / "secret"
    write(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_mtime_ns
    write(path, "one")
    assert path.stat().st_mtime_ns == before
    write(path, "two")
    assert path.read_text() == "two"


def test_clouds_yaml_has_three_entries_for_each_cloud(bed: Bed) -> None:
    import yaml

    contents.write_clouds_yaml(bed)
    found = yaml.safe_load(bed.clouds_yaml.read_text())["clouds"]
    assert set(found) == {f"{c}{who}" for c in ("north", "south") for who in ("", "-beta", "-admin")}
    assert all(entry["auth"]["auth_url"].startswith("https://") for entry in found.values())
    assert bed.clouds_yaml.stat().st_mode & 0o77 == 0


def test_faults_are_calls_of_the_hypervisor(bed: Bed) -> None:
    """The guide's list of calls is the plug-in's, which cannot be imported here."""
    source = (HERE / "plugins" / "hypervisor.py").read_text()
    page = (GUIDES / "testbed.md").read_text()
    shown = page.replace("can\nfail", "can fail").partition("Calls that can fail:")[2].split("\n\n")[0]
    names = {word for word in shown.replace("`", " ").replace(",", " ").replace(".", " ").split() if "_" in word}
    assert len(names) > 5
    assert sorted(name for name in names if f'"{name}"' not in source) == []


def test_the_commands_of_the_guide_can_be_typed() -> None:
    shown = [line for block in blocks(GUIDES / "testbed.md") for line in block.commands]
    ours = [line for line in shown if line.startswith("python3 -m testbed.openstack ")]
    assert len(ours) > 5
    for line in ours:
        arguments().parse_args(shlex.split(line, comments=True)[3:])
    makefile = (HERE.parents[1] / "Makefile").read_text()
    for line in shown:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in makefile
