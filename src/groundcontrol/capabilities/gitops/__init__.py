"""GitOps: what should be here is what the files of git repositories say."""

from groundcontrol.capabilities.gitops.kinds import Source
from groundcontrol.capabilities.gitops.reconcile import SourceReconciler, sync
from groundcontrol.kernel.capability import Capability

CAPABILITY = Capability(
    name="gitops",
    kinds=(Source,),
    reconcilers=lambda runtime: (
        SourceReconciler(runtime.kinds, runtime.repositories, runtime.access, runtime.reveal, runtime.max_file_bytes),
    ),
    actions={("Source", "sync"): sync},
    repeatable=frozenset({("Source", "sync")}),
)
