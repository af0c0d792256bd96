"""How every command begins and ends: speed, suggestions, exit codes, failures in words, signals, completion."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from groundcontrol.interfaces.cli import main as cli
from groundcontrol.interfaces.cli.output import age, safe, seconds_of, span, table, width
from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import TOKEN, Answer, FakeApi, sse

HEAVY = {"fastapi", "sqlalchemy", "duckdb", "httpx", "rich", "pydantic", "msgspec", "yaml", "asyncio"}
GROUND = [sys.executable, "-m", "groundcontrol.interfaces.cli.main"]


@pytest.fixture
def environment(api: FakeApi, tmp_path: Path) -> dict[str, str]:
    return os.environ | {"GROUND_URL": api.url, "GROUND_TOKEN": TOKEN, "GROUND_CONFIG": str(tmp_path / "c.json")}


# ------------------------------------------------------------------------------------------------ speed


def test_help_is_quick() -> None:
    """The least of several, as other work on the machine only adds; the bound is twice what is promised."""
    spent = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*GROUND, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.4


@pytest.mark.parametrize("words", [["--help"], ["get", "--help"], ["get", "sites"], ["plan"]])
def test_nothing_heavy_is_imported(words: list[str], environment: dict[str, str]) -> None:
    program = (
        "import sys, json; from groundcontrol.interfaces.cli.main import main; code = main(sys.argv[1:]); "
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert HEAVY & set(json.loads(done.stderr.splitlines()[-1])) == set()


def test_help_of_every_command(ground: Ground) -> None:
    listed = ground("--help").out
    names = [name for section in cli.SECTIONS.values() for name in section]
    assert all(re.search(rf"^  {name}\s", listed, re.MULTILINE) for name in names)
    own = [name for name in names if name not in cli.SECTIONS["Run a server"]]
    for name in own:
        found = ground(name, "--help")
        assert (found.code, found.err) == (0, ""), name
        assert found.out.startswith(f"Usage: ground {name} "), name


# ------------------------------------------------------------------------------------------------ suggestions


@pytest.mark.parametrize(
    ("words", "hint", "code"),
    [
        (["gte", "sites"], 'did you mean "get"?', 2),
        (["get", "sits"], 'did you mean "sites"?', 4),
        (["get", "sites", "--al-namespaces"], "--all-namespaces", 2),
        (["get", "sites", "-o", "jsn"], "json", 2),
        (["config", "lst"], 'did you mean "list"?', 2),
        (["zzzzzz"], "`ground --help` lists them", 2),
        (["get"], "`ground get --help` shows how", 2),
    ],
)
def test_a_slip_gets_a_suggestion(ground: Ground, words: list[str], hint: str, code: int) -> None:
    found = ground(*words)
    assert (found.code, found.out) == (code, "")
    assert hint in found.err
    assert "Traceback" not in found.err


# ------------------------------------------------------------------------------------------------ failures


def test_an_unreachable_server_is_named_with_what_to_do(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("GROUND_URL", address)
        found = ground("get", "sites")
    assert found.code == 6
    assert f"cannot reach {address}: connection refused" in found.err
    assert "GROUND_URL" in found.err
    assert ground("--url", "http://nowhere.invalid", "get", "sites").code == 6
    assert ground("--url", "localhost:80", "get", "sites").code == 2
    assert ground("--url", "http://x:y", "get", "sites").code in (1, 2)


def test_a_server_that_never_answers_is_given_up(ground: Ground) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        found = ground("--timeout", "0.2", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "get", "sites")
    assert (found.code, "no answer within 0.2 s" in found.err) == (6, True)


def test_a_change_without_an_answer_may_have_happened(ground: Ground, api: FakeApi) -> None:
    api.put("Site", "bari")
    api.fail("DELETE", "/sites/bari", ConnectionError())
    found = ground("delete", "site", "bari")
    assert found.code == 6
    assert "it may have happened or not" in found.err
    assert len(api.sent("DELETE")) == 1


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (Answer(403, "Forbidden", "only operators of alpha may"), 5, ["only operators of alpha may", "ground whoami"]),
        (Answer(404, "NotFound", "no Site x"), 4, ["no Site x"]),
        (Answer(409, "Claimed", "belongs to Service beta/db"), 5, ["belongs to Service beta/db"]),
        (Answer(500, "GroundError", "trace 123"), 1, ["trace 123"]),
        (Answer(503, "Unavailable", "the store is away"), 6, ["the store is away"]),
        (Answer(413, "TooLarge", "1 MB is allowed"), 1, ["1 MB is allowed"]),
    ],
)
def test_the_servers_reasons_decide_the_exit_code(
    ground: Ground, api: FakeApi, answer: Answer, code: int, words: list[str]
) -> None:
    api.fail("GET", "/kinds", answer)
    found = ground("get", "sites")
    assert found.code == code
    assert all(word in found.err for word in words)


def test_messages_cannot_drive_the_terminal(ground: Ground, api: FakeApi) -> None:
    api.fail("GET", "/kinds", Answer(409, "Conflict", "\x1b]0;x\x07evil", problems=[{"message": "\x9b2J"}]))
    found = ground("get", "sites")
    assert not set(found.err) & set("\x1b\x07\x9b")


def test_a_moment_is_waited_when_the_server_asks_for_it(ground: Ground, api: FakeApi) -> None:
    busy = Answer(429, "TooMany", "slow down", retryAfter=0.01)
    api.fail("GET", "/sites", busy, busy)
    assert ground("get", "sites").code == 0
    assert len(api.sent("GET", "/sites")) == 3


def test_something_else_at_that_address_is_said(ground: Ground, api: FakeApi) -> None:
    found = ground("--url", f"{api.url}/elsewhere", "get", "sites")
    assert found.code in (1, 4, 5)
    assert "Traceback" not in found.err


def test_a_defect_has_no_traceback_unless_asked_for(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundcontrol.interfaces.cli.get._print_lists", lambda *a, **k: 1 / 0)
    found = ground("get", "sites")
    assert (found.code, "ZeroDivisionError" in found.err, "Traceback" in found.err) == (1, True, False)
    monkeypatch.setenv("GROUND_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        ground("get", "sites")


def test_a_reader_that_went_away_is_no_error(api: FakeApi, environment: dict[str, str]) -> None:
    for number in range(3000):
        api.put("Site", f"site-{number}")
    command = f"{' '.join(GROUND)} get sites; echo code $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | head -1"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("NAME")
    assert done.stderr == "code 141\n"


def test_interrupting_is_quiet(api: FakeApi, environment: dict[str, str]) -> None:
    api.put("Site", "bari")
    api.streams = [sse("BOOKMARK", {"resourceVersion": 41}), *[Answer(503, "Unavailable", "x")] * 50]
    with subprocess.Popen(
        [*GROUND, "get", "sites", "-w"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors


# ------------------------------------------------------------------------------------------------ on a terminal


def on_a_terminal(words: list[str], environment: dict[str, str], typed: bytes = b"") -> tuple[int, str]:
    """Run on a pseudo terminal, type something once it asks, and return exit code and everything shown."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*GROUND, *words], env=environment, stdin=follower, stdout=follower, stderr=follower
    ) as process:
        os.close(follower)
        shown = b""
        while select.select([leader], [], [], 20)[0]:
            try:
                piece = os.read(leader, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
            if typed and shown.rstrip().endswith((b"]:", b":")):
                os.write(leader, typed)
                typed = b""
    os.close(leader)
    return process.returncode, shown.decode()


def test_colour_is_for_terminals_that_want_it(api: FakeApi, environment: dict[str, str]) -> None:
    api.put("Site", "bari", ready="False")
    environment["TERM"] = "xterm"
    environment.pop("NO_COLOR", None)
    assert "\x1b[31mFalse\x1b[0m" in on_a_terminal(["get", "sites"], environment)[1]
    assert "\x1b[" not in on_a_terminal(["get", "sites"], environment | {"NO_COLOR": "1"})[1]
    done = subprocess.run([*GROUND, "get", "sites"], env=environment, capture_output=True, text=True)
    assert "\x1b[" not in done.stdout


def test_a_password_is_asked_for_and_not_shown(api: FakeApi, environment: dict[str, str], tmp_path: Path) -> None:
    del environment["GROUND_TOKEN"]
    code, shown = on_a_terminal(["login", api.url, "--user", "ada"], environment, typed=b"right\n")
    assert code == 0, shown
    assert "right" not in shown
    assert TOKEN in (tmp_path / "c.json").read_text()


# ------------------------------------------------------------------------------------------------ completion


def complete(environment: dict[str, str], *words: str) -> list[str]:
    line = " ".join(["ground", *words])
    asked = {"_GROUND_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    done = subprocess.run(GROUND, env=environment | asked, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_completion_knows_commands_kinds_and_names(api: FakeApi, environment: dict[str, str]) -> None:
    api.put("Site", "bari")
    api.put("Site", "bad;rm")
    api.put("Service", "web", "alpha")
    api.plans.append({"id": "p-7", "state": "held", "scope": "x"})
    assert complete(environment, "des") == ["describe"]
    assert complete(environment, "get", "si") == ["sites"]
    assert complete(environment, "get", "sites", "b") == ["bari"]
    assert complete(environment, "get", "service/alpha/w") == ["service/alpha/web"]
    assert complete(environment, "describe", "svc", "-n", "alpha", "w") == ["web"]
    assert complete(environment, "get", "sites,serv") == ["sites,services"]
    assert complete(environment, "approve", "p") == ["p-7"]


def test_completion_without_a_server_is_silent(environment: dict[str, str]) -> None:
    assert complete(environment | {"GROUND_URL": "http://127.0.0.1:1"}, "get", "si") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts_of_the_shells(ground: Ground, shell: str) -> None:
    assert "_GROUND_COMPLETE" in ground("completion", shell).out


# ------------------------------------------------------------------------------------------------ server commands


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module in the place of the real one."""
    file = tmp_path / "stand_in.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("groundcontrol.interfaces.cli.server.import_module", lambda name: __import__("stand_in"))
    yield file
    sys.modules.pop("stand_in", None)


def test_words_are_passed_on_as_they_are(ground: Ground, program: Path) -> None:
    program.write_text("def main(argv):\n    print(argv)\n    return 7\n")
    found = ground("admin", "backup", "--to", "x", "--help", "-v")
    assert (found.code, found.out) == (7, "['backup', '--to', 'x', '--help', '-v']\n")


def test_failures_of_those_programs_are_told_alike(ground: Ground, program: Path) -> None:
    program.write_text(
        "from groundcontrol.kernel.errors import Invalid, Problem\n"
        "def main(argv):\n"
        "    if argv == ['exit']: raise SystemExit('no such user')\n"
        "    raise Invalid('bad settings', problems=(Problem('unknown', 'port', 'ground.toml', 3),))\n"
    )
    assert ground("admin", "exit").err == "ground: no such user\n"
    found = ground("admin")
    assert (found.code, found.err) == (1, "ground: bad settings\n  ground.toml:3: port: unknown\n")


# ------------------------------------------------------------------------------------------------ small things


def test_lengths_of_time() -> None:
    assert [span(s) for s in (0, 45, 60, 192, 18120, 187200, 86400 * 120 + 5)] == [
        "0s",
        "45s",
        "1m",
        "3m12s",
        "5h2m",
        "2d4h",
        "120d",
    ]
    assert [seconds_of(t) for t in ("90", "1h30m", "7d", "x", "5 m")] == [90, 5400, 604800, None, None]
    assert age("no time\x1b") == "no time\\x1b"


def test_wide_characters_keep_columns_straight() -> None:
    lines = table(["a", "b"], [["日本", 1], ["e\u0301", 2], ["xyzw", 3]]).splitlines()
    assert {width(line[: line.index(c)]) for line, c in zip(lines[1:], "123", strict=True)} == {7}
    assert safe("a\tb\x7f") == "a\\tb\\x7f"
    assert safe("\ud800") == "\\ud800"


def test_version(ground: Ground) -> None:
    assert ground("--version").out.startswith("ground ")
    assert "server 9.9" in ground("version").out
