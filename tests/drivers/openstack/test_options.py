"""Options and credentials of a Site: what is wrong with them is said by name, and never with a value that is secret."""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from groundcontrol.assembly import DRIVERS
from groundcontrol.drivers import openstack as package
from groundcontrol.drivers.openstack import EXTRA, options
from groundcontrol.kernel.errors import Invalid

PLAIN = {"username": "u", "password": "hunter2", "project_name": "p"}
ADDRESS = "https://cloud.example.org:5000/v3"


def read(**members: Any) -> options.Credentials:
    return options.credentials("site/x", json.dumps(members), ADDRESS)


@pytest.mark.parametrize(
    ("members", "form"),
    [
        (PLAIN, "password"),
        ({**PLAIN, "auth_type": "v3password"}, "password"),
        ({"application_credential_id": "i", "application_credential_secret": "s"}, "v3applicationcredential"),
        ({"token": "t", "project_id": "p"}, "v3token"),
        (
            {"access_token": "a", "identity_provider": "iam", "protocol": "openid", "project_id": "p"},
            "v3oidcaccesstoken",
        ),
        ({"auth": {**PLAIN, "auth_url": ADDRESS + "/"}, "region_name": "r", "identity_api_version": 3}, "password"),
    ],
)
def test_the_forms_of_a_clouds_yaml_are_known(members: dict[str, Any], form: str) -> None:
    found = read(**members)
    assert found.form == form
    assert "hunter2" not in repr(found)


def test_names_without_a_domain_are_of_the_default_one() -> None:
    found = read(**PLAIN).members
    assert (found["user_domain_id"], found["project_domain_id"]) == ("default", "default")
    named = read(**PLAIN, user_domain_name="Users", default_domain_name="Others").members
    assert (named["user_domain_name"], named["project_domain_name"]) == ("Users", "Others")
    assert "user_domain_id" not in named


@pytest.mark.parametrize(
    ("secret", "words"),
    [
        ("", "put the `auth`"),
        ("hunter2", "no JSON object"),
        ('["hunter2"]', "no JSON object"),
        (json.dumps({**PLAIN, "passwort": "hunter2"}), "takes no 'passwort'"),
        (json.dumps({"username": "u", "password": "hunter2"}), "needs project_id or project_name"),
        (json.dumps({**PLAIN, "password": 7}), "'password' is not a text"),
        (json.dumps({**PLAIN, "auth_type": "v3totp"}), "auth_type 'v3totp'"),
        (json.dumps({**PLAIN, "auth_url": "https://evil.example.org/v3"}), "another auth_url"),
    ],
)
def test_wrong_credentials_are_refused_without_their_values(secret: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        options.credentials("site/x", secret, ADDRESS)
    assert words in str(caught.value)
    assert "site/x" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_options_are_read(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\n")
    found = options.options(
        "site/x",
        {"region": "r", "caCert": str(authority), "verify": "true", "pollSeconds": "0.5", "projects": "a, b"},
        12.0,
    )
    assert (found.region, found.verify, found.poll, found.longest) == ("r", str(authority), 0.5, 12.0)
    assert found.projects == {"a", "b"}
    assert options.options("site/x", {"caCert": str(authority), "verify": "false"}, 1.0).verify is False


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("regoin", "r", "did you mean"),
        ("pollSeconds", "often", "options.pollSeconds"),
        ("pollSeconds", "0", "not between"),
        ("callsPerMinute", "-1", "not between"),
        ("interface", "sideways", "not public, internal or admin"),
        ("verify", "no", "not true or false"),
        ("caCert", "/nowhere/ca.pem", "cannot be read: No such file"),
        ("caCert", "ca.pem", "absolute path"),
        ("caCert", "/dev/null", "no certificate"),
    ],
)
def test_wrong_options_are_named(name: str, value: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        options.options("site/x", {name: value}, 1.0)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["local:", "cloud.example.org", "ftp://h/v3", "https://u:p@h/v3", "https://h:x/v3", ""]
)
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(Invalid, match="address of Keystone"):
        options.auth_url("site/x", endpoint)


def test_the_version_is_added_to_the_address() -> None:
    assert options.auth_url("site/x", "https://h:5000") == "https://h:5000/v3"
    assert options.auth_url("site/x", "https://h/identity/v3/") == "https://h/identity/v3"


class Missing(MetaPathFinder):
    """As if a package were not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in EXTRA:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_the_extra_the_site_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] in EXTRA or ".drivers.openstack." in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(package, "driver", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(Invalid, match=r"pip install 'groundcontrol\[openstack\]'"):
        DRIVERS["openstack"]("site/x", ADDRESS, json.dumps(PLAIN), {}, 1.0)
