"""Secrets: values kept sealed for one namespace, named by its resources, shown to nobody."""

from groundcontrol.capabilities.secrets.kinds import Secret
from groundcontrol.capabilities.secrets.reconcile import set_key, unset_key
from groundcontrol.kernel.capability import Capability

CAPABILITY = Capability(
    name="secrets",
    kinds=(Secret,),
    actions={("Secret", "set"): set_key, ("Secret", "unset"): unset_key},
)
