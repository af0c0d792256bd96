"""Secrets are references, resolved where they are used, and what was revealed once is kept out of the log.

    env:NAME          a variable of this process        in the operator's own settings only
    file:/path        a file of this machine            in the operator's own settings only
    secret:NAME/KEY   one key of a sealed secret        in the resources of tenants

A tenant who could write `env:` or `file:` would read our own credentials. Values at rest are sealed with AES-256-GCM
(NIST SP 800-38D); namespace, name and key go in as associated data, so that a sealed value copied to another place
does not open there.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn
from urllib.parse import quote

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import AfterValidator

from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, Unavailable

MAX_BYTES = 1 << 20
"""No secret is larger."""

# ------------------------------------------------------------------------------------------------ references

_ENV = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_FILE = re.compile(r"file:(/[^\0]*)")
_SEALED = re.compile(r"secret:([a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?)/([A-Za-z0-9][A-Za-z0-9._-]{0,252})")


SECRETIVE = re.compile(r"passw|secret|token|credential|private|api[-_]?key|auth|cookie|passphrase|dsn", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"-----BEGIN|gct_|glpat-|gh[pousr]_|xox[abp]-|AKIA[0-9A-Z]{16}|eyJ[\w-]+\.[\w-]+\.|://[^/\s:@]+:[^/\s@]+@"
)


def looks_secret(path: str, text: str) -> bool:
    """Whether a field of that name, or with such a value, may hold a secret that somebody wrote where none belongs."""
    return bool(SECRETIVE.search(path) or SECRET_VALUE.search(text))


class Reference(NamedTuple):
    """A reference taken apart. `name` is the variable, the path or the secret; `key` is empty but for `secret:`."""

    scheme: Literal["env", "file", "secret"]
    name: str
    key: str = ""


def parse(text: str) -> Reference:
    """The parts of a reference. Raises Invalid without repeating the text: it may be the secret itself."""
    if found := _ENV.fullmatch(text):
        return Reference("env", found[1])
    if found := _FILE.fullmatch(text):
        return Reference("file", found[1])
    if found := _SEALED.fullmatch(text):
        return Reference("secret", found[1], found[2])
    raise Invalid("not a reference to a secret; write env:NAME or file:/path in settings, secret:NAME/KEY in resources")


def _of_operator(text: str) -> str:
    if not (_ENV.fullmatch(text) or _FILE.fullmatch(text)):
        raise ValueError("a secret is given as a reference, env:NAME or file:/path, never as the value itself")
    return text


def _of_tenant(text: str) -> str:
    if not _SEALED.fullmatch(text):
        raise ValueError("a secret is given as secret:NAME/KEY, one key of a secret granted to this namespace")
    return text


OperatorSecret = Annotated[str, AfterValidator(_of_operator)]
"""Type of a field in the operator's settings: `env:NAME` or `file:/path`."""
SecretRef = Annotated[str, AfterValidator(_of_tenant)]
"""Type of a field in a resource: `secret:NAME/KEY`."""

# ------------------------------------------------------------------------------------------------ values


class Secret:
    """A value that shows itself only when asked. Equal to nothing but itself, and cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value; from now on the log filter redacts it in everything this process logs."""
        REVEALED.add(self._value)
        return self._value

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format("***", spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


class Revealed:
    """The values revealed in this process, in every spelling a log line may carry them."""

    SHORTEST = 4
    """Shorter values are not redacted: every log line would lose its vowels."""
    MOST = 4096
    """Spellings remembered; the oldest are forgotten beyond that, so that a log line stays cheap."""

    def __init__(self) -> None:
        self._spellings: dict[str, None] = {}
        self._lock = threading.Lock()

    def add(self, value: str) -> None:
        with self._lock:
            for spelling in _spellings(value):
                self._spellings.pop(spelling, None)
                self._spellings[spelling] = None
            while len(self._spellings) > self.MOST:
                self._spellings.pop(next(iter(self._spellings)))

    def redact(self, text: str) -> str:
        """The text with `***` in place of every revealed value."""
        with self._lock:
            found = [s for s in self._spellings if s in text]
        for spelling in sorted(found, key=len, reverse=True):
            text = text.replace(spelling, "***")
        return text


def _spellings(value: str) -> set[str]:
    """As it is, quoted by repr, JSON and URLs, in base64, and the lines of a long one (a private key)."""
    bare = value.strip()
    plain = {value, bare, *(line.strip() for line in value.splitlines() if len(line.strip()) >= 16)}
    out = set(plain)
    for text in plain:
        out |= {repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        out |= {quote(text), quote(text, safe="")}
    for text in {value, bare}:
        raw = text.encode("utf-8", "surrogateescape")
        out |= {base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode().rstrip("=")}
    return {text for text in out if len(text) >= Revealed.SHORTEST}


REVEALED = Revealed()
"""One for the process: a log line does not know which part of the program revealed what it carries."""


class Redaction(logging.Filter):
    """Redacts revealed values in message, arguments, extra fields and trace. Belongs on handlers: a filter on a logger
    does not see what the loggers below it say."""

    _formatter = logging.Formatter()
    _OWN = frozenset(logging.makeLogRecord({}).__dict__) - {"msg", "args"}

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # wrong arguments must not print themselves through logging's own error handler
            message = f"{record.msg} {record.args!r}"
        record.msg, record.args = REVEALED.redact(message), None
        if record.exc_info and not record.exc_text:
            record.exc_text = self._formatter.formatException(record.exc_info)
        if record.exc_text:
            # The live exception goes: a handler that formats it anew would show the value after all.
            record.exc_text, record.exc_info = REVEALED.redact(record.exc_text), None
        if record.stack_info:
            record.stack_info = REVEALED.redact(record.stack_info)
        for name in record.__dict__.keys() - self._OWN - {"msg", "args", "message", "asctime"}:
            record.__dict__[name] = _redacted(record.__dict__[name])
        return True


def _redacted(value: Any) -> Any:
    match value:
        case str():
            return REVEALED.redact(value)
        case dict():
            return {_redacted(k): _redacted(v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_redacted(v) for v in value]
        case None | bool() | int() | float():
            return value
        case _:
            return REVEALED.redact(str(value))


# ------------------------------------------------------------------------------------------------ resolving

Lookup = Callable[[str, str, str], Secret]
"""(namespace, name, key) to the secret, when it is granted to that namespace; NotFound otherwise."""


class Resolver:
    """Turns references into secrets for one scope: a namespace, or (None) the operator's own settings."""

    def __init__(
        self, namespace: str | None, lookup: Lookup | None = None, *, environ: Mapping[str, str] | None = None
    ) -> None:
        self._namespace = namespace
        self._lookup = lookup
        self._environ = os.environ if environ is None else environ

    def resolve(self, text: str) -> Secret:
        """Invalid: not a reference. Forbidden: not for this scope. NotFound: nothing there. Unavailable: unreadable."""
        reference = parse(text)
        if reference.scheme == "secret":
            return self._sealed(reference)
        if self._namespace is not None:
            raise Forbidden(
                f"{reference.scheme}: references are for the operator's own settings; "
                f"a resource of namespace {self._namespace} names secret:NAME/KEY"
            )
        return _from_environ(reference.name, self._environ) if reference.scheme == "env" else _from_file(reference.name)

    def _sealed(self, reference: Reference) -> Secret:
        if self._namespace is None:
            raise Forbidden("secret: references are for resources; the settings name env:NAME or file:/path")
        if self._lookup is None:
            raise Unavailable(f"no sealed secrets are served here, asked for {reference.name}/{reference.key}")
        return self._lookup(self._namespace, reference.name, reference.key)


def _from_environ(name: str, environ: Mapping[str, str]) -> Secret:
    value = environ.get(name, "")
    if not value:
        raise NotFound(f"the variable {name} is not set; export it before starting")
    return Secret(value)


def _from_file(path: str) -> Secret:
    try:
        # Without O_NONBLOCK a named pipe in place of the file would hold the caller for ever.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}; create it, readable for this user only") from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Invalid(f"{path} is not a regular file")
    with open(handle, "rb") as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise Invalid(f"{path} is larger than {MAX_BYTES:,} bytes")
    # Editors and `echo` end a file with a newline that is not part of the secret.
    text = raw.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    if not text:
        raise NotFound(f"{path} is empty; write the secret into it")
    return Secret(text)


# ------------------------------------------------------------------------------------------------ sealing

_VERSION = "g1"


class Sealed:
    """Seals values with a key file. What it returns is text that may lie in any store.

    `key` is the path of the key file, made on first use (0600), or a `Secret` that holds its content. The content is
    one line per key, base64 of 32 bytes: the first seals, all open. To change keys put a new line on top, `reseal`
    everything, and remove the old line.
    """

    def __init__(self, key: Path | Secret) -> None:
        self._where = str(key) if isinstance(key, Path) else "the key given"
        content = _key_file(key) if isinstance(key, Path) else key.reveal()
        self._keys = dict(_key(line, self._where) for line in content.split())
        if not self._keys:
            raise Invalid(f"{self._where} holds no key; restore it from the backup")
        self._first = next(iter(self._keys))

    def seal(self, namespace: str, name: str, key: str, value: str) -> str:
        """The sealed form of a value: `g1:<key id>:<base64>`, bound to the place it is for."""
        raw = value.encode("utf-8", "surrogateescape")
        if len(raw) > MAX_BYTES:
            raise Invalid(f"secret {name}/{key} is larger than {MAX_BYTES:,} bytes")
        nonce = os.urandom(12)
        sealed = self._keys[self._first].encrypt(nonce, raw, _bound(namespace, name, key))
        return f"{_VERSION}:{self._first}:{base64.b64encode(nonce + sealed).decode()}"

    def unseal(self, namespace: str, name: str, key: str, sealed: str) -> Secret:
        """The secret. Invalid when it was altered or sealed for another place, Unavailable when its key is missing."""
        version, _, rest = sealed.partition(":")
        key_id, _, body = rest.partition(":")
        place = f"secret {namespace}/{name}, key {key}"
        if version != _VERSION or not key_id:
            raise Invalid(f"{place} is not sealed by this version ({_VERSION}); upgrade, or set it anew")
        if key_id not in self._keys:
            raise Unavailable(f"{place} is sealed with key {key_id}, which {self._where} does not hold; restore it")
        try:
            raw = base64.b64decode(body, validate=True)
            opened = self._keys[key_id].decrypt(raw[:12], raw[12:], _bound(namespace, name, key))
        except (ValueError, InvalidTag):
            raise Invalid(f"{place} was altered or sealed for another place; set it anew") from None
        return Secret(opened.decode("utf-8", "surrogateescape"))

    def reseal(self, namespace: str, name: str, key: str, sealed: str) -> str:
        """The same value under the first key; unchanged when it already is."""
        if sealed.startswith(f"{_VERSION}:{self._first}:"):
            return sealed
        return self.seal(namespace, name, key, self.unseal(namespace, name, key, sealed)._value)

    def __repr__(self) -> str:
        return f"Sealed({self._where}, {len(self._keys)} keys)"


def _bound(namespace: str, name: str, key: str) -> bytes:
    # JSON, since names joined by a separator could be cut in two ways.
    return msgspec.json.encode([_VERSION, namespace, name, key])


def _key(line: str, where: str) -> tuple[str, AESGCM]:
    """(public id of the key, cipher). The id is a ciphertext of nothing, so that it says nothing about the key."""
    try:
        raw = base64.b64decode(line, validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise Invalid(f"{where} holds a line that is not base64 of 32 bytes; restore it from the backup")
    cipher = AESGCM(raw)
    return cipher.encrypt(bytes(12), b"", b"ground key id").hex()[:8], cipher


def _key_file(path: Path) -> str:
    """The content of the key file; made when there is none. Two processes that start together get the same one."""
    try:
        if not path.exists():
            _make_key_file(path)
        mode = path.stat().st_mode
        if mode & 0o077:
            raise Invalid(f"{path} can be read by others (mode {mode & 0o777:o}); run: chmod 600 {path}")
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise GroundError(f"cannot use the key file {path}: {error}") from None


def _make_key_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with open(handle, "w", encoding="ascii") as stream:
            stream.write(base64.b64encode(os.urandom(32)).decode() + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # A link fails when the name exists, where a rename would replace the key another process just made.
            os.link(temporary, path)
        except FileExistsError:
            return
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        os.unlink(temporary)
