"""Changes of what Sources declare, offered for review in their repositories instead of being refused."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.responses import Response

from groundcontrol.interfaces.api import change
from groundcontrol.interfaces.api.answers import encoded
from groundcontrol.interfaces.api.derive import API, DRY_RUN, ref
from groundcontrol.interfaces.api.operation import Call, Operation
from groundcontrol.kernel.errors import GroundError, Invalid, Problem, Unavailable
from groundcontrol.kernel.resource import Doc
from groundcontrol.kernel.tx import Tx

MOST_DOCUMENTS = 100


def operations() -> Iterator[Operation]:
    """The one that proposes."""
    yield Operation(
        "POST", f"{API}/propose", "propose", "resources",
        "Propose changes of resources that Sources declare: the diff of their files and, where a Source allows it, a "
        "branch of its repository. Changes nothing here.",
        _propose, (DRY_RUN,), ref("ProposeInput"), answers={200: ref("ProposalList")}, verb="update",
    )  # fmt: skip


async def _propose(call: Call) -> Response:
    body = await call.json_object("documents", "whole", required=("documents",))
    documents, whole = body["documents"], body.get("whole", False)
    problems: list[Problem] = []
    if not isinstance(documents, list) or not 0 < len(documents) <= MOST_DOCUMENTS:
        problems.append(Problem(f"documents is a list of 1 to {MOST_DOCUMENTS} documents", "documents"))
    if not isinstance(whole, bool):
        problems.append(Problem("whole is true or false", "whole"))
    if problems:
        raise Invalid(problems=tuple(problems))
    wishes: list[change.Wish] = []
    for number, raw in enumerate(documents):
        try:
            wishes.append(change.wish(call.backend.kinds, raw))
        except Invalid as error:
            problems += change.in_document(number, error).problems
    for number, wanted in enumerate(wishes):
        if wanted.key in (w.key for w in wishes[:number]):
            problems.append(Problem(f"{wanted.key} is there twice", f"documents.{number}"))
    if problems:
        raise Invalid(problems=tuple(problems[:100]))

    def judged(tx: Tx) -> list[tuple[Doc, Doc]]:
        changer = change.Changer(tx, call.backend.access, call.subject)
        found: list[tuple[Doc, Doc]] = []
        for number, wanted in enumerate(wishes):
            try:
                found.append(changer.proposed(wanted, whole=whole))
            except GroundError as error:
                raise change.in_document(number, error) from error
        return found

    pairs = await call.write(judged)
    proposer, dry = call.backend.propose, call.query["dryRun"]
    if proposer is None:
        raise Unavailable("this server proposes nothing; it was assembled without Sources")
    proposals = await call.blocking(lambda: proposer(call.subject, pairs, dry))
    return encoded({"proposals": proposals}, dry_run=dry, event=call.backend.store.sequence)
