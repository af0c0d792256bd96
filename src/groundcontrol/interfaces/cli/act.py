"""`ground act`: the actions a kind offers besides being made, changed and deleted."""

from __future__ import annotations

import sys

import click

from groundcontrol.interfaces.cli.client import Doc
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure, did_you_mean
from groundcontrol.interfaces.cli.kinds import must_have_namespace
from groundcontrol.interfaces.cli.options import completed_by, key_value, namespace_option, output_option
from groundcontrol.interfaces.cli.output import as_json, as_yaml, safe, say
from groundcontrol.interfaces.cli.session import session


@click.command()
@click.argument("verb", metavar="ACTION")
@click.argument("kind", metavar="KIND", shell_complete=completed_by("kind_or_name"))
@click.argument("name", metavar="NAME")
@namespace_option
@click.option("-i", "--input", "inputs", multiple=True, metavar="NAME=VALUE", help="An input, as text.")
@click.option("--input-stdin", metavar="NAME", help="An input that is read from standard input, as text.")
@click.option("--reason", metavar="TEXT", help="Why; goes into the audit.")
@output_option("text", "json", "yaml", default="text")
def act(
    verb: str,
    kind: str,
    name: str,
    namespace: str | None,
    inputs: tuple[str, ...],
    input_stdin: str | None,
    reason: str | None,
    output: str,
) -> int:
    """Do one of the things a kind can do; `ground kinds` lists them.

    \b
    ground act restart service web -n alpha
    ground act sync source platform
    ground act set secret db -n alpha -i key=password --input-stdin value < password.txt
    """
    here = session()
    _, (target,) = here.kinds.targets([kind, name], here.namespace(namespace))
    target = must_have_namespace(target)
    known = [a for a in target.kind.actions if a != "log"]
    if verb not in known:
        hint = did_you_mean(verb, known) or f"it can: {', '.join(known) or 'nothing'}"
        raise Failure(f"{target.kind.name} cannot {verb!r}", hint, code=USAGE)
    body: Doc = dict(key_value(text) for text in inputs)
    if input_stdin:
        body[input_stdin] = sys.stdin.read().removesuffix("\n")
    if reason:
        body["reason"] = reason
    answer = here.client.send("POST", f"{target.path}/actions/{verb}", body)
    if output == "text":
        say(safe(f"{target}: {', '.join(f'{k} {v}' for k, v in answer.items()) or 'done'}"))
    else:
        say(as_json(answer) if output == "json" else as_yaml(answer))
    return OK
