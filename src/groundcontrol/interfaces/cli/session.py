"""What one invocation of `ground` works with: the server chosen, a client for it, its kinds and the namespace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import click

from groundcontrol.interfaces.cli.client import Client
from groundcontrol.interfaces.cli.config import Access, Config, choose, load
from groundcontrol.interfaces.cli.kinds import Catalogue, catalogue

_HERE = "groundcontrol.session"


@dataclass
class Session:
    """Made from the options of `ground` itself; everything in it is made when first used."""

    context: str = ""
    url: str = ""
    timeout: float = 40.0

    @cached_property
    def config(self) -> Config:
        return load()

    @cached_property
    def access(self) -> Access:
        return choose(self.config, self.context, self.url)

    @cached_property
    def client(self) -> Client:
        access = self.access
        return Client(access.url, access.token, ca=access.ca, timeout=self.timeout)

    @cached_property
    def kinds(self) -> Catalogue:
        return catalogue(self.client)

    def close(self) -> None:
        """Let go of the connection, if one was made."""
        client = self.__dict__.get("client")
        if client is not None:
            client.close()

    def namespace(self, given: str | None, *, everywhere: bool = False) -> str:
        """The namespace to work in: none for `-A`, else what was given, else the context's."""
        return "" if everywhere else given or self.access.namespace


def session(context: click.Context | None = None) -> Session:
    """The session of the command being run (or completed)."""
    root = (context or click.get_current_context()).find_root()
    if _HERE not in root.meta:
        params: dict[str, Any] = root.params
        made = Session(params.get("context") or "", params.get("url") or "", params.get("timeout") or 40.0)
        root.meta[_HERE] = made
        root.call_on_close(made.close)
    return cast(Session, root.meta[_HERE])
