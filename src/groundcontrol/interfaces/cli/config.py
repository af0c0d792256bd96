"""Where the servers are and who we are there: contexts in one private file, overridden by GROUND_* variables."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from groundcontrol.interfaces.cli.failure import USAGE, Failure, did_you_mean

DEFAULT_URL = "http://127.0.0.1:8440"
DEFAULT_CONTEXT = "default"


@dataclass
class Context:
    """One server and the credentials for it."""

    url: str = DEFAULT_URL
    token: str = ""
    token_id: str = ""
    user: str = ""
    expires: str = ""
    namespace: str = ""
    ca: str = ""
    """Path of a file with the certificate authorities to trust; empty means those of the machine."""


@dataclass
class Config:
    """The file: contexts by name and the one in use."""

    path: Path
    current: str = DEFAULT_CONTEXT
    contexts: dict[str, Context] = field(default_factory=dict)

    def context(self, name: str) -> Context:
        if name not in self.contexts:
            hint = did_you_mean(name, self.contexts) or f"known: {', '.join(sorted(self.contexts)) or 'none yet'}"
            raise Failure(f"no context {name!r} in {self.path}", hint, code=USAGE)
        return self.contexts[name]

    def save(self) -> None:
        """Written beside and renamed, readable by nobody else from its first byte on."""
        body = {"current": self.current, "contexts": {name: _sparse(c) for name, c in sorted(self.contexts.items())}}
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(json.dumps(body, indent=2) + "\n")
            os.replace(beside, self.path)
        except OSError as error:
            raise Failure(f"cannot write {self.path}: {error.strerror}", "GROUND_CONFIG names another file") from error


@dataclass(frozen=True)
class Access:
    """What one command uses: the outcome of options, environment and file."""

    url: str
    token: str
    namespace: str
    ca: str
    context: str
    token_from: str
    """`GROUND_TOKEN`, the context's name, or nothing."""


def _sparse(context: Context) -> dict[str, str]:
    return {name: value for name, value in asdict(context).items() if value}


def config_path() -> Path:
    """GROUND_CONFIG, or `ground/config.json` below XDG_CONFIG_HOME or ~/.config."""
    if given := os.environ.get("GROUND_CONFIG"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "ground" / "config.json"


def load() -> Config:
    """The file as it is; an empty Config when there is none."""
    path = config_path()
    try:
        body: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config(path)
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"{path} is not valid JSON: {error}", "mend it, or remove it and sign in again") from error
    known = {f.name for f in fields(Context)}
    contexts = body.get("contexts") if isinstance(body, dict) else None
    if not isinstance(contexts, dict) or not all(isinstance(entry, dict) for entry in contexts.values()):
        raise Failure(f"{path} has no contexts in it", "mend it, or remove it and sign in again")
    return Config(
        path,
        str(body.get("current") or DEFAULT_CONTEXT),
        {name: Context(**{k: str(v) for k, v in entry.items() if k in known}) for name, entry in contexts.items()},
    )


def choose(config: Config, context: str = "", url: str = "") -> Access:
    """What to use now. A stored token goes only to the address it was given by."""
    explicit = context or os.environ.get("GROUND_CONTEXT", "")
    name = explicit or config.current
    entry = config.context(name) if explicit else config.contexts.get(name, Context())
    address = clean_url(url or os.environ.get("GROUND_URL", "") or entry.url)
    token, token_from = os.environ.get("GROUND_TOKEN", ""), "GROUND_TOKEN"
    if not token:
        if clean_url(entry.url) != address:
            name, entry = next(
                ((n, c) for n, c in config.contexts.items() if clean_url(c.url) == address), (name, Context(address))
            )
        token, token_from = entry.token, name
    return Access(
        address,
        token,
        os.environ.get("GROUND_NAMESPACE", "") or entry.namespace,
        os.environ.get("GROUND_CA", "") or entry.ca,
        name,
        token_from if token else "",
    )


def clean_url(url: str) -> str:
    """The address without a slash at its end; `http://` in front of a bare host is never assumed."""
    url = url.strip().rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise Failure(f"{url!r} is not an address", "write https://host or http://host:port", code=USAGE)
    return url
