"""The options by which a Run goes over many targets in waves, and the waves in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from groundcontrol.interfaces.cli.client import Doc
from groundcontrol.interfaces.cli.failure import USAGE, Failure
from groundcontrol.interfaces.cli.options import DURATION, selector_option
from groundcontrol.interfaces.cli.output import safe, table

FEW = 8
"""Targets that are named of a wave; `-o json` has all."""
OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("--over", "kind", "KIND", "Go through it for each resource of this kind, in waves."),
    ("--field-selector", "fieldSelector", "FIELDS", "Only those targets whose fields are so: spec.a=b."),
    ("--targets-in", "namespace", "NAMESPACE", "Where the targets are, if not where the Run is; * for everywhere."),
    ("--input-for-name", "input", "INPUT", "The input that takes the target's name; found when there is only one."),
    ("--input-for-namespace", "namespaceInput", "INPUT", "The input that takes the target's namespace."),
    ("--waves", "waves", "SIZE,…", "Sizes of the waves, the last one repeats: 1,10%,100%."),
    ("--spread", "spread", "PATH[=N]", "At most N (1) of one failure domain in a wave: metadata.labels.rack=2."),
    ("--max-failures", "maxFailures", "N|N%", "Targets that may fail; none without it."),
)
"""Option, field of `spec.over`, what it takes, help."""


def over_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of them; the command gets them as `over_…` and hands them to `over_of`."""
    for option, field, metavar, text in reversed(OPTIONS):
        command = click.option(option, f"over_{field.lower()}", metavar=metavar, help=text)(command)
    numbered = click.option("--concurrency", "over_concurrency", type=click.IntRange(min=1), metavar="N",
                            help="Targets of a wave under way at once.")  # fmt: skip
    asking = click.option("--ask", "over_ask", type=click.Choice(["between", "failures"]), multiple=True,
                          help="Let a person decide between waves, or when too many failed.")  # fmt: skip
    pausing = click.option("--pause", "over_pause", type=DURATION, help="Wait so long between waves.")
    return selector_option(numbered(asking(pausing(command))))


def over_of(given: Mapping[str, Any], labels: str | None) -> Doc | None:
    """`spec.over`, from the options; None without `--over`."""
    found = {field: given[f"over_{field.lower()}"] for _, field, _, _ in OPTIONS}
    found |= {"concurrency": given["over_concurrency"], "pause": given["over_pause"], "labelSelector": labels}
    over: Doc = {field: value for field, value in found.items() if value is not None}
    asks = given["over_ask"]
    over |= {"between": "ask"} if "between" in asks else {}
    over |= {"onFailure": "ask"} if "failures" in asks else {}
    if not over:
        return None
    if "kind" not in over:
        raise Failure("--over is missing", "say over which kind of targets: --over Service", code=USAGE)
    if "waves" in over:
        over["waves"] = [size.strip() for size in over["waves"].split(",")]
    if "spread" in over:
        by, found_, most = over["spread"].partition("=")
        if found_ and not most.isdecimal():
            raise Failure(f"--spread {over['spread']!r} is not PATH or PATH=N", code=USAGE)
        over["spread"] = {"by": by, **({"most": int(most)} if found_ else {})}
    return over


def plan_in_words(answer: Doc) -> str:
    """The waves a Run would have, a line each."""
    rows = []
    for wave in answer["waves"]:
        named = ", ".join(wave["targets"][:FEW])
        more = f" and {wave['size'] - FEW} more" if wave["size"] > FEW else ""
        hit = ", ".join(f"{domain} {count}" for domain, count in wave["domains"].items())
        rows.append([wave["wave"], wave["size"], safe(hit), safe(named + more)])
    return table(["Wave", "Size", "Failure domains", "Targets"], rows)


def waves_in_words(status: Mapping[str, Any]) -> str:
    """How far each wave of a Run is; empty for one that goes over nothing."""
    rows = [
        [w["wave"], w["size"], w["done"], w["failed"], w["skipped"], w["underWay"], w["left"]]
        for w in status.get("waves") or ()
    ]
    return table(["Wave", "Size", "Done", "Failed", "Skipped", "Under way", "Left"], rows) if rows else ""
