"""A secret is where it is used and nowhere else: not with another tenant, not in another place, not in the log."""

import base64
import io
import json
import logging
import os
import pickle
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, Unavailable
from groundcontrol.kernel.secrets import REVEALED, Redaction, Reference, Resolver, Sealed, Secret, parse

VALUE = "correct horse battery staple"


@pytest.fixture
def sealed(tmp_path: Path) -> Sealed:
    return Sealed(tmp_path / "seal.key")


# ------------------------------------------------------------------------------------------------ references


def test_references_are_taken_apart() -> None:
    assert parse("env:GROUND_X") == Reference("env", "GROUND_X")
    assert parse("file:/run/secrets/x") == Reference("file", "/run/secrets/x")
    assert parse("secret:db/password") == Reference("secret", "db", "password")


@pytest.mark.parametrize(
    "text", ["hunter2", "env:4X", "env:A B", "file:relative", "secret:a", "secret:/k", "secret:A/k"]
)
def test_what_is_no_reference_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert text not in str(caught.value)


@pytest.mark.parametrize("text", ["env:HOME", "file:/etc/shadow"])
def test_a_tenant_reads_nothing_of_the_machine(text: str) -> None:
    with pytest.raises(Forbidden, match="namespace alpha names secret:NAME/KEY"):
        Resolver("alpha", lambda *_: Secret("x")).resolve(text)


def test_a_tenant_reads_what_the_lookup_grants() -> None:
    def lookup(namespace: str, name: str, key: str) -> Secret:
        if namespace != "alpha":
            raise NotFound("no such secret")
        return Secret(f"{name}-{key}")

    assert Resolver("alpha", lookup).resolve("secret:db/password").reveal() == "db-password"
    with pytest.raises(NotFound):
        Resolver("beta", lookup).resolve("secret:db/password")
    with pytest.raises(Unavailable):
        Resolver("alpha").resolve("secret:db/password")
    with pytest.raises(Forbidden):
        Resolver(None, lookup).resolve("secret:db/password")


def test_the_operator_reads_variables_and_files(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(VALUE + "\n")
    resolver = Resolver(None, environ={"SET": VALUE, "EMPTY": ""})
    assert resolver.resolve("env:SET").reveal() == VALUE
    assert resolver.resolve(f"file:{path}").reveal() == VALUE
    for missing in ("env:EMPTY", "env:NONE", f"file:{tmp_path}/none"):
        with pytest.raises(NotFound):
            resolver.resolve(missing)


def test_a_pipe_or_a_directory_in_place_of_the_file_holds_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(GroundError):
            Resolver(None).resolve(f"file:{tmp_path / name}")


# ------------------------------------------------------------------------------------------------ values and the log


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(VALUE)
    shown = f"{secret} {secret!r} {secret:>5} {[secret]} %s" % secret
    assert VALUE not in shown
    with pytest.raises(TypeError):
        pickle.dumps(secret)


def logged(log: str, *args: object, **kwargs: object) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s %(extra)s", defaults={"extra": ""}))
    handler.addFilter(Redaction())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.error(log, *args, **kwargs)  # type: ignore[arg-type]
    return stream.getvalue()


def test_the_log_redacts_what_was_revealed_in_every_spelling() -> None:
    value = Secret('p"ä/ss\nwörd 42').reveal()
    for spelling in (value, repr(value), json.dumps(value), base64.b64encode(value.encode()).decode()):
        assert "42" not in logged("got %s", spelling)
    assert "42" not in logged("got %(a)s", {"a": value})
    assert "42" not in logged("x", extra={"extra": {"deep": [value]}})
    assert logged("nothing here").strip() == "nothing here"


def test_the_log_redacts_traces_and_wrong_arguments() -> None:
    value = Secret("zebra-crossing-77").reveal()
    try:
        raise ValueError(f"refused {value}")
    except ValueError:
        text = logged("call failed", exc_info=True, stack_info=True)
    assert "ValueError: refused ***" in text
    assert value not in text
    assert value not in logged("two %s %s", value)


def test_each_line_of_a_private_key_is_redacted() -> None:
    lines = ["-----BEGIN KEY-----", "MIIEvQIBADANBgkqhkiG9w0BAQ", "EFAASCBKcwggSjAgEAAoIBAQC7"]
    Secret("\n".join(lines)).reveal()
    assert REVEALED.redact(f"line {lines[2]}") == "line ***"


def test_what_was_never_revealed_costs_nothing_and_memory_is_bounded() -> None:
    Secret("never-shown-anywhere")
    assert REVEALED.redact("never-shown-anywhere") == "never-shown-anywhere"
    for n in range(3000):
        Secret(f"rotating-token-{n}").reveal()
    assert len(REVEALED._spellings) <= REVEALED.MOST
    assert REVEALED.redact("rotating-token-2999") == "***"


# ------------------------------------------------------------------------------------------------ sealing


@given(st.text(), st.text(), st.text(), st.text())
def test_what_is_sealed_opens_in_its_place(namespace: str, name: str, key: str, value: str) -> None:
    sealed = Sealed(Secret(base64.b64encode(b"k" * 32).decode()))
    token = sealed.seal(namespace, name, key, value)
    assert sealed.unseal(namespace, name, key, token)._value == value
    assert len(value) < 8 or value not in token


@pytest.mark.parametrize(
    "place", [("beta", "db", "password"), ("alpha", "other", "password"), ("alpha", "db", "user"), ("alphadb", "", "x")]
)
def test_a_sealed_value_does_not_open_in_another_place(sealed: Sealed, place: tuple[str, str, str]) -> None:
    token = sealed.seal("alpha", "db", "password", VALUE)
    with pytest.raises(Invalid, match="altered or sealed for another place"):
        sealed.unseal(*place, token)


def test_an_altered_value_does_not_open(sealed: Sealed) -> None:
    version, key, body = sealed.seal("a", "b", "c", VALUE).split(":")
    raw = bytearray(base64.b64decode(body))
    for position in (0, 12, len(raw) - 1):
        bent = bytearray(raw)
        bent[position] ^= 1
        with pytest.raises(Invalid):
            sealed.unseal("a", "b", "c", f"{version}:{key}:{base64.b64encode(bent).decode()}")
    for broken in ("", "g1", "g1:", "g0:x:y", f"g1:{key}:", f"g1:{key}:äöü", f"g1:{key}:AAAA"):
        with pytest.raises(Invalid):
            sealed.unseal("a", "b", "c", broken)


def test_the_same_value_is_sealed_differently_each_time(sealed: Sealed) -> None:
    assert sealed.seal("a", "b", "c", VALUE) != sealed.seal("a", "b", "c", VALUE)


def test_the_key_file_is_ours_alone_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "data" / "seal.key"
    token = Sealed(path).seal("a", "b", "c", VALUE)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Sealed(path).unseal("a", "b", "c", token).reveal() == VALUE
    assert os.listdir(path.parent) == ["seal.key"]
    path.chmod(0o640)
    with pytest.raises(Invalid, match="chmod 600"):
        Sealed(path)


def test_two_that_start_together_use_one_key(tmp_path: Path) -> None:
    for round_ in range(20):
        path, made, barrier = tmp_path / f"{round_}.key", [], threading.Barrier(4)

        def start(path: Path = path, made: list[Sealed] = made, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            made.append(Sealed(path))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({s._first for s in made}) == 1


def test_keys_are_changed_by_a_line_on_top(tmp_path: Path) -> None:
    path = tmp_path / "seal.key"
    old = Sealed(path)
    token = old.seal("a", "b", "c", VALUE)
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n" + path.read_text())
    both = Sealed(path)
    renewed = both.reseal("a", "b", "c", token)
    assert renewed != token
    assert both.reseal("a", "b", "c", renewed) == renewed
    path.write_text(path.read_text().splitlines()[0])
    assert Sealed(path).unseal("a", "b", "c", renewed).reveal() == VALUE
    with pytest.raises(Unavailable, match="does not hold; restore it"):
        Sealed(path).unseal("a", "b", "c", token)


@pytest.mark.parametrize("content", ["", "\n", "AAAA", "not base64!"])
def test_a_broken_key_file_is_not_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "seal.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(Invalid, match="restore it from the backup"):
        Sealed(path)
    assert path.read_text() == content
