"""`ground logs`: what a service or an instance wrote, shown so that it can do nothing to the terminal."""

from __future__ import annotations

import codecs
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from groundcontrol.interfaces.cli.client import Client
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure, Refused, Unreachable
from groundcontrol.interfaces.cli.kinds import Target, fetch
from groundcontrol.interfaces.cli.options import completed_by, namespace_option
from groundcontrol.interfaces.cli.output import note, safe_text
from groundcontrol.interfaces.cli.session import session

PIECE = 65536


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="[KIND] NAME", shell_complete=completed_by("log_names"))
@namespace_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--index", type=click.IntRange(min=0), default=0, show_default=True, help="Which instance of a service.")
@click.option("--tail", type=click.IntRange(min=0), default=None, metavar="LINES", help="Only the last so many lines.")
@click.option("--raw", is_flag=True, help="The bytes as they are; not shown on a terminal.")
def logs(what: tuple[str, ...], namespace: str | None, follow: bool, index: int, tail: int | None, raw: bool) -> int:
    """What a service wrote (or an instance: `ground logs instance/web-0`).

    \b
    ground logs web -n alpha
    ground logs web -n alpha -f --tail 20 --index 1
    """
    here = session()
    place = here.namespace(namespace)
    words = what if len(what) > 1 or _starts_with_kind(what[0]) else ("services", what[0])
    _, targets = here.kinds.targets(words, place)
    if len(targets) != 1:
        raise Failure("name one service or instance", code=USAGE)
    if raw and sys.stdout.isatty():
        raise Failure("--raw is not for terminals: a log may contain anything", "redirect it", code=USAGE)
    target = targets[0]
    if target.kind.namespaced and not target.namespace:
        target = here.kinds.target_of(fetch(here.client, target))
    writer = Writer(raw=raw)
    for piece in _pieces(here.client, target, index, follow=follow, tail=tail):
        writer.write(piece)
    writer.end()
    return OK


def _starts_with_kind(word: str) -> bool:
    """`alpha/web` is a service with its namespace; `instance/web-0` and `service/alpha/web` begin with a kind."""
    return word.count("/") == 2 or word.partition("/")[0].lower() in (
        "service",
        "services",
        "svc",
        "instance",
        "instances",
    )


class Writer:
    """Puts pieces of a log on standard output; a character cut in two by a piece's end is put together again."""

    def __init__(self, *, raw: bool) -> None:
        self._raw = raw
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def write(self, piece: bytes, *, final: bool = False) -> None:
        if self._raw:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        text = self._held + self._decoder.decode(piece, final)
        # A carriage return may be half of a line end.
        self._held = "\r" if text.endswith("\r") and not final else ""
        sys.stdout.write(safe_text(text[: len(text) - len(self._held)]))
        sys.stdout.flush()

    def end(self) -> None:
        self.write(b"", final=True)


def _pieces(client: Client, target: Target, index: int, *, follow: bool, tail: int | None) -> Iterator[bytes]:
    """The log, bit by bit; a cut connection is taken up again where it broke off."""
    offset = 0
    if tail is not None:
        kept, partial = deque[bytes](maxlen=tail or None), b""
        for piece in _read(client, target, {"index": str(index)}):
            offset += len(piece)
            *lines, partial = (partial + piece).split(b"\n")
            if tail:
                kept.extend(line + b"\n" for line in lines)
        if tail:
            if partial:
                kept.append(partial)
            yield from kept
        if not follow:
            return
    pause = 0.5
    while True:
        params = {"index": str(index), "offset": str(offset), "follow": follow}
        try:
            for piece in _read(client, target, params):
                offset += len(piece)
                pause = 0.5
                yield piece
            return
        except (Unreachable, Refused) as lost:
            if not follow or (isinstance(lost, Refused) and lost.status not in (429, 502, 503, 504)):
                raise
            note(f"{lost.message}; trying again in {pause:g} s")
            time.sleep(pause)
            pause = min(pause * 2, 15.0)


def _read(client: Client, target: Target, params: dict[str, Any]) -> Iterator[bytes]:
    idle = 3600.0 if params.get("follow") else 60.0
    with client.stream(f"{target.path}/log", params, idle=idle) as response:
        while piece := response.read1(PIECE):
            yield piece
