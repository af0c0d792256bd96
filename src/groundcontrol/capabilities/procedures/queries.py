"""What a Run over many targets would do, asked before it is started."""

from __future__ import annotations

from collections import Counter
from typing import Any

from groundcontrol.capabilities.procedures.reconcile import frozen_of, targets_of
from groundcontrol.kernel.errors import Invalid, NotFound, Problem
from groundcontrol.kernel.resource import Doc, Key
from groundcontrol.kernel.rights import Subject
from groundcontrol.kernel.run_acts import may_see
from groundcontrol.kernel.waves import Over


def preview(runtime: Any, subject: Subject, key: Key, body: Doc) -> Doc:
    """The waves a Run of the procedure would have: `over` and `inputs` as in its spec. Nothing is kept."""
    spec = {"procedure": key.name, "inputs": body.get("inputs") or {}, "over": body.get("over")}
    meta = {"name": "preview", "namespace": key.namespace}
    doc = runtime.kinds.parse({"apiVersion": "ground/v1", "kind": "Run", "metadata": meta, "spec": spec})
    procedure = may_see(runtime.store, runtime.access, subject, key)
    if procedure is None:
        raise NotFound(f"there is no {key}")
    if not doc["spec"]["over"]:
        raise Invalid(problems=(Problem("say what it goes over", "over"),))
    labels = procedure["metadata"].get("labels") or {}
    runtime.access.require(subject, "run", key.kind, namespace=key.namespace, name=key.name, labels=labels)
    over = Over.model_validate(doc["spec"]["over"])
    targets = targets_of(runtime, subject, over, key.namespace)
    frozen = frozen_of(runtime, doc["spec"], key.namespace, procedure, runtime.store.get, over, targets)
    domains = {target[:3]: target.domains for target in targets}
    waves = [
        {
            "wave": number,
            "size": len(wave),
            "targets": [f"{t[0]}/{t[1]}" if t[0] not in ("", key.namespace) else t[1] for t in wave],
            "domains": dict(sorted(Counter(d for t in wave for d in domains[t]).items())),
        }
        for number, wave in enumerate(frozen["waves"], 1)
    ]
    return {"procedure": key.path, "digest": frozen["digest"], "targets": len(targets), "waves": waves}
