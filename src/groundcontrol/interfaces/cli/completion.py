"""`ground completion`, and what the shells ask while somebody types: kinds, names, namespaces, plans, contexts.

A completion must never fail, wait long or print: whatever goes wrong, there is just nothing to offer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from groundcontrol.interfaces.cli.client import API, path_of
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure
from groundcontrol.interfaces.cli.kinds import Kind
from groundcontrol.interfaces.cli.output import say
from groundcontrol.interfaces.cli.session import Session, session

PATIENCE = 2.0
"""Seconds a server may take."""
MOST = 500
# Only what is a word for a shell: a name with anything else in it would be a trap on the next key press.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.,_/:@-]*")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> int:
    """Print what a shell needs to complete commands, kinds and names.

    \b
    bash: source <(ground completion bash)          in ~/.bashrc
    zsh:  source <(ground completion zsh)           in ~/.zshrc
    fish: ground completion fish | source           in ~/.config/fish/config.fish
    """
    maker = get_completion_class(shell)
    if maker is None:
        raise Failure(f"no completion for {shell}", code=USAGE)
    root = click.get_current_context().find_root().command
    shell_completion = maker(root, {}, "ground", "_GROUND_COMPLETE")
    say(shell_completion.source_template % shell_completion.source_vars())
    return OK


Answer = Callable[[click.Context, str], Iterable[CompletionItem | str]]


def _quiet(answer: Answer) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            here = session(ctx)
            here.timeout = min(here.timeout, PATIENCE)
            found = [i if isinstance(i, CompletionItem) else CompletionItem(i) for i in answer(ctx, incomplete)]
        except Exception:  # whatever it is, nobody can read it between two key presses
            return []
        return [item for item in found if _PLAIN.fullmatch(item.value) and item.value.startswith(incomplete)]

    return complete


def _names(here: Session, kind: Kind, ctx: click.Context) -> list[str]:
    namespace = here.namespace(ctx.params.get("namespace"), everywhere=bool(ctx.params.get("everywhere")))
    place = namespace if kind.namespaced else ""
    items, _ = here.client.list_all(path_of(kind.plural, place), limit=MOST)
    wide = kind.namespaced and not place
    return [(f"{i['metadata'].get('namespace')}/" if wide else "") + i["metadata"]["name"] for i in items]


def _kind_items(here: Session, incomplete: str) -> list[CompletionItem]:
    """Kinds; after a comma, one more."""
    head, comma, _ = incomplete.rpartition(",")
    return [CompletionItem(f"{head}{comma}{kind.plural}", help=kind.name) for kind in here.kinds]


@_quiet
def kind_words(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    return _kind_items(session(ctx), incomplete)


@_quiet
def kind_or_name(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    """A kind as the first word, names of that kind after it, `kind/name` in one word."""
    here = session(ctx)
    words = tuple(ctx.params.get("what") or ())
    if "/" in incomplete and (not words or "/" in words[0]):
        kind, _, _ = incomplete.partition("/")
        return [f"{kind}/{name}" for name in _names(here, here.kinds.resolve(kind), ctx)]
    if not words:
        return _kind_items(here, incomplete)
    if "/" in words[0]:
        return []
    return [name for name in _names(here, here.kinds.resolve(words[0].split(",")[0]), ctx) if name not in words]


@_quiet
def log_names(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    here = session(ctx)
    return _names(here, here.kinds.resolve("services"), ctx)


@_quiet
def run_names(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    here = session(ctx)
    return _names(here, here.kinds.resolve("Run"), ctx)


@_quiet
def namespaces(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    here = session(ctx)
    return _names(here, here.kinds.resolve("Namespace"), ctx)


@_quiet
def plan_ids(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    items: list[dict[str, Any]] = session(ctx).client.get(f"{API}/plans", {"state": "held"}).get("items") or []
    return [CompletionItem(str(item["id"]), help=str(item.get("scope") or "")) for item in items]


@_quiet
def context_names(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    return sorted(session(ctx).config.contexts)


@_quiet
def site_names(ctx: click.Context, incomplete: str) -> Iterable[CompletionItem | str]:
    here = session(ctx)
    return _names(here, here.kinds.resolve("Site"), ctx)
