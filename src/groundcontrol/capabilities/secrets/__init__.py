"""Secrets: values for one namespace, sealed here or kept in a vault, named by its resources, shown to nobody."""

from groundcontrol.capabilities.secrets.kinds import Secret
from groundcontrol.capabilities.secrets.reconcile import SecretReconciler, set_key, unset_key
from groundcontrol.kernel.capability import Capability

CAPABILITY = Capability(
    name="secrets",
    kinds=(Secret,),
    reconcilers=lambda runtime: (SecretReconciler(runtime.secret_store, runtime.settings.secrets.vault.look_seconds),),
    actions={("Secret", "set"): set_key, ("Secret", "unset"): unset_key},
)
