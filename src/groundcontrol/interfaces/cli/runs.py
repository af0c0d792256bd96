"""`ground run`: start a procedure, see how far it is, and answer what it asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from groundcontrol.interfaces.cli.client import Doc, path_of
from groundcontrol.interfaces.cli.failure import OK, USAGE, Failure
from groundcontrol.interfaces.cli.groups import Group
from groundcontrol.interfaces.cli.kinds import Kind, Target, fetch, must_have_namespace
from groundcontrol.interfaces.cli.options import (
    completed_by,
    dry_run_option,
    everywhere_option,
    key_value,
    namespace_option,
    output_option,
)
from groundcontrol.interfaces.cli.output import (
    age,
    as_json,
    as_yaml,
    condition,
    indented,
    note,
    paint,
    safe,
    say,
    table,
)
from groundcontrol.interfaces.cli.over import over_of, over_options, plan_in_words, waves_in_words
from groundcontrol.interfaces.cli.session import Session, session

WAITING = ("waiting", "asking", "asked", "paused")


@click.group(cls=Group)
def run() -> None:
    """Runs of procedures: start them, see them, answer what they ask."""


def _kind(here: Session) -> Kind:
    return here.kinds.resolve("Run")


@run.command()
@click.argument("procedure", metavar="PROCEDURE")
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="NAME=VALUE", help="An input; the value is read as YAML."
)
@click.option("--name", metavar="NAME", help="Name of the Run; without it one is made up.")
@over_options
@namespace_option
@dry_run_option
@output_option("text", "name", "json", "yaml", default="text")
def start(
    procedure: str,
    inputs: tuple[str, ...],
    name: str | None,
    selector: str | None,
    namespace: str | None,
    dry_run: bool,
    output: str,
    **over: Any,
) -> int:
    """Start a procedure: `ground run start drain -n ops -i host=wn-17 -i grace=30`.

    With --over it is gone through once for each of many targets, in waves: `ground run start restart --over Service -l
    tier=web --waves 1,10%,100%`. With --dry-run the waves are shown, and nothing is started."""
    here = session()
    kind = _kind(here)
    values, targets = _values(inputs), over_of(over, selector)
    meta: Doc = {"name": name or _made_up(procedure)}
    if kind.namespaced:
        meta["namespace"] = must_have_namespace(Target(kind, here.namespace(namespace), meta["name"])).namespace
    version = kind.versions[0] if kind.versions else "ground/v1"
    doc: Doc = {"apiVersion": version, "kind": kind.name, "metadata": meta, "spec": {"procedure": procedure}}
    if values:
        doc["spec"]["inputs"] = values
    if targets:
        doc["spec"]["over"] = targets
        if dry_run:
            return _preview(here, procedure, meta.get("namespace", ""), doc["spec"], output)
    place = path_of(kind.plural, meta.get("namespace", ""))
    answer: Doc = here.client.send("POST", place, doc, params={"dryRun": dry_run}) or doc
    if output in ("json", "yaml"):
        say(as_json(answer) if output == "json" else as_yaml(answer))
    elif output == "name":
        say(safe(meta["name"]))
    else:
        say(f"Run {safe(meta['name'])} {'would be started' if dry_run else 'started'}")
        if not dry_run:
            note(f"  ground run show {meta['name']}" + (f" -n {meta['namespace']}" if meta.get("namespace") else ""))
    return OK


def _values(inputs: tuple[str, ...]) -> Doc:
    """Name to value, each read as YAML."""
    from groundcontrol.kernel.errors import Invalid
    from groundcontrol.kernel.manifest import load_yaml

    values: Doc = {}
    for entry in inputs:
        key, text = key_value(entry)
        try:
            values[key] = load_yaml(text, f"input {key}")[0]
        except Invalid as error:
            raise Failure(error.message, "put text with special characters in quotes", code=USAGE) from error
    return values


def _preview(here: Session, procedure: str, namespace: str, spec: Doc, output: str) -> int:
    """The waves, as the server would make them now."""
    kind = here.kinds.resolve("Procedure")
    body = {name: spec[name] for name in ("inputs", "over") if name in spec}
    answer: Doc = here.client.send("POST", f"{path_of(kind.plural, namespace, procedure)}/actions/preview", body)
    if output in ("json", "yaml"):
        say(as_json(answer) if output == "json" else as_yaml(answer))
    else:
        many = f"{answer['targets']} target" + "s" * (answer["targets"] != 1)
        say(f"{safe(procedure)} would go over {many} in {len(answer['waves'])} waves:")
        say(plan_in_words(answer))
    return OK


def _made_up(procedure: str) -> str:
    """A name that sorts by time and is not met twice."""
    import secrets
    import time

    stem = procedure.rpartition("/")[2].lower()[:40].strip(".-") or "run"
    return f"{stem}-{time.strftime('%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


@run.command("list")
@namespace_option
@everywhere_option
@output_option("table", "wide", "json", "yaml", "name")
@click.pass_context
def list_runs(ctx: click.Context, namespace: str | None, everywhere: bool, output: str) -> int:
    """The Runs there are (the same as `ground get runs`)."""
    from groundcontrol.interfaces.cli.get import get

    found: int = ctx.invoke(get, what=("Run",), namespace=namespace, everywhere=everywhere, output=output)
    return found


def _run_argument(command: Any) -> Any:
    return click.argument("name", metavar="RUN", shell_complete=completed_by("run_names"))(command)


def _find(here: Session, name: str, namespace: str | None) -> tuple[Target, Doc]:
    _, (target,) = here.kinds.targets(["Run", name], here.namespace(namespace))
    doc = fetch(here.client, target)
    return here.kinds.target_of(doc), doc


@run.command()
@_run_argument
@namespace_option
@output_option("text", "json", "yaml", default="text")
def show(name: str, namespace: str | None, output: str) -> int:
    """How far a Run is, step by step, and what it waits for."""
    here = session()
    target, doc = _find(here, name, namespace)
    if output in ("json", "yaml"):
        say(as_json(doc) if output == "json" else as_yaml(doc))
        return OK
    status = doc.get("status") or {}
    entry = condition(doc, "Ready")
    state = status.get("phase") or status.get("state") or entry["status"]
    message = status.get("message") or entry.get("message") or ""
    say(f"{paint(safe(target), 'bold')}: {safe(state)}" + (f", {safe(message)}" if message else ""))
    say(f"procedure {safe((doc.get('spec') or {}).get('procedure') or '-')}, "
        f"started {age(doc['metadata'].get('creationTimestamp') or '')} ago")  # fmt: skip
    inputs = (doc.get("spec") or {}).get("inputs")
    if inputs:
        say("inputs:\n" + indented(as_yaml(inputs)))
    if waves := waves_in_words(status):
        say(waves)
    for failure in status.get("failures") or ():
        say(f"  failed: {safe(failure)}")
    found = steps(doc)
    if found:
        titles = ["Step", "State", "Since", "Message"]
        rows = [
            [s["name"], _state(s), age(_since(s)) if _since(s) else "", s.get("message") or s.get("question")]
            for s in found
        ]
        say(table(titles, rows))
    for step in found:
        if _state(step).lower() in WAITING:
            question = step.get("question") or step.get("message") or "it waits for a person"
            say(f"\n{safe(step['name'])}: {safe(question)}")
            say(f"  ground run approve {safe(target.name)} --step {safe(step['name'])}")
    return OK


def steps(doc: Doc) -> list[Doc]:
    """The steps of a Run with their names, whether they are kept as a list or by name."""
    found = (doc.get("status") or {}).get("steps") or []
    if isinstance(found, Mapping):
        return [
            {"name": name, **(step if isinstance(step, Mapping) else {"state": step})} for name, step in found.items()
        ]
    return [{**step, "name": step.get("name") or str(number)} for number, step in enumerate(found)]


def _state(step: Mapping[str, Any]) -> str:
    return str(step.get("state") or step.get("phase") or step.get("status") or "-")


def _since(step: Mapping[str, Any]) -> str:
    return str(step.get("since") or step.get("started") or "")


def _act(verb: str, name: str, namespace: str | None, step: str | None, body: Doc) -> int:
    here = session()
    target, doc = _find(here, name, namespace)
    if verb not in ("cancel", "resume"):
        body["step"] = step or _waiting_step(target, doc)
    elif step:
        body["step"] = step
    here.client.send("POST", f"{target.path}/actions/{verb}", {k: v for k, v in body.items() if v not in (None, "")})
    done = {"approve": "approved", "refuse": "refused", "cancel": "being cancelled", "resume": "resumed"}
    say(f"{safe(target)}: " + (f"step {safe(body['step'])} " if body.get("step") else "") + done.get(verb, "answered"))
    return OK


def _waiting_step(target: Target, doc: Doc) -> str:
    waiting = [step["name"] for step in steps(doc) if _state(step).lower() in WAITING]
    if len(waiting) == 1:
        return str(waiting[0])
    if waiting:
        raise Failure(f"{target} waits at several steps: {', '.join(waiting)}", "say which with --step", code=USAGE)
    raise Failure(
        f"{target} waits for nobody", "`ground run show` shows how far it is; --step NAME says which", code=USAGE
    )


def _step_option(command: Any) -> Any:
    return click.option("--step", metavar="NAME", help="Which step; without it the one that waits.")(command)


def _reason_option(command: Any) -> Any:
    return click.option("--reason", metavar="TEXT", help="Why, for the journal.")(command)


@run.command()
@_run_argument
@namespace_option
@_step_option
@_reason_option
def approve(name: str, namespace: str | None, step: str | None, reason: str | None) -> int:
    """Let a step that waits go on."""
    return _act("approve", name, namespace, step, {"reason": reason})


@run.command()
@_run_argument
@namespace_option
@_step_option
@click.option("--reason", metavar="TEXT", required=True, help="Why, for the journal.")
def refuse(name: str, namespace: str | None, step: str | None, reason: str) -> int:
    """Do not let a step that waits go on."""
    return _act("refuse", name, namespace, step, {"reason": reason})


@run.command()
@_run_argument
@click.argument("text", metavar="ANSWER")
@namespace_option
@_step_option
@_reason_option
def answer(name: str, text: str, namespace: str | None, step: str | None, reason: str | None) -> int:
    """Answer what a step asks."""
    return _act("answer", name, namespace, step, {"answer": text, "reason": reason})


@run.command()
@_run_argument
@namespace_option
@_reason_option
def cancel(name: str, namespace: str | None, reason: str | None) -> int:
    """End a Run after the step it is at."""
    return _act("cancel", name, namespace, None, {"reason": reason})


@run.command()
@_run_argument
@namespace_option
@_step_option
@_reason_option
def resume(name: str, namespace: str | None, step: str | None, reason: str | None) -> int:
    """Go on with a Run that stopped."""
    return _act("resume", name, namespace, step, {"reason": reason})
