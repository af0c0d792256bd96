"""Imports Nova once and forks a process for each service that it is told of on standard input.

In: [{"name": "north-hv1", "log": "/…/north-hv1.log", "words": ["compute", "/…/north-hv1.conf"]}, …]; out: {name: pid}.
The import takes seconds of CPU and a hundred megabytes, which three hypervisors, the scheduler and the conductor share.
"""

import gc
import importlib
import json
import os
import sys

PROGRAMS = {"compute": "nova.cmd.compute", "conductor": "nova.cmd.conductor", "scheduler": "nova.cmd.scheduler"}


def become(words, log):
    """In the fork: a session and a log of its own, and never back."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    kind, config = words
    sys.argv = [f"nova-{kind}", "--config-file", config]
    sys.exit(sys.modules[PROGRAMS[kind]].main())


def main():
    wanted = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    # The first of these patches the interpreter, where a release wants that; so nothing of Nova before.
    for kind in dict.fromkeys(["compute", *(item["words"][0] for item in wanted)]):
        importlib.import_module(PROGRAMS[kind])
    import nova.virt

    nova.virt.__path__.append(os.path.dirname(os.path.abspath(__file__)))
    for name in ("nova.virt.hypervisor", "nova.compute.manager", "nova.conductor.manager"):
        importlib.import_module(name)
    importlib.import_module("oslo_messaging._drivers.impl_rabbit")
    gc.collect()
    gc.freeze()
    pids = {}
    for item in wanted:
        pid = os.fork()
        if pid == 0:
            become(item["words"], item["log"])
        pids[item["name"]] = pid
    json.dump(pids, sys.stdout)


main()
