"""Procedures: what is not a steady state, done step by step by a journalled Run that asks people where it must."""

from groundcontrol.capabilities.procedures.kinds import Procedure, Run
from groundcontrol.capabilities.procedures.queries import preview
from groundcontrol.capabilities.procedures.reconcile import (
    ProcedureReconciler,
    RunReconciler,
    answer,
    approve,
    cancel,
    refuse,
    resume,
    start,
    undo,
)
from groundcontrol.kernel.capability import Capability

CAPABILITY = Capability(
    name="procedures",
    kinds=(Procedure, Run),
    reconcilers=lambda runtime: (ProcedureReconciler(runtime), RunReconciler(runtime)),
    actions={
        ("Procedure", "run"): start,
        ("Procedure", "preview"): preview,
        ("Run", "approve"): approve,
        ("Run", "refuse"): refuse,
        ("Run", "answer"): answer,
        ("Run", "cancel"): cancel,
        ("Run", "resume"): resume,
        ("Run", "undo"): undo,
    },
)
