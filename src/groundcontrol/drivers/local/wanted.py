"""Judges a wanted unit before anything is made of it, and turns it into what is executed."""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
from collections.abc import Callable

import msgspec

from groundcontrol.drivers.local import folder
from groundcontrol.kernel.errors import Invalid, Problem, TooLarge
from groundcontrol.ports.processes import UnitSpec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LARGEST = 4 << 20
"""Bytes of a whole spec."""
IN_PLACE = frozenset({"files", "limits", "check", "stop_grace", "run_once"})
"""Fields that change without a new unit."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_PLACEHOLDER = re.compile(r"\{(address|dir|python|port\.[^{}]*)\}")


def check_id(unit_id: str) -> None:
    """Raise Invalid unless the id can be a folder's name, an address of the agent and a part of the run token."""
    if not _ID.fullmatch(unit_id):
        remedy = "use letters, digits, `.`, `_` and `-`, at most 128, the first a letter or digit"
        raise Invalid(problems=(Problem(f"{unit_id[:80]!r} cannot be the id of a unit", "id", remedy=remedy),))


def check_spec(spec: UnitSpec) -> None:
    """Raise Invalid with everything that is wrong, or TooLarge."""
    problems: list[Problem] = []

    def wrong(path: str, message: str, remedy: str = "") -> None:
        problems.append(Problem(message, path, remedy=remedy))

    if len(msgspec.json.encode(spec)) > LARGEST:
        raise TooLarge(f"the spec is larger than {LARGEST} bytes: let the unit fetch what is large")
    if not spec.command or not spec.command[0]:
        wrong("command", "names no program")
    for index, word in enumerate((*spec.command, *spec.check.command)):
        if "\0" in word:
            wrong("command", f"word {index} holds a NUL character")
    _check_environment(spec, wrong)
    for name, number in spec.ports.items():
        if not _PORT.fullmatch(name) or not 0 < number < 65536:
            wrong(f"ports.{name}", f"{name[:40]!r}: {number} is not a port", "give a name and a number from 1 to 65535")
    for path, text in spec.files.items():
        try:
            folder.check_path(path)
        except Invalid as problem:
            problems.extend(problem.problems)
        if len(text.encode()) > folder.LARGEST:
            wrong(f"files.{path}", f"is larger than {folder.LARGEST} bytes")
    _check_check(spec, wrong)
    for field in ("memory_mb", "cores", "open_files", "processes"):
        if getattr(spec.limits, field) < 0:
            wrong(f"limits.{field}", "is negative", "0 means none")
    if 0 < spec.limits.open_files < 8:
        wrong("limits.open_files", "is too low to start any program", "give 8 or more")
    if not 0 <= spec.stop_grace <= 3600:
        wrong("stop_grace", "is not between 0 and 3600 seconds")
    if len(spec.user) > 200 or "\0" in spec.user:
        wrong("user", "is not a name")
    if not problems:
        _try_placeholders(spec, wrong)
    if problems:
        raise Invalid(problems=tuple(problems))


def _check_environment(spec: UnitSpec, wrong: Callable[..., None]) -> None:
    for field in ("env", "secret_env"):
        for name, value in getattr(spec, field).items():
            if not _NAME.fullmatch(name):
                wrong(f"{field}.{name}", f"{name[:40]!r} is not the name of a variable")
            if name.startswith("GROUND_"):
                wrong(f"{field}.{name}", "names beginning with GROUND_ are set by the host")
            if "\0" in value:
                wrong(f"{field}.{name}", "holds a NUL character")


def _check_check(spec: UnitSpec, wrong: Callable[..., None]) -> None:
    check = spec.check
    if check.kind in ("http", "tcp") and not 0 < check.port < 65536:
        wrong("check.port", f"a check of kind {check.kind} needs a port", "give a number from 1 to 65535")
    if check.kind == "http" and not re.fullmatch(r"/[!-~]{0,2000}", check.path):
        wrong("check.path", "does not begin with `/`, or holds what a URL cannot")
    if check.kind == "command" and not check.command:
        wrong("check.command", "a check of kind command needs one")
    for field in ("interval", "timeout"):
        if not 0 < getattr(check, field) <= 86400:
            wrong(f"check.{field}", "is not between 0 and 86400 seconds")
    if check.failures < 1 or check.successes < 1 or check.start_period < 0:
        wrong("check", "failures and successes are at least 1, start_period at least 0")


def _try_placeholders(spec: UnitSpec, wrong: Callable[..., None]) -> None:
    words = [("command", word) for word in spec.command] + [("check.command", word) for word in spec.check.command]
    words += [(f"env.{name}", value) for name, value in spec.env.items()]
    words += [(f"secret_env.{name}", value) for name, value in spec.secret_env.items()]
    for path, word in words:
        for name in _PLACEHOLDER.findall(word):
            if name.startswith("port.") and name[5:] not in spec.ports:
                known = ", ".join(spec.ports) or "none"
                wrong(path, f"{{{name}}} names a port that is not in `ports`", f"known: {known}")


def new_unit_fields(old: UnitSpec, new: UnitSpec) -> list[str]:
    """Fields that differ and cannot be changed in place; `secret_env` is compared by its hash elsewhere."""
    return [
        name
        for name in UnitSpec.__struct_fields__
        if name not in IN_PLACE and name != "secret_env" and getattr(old, name) != getattr(new, name)
    ]


def fill(word: str, spec: UnitSpec, address: str, directory: str) -> str:
    """Replace `{address}`, `{dir}`, `{python}` and `{port.NAME}`; other braces stay."""

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name == "python":
            return python()
        return address if name == "address" else directory if name == "dir" else str(spec.ports[name[5:]])

    return _PLACEHOLDER.sub(value, word)


@functools.cache
def python() -> str:
    """A Python that tenants may run too: ours, or the system's where ours is behind a folder that is closed to them."""
    path = os.path.realpath(sys.executable)
    folder, open_to_others = path, True
    while folder != "/":
        open_to_others = open_to_others and bool(os.stat(folder).st_mode & 0o001)
        folder = os.path.dirname(folder)
    return path if open_to_others else shutil.which("python3", path=PATH) or path


def environment(spec: UnitSpec, secret_env: dict[str, str], address: str, directory: str, token: str) -> dict[str, str]:
    """The whole environment of the unit's processes."""
    given = {"PATH": PATH, "HOME": directory, "LANG": "C.UTF-8"}
    given |= {name: fill(value, spec, address, directory) for name, value in (spec.env | secret_env).items()}
    given |= {"GROUND_ADDRESS": address, "GROUND_DIR": directory, "GROUND_RUN": token}
    given |= {f"GROUND_PORT_{name.upper().replace('-', '_')}": str(port) for name, port in spec.ports.items()}
    return given
