"""What a Site says of an OpenStack cloud: its options and credentials, checked before anything is called."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import msgspec

from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.resource import did_you_mean

Verify = bool | str
"""Path of a file of authorities to trust, True for this machine's, False for none at all."""

_PROJECT = frozenset({"project_id", "project_name", "project_domain_id", "project_domain_name"})
_USER = frozenset({"username", "user_id", "user_domain_id", "user_domain_name"})
_DEFAULTS = frozenset({"default_domain", "default_domain_id", "default_domain_name"})


class Form(NamedTuple):
    """One way to sign in."""

    members: frozenset[str]
    one_of: tuple[frozenset[str], ...]
    """Of each of these, one member is needed."""
    rescopes: bool
    """Whether the same credentials open other projects too."""


FORMS: Mapping[str, Form] = {
    "password": Form(
        _USER | _PROJECT | _DEFAULTS | {"password"},
        (frozenset({"username", "user_id"}), frozenset({"password"}), frozenset({"project_id", "project_name"})),
        True,
    ),
    "v3applicationcredential": Form(
        _USER | {"application_credential_id", "application_credential_name", "application_credential_secret"},
        (
            frozenset({"application_credential_id", "application_credential_name"}),
            frozenset({"application_credential_secret"}),
        ),
        False,
    ),
    "v3token": Form(
        _PROJECT | _DEFAULTS | {"token"}, (frozenset({"token"}), frozenset({"project_id", "project_name"})), True
    ),
    "v3oidcaccesstoken": Form(
        _PROJECT | _DEFAULTS | {"access_token", "identity_provider", "protocol"},
        (
            frozenset({"access_token"}),
            frozenset({"identity_provider"}),
            frozenset({"protocol"}),
            frozenset({"project_id", "project_name"}),
        ),
        True,
    ),
}
"""Forms of `auth` in a clouds.yaml, by `auth_type`."""
_ALSO = {"v3password": "password", "token": "v3token"}
_TELLING = {
    "application_credential_secret": "v3applicationcredential",
    "access_token": "v3oidcaccesstoken",
    "token": "v3token",
}


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """How to sign in. Never shown."""

    form: str
    members: dict[str, str]

    def __repr__(self) -> str:
        return f"Credentials({self.form})"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a Site may say in `options`. Seconds are seconds."""

    region: str = ""
    """Empty: the only one the catalogue has."""
    interface: Literal["public", "internal", "admin"] = "public"
    verify: Verify = True
    longest: float = 30.0
    """After this a call is given up."""
    look: float = 8.0
    """A look waits this long for slow services; what they say later counts in the next one."""
    poll: float = 2.0
    """What the cloud can tell the changes of is asked this often."""
    relist: float = 30.0
    """Everything else is listed this often."""
    calls: int = 120
    """Listing calls a minute to one service. What somebody waits for is not bounded by it."""
    projects: frozenset[str] = frozenset()
    """Names or ids: only these are looked at; empty: all the account may see."""
    role: str = "member"
    """Given to our account in projects that Ground Control made, so that it can work in them."""


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise ValueError(f"not between {least:g} and {most:g}")
        return value

    return read


def _calls(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 100_000:
        raise ValueError("not between 1 and 100000")
    return value


def _interface(text: str) -> str:
    if text not in ("public", "internal", "admin"):
        raise ValueError("not public, internal or admin")
    return text


def _authority(text: str) -> str:
    if not Path(text).is_absolute():
        raise ValueError("not the absolute path of a file with certificates in PEM")
    try:
        content = Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"cannot be read: {reason}") from None
    if "-----BEGIN CERTIFICATE-----" not in content:
        raise ValueError("holds no certificate in PEM")
    return text


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("not true or false")
    return text == "true"


def _list(text: str) -> frozenset[str]:
    return frozenset(name for part in text.split(",") if (name := part.strip()))


READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "region": ("region", str),
    "interface": ("interface", _interface),
    "caCert": ("verify", _authority),
    "verify": ("verify", _truth),
    "longestCall": ("longest", _seconds(1, 600)),
    "lookSeconds": ("look", _seconds(1, 60)),
    "pollSeconds": ("poll", _seconds(0.2, 300)),
    "listSeconds": ("relist", _seconds(1, 3600)),
    "callsPerMinute": ("calls", _calls),
    "projects": ("projects", _list),
    "projectRole": ("role", str),
}
"""Name of an option to the field of `Options` and what reads it."""


def options(instance: str, given: Mapping[str, Any], longest: float) -> Options:
    """The options of a Site; `longest` is how long a call may take when they do not say. Invalid names the option."""
    values: dict[str, Any] = {"longest": longest}
    for name, text in given.items():
        if name not in READERS:
            raise Invalid(
                f"{instance}: options: no option {name!r}{did_you_mean(name, READERS)} (there are {', '.join(READERS)})"
            )
        field, read = READERS[name]
        try:
            values[field] = read(str(text))
        except ValueError as problem:
            raise Invalid(f"{instance}: options.{name}: {text!r} is {problem}".replace("is cannot", "cannot")) from None
    if given.get("verify") == "true" and "caCert" in given:
        values["verify"] = given["caCert"]
    if given.get("verify") == "false":
        values["verify"] = False
    return Options(**values)


def auth_url(instance: str, endpoint: str) -> str:
    """The address of Keystone's version 3."""
    parts = urlsplit(endpoint)
    try:
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        fine = False
    if not fine or parts.query or parts.fragment or parts.username is not None:
        raise Invalid(f"{instance}: endpoint {endpoint!r}: give the address of Keystone, https://HOST:PORT/v3")
    address = endpoint.rstrip("/")
    return address if address.endswith("/v3") else f"{address}/v3"


def credentials(instance: str, secret: str, address: str) -> Credentials:
    """What the secret says. Invalid says what is wrong with it without a word of its values."""
    where = f"{instance}: credentials"
    if not secret:
        raise Invalid(
            f"{where}: missing; put the `auth` of the cloud's clouds.yaml as JSON into a secret of the namespace"
            " platform, and name it in spec.credentials as secret:NAME/KEY"
        )
    try:
        held = json.loads(secret)
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise Invalid(f"{where}: the secret is no JSON object; it holds the `auth` of a clouds.yaml as JSON")
    held = dict(held)
    told = held.pop("auth_type", "")
    if isinstance(held.get("auth"), dict):
        held = held["auth"] | {k: v for k, v in held.items() if k not in ("auth", "region_name", "cacert")}
        held.pop("identity_api_version", None)
    if (other := held.pop("auth_url", None)) and auth_url(instance, str(other)) != address:
        raise Invalid(f"{where}: they are for another auth_url than the endpoint of the Site; mend one of them")
    form = _ALSO.get(told, told) or next((f for m, f in _TELLING.items() if m in held), "password")
    if form not in FORMS:
        raise Invalid(f"{where}: auth_type {told!r}{did_you_mean(told, FORMS)}: there are {', '.join(FORMS)}")
    allowed = FORMS[form]
    for name, value in held.items():
        if name not in allowed.members:
            raise Invalid(f"{where}: {form} takes no {name!r}{did_you_mean(name, allowed.members)}")
        if not isinstance(value, str) or not value:
            raise Invalid(f"{where}: {name!r} is not a text")
    for group in allowed.one_of:
        if not group & held.keys():
            raise Invalid(f"{where}: {form} needs {' or '.join(sorted(group))}")
    return Credentials(form=form, members=_with_domains(held, form))


def _with_domains(held: dict[str, str], form: str) -> dict[str, str]:
    """Names without a domain are of the domain `default`, as in openstacksdk."""
    fallback = held.pop("default_domain", "") or held.pop("default_domain_id", "")
    name = held.pop("default_domain_name", "")
    for what, of in (("user", "username"), ("project", "project_name")):
        if of in held and f"{what}_domain_id" not in held and f"{what}_domain_name" not in held:
            if name and not fallback:
                held[f"{what}_domain_name"] = name
            else:
                held[f"{what}_domain_id"] = fallback or "default"
    return held
