"""W8: a Run over ten thousand hosts, in waves, whose server is killed every 30 s: none is lost, none done twice."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from groundcontrol.capabilities.procedures import CAPABILITY
from groundcontrol.kernel.capability import Capability
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Model, Resource, Status
from groundcontrol.kernel.runtime import Runtime
from groundcontrol.kernel.settings import Settings

PLACE, BY, RUN = "bench", "user:bench", Key("Run", "bench", "all")
STEP = {"name": "patch", "act": {"kind": "Host", "name": "${inputs.host}", "verb": "patch"}, "onUnknown": "repeat"}
OVER = {"kind": "Host", "waves": ["1", "10%", "100%"], "spread": {"by": "spec.rack", "most": 100}}


class HostSpec(Model):
    """Where it is."""

    rack: str
    """Its failure domain."""


class Host(Resource):
    """Something that is patched."""

    info: ClassVar[KindInfo] = KindInfo(plural="hosts", actions=("patch",))
    kind: Literal["Host"] = "Host"
    spec: HostSpec
    status: Status = Field(default_factory=Status)


class Patches:
    """The file that knows which host was patched for which request; it outlives the server."""

    def __init__(self, path: Path) -> None:
        # The last line may be half: whoever wrote it was killed.
        self._known = set(path.read_text().rpartition("\n")[0].splitlines()) if path.exists() else set()
        self._file, self._lock = path.open("a"), threading.Lock()

    def patch(self, runtime: Any, subject: Any, key: Key, body: Doc) -> Doc:
        """Once per request: a second Run for a host, or a second step, would be another request."""
        line = f"{key.name} {body['changeKey']}"
        with self._lock:
            if line not in self._known:
                self._known.add(line)
                self._file.write(f"{line}\n")
                self._file.flush()
        return {}


def live(directory: Path, targets: int) -> None:
    """Go on until it is over, or killed."""
    settings = Settings.model_validate({"data": str(directory), "ledger": {"enabled": False}})
    patches = Patches(directory / "patched")
    hosts = Capability(name="hosts", kinds=(Host,), actions={("Host", "patch"): patches.patch})
    runtime = Runtime(settings, (CAPABILITY, hosts), {}, lambda _: None).open()
    if runtime.store.get(RUN) is None:
        inputs = {"host": {"type": "resource", "kind": "Host"}}
        wanted = [("Namespace", PLACE, {"group": PLACE}), ("Account", "bench", {})]
        wanted += [("RoleBinding", "bench", {"role": "operator", "subjects": [BY]})]
        wanted += [("Procedure", "patch", {"inputs": inputs, "steps": [STEP]})]
        wanted += [("Host", f"wn-{n:05}", {"rack": f"r{n % 40:02}"}) for n in range(targets)]
        for kind, name, spec in wanted:
            submit(runtime, kind, name, spec)
        submit(runtime, "Run", RUN.name, {"procedure": "patch", "over": OVER}).result(120)
    while True:
        status = (runtime.store.get(RUN) or {"status": {}})["status"]
        if status.get("phase") in ("Succeeded", "Failed"):
            break
        time.sleep(0.1)
    print(json.dumps({"phase": status["phase"], "progress": status["progress"], "waves": len(status["waves"])}))
    runtime.close()


def submit(runtime: Runtime, kind: str, name: str, spec: Doc) -> Any:
    meta = {"name": name, **({"namespace": PLACE} if runtime.kinds.get(kind).info.namespaced else {})}
    doc = runtime.kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": spec})
    key = Key(kind, meta.get("namespace", ""), name)
    given = frozenset(f"spec.{path}" for path in spec)
    return runtime.store.submit(lambda tx: tx.create(doc, BY, given) if tx.get(key) is None else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--kill-every", type=float, default=30.0, help="seconds")
    parser.add_argument("--live", type=Path, help="be the server that is killed, in this directory")
    options = parser.parse_args()
    if options.live:
        live(options.live, options.targets)
        return
    command = [sys.executable, "-m", "bench.w8_waves", "--targets", str(options.targets), "--live"]
    with tempfile.TemporaryDirectory() as directory:
        began, kills, said = time.monotonic(), 0, ""
        while not said:
            server = subprocess.Popen([*command, directory], stdout=subprocess.PIPE, text=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                said = server.communicate(timeout=options.kill_every)[0]
                if server.returncode:
                    raise SystemExit("the server ended with an error")
                break
            server.kill()
            server.wait()
            kills += 1
        seconds = time.monotonic() - began
        lines = (Path(directory) / "patched").read_text().splitlines()
        hosts = Counter(line.split()[0] for line in lines)
        row = {
            **json.loads(said),
            "targets": options.targets,
            "kills": kills,
            "lost": options.targets - len(hosts),
            "doubled": sum(count - 1 for count in hosts.values()),
            "seconds": round(seconds, 1),
            "targets/s": round(options.targets / seconds, 1),
        }
        print(json.dumps(row))
        if row["lost"] or row["doubled"] or row["phase"] != "Succeeded":
            raise SystemExit("not each of them exactly once")


if __name__ == "__main__":
    main()
