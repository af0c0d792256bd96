"""A whole installation on this machine: `ground init`, `ground serve`, agents, repositories, and nothing left after it.

It is used as a person uses it: through the command line, HTTP and git. Nothing of the program is imported here but the
hook that speaks GitLab's language.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import yaml

from tests.acceptance import processes
from tests.acceptance.repository import Repository

Doc = dict[str, Any]
GROUND = (sys.executable, "-m", "groundcontrol.interfaces.cli.main")
AGENT = (sys.executable, "-m", "groundcontrol.drivers.local.agent")
PATIENCE = 45.0
"""Seconds until a test gives up on what must come; a bound against hanging, not a measure."""
_networks = itertools.count(random.randrange(0, 200))


class Answer(NamedTuple):
    """What the server said."""

    status: int
    content: Any
    headers: Mapping[str, str]

    @property
    def message(self) -> str:
        """All that an error says: its reason, its message and its problems."""
        return json.dumps(self.content)


def until(holds: Callable[[], Any], what: str = "", seconds: float = PATIENCE, told: Callable[[], str] = str) -> Any:
    """Wait until `holds()` is true and return it."""
    deadline = time.monotonic() + seconds
    while True:
        if found := holds():
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what or holds}\n{told()}")
        time.sleep(0.03)


class Installation:
    """Everything of one installation. `up` starts it, `down` stops it and asserts that nothing is left."""

    def __init__(self, root: Path) -> None:
        self.root, self.etc, self.data = root, root / "etc", root / "data"
        self.port, self.token = processes.free_port(), ""
        self.server: subprocess.Popen[bytes] | None = None
        self.agents: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, int] = {}
        self.networks: dict[str, str] = {}
        self.hook_token = self._secret("hook.token")

    # ── up and down ─────────────────────────────────────────────────────────────────────────────────────────────

    def up(self, *sites: str, **settings: Any) -> Installation:
        """`ground init`, settings, an agent per site, `ground serve`, sign in, and declare the sites."""
        (self.root / "sites").mkdir(mode=0o711)
        said = self.ground("init", str(self.etc), signed_in=False)
        assert said.returncode == 0, said.stderr
        secrets = {f"agents/{site}": f"file:{self._secret(f'{site}.token')}" for site in sites}
        self.settings(
            data=str(self.data),
            listen=f"127.0.0.1:{self.port}",
            observe={"waitSeconds": 1, "staleAfterSeconds": 3, "vanishedShare": 0.5},
            loop={"backoffFirstSeconds": 0.2, "backoffMaxSeconds": 2, "breakerResetSeconds": 1},
            sources={"allowFile": True},
            secrets={"platform": {"webhook/token": f"file:{self.hook_token}", **secrets}},
            **settings,
        )
        for site in sites:
            self.start_agent(site)
        self.serve()
        self.login()
        for name in sites:
            self.apply(self.site(name))
        for name in sites:
            self.until_ready("sites", name)
        return self

    def settings(self, **given: Any) -> None:
        """Change the file `ground init` wrote."""
        file = self.etc / "ground.yaml"
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        for name, value in given.items():
            merged = isinstance(value, dict) and isinstance(found.get(name), dict)
            found[name] = {**found[name], **value} if merged else value
        file.write_text(yaml.safe_dump(found), encoding="utf-8")

    def serve(self) -> None:
        """Start the server and wait until it says that it is ready."""
        self.server = self._start("server", [*GROUND, "serve", "--config", str(self.etc / "ground.yaml")])
        until(self._is_ready, "the server is ready", told=lambda: self.log("server"))

    def _is_ready(self) -> bool:
        assert self.server is not None
        assert self.server.poll() is None, self.log("server")
        try:
            return self.call("GET", "/api/v1/readyz").status == 200
        except OSError:
            return False

    def kill_server(self) -> None:
        """SIGKILL, without a word."""
        assert self.server is not None
        self.server.kill()
        self.server.wait()

    def start_agent(self, site: str) -> None:
        """The agent of a site, new or again; its port and addresses stay the same."""
        self.ports.setdefault(site, processes.free_port())
        self.networks.setdefault(site, f"127.{40 + next(_networks) % 200}.{random.randrange(250)}.0/24")
        folder = self.root / "sites" / site
        folder.mkdir(mode=0o711, exist_ok=True)
        command = [*AGENT, "--root", str(folder), "--name", site, "--listen", f"127.0.0.1:{self.ports[site]}"]
        command += ["--token-file", str(self.root / f"{site}.token"), "--addresses", self.networks[site]]
        command += ["--cores", "4", "--memory-mb", "4096", "--stop-units-on-exit"]
        self.agents[site] = self._start(site, command)
        until(lambda: self._listens(site), f"agent {site} listens", told=lambda: self.log(site))

    def kill_agent(self, site: str) -> None:
        self.agents[site].kill()
        self.agents[site].wait()

    def _listens(self, site: str) -> bool:
        assert self.agents[site].poll() is None, self.log(site)
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.ports[site])) == 0

    def down(self) -> None:
        """Server first, then the agents with their units; raises when anything had to be killed."""
        left: list[str] = []
        for name, process in [("server", self.server), *self.agents.items()]:
            if process is None or process.poll() is not None:
                continue
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(90)
                left += [f"{name} ended with code {code}"] if code else []
            except subprocess.TimeoutExpired:
                left.append(f"{name} did not end")
        still = processes.gone(self.root, 10)
        left += [f"pid {pid}: {processes.command(pid)}" for pid in sorted(still)]
        processes.end(still)
        assert not left, f"left behind: {left}\n{self.log('server')}"

    def log(self, name: str) -> str:
        """The end of what a process said."""
        path = self.root / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.log").open("ab") as said:
            return subprocess.Popen(
                command,
                cwd=self.root,
                env=processes.environment(ACCEPTANCE_ROOT=str(self.root)),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def _secret(self, name: str) -> Path:
        path = self.root / name
        path.write_text(f"{random.getrandbits(128):032x}\n", encoding="ascii")
        path.chmod(0o600)
        return path

    # ── people ──────────────────────────────────────────────────────────────────────────────────────────────────

    def login(self) -> None:
        """Sign in with the first password, over HTTP and on the command line."""
        password = (self.etc / "admin.password").read_text(encoding="ascii").strip()
        self.token = self.ok("POST", "/api/v1/login", {"user": "admin", "password": password})["token"]
        said = self.ground("login", self.url, "--user", "admin", "--password-stdin", stdin=password)
        assert said.returncode == 0, said.stderr

    def person(self, name: str, group: str, namespace: str, role: str = "member") -> str:
        """Somebody of a group with a role in its namespace; their token."""
        self.apply(
            self.document("Namespace", namespace, {"group": group}),
            self.document("Account", name, {"groups": [group]}),
            self.document(
                "RoleBinding",
                f"{name}-{namespace}",
                {"role": role, "subjects": [f"user:{name}"], "selector": {"namespaces": [namespace]}},
            ),
        )
        password = f"{random.getrandbits(96):024x}"
        self.ok("PUT", f"/api/v1/accounts/{name}/password", {"password": password})
        return str(self.ok("POST", "/api/v1/login", {"user": name, "password": password})["token"])

    def ground(
        self, *words: str, stdin: str = "", signed_in: bool = True, cwd: Path | None = None, token: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """One command of `ground`, as a person would give it."""
        given = {"GROUND_CONFIG": str(self.root / "config.json"), "HOME": str(self.root)} if signed_in else {}
        given |= {"GROUND_TOKEN": token, "GROUND_URL": self.url} if token else {}
        return subprocess.run(
            [*GROUND, *words],
            cwd=cwd or self.root,
            env=processes.environment(**given),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
        )

    # ── the API ─────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def call(
        self, method: str, path: str, body: Any = None, *, token: str | None = None, headers: Mapping[str, str] = {}
    ) -> Answer:
        """One call. OSError when nobody answers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        given = {"Content-Type": "application/json", "Authorization": f"Bearer {token or self.token}", **headers}
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, {k: v for k, v in given.items() if v != "Bearer "})
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as problem:
            raise OSError(f"no proper answer to {method} {path}: {problem!r}") from problem
        finally:
            connection.close()
        try:
            content = json.loads(text) if text else None
        except ValueError:
            content = text.decode(errors="replace")
        return Answer(answer.status, content, {k.lower(): v for k, v in answer.getheaders()})

    def ok(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """One call that must succeed; its content."""
        answer = self.call(method, path, body, token=token)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.message}"
        return answer.content

    @staticmethod
    def path(plural: str, name: str = "", namespace: str = "") -> str:
        middle = f"/namespaces/{namespace}" if namespace else ""
        return f"/api/v1{middle}/{plural}" + (f"/{quote(name)}" if name else "")

    def get(self, plural: str, name: str, namespace: str = "") -> Doc | None:
        answer = self.call("GET", self.path(plural, name, namespace))
        assert answer.status in (200, 404), answer.message
        return answer.content if answer.status == 200 else None

    def need(self, plural: str, name: str, namespace: str = "") -> Doc:
        found = self.get(plural, name, namespace)
        assert found is not None, f"there is no {plural} {namespace}/{name}"
        return found

    def list(self, plural: str, namespace: str = "") -> list[Doc]:
        return list(self.ok("GET", self.path(plural, namespace=namespace))["items"])

    def apply(self, *documents: Doc, token: str | None = None) -> None:
        self.ok("POST", "/api/v1/apply", {"documents": list(documents)}, token=token)

    def patch(self, plural: str, name: str, namespace: str = "", **spec: Any) -> None:
        self.ok("PATCH", self.path(plural, name, namespace), {"spec": spec})

    def delete(self, plural: str, name: str, namespace: str = "") -> None:
        answer = self.call("DELETE", self.path(plural, name, namespace))
        assert answer.status in (200, 202, 404), answer.message

    @staticmethod
    def document(kind: str, name: str, spec: Doc, namespace: str = "", **meta: Any) -> Doc:
        place = {"namespace": namespace} if namespace else {}
        return {"apiVersion": "ground/v1", "kind": kind, "metadata": {"name": name, **place, **meta}, "spec": spec}

    def site(self, name: str, **spec: Any) -> Doc:
        given = {
            "driver": "local",
            "endpoint": f"http://127.0.0.1:{self.ports[name]}",
            "credentials": f"secret:agents/{name}",
            "topology": {"datacentre": "one", "rack": f"rack-{name}"},
        }
        return self.document("Site", name, given | spec, labels={"name": name})

    def service(self, name: str, namespace: str = "alpha", **spec: Any) -> Doc:
        """A web service, applied by the administrator; the document that was sent."""
        check = {"kind": "http", "path": "/healthz", "interval": 0.2, "timeout": 1, "failures": 2}
        given: Doc = {"ports": {"http": 8080}, "health": check, "resources": {"cores": 0.1}} | spec
        if "command" not in given:
            given.setdefault("sample", "web")
        document = self.document("Service", name, given, namespace)
        self.apply(document)
        return document

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────

    def condition(self, plural: str, name: str, namespace: str = "", type_: str = "Ready") -> Doc:
        """That condition when it speaks of the newest generation, else one with status and reason empty."""
        doc = self.get(plural, name, namespace) or {"status": {}, "metadata": {"generation": -1}}
        found = [c for c in doc["status"].get("conditions", ()) if c["type"] == type_]
        current = doc["status"].get("observedGeneration") == doc["metadata"]["generation"]
        return found[0] if found and current else {"status": "", "reason": "", "message": ""}

    def until_ready(
        self, plural: str, name: str, namespace: str = "", *, status: str = "True", reason: str = ""
    ) -> Doc:
        def holds() -> Doc | None:
            found = self.condition(plural, name, namespace)
            return found if found["status"] == status and (not reason or found["reason"] == reason) else None

        what = f"{plural} {name} is Ready={status} {reason}"
        return dict(until(holds, what, told=lambda: json.dumps(self.get(plural, name, namespace), indent=1)[-3000:]))

    def until_gone(self, plural: str, name: str, namespace: str = "") -> None:
        until(lambda: self.get(plural, name, namespace) is None, f"{plural} {name} is gone")

    def endpoints(self, name: str, namespace: str = "alpha", port: str = "http") -> list[str]:
        found = self.need("services", name, namespace)["status"].get("endpoints", {})
        return list(found.get(port, ()))

    def instances(self, service: str, namespace: str = "alpha") -> list[Doc]:
        return [d for d in self.list("instances", namespace) if d["spec"]["service"] == service]

    def units(self, service: str, namespace: str = "alpha") -> list[processes.Unit]:
        """Live processes of the instances of a service; by the unit ids the API tells, found in /proc."""
        known = {d["status"].get("unit") for d in self.instances(service, namespace)}
        return [u for u in processes.units(self.root) if u.unit in known]

    def running(self) -> list[processes.Unit]:
        return processes.units(self.root)

    def events(self, kind: str, name: str, namespace: str = "", reason: str = "") -> list[Doc]:
        query = f"kind={kind}&namespace={namespace}&name={name}&limit=1000"
        found = self.ok("GET", f"/api/v1/events?{query}")["items"]
        return [e for e in found if not reason or e["reason"] == reason]

    def source(self, name: str, role: str = "admin", **spec: Any) -> Repository:
        """A repository and its Source, which looks by itself only once an hour; every push is told to it."""
        made = Repository(self.root, name)
        made.push({"README.md": "what should be here\n"}, message="begin")
        binding = {"role": role, "subjects": [f"source:{name}"]}
        given = {"repository": made.url, "interval": 3600, "webhookSecret": "secret:webhook/token", **spec}
        self.apply(
            self.document("RoleBinding", f"source-{name}", binding | spec.pop("binding", {})),
            self.document("Source", name, {k: v for k, v in given.items() if k != "binding"}),
        )
        self.until_ready("sources", name)
        made.tell(f"{self.url}/hooks/gitlab/{name}", self.hook_token)
        return made

    def applied(self, source: str, commit: str) -> Doc:
        """Wait until a Source has done with a commit what it can; its status."""

        def holds() -> Doc | None:
            status = self.need("sources", source)["status"]
            return status if status.get("commit") == commit else None

        told = f"{source} applied {commit[:10]}"
        return dict(until(holds, told, told=lambda: json.dumps(self.need("sources", source)["status"], indent=1)))


@contextmanager
def installation(*sites: str, **settings: Any) -> Iterator[Installation]:
    """A running installation; afterwards everything of it is gone, also from the disk."""
    # Not the usual place for temporary files: tenants' user ids must be able to pass through all folders above.
    root = Path(tempfile.mkdtemp(prefix="ground-acceptance-", dir="/var/tmp"))
    root.chmod(0o711)
    found = Installation(root)
    try:
        found.up(*sites, **settings)
        yield found
        found.down()
    finally:
        processes.end(processes.belonging(root))
        shutil.rmtree(root, ignore_errors=True)
