"""What every implementation of the `SecretStore` port does: the twin in memory, and the driver against two servers.

The driver runs here against a small server of ours; tests/acceptance/test_vault.py runs the same classes against a real
one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from groundcontrol.drivers.openbao.driver import OpenBao
from groundcontrol.kernel.errors import Invalid, NotFound, SecretUnavailable
from groundcontrol.kernel.settings import VaultSettings
from groundcontrol.ports.secretstore import SecretStore
from groundcontrol.ports.twins.secretstore import MemorySecretStore
from tests.drivers.openbao.twin import VaultTwin


class Side(Protocol):
    """The other side of the port, as the contract needs it."""

    def put(self, namespace: str, name: str, values: dict[str, Any]) -> None: ...
    def delete(self, namespace: str, name: str) -> None: ...


class VaultSide(Side, Protocol):
    """A server of KV, as the driver's contract needs it."""

    def settings(self, method: str = "approle", **changes: Any) -> VaultSettings: ...
    def grant(self, *what: str) -> None: ...
    def end_tokens(self) -> None: ...
    def seal(self) -> None: ...
    def unseal(self) -> None: ...
    def give_token(self, lease: float = 3600) -> str: ...


ESCAPES = (
    *("", ".", "..", "../beta", "beta/../alpha", "a/b", "/a", "a/", "%2e%2e", "a%2fb", "a%2Fb", "..%2fbeta", "a\\b"),
    *("a?version=1", "a#b", "a b", "a\n", "a\0b", "A", "{{identity.entity.id}}", "*", "+", "ä", "-a", "a-", "a" * 64),
)
"""What is not one part of a path."""


class AnyStore:
    """Of every store."""

    @pytest.fixture
    def sides(self) -> tuple[SecretStore, Side]:
        raise NotImplementedError

    def test_names_and_version_are_shown_and_one_value_is_given(self, sides: tuple[SecretStore, Side]) -> None:
        store, side = sides
        side.put("alpha", "first", {"user": "u", "password": "p\u00e4ss \u2603"})
        found = store.look("alpha", "first")
        assert (found.version, found.keys) == (1, ("password", "user"))
        assert found.created.startswith("20")
        assert store.read("alpha", "first", "password").reveal() == "p\u00e4ss \u2603"
        side.put("alpha", "first", {"password": "newer"})
        assert store.look("alpha", "first")[::2] == (2, ("password",))

    def test_what_is_not_there_is_told_with_its_path(self, sides: tuple[SecretStore, Side]) -> None:
        store, side = sides
        side.put("alpha", "second", {"password": "p"})
        for ask in (lambda: store.look("alpha", "none"), lambda: store.read("alpha", "none", "k")):
            with pytest.raises(NotFound) as caught:
                ask()
            assert store.place("alpha", "none") in caught.value.message
        with pytest.raises(NotFound, match="has no key user"):
            store.read("alpha", "second", "user")

    def test_a_deleted_version_is_told_as_that(self, sides: tuple[SecretStore, Side]) -> None:
        store, side = sides
        side.put("alpha", "third", {"password": "p"})
        side.delete("alpha", "third")
        for ask in (lambda: store.look("alpha", "third"), lambda: store.read("alpha", "third", "password")):
            with pytest.raises(NotFound, match=r"version 1 of .* was deleted"):
                ask()

    def test_the_same_name_elsewhere_is_another_secret(self, sides: tuple[SecretStore, Side]) -> None:
        store, side = sides
        side.put("beta", "only", {"password": "of beta"})
        with pytest.raises(NotFound):
            store.read("alpha", "only", "password")

    def test_what_is_not_text_is_refused_without_being_shown(self, sides: tuple[SecretStore, Side]) -> None:
        store, side = sides
        side.put("alpha", "odd", {"n": 271828, "deep": {"inner": "xyzzy"}})
        for key in ("n", "deep"):
            with pytest.raises(Invalid) as caught:
                store.read("alpha", "odd", key)
            assert "271828" not in caught.value.message
            assert "xyzzy" not in caught.value.message

    @pytest.mark.parametrize("part", ESCAPES, ids=ascii)
    def test_a_name_cannot_leave_its_namespace(self, sides: tuple[SecretStore, Side], part: str) -> None:
        store, side = sides
        side.put("beta", "db", {"password": "of beta"})
        for namespace, name in ((part, "db"), ("alpha", part)):
            with pytest.raises(Invalid):
                store.read(namespace, name, "password")
            with pytest.raises(Invalid):
                store.look(namespace, name)
            with pytest.raises(Invalid):
                store.place(namespace, name)


class VaultStore(AnyStore):
    """Of the driver and a server."""

    @pytest.fixture
    def vault(self) -> VaultSide:
        raise NotImplementedError

    @pytest.fixture
    def sides(self, vault: VaultSide) -> Iterator[tuple[SecretStore, Side]]:  # type: ignore[override]
        store = OpenBao(vault.settings())
        yield store, vault
        store.close()

    @pytest.mark.parametrize("method", ["approle", "jwt", "token_file"])
    def test_we_can_sign_in(self, vault: VaultSide, method: str) -> None:
        vault.give_token()
        vault.put("alpha", "db", {"password": "p"})
        store = OpenBao(vault.settings(method))
        store.check()
        assert store.read("alpha", "db", "password").reveal() == "p"
        store.close()

    @pytest.mark.parametrize("method", ["approle", "jwt"])
    def test_a_token_that_died_is_replaced(self, vault: VaultSide, method: str) -> None:
        vault.put("alpha", "db", {"password": "p"})
        store = OpenBao(vault.settings(method))
        assert store.look("alpha", "db").keys == ("password",)
        vault.end_tokens()
        assert store.look("alpha", "db").keys == ("password",)
        vault.end_tokens()
        assert store.read("alpha", "db", "password").reveal() == "p"
        store.close()

    def test_a_token_in_a_file_is_read_again_when_it_died(self, vault: VaultSide) -> None:
        vault.put("alpha", "db", {"password": "p"})
        vault.give_token()
        store = OpenBao(vault.settings("token_file"))
        store.look("alpha", "db")
        vault.end_tokens()
        vault.give_token()
        assert store.look("alpha", "db").keys == ("password",)
        vault.end_tokens()
        with pytest.raises(SecretUnavailable, match="put a fresh one") as caught:
            store.look("alpha", "db")
        assert caught.value.why == "LoginRefused"

    def test_a_missing_policy_is_told_by_the_rule_that_is_missing(self, vault: VaultSide) -> None:
        vault.put("alpha", "db", {"password": "p"})
        for given, lacking in ((("data",), "subkeys"), (("subkeys",), "data"), ((), "subkeys")):
            vault.grant(*given)
            store = OpenBao(vault.settings())
            with pytest.raises(SecretUnavailable) as caught:
                store.look("alpha", "db")
            assert caught.value.why == "PermissionDenied"
            assert f'path "secret/{lacking}/ground/*" {{ capabilities = ["read"] }}' in caught.value.message
            if "data" not in given:
                with pytest.raises(SecretUnavailable, match='path "secret/data/ground/'):
                    store.read("alpha", "db", "password")
            vault.grant("data", "subkeys")
            assert store.look("alpha", "db").version == 1, "a path that is denied is no vault that is down"
            store.close()

    @pytest.mark.parametrize("mount", ["old", "nowhere"])
    def test_a_mount_that_is_no_kv_of_version_2_is_told(self, vault: VaultSide, mount: str) -> None:
        store = OpenBao(vault.settings(mount=mount))
        with pytest.raises(SecretUnavailable, match=f"{mount}") as caught:
            store.look("alpha", "db")
        assert caught.value.why in ("WrongEngine", "PermissionDenied")
        store.close()

    def test_a_login_that_is_refused_is_told_without_what_was_shown(self, vault: VaultSide, tmp_path: Path) -> None:
        (tmp_path / "wrong").write_text("plugh-0123456789", encoding="ascii")
        good = vault.settings()
        auth = good.auth.model_copy(update={"secret_id": f"file:{tmp_path}/wrong"})
        store = OpenBao(good.model_copy(update={"auth": auth}))
        with pytest.raises(SecretUnavailable, match="refused the login by approle") as caught:
            store.check()
        assert caught.value.why == "LoginRefused"
        assert "plugh" not in caught.value.message

    def test_a_sealed_vault_is_told_and_serves_after_it_was_opened(self, vault: VaultSide) -> None:
        vault.put("alpha", "db", {"password": "p"})
        vault.seal()
        store = OpenBao(vault.settings())
        with pytest.raises(SecretUnavailable, match="sealed") as caught:
            store.read("alpha", "db", "password")
        assert caught.value.why == "Sealed"
        vault.unseal()
        again = OpenBao(vault.settings())
        assert again.read("alpha", "db", "password").reveal() == "p"
        again.close()


class TestMemory(AnyStore):
    @pytest.fixture
    def sides(self) -> tuple[SecretStore, Side]:
        both = MemorySecretStore()
        return both, both


class TestDriver(VaultStore):
    @pytest.fixture
    def vault(self, tmp_path: Path) -> Iterator[VaultSide]:  # type: ignore[override]
        twin = VaultTwin(tmp_path)
        yield twin
        twin.close()
