"""The test bed itself: two clouds that know nothing of one another, TLS that can expire, parts that die alone."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import urllib.request

import openstack
import pytest
from keystoneauth1 import exceptions

from testbed.openstack.layout import HERE, LOCAL, Bed
from testbed.openstack.parts import listens
from tests.parts.openstack.conftest import connect
from tests.parts.openstack.site import Site, fresh, until

pytestmark = pytest.mark.acceptance


def command(*words: str) -> str:
    """The test bed's own command line; what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed.openstack", *words],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


def test_public_endpoints_are_https_and_answer_so(site: Site) -> None:
    catalogue = site.member.service_catalog
    public = [e["url"] for entry in catalogue for e in entry["endpoints"] if e["interface"] == "public"]
    assert len(public) == len(site.running.cloud.services)
    trusted = ssl.create_default_context(cafile=str(site.running.cloud.bed.authority))
    for url in public:
        assert url.startswith("https://")
        root = "/".join(url.split("/")[:3])
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            urllib.request.urlopen(root, timeout=60)
        try:
            with urllib.request.urlopen(f"{root}/", timeout=60, context=trusted) as answer:
                body, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            body, status = error.read(), error.code
            error.close()
        assert status in (200, 300, 401, 404, 412)
        assert b"http://" not in body, f"{root} sends its clients to a plain port"


def test_the_releases_differ(bed: Bed) -> None:
    found = {}
    for name in ("north", "south"):
        connection = connect(bed, name)
        found[name] = connection.compute.get_endpoint_data().max_microversion
        connection.close()
    assert found["north"] != found["south"]


def test_clouds_know_nothing_of_one_another(bed: Bed) -> None:
    north, south = connect(bed, "north"), connect(bed, "south")
    token = north.session.get_token()
    answer = south.session.get(
        f"{bed.cloud('south').public('identity')}/v3/auth/tokens",
        headers={"X-Auth-Token": token, "X-Subject-Token": token},
        authenticated=False,
        raise_exc=False,
    )
    assert answer.status_code == 401
    assert north.current_project_id != south.current_project_id
    north.close()
    south.close()


def test_an_application_credential_logs_in(site: Site) -> None:
    member = site.member
    made = member.identity.create_application_credential(user=member.current_user_id, name=fresh("credential"))
    auth = {
        "auth_url": site.running.cloud.public("identity") + "/v3",
        "application_credential_id": made.id,
        "application_credential_secret": made.secret,
    }
    with openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth_type="v3applicationcredential",
        auth=auth,
        cacert=str(site.running.cloud.bed.authority),
        region_name=site.running.cloud.region,
    ) as other:
        assert other.current_project_id == member.current_project_id
        assert [f.name for f in other.compute.flavors()]
    member.identity.delete_application_credential(member.current_user_id, made)


def test_a_certificate_expires_and_is_renewed(site: Site, bed: Bed) -> None:
    name = site.running.cloud.name
    command("certificate", name, "expired")
    try:
        until("an expired certificate is shown", lambda: _refused(bed, name, "expired"))
    finally:
        command("certificate", name, "valid")
    until("a valid one is shown", lambda: not _refused(bed, name, ""))


def _refused(bed: Bed, name: str, why: str) -> bool:
    connection = connect(bed, name)
    try:
        connection.authorize()
    except (exceptions.SSLError, openstack.exceptions.SDKException) as error:
        return why in str(error)
    finally:
        connection.close()
    return False


def test_up_again_starts_what_is_dead_and_nothing_else(bed: Bed) -> None:
    before = {name: _pids(bed, name) for name in ("north", "south")}
    command("kill", "south", "south-hv2")
    command("stop", "north", "rabbitmq")
    said = command("up")
    assert "north is up (started rabbitmq)" in said
    assert "south is up (started south-hv2)" in said
    for name, dead in (("north", "rabbitmq"), ("south", "south-hv2")):
        after = _pids(bed, name)
        assert {part for part in after if after[part] != before[name][part]} == {dead}
    assert "started nothing" in command("up")


def _pids(bed: Bed, name: str) -> dict[str, int]:
    return {p.stem: json.loads(p.read_text())["pid"] for p in bed.cloud(name).run.glob("*.json")}


def test_a_cloud_lives_without_the_other(bed: Bed) -> None:
    command("stop", "north", "identity")
    try:
        assert listens(bed.cloud("north").public_port("identity"))
        answer = urllib.request.Request(f"http://{LOCAL}:{bed.cloud('north').internal_port('identity')}/v3")
        with pytest.raises(urllib.error.HTTPError, match="502"):
            urllib.request.urlopen(answer, timeout=60)
        south = connect(bed, "south")
        assert [f.name for f in south.compute.flavors()]
        south.close()
    finally:
        command("start", "north", "identity")
