"""GitOps: what should be here is what the files of git repositories say."""

from typing import Any

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.proposals import Desk
from groundcontrol.capabilities.gitops.reconcile import ProposalReconciler, SourceReconciler, sync
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.reconcile import Reconciler


def _reconcilers(runtime: Any) -> tuple[Reconciler[Any], ...]:
    sources = SourceReconciler(
        runtime.kinds, runtime.repositories, runtime.access, runtime.reveal, runtime.max_file_bytes
    )
    return sources, ProposalReconciler(runtime, Desk(runtime.kinds, runtime.repositories, sources.head))


CAPABILITY = Capability(
    name="gitops",
    kinds=(Source,),
    reconcilers=_reconcilers,
    actions={("Source", "sync"): sync},
    repeatable=frozenset({("Source", "sync")}),
)
