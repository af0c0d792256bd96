"""Everything wrong in ground.yaml is said at once, with line and remedy; the example is a working file."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.plan import DEFAULT_LIMITS
from groundcontrol.kernel.settings import Settings, example, load


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "ground.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, **environ: str) -> list[Problem]:
    with pytest.raises(Invalid) as caught:
        load(write(tmp_path, text), environ=environ)
    found = list(caught.value.problems)
    assert all(p.file.endswith("ground.yaml") and p.line and p.message and p.remedy for p in found), found
    return found


def only(tmp_path: Path, text: str, **environ: str) -> Problem:
    (found,) = problems(tmp_path, text, **environ)
    return found


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "# nothing\n"))
    assert settings == Settings().placed(tmp_path)
    assert settings.address == ("127.0.0.1", 8440)
    assert settings.public_url == "http://127.0.0.1:8440"
    assert settings.data == str(tmp_path / "ground-data")
    assert settings.ledger_path == tmp_path / "ground-data" / "ledger.duckdb"
    assert settings.plan_limits == DEFAULT_LIMITS
    assert settings.observe.vanished_share == 0.5
    assert not settings.sources.allow_file
    assert settings.sources.schemes == ["https", "ssh"]


def test_the_example_loads_and_is_the_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, example())) == Settings().placed(tmp_path)


def test_the_example_loads_with_every_commented_setting_used(tmp_path: Path) -> None:
    vault = ("vault-ca.pem", "vault-role-id", "vault-secret-id", "vault.jwt", "vault-token")
    for name in ("tls.crt", "tls.key", "seal.key", *vault):
        (tmp_path / name).write_text("x")
    text = re.sub(r"# (\w+: (?:env:|file:|/))", r"\1", example()).replace("/etc/ground", str(tmp_path))
    settings = load(write(tmp_path, text), environ={"GROUND_ADMIN_PASSWORD": "x"})
    assert settings.accounts.admin.password == "env:GROUND_ADMIN_PASSWORD"
    assert settings.secrets.key == f"file:{tmp_path}/seal.key"
    assert settings.public_url == "https://127.0.0.1:8440"


def test_every_setting_is_documented_and_in_the_example() -> None:
    def fields(model: type[BaseModel]) -> Any:
        for name, field in model.model_fields.items():
            yield field.alias or name, field
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner)

    text = example()
    for name, field in fields(Settings):
        assert field.description, name
        assert re.search(rf"^ *(# )?{name}:", text, re.M), name
    assert max(map(len, text.splitlines())) <= 120


def test_all_errors_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "dat: /x\n"
        "log:\n  level: loud\n  formt: json\n"
        "loop:\n  workers: many\n"
        "limits:\n  - {scope: source, count: 1}\n  - {scope: planet, coutn: 2}\n"
        "accounts:\n  admin: {password: env:NOWHERE}\n"
    )
    found = [(p.line, p.path, p.remedy) for p in problems(tmp_path, text)]
    assert [line for line, _, _ in found] == sorted(line for line, _, _ in found)
    by_path = {path: (line, remedy) for line, path, remedy in found}
    assert by_path["dat"] == (1, 'did you mean "data"?')
    assert by_path["log.level"] == (3, "for example `level: info`")
    assert by_path["log.formt"] == (4, 'did you mean "format"?')
    assert by_path["loop.workers"] == (6, "for example `workers: 16`")
    assert by_path["limits.1.scope"][0] == 9
    assert by_path["limits.1.coutn"] == (9, 'did you mean "count"?')
    assert by_path["limits.1.count"] == (9, "add it")
    assert by_path["accounts.admin.password"][0] == 11
    assert len(found) == 8


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("data: 5\n", "data", "valid string, found 5"),
        ('loop: {workers: "8"}\n', "loop.workers", "valid integer, found '8'"),
        ("loop: {workers: true}\n", "loop.workers", "valid integer"),
        ("loop: {callSeconds: -1}\n", "loop.callSeconds", "greater than 0"),
        ("loop: {backoffFirstSeconds: 9, backoffMaxSeconds: 8}\n", "loop", "longer than backoffMaxSeconds"),
        ("ledger: {enabled: yes}\n", "ledger.enabled", "valid boolean, found 'yes'"),
        ("ledger: {retentionDays: {audit: -1}}\n", "ledger.retentionDays.audit", "greater than or equal to 0"),
        ("observe: {vanishedShare: 50}\n", "observe.vanishedShare", "less than or equal to 1"),
        ("sources: {schemes: [file]}\n", "sources.schemes.0", "'https'"),
        ("listen: 8440\n", "listen", "valid string"),
        ("listen: localhost\n", "listen", "host:port"),
        ("listen: localhost:99999\n", "listen", "host:port"),
        ("listen: ::1:8440\n", "listen", "host:port"),
        ("url: ground.example.org\n", "url", "https://host"),
        ("log: json\n", "log", "mapping for LogSettings, found 'json'"),
        ("limits: 5\n", "limits", "valid list, found 5"),
        ("tls: {certificate: none.pem}\n", "tls.certificate", "there is no file"),
        ("accounts: {admin: {user: Über}}\n", "accounts.admin.user", "match pattern"),
    ],
)
def test_one_mistake_is_told_where_it_is(tmp_path: Path, text: str, path: str, said: str) -> None:
    found = only(tmp_path, text)
    assert found.path == path
    assert said in found.message
    assert found.line == 1


def test_one_half_of_tls_is_not_enough(tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("x")
    assert "go together" in only(tmp_path, "tls: {certificate: a.pem}\n").message
    settings = load(write(tmp_path, "tls: {certificate: a.pem, key: a.pem}\n"))
    assert settings.tls.key == str(tmp_path / "a.pem")


def test_a_missing_secret_is_found_at_the_start_and_a_written_one_not_repeated(tmp_path: Path) -> None:
    text = "accounts: {admin: {password: %s}}\n"
    assert "X is not set" in only(tmp_path, text % "env:X", X="").message
    assert "there is no file" in only(tmp_path, text % f"file:{tmp_path}/none").message
    found = only(tmp_path, text % "hunter2")
    assert "env:NAME or file:/path" in found.message
    assert "hunter2" not in str(found)
    assert load(write(tmp_path, text % "env:X"), environ={"X": "s"}).accounts.admin.password == "env:X"


def test_a_section_with_nothing_in_it_is_left_at_its_defaults(tmp_path: Path) -> None:
    assert load(write(tmp_path, "log:\n  # level: debug\n")).log.level == "info"
    assert "valid list" in only(tmp_path, "limits:\n").message


@pytest.mark.parametrize("text", ["- a\n", "text\n"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "mapping" in only(tmp_path, text).message


def test_duplicate_keys_and_broken_yaml_have_their_line(tmp_path: Path) -> None:
    assert only(tmp_path, "log:\n  level: info\n  level: debug\n").line == 3
    with pytest.raises(Invalid) as caught:
        load(write(tmp_path, "log: [\n"))
    assert caught.value.problems[0].line


def test_a_file_that_is_not_there_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path / "ground.yaml")
    assert caught.value.problems[0].remedy == "`ground init` writes one"


def test_relative_paths_start_where_the_file_is(tmp_path: Path) -> None:
    settings = load(write(tmp_path, "data: ../d\nledger: {path: l/x.duckdb}\n"))
    assert settings.data == str(tmp_path.parent / "d")
    assert settings.ledger_path == tmp_path / "l" / "x.duckdb"
    assert load(write(tmp_path, "data: /d\n")).data == "/d"


def test_ipv6_addresses_are_written_in_brackets(tmp_path: Path) -> None:
    assert load(write(tmp_path, "listen: '[::1]:80'\n")).address == ("::1", 80)


def test_days_fall_back_to_the_rule_for_all(tmp_path: Path) -> None:
    ledger = load(write(tmp_path, "ledger: {keepDays: 10, retentionDays: {audit: 0}}\n")).ledger
    assert (ledger.days("audit"), ledger.days("probes")) == (0, 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("loop: {workers: 8, inFlight: 5}", "one slow site could hold them all"),
        ("observe: {waitSeconds: 10, staleAfterSeconds: 15}", "a quiet site would count as silent"),
    ],
)
def test_values_that_do_not_fit_one_another_are_refused(tmp_path: Path, text: str, said: str) -> None:
    config = tmp_path / "ground.yaml"
    config.write_text(text)
    with pytest.raises(Invalid) as refused:
        load(config)
    assert said in str(refused.value)


def vault(**given: Any) -> str:
    return yaml.safe_dump({"secrets": {"vault": given}})


def test_a_vault_is_named_with_how_we_sign_in(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x")
    auth = {"roleId": "env:ROLE", "secretId": "env:SECRET"}
    text = vault(address="https://vault.example.org:8200/", caCert="ca.pem", auth=auth)
    found = load(write(tmp_path, text), environ={"ROLE": "r", "SECRET": "s"}).secrets.vault
    assert (found.address, found.mount, found.prefix) == ("https://vault.example.org:8200", "secret", "ground")
    assert found.ca_cert == str(tmp_path / "ca.pem")
    for method, needed in (("approle", "roleId"), ("jwt", "role"), ("token_file", "token")):
        problem = only(tmp_path, vault(address="https://v:8200", auth={"method": method}))
        assert f"auth.{needed} is missing" in problem.message


@pytest.mark.parametrize(
    ("given", "path", "said"),
    [
        ({"address": "http://vault.example.org:8200"}, "address", "for this machine only"),
        ({"address": "https://ground:plugh@vault:8200"}, "address", "does not carry a name or password"),
        ({"address": "vault:8200"}, "address", "not an address"),
        ({"caCert": "none.pem"}, "caCert", "there is no file"),
        ({"auth": {"roleId": "plugh"}}, "auth.roleId", "given as a reference"),
        ({"auth": {"token": "secret:a/b"}}, "auth.token", "given as a reference"),
        ({"auth": {"jwt": "env:NOT_SET"}}, "auth.jwt", "is not set"),
        ({"auth": {"method": "kubernetes"}}, "auth.method", ""),
        *(({"prefix": p}, "prefix", "") for p in ("", "..", "a/../b", "/a", "a/", "a//b", "a%2fb", "{{x}}", "a b")),
        *(({"mount": p}, "mount", "") for p in ("..", "secret/data/..", "/secret", "secret?x", "sys/../x")),
        ({"namespace": "../x"}, "namespace", ""),
        ({"namespace": "a\r\nX-Evil: 1"}, "namespace", ""),
        ({"auth": {"mountPath": "auth/../sys"}}, "auth.mountPath", ""),
        ({"timeoutSeconds": 3600.0}, "timeoutSeconds", ""),
    ],
    ids=str,
)
def test_a_vault_that_cannot_be_is_refused(tmp_path: Path, given: dict[str, Any], path: str, said: str) -> None:
    found = only(tmp_path, vault(**given))
    assert found.path == f"secrets.vault.{path}"
    assert said in found.message
    assert "plugh" not in str(found)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.3.2.1"])
def test_http_is_for_this_machine(tmp_path: Path, host: str) -> None:
    text = vault(address=f"http://{host}:8200", auth={"roleId": "env:ROLE"})
    assert load(write(tmp_path, text), environ={"ROLE": "r"}).secrets.vault.address == f"http://{host}:8200"
