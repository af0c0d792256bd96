"""Secrets in a real Vault: the driver's contract, and services of a whole installation that are given what is there.

The server is the core of Vault 1.14.1, built once from pinned sources by testbed/vault. Where there is no Go, or no way
to the sources, all of this is skipped, and the summary says NOT PROVED HERE.
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from groundcontrol.kernel.settings import VaultSettings
from testbed.vault.build import LONGEST, CannotBuild, server
from testbed.vault.running import VaultServer, word
from tests.acceptance import processes
from tests.acceptance.installation import Installation, installation, until
from tests.contracts.test_secretstore import VaultSide, VaultStore
from tests.drivers.openbao.certificates import Authority

# The first of these builds the server: minutes on an idle machine, a quarter of an hour and more on a busy one.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(2 * LONGEST)]
RULES = {"data": "secret/data/ground/*", "subkeys": "secret/subkeys/ground/*"}


def signed(key: ec.EllipticCurvePrivateKey, **claims: Any) -> str:
    """A JSON Web Token, ES256 (RFC 7518, section 3.4)."""
    words = (json.dumps(part).encode() for part in ({"alg": "ES256", "typ": "JWT"}, claims))
    text = b".".join(base64.urlsafe_b64encode(word).rstrip(b"=") for word in words)
    signature = b"".join(n.to_bytes(32) for n in decode_dss_signature(key.sign(text, ec.ECDSA(hashes.SHA256()))))
    return b".".join((text, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


class RealVault(VaultServer):
    """The other side of the port: what people do at the vault."""

    def up(self) -> RealVault:
        super().up()
        self.grant("data", "subkeys")
        role, secret = self.approle("ground", "ground", token_ttl="1h")
        key = ec.generate_private_key(ec.SECP256R1())
        pem, format_ = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        public = key.public_key().public_bytes(pem, format_).decode()
        self.ok("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [public], "bound_issuer": "tests"})
        bound = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": ["ground"]}
        self.ok("POST", "auth/jwt/role/ground", bound)
        at = int(time.time())
        token = signed(key, iss="tests", sub="ground", aud="vault", iat=at - 60, exp=at + 86_400)
        for name, text in (("role_id", role), ("secret_id", secret), ("jwt", token)):
            (self.folder / name).write_text(text, encoding="ascii")
        return self

    def settings(self, method: str = "approle", **changes: Any) -> VaultSettings:
        return VaultSettings.model_validate(self.document(method) | changes)

    def document(self, method: str = "approle") -> dict[str, Any]:
        """Settings as an operator writes them."""
        auth = {
            "approle": {"roleId": f"file:{self.folder}/role_id", "secretId": f"file:{self.folder}/secret_id"},
            "jwt": {"role": "ground", "jwt": f"file:{self.folder}/jwt"},
            "token_file": {"token": f"file:{self.folder}/token"},
        }[method]
        return {
            "address": self.address,
            "caCert": str(self.ca),
            "timeoutSeconds": 10,
            "auth": {"method": method, **auth},
        }

    def put(self, namespace: str, name: str, values: dict[str, Any]) -> None:
        self.ok("POST", f"secret/data/ground/{namespace}/{name}", {"data": values})

    def delete(self, namespace: str, name: str) -> None:
        self.ok("DELETE", f"secret/data/ground/{namespace}/{name}")

    def grant(self, *what: str) -> None:
        self.policy("ground", *(RULES[name] for name in what))

    def end_tokens(self) -> None:
        for way in ("approle/login", "jwt/login", "token/create"):
            self.ok("POST", f"sys/leases/revoke-prefix/auth/{way}")

    def give_token(self, lease: float = 3600) -> str:
        given = {"policies": ["ground"], "ttl": f"{int(lease)}s"}
        token = str(self.ok("POST", "auth/token/create", given)["auth"]["client_token"])
        (self.folder / "token").write_text(token, encoding="ascii")
        return token

    def empty(self) -> None:
        """Nothing below our prefix, and the policy we need."""
        self.grant("data", "subkeys")
        for namespace in self._names("ground"):
            for name in self._names(f"ground/{namespace}"):
                self.ok("DELETE", f"secret/metadata/ground/{namespace}{name}")

    def _names(self, path: str) -> list[str]:
        status, content = self.call("GET", f"secret/metadata/{path}?list=true")
        return list(content["data"]["keys"]) if status == 200 else []


def test_there_is_a_vault_to_prove_it_with(real: RealVault) -> None:
    assert real.call("GET", "sys/health")[1]["version"] == "1.14.1"


@pytest.fixture(scope="module")
def real() -> Iterator[RealVault]:
    """A vault of this file's own."""
    try:
        program = server()
    except CannotBuild as missing:
        pytest.skip(f"NOT PROVED HERE: secrets in a real Vault. {missing}")
    folder = Path(tempfile.mkdtemp(prefix="ground-vault-", dir="/var/tmp"))
    authority = Authority(folder)
    found = RealVault(program, folder, processes.free_port(), authority.file, *authority.sign())
    try:
        yield found.up()
    finally:
        found.down()
        shutil.rmtree(folder, ignore_errors=True)


class TestContract(VaultStore):
    """What the small server of the quick tests does, a real one does."""

    @pytest.fixture
    def vault(self, real: RealVault) -> VaultSide:
        real.empty()
        return real


@pytest.fixture(autouse=True)
def _serving(real: RealVault) -> None:
    """Open and up, whatever the test before left."""
    if not real.up_and_open():
        real.stop()
        real.start()
    real.grant("data", "subkeys")


@pytest.fixture(scope="module")
def here(real: RealVault) -> Iterator[Installation]:
    """An installation with one site, whose settings name the vault."""
    real.empty()
    vault = {**real.document(), "timeoutSeconds": 2, "lookSeconds": 1}
    with installation("cnaf") as found:
        found.settings(secrets={"vault": vault})
        found.kill_server()
        found.serve()
        found.apply(found.document("Namespace", "alpha", {"group": "experiments/alpha"}))
        yield found


def kept(here: Installation, name: str) -> None:
    here.apply(here.document("Secret", name, {"store": "vault"}, "alpha"))


def environment_of(here: Installation, service: str) -> dict[str, str]:
    """What the one process of a service really has."""
    (unit,) = here.units(service)
    return unit.env


def test_a_service_is_given_what_is_in_the_vault_and_nobody_else_sees_it(here: Installation, real: RealVault) -> None:
    canary = word()
    kept(here, "db")
    here.until_ready("secrets", "db", "alpha", status="False", reason="NotFound")
    told = here.condition("secrets", "db", "alpha")["message"]
    assert "secret/data/ground/alpha/db" in told
    here.service("web", secretEnv={"PGPASSWORD": "secret:db/password"})
    until(lambda: here.condition("services", "web", "alpha")["status"] == "False", "it waits")
    real.put("alpha", "db", {"password": canary, "user": "ground"})
    here.until_ready("secrets", "db", "alpha")
    here.until_ready("services", "web", "alpha")
    assert environment_of(here, "web")["PGPASSWORD"] == canary
    status = here.need("secrets", "db", "alpha")["status"]
    assert (status["version"], [k["name"] for k in status["keys"]]) == (1, ["password", "user"])
    real.put("alpha", "db", {"password": canary + "-2"})
    until(lambda: here.need("secrets", "db", "alpha")["status"]["version"] == 2, "the new version is seen")
    assert environment_of(here, "web")["PGPASSWORD"] == canary, "what runs goes on with what it was given"
    seen_nowhere(here, canary, *(secret.read_text() for secret in (real.folder / "secret_id", real.folder / "role_id")))


def seen_nowhere(here: Installation, *words: str) -> None:
    """In no file of the installation but the site's own, no answer and no log."""
    answers = [here.ground("get", kind, "-A", "-o", "json").stdout for kind in ("secrets", "services", "instances")]
    answers += [here.ground("events", "-A").stdout, here.ground("audit").stdout, here.ground("status").stdout]
    assert all(answers)
    with sqlite3.connect(here.data / "ground.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    files = [p for place in (here.data, here.etc) for p in place.rglob("*") if p.is_file()]
    files += list(here.root.glob("*.log"))
    assert any(p.name == "ground.db" for p in files)
    for secret in words:
        assert not [text for text in answers if secret in text]
        assert [str(p) for p in files if secret.encode() in p.read_bytes()] == []


def test_a_vault_that_is_down_stops_nobody_who_needs_nothing_from_it(here: Installation, real: RealVault) -> None:
    for name in ("later", "unread"):  # what was read is held for two seconds, and would be given out
        kept(here, name)
        real.put("alpha", name, {"password": "p"})
    here.service("runs", secretEnv={"PASSWORD": "secret:later/password"})
    here.until_ready("services", "runs", "alpha")
    before = {u.pid for u in processes.units(here.root)}
    real.stop()
    here.until_ready("secrets", "later", "alpha", status="Unknown", reason="Unreachable")
    for number in range(8):  # more than open a site's breaker
        here.service(f"waits-{number}", secretEnv={"PASSWORD": "secret:unread/password"})
    here.service("plain")
    here.until_ready("services", "plain", "alpha")
    assert here.condition("sites", "cnaf")["status"] == "True"
    assert before <= {u.pid for u in processes.units(here.root)}, "what runs goes on"
    until(
        lambda: "does not answer" in here.ground("describe", "service", "waits-7", "-n", "alpha").stdout,
        "it says what it waits for",
        told=lambda: here.ground("describe", "service", "waits-7", "-n", "alpha").stdout,
    )
    real.start()
    for number in range(8):
        here.until_ready("services", f"waits-{number}", "alpha")
    here.until_ready("secrets", "later", "alpha")


def test_a_sealed_vault_is_unknown_and_a_missing_policy_is_named(here: Installation, real: RealVault) -> None:
    kept(here, "later")
    real.put("alpha", "later", {"password": "p"})
    here.until_ready("secrets", "later", "alpha")
    real.seal()
    here.until_ready("secrets", "later", "alpha", status="Unknown", reason="Sealed")
    real.unseal()
    here.until_ready("secrets", "later", "alpha")
    real.grant("subkeys")
    here.until_ready("secrets", "later", "alpha", status="Unknown", reason="PermissionDenied")
    assert 'path "secret/data/ground/*"' in here.condition("secrets", "later", "alpha")["message"]
    real.grant("data", "subkeys")
    here.until_ready("secrets", "later", "alpha")


def test_a_member_reaches_what_is_of_the_own_namespace_only(here: Installation, real: RealVault) -> None:
    real.put("alpha", "mine", {"password": "of alpha"})
    real.put("beta", "mine", {"password": "of beta"})
    kept(here, "mine")
    token = here.person("mallory", "experiments/beta", "beta")
    mine = here.document("Secret", "mine", {"store": "vault"}, "beta")
    here.apply(mine, token=token)
    here.until_ready("secrets", "mine", "beta")
    assert here.need("secrets", "mine", "beta")["status"]["place"] == "secret/data/ground/beta/mine"
    for name in ("../alpha/mine", "..%2falpha%2fmine", "{{alpha}}"):
        escaping = {**mine, "metadata": {**mine["metadata"], "name": name}}
        assert here.call("POST", "/api/v1/apply", {"documents": [escaping]}, token=token).status == 422
    elsewhere = here.document("Secret", "mine", {"store": "vault"}, "alpha")
    assert here.call("POST", "/api/v1/apply", {"documents": [elsewhere]}, token=token).status in (403, 404)
    said = here.ground("act", "set", "secret", "mine", "-n", "beta", "-i", "key=password", "-i", "value=x", token=token)
    assert said.returncode != 0
    assert "kept in the vault" in said.stderr


def test_doctor_says_whether_the_vault_lets_us_in(here: Installation, real: RealVault) -> None:
    said = here.ground("doctor", "--config", str(here.etc / "ground.yaml"))
    assert f"ok    the vault at {real.address} lets us in" in said.stdout, said.stdout
