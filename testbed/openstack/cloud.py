"""The processes of one cloud, in which order they come up and go down, and what is set up between."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

from testbed.openstack import certificates, contents, database, front, settings
from testbed.openstack.api import Api, ApiError, until
from testbed.openstack.layout import LOCAL, BedError, Cloud, patience, write
from testbed.openstack.parts import (
    Part,
    answering,
    listening,
    listens,
    start,
    stop,
    sweep,
    wait,
)

WSGI = {
    "identity": ("keystone.wsgi.api:application", "keystone"),
    "placement": ("placement.wsgi.api:application", "placement"),
    "image": ("glance.wsgi.api:application", "glance"),
    "compute": ("nova.wsgi.osapi_compute:application", "nova"),
    "network": ("neutron.wsgi.api:application", "neutron"),
    "block-storage": ("cinder.wsgi.api:application", "cinder"),
}
"""A service, the application of its API, and the directory of its configuration."""

Say = Callable[[str], None]


class Running:
    """A cloud as processes. Everything may be done again: what is so already is left alone."""

    def __init__(self, cloud: Cloud, say: Say = lambda text: None) -> None:
        self.cloud, self.say = cloud, say

    # ------------------------------------------------------------------------------------ files

    def configure(self) -> None:
        """Write every file that a process reads."""
        cloud, etc = self.cloud, self.cloud.etc
        folders = ("images", "staging", "tasks", "volumes", "locks", "cinder/conversion", "nginx", "swift/d1")
        for name in (*folders, *cloud.hosts):
            (cloud.state / name).mkdir(parents=True, exist_ok=True)
        for folder in (cloud.run, cloud.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._plugins()
        for name, make in settings.SERVICES.items():
            write(settings.file_of(cloud, name), settings.text(make(cloud)))
        for host in cloud.hosts:
            write(etc / "nova" / f"{host}.conf", settings.text(settings.hypervisor(cloud, host)))
        for service, (module, name) in WSGI.items():
            # Cinder takes its file from the arguments; Neutron wants to know when it was started (%t).
            more: dict[str, settings.Section] = {
                "cinder": {"pyargv": f"--config-file {settings.file_of(cloud, name)}"},
                "neutron": {"set-ph": "start-time=%t"},
            }
            write(etc / f"{service}.ini", settings.text(settings.wsgi(cloud, service, module, more.get(name, {}))))
        for kind in ("fernet", "credential"):
            self._keys(etc / "keystone" / kind)
        if not certificates.chain(cloud).exists():
            certificates.server(cloud)
        write(etc / "nginx.conf", front.config(cloud))
        write(etc / "rabbitmq.conf", self._rabbitmq())
        write(etc / "rabbitmq-plugins", "[].\n")
        if cloud.object_store:
            write(etc / "swift" / "swift.conf", settings.text(settings.swift(cloud)))
            write(etc / "swift" / "proxy.conf", settings.text(settings.swift_proxy(cloud)))
            for kind in ("account", "container", "object"):
                write(etc / "swift" / f"{kind}.conf", settings.text(settings.swift_store(cloud, kind)))

    def _plugins(self) -> None:
        """Our plug-ins, copied, so that a cloud does not change under the hands of whoever works on them."""
        for path in settings.PLUGINS.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                write(self._plugin(str(path.relative_to(settings.PLUGINS))), path.read_text())

    def _plugin(self, name: str) -> Path:
        return self.cloud.etc / "plugins" / name

    @staticmethod
    def _keys(folder: Path) -> None:
        """Two keys, as Keystone wants them: one to use and one to come."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in "01":
            if not (folder / number).exists():
                write(folder / number, base64.urlsafe_b64encode(os.urandom(32)).decode())

    def _rabbitmq(self) -> str:
        cloud = self.cloud
        return (
            f"listeners.tcp.1 = {LOCAL}:{cloud.own_port('amqp')}\n"
            f"default_user = openstack\ndefault_pass = {cloud.passwords['messages']}\n"
            "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 50MB\n"
            "log.console = true\nlog.file = false\n"
        )

    # ------------------------------------------------------------------------------------ processes

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Everything that runs, in the order in which it comes up."""
        return (*self.ground, *self.apis, *self.daemons, *self.forks)

    def part(self, name: str) -> Part:
        for found in self.parts:
            if found.name == name:
                return found
        raise BedError(f"cloud {self.cloud.name} has no part {name!r}; it has {', '.join(p.name for p in self.parts)}")

    @property
    def _made_from(self) -> Path:
        """Changes when the programs themselves do."""
        return self.cloud.environment / "made-from"

    def _part(self, name: str, *command: str, **more: object) -> Part:
        return Part(name, self.cloud.root, command, **more)  # type: ignore[arg-type]

    @cached_property
    def ground(self) -> tuple[Part, ...]:
        """What all others stand on."""
        cloud, amqp, epmd = self.cloud, self.cloud.own_port("amqp"), self.cloud.own_port("epmd")
        erlang = {"ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": LOCAL, "HOME": str(cloud.root / "rabbitmq")}
        # One scheduler thread that does not spin: an idle RabbitMQ would take a tenth of a core otherwise.
        quiet = "+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}"
        rabbit = {
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": f"testbed-{cloud.name}@localhost",
            "RABBITMQ_CONFIG_FILE": str(cloud.etc / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(cloud.etc / "rabbitmq-plugins"),
            "RABBITMQ_MNESIA_BASE": str(cloud.root / "rabbitmq" / "mnesia"),
            "RABBITMQ_LOG_BASE": str(cloud.root / "rabbitmq" / "log"),
            "RABBITMQ_PID_FILE": str(cloud.run / "rabbitmq.pid"),
            "RABBITMQ_DIST_PORT": str(cloud.own_port("erlang")),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": quiet,
        }
        (cloud.root / "rabbitmq" / "log").mkdir(parents=True, exist_ok=True)
        found = [
            self._part("mariadb", *database.command(cloud), ready=listening(cloud.socket("mariadb"))),
            self._part("epmd", "/usr/bin/epmd", environ=erlang, ready=listening(epmd)),
            self._part(
                *("rabbitmq", "/usr/lib/rabbitmq/bin/rabbitmq-server"),
                environ=erlang | rabbit,
                ready=listening(amqp),
                reads=(cloud.etc / "rabbitmq.conf",),
            ),
            self._part(
                *("front", "/usr/sbin/nginx", "-c", str(cloud.etc / "nginx.conf"), "-e", "stderr"),
                ready=listening(cloud.public_port("identity")),
                reads=(cloud.etc / "nginx.conf",),
            ),
        ]
        if cloud.object_store:
            port = cloud.own_port("memcached")
            words = ["/usr/bin/memcached", "-l", LOCAL, "-p", str(port), "-m", "16", "-c", "256", "-u", "root"]
            found.append(self._part("memcached", *words, ready=listening(port)))
        return tuple(found)

    @cached_property
    def apis(self) -> tuple[Part, ...]:
        found = [self._api(service) for service in WSGI]
        if self.cloud.object_store:
            swift = self.cloud.etc / "swift"
            found += [
                self._swift(k, swift, listening(self.cloud.own_port(k))) for k in ("account", "container", "object")
            ]
            found.append(self._swift("proxy", swift, answering(self.cloud.internal_port("object-store"))))
        return tuple(found)

    def _api(self, service: str) -> Part:
        cloud = self.cloud
        file = settings.file_of(cloud, WSGI[service][1])
        paste = settings.packaged(cloud, "nova/api-paste.ini")
        environ = {
            "identity": {"OS_KEYSTONE_CONFIG_FILES": str(file)},
            "placement": {"OS_PLACEMENT_CONFIG_DIR": str(file.parent)},
            "image": {"OS_GLANCE_CONFIG_DIR": str(file.parent)},
            "compute": {"OS_NOVA_CONFIG_FILES": f"{paste};{file}"},
            "network": {"OS_NEUTRON_CONFIG_FILES": str(file), "PYTHONPATH": str(cloud.etc / "plugins")},
        }.get(service, {})
        return self._part(
            service,
            *(cloud.program("pyuwsgi"), "--ini", str(cloud.etc / f"{service}.ini")),
            environ={"PYTHONWARNINGS": "ignore"} | environ,
            ready=answering(cloud.internal_port(service)),
            reads=(file, cloud.etc / f"{service}.ini", self._made_from),
        )

    def _swift(self, kind: str, folder: Path, ready: Callable[[], str | None]) -> Part:
        file = folder / f"{kind}.conf"
        words = (self.cloud.program(f"swift-{kind}-server"), str(file), "-v")
        return self._part(
            f"swift-{kind}", *words, environ={"SWIFT_DIR": str(folder)}, ready=ready, reads=(file, self._made_from)
        )

    @cached_property
    def daemons(self) -> tuple[Part, ...]:
        cinder = settings.file_of(self.cloud, "cinder")
        found = [self._daemon(name, cinder) for name in ("cinder-scheduler", "cinder-volume")]
        if self._scheduler_apart:
            found.append(self._daemon("nova-scheduler", settings.file_of(self.cloud, "nova")))
        return tuple(found)

    def _daemon(self, name: str, file: Path) -> Part:
        environ = {"PYTHONPATH": str(self.cloud.etc / "plugins"), "PYTHONWARNINGS": "ignore"}
        words = (self.cloud.program(name), "--config-file", str(file))
        return self._part(name, *words, environ=environ, reads=(file, self._made_from))

    @property
    def _scheduler_apart(self) -> bool:
        """Nova 33 runs the scheduler on threads and the rest on eventlet, so that they share no import."""
        return self.cloud.release == "2026.1"

    @cached_property
    def forks(self) -> tuple[Part, ...]:
        """Nova's own daemons, a nova-compute for each hypervisor among them."""
        folder = self.cloud.etc / "nova"
        wanted = [("nova-conductor", "conductor", folder / "nova.conf")]
        if not self._scheduler_apart:
            wanted.append(("nova-scheduler", "scheduler", folder / "nova.conf"))
        wanted += [(host, "compute", folder / f"{host}.conf") for host in self.cloud.hosts]
        server = (self.cloud.program("python"), str(self._plugin("fork_nova.py")))
        plugins = (self._plugin("hypervisor.py"), self._plugin("fork_nova.py"), self._made_from)
        quiet = {"PYTHONWARNINGS": "ignore"}
        return tuple(
            self._part(name, *server, fork=(kind, str(file)), environ=quiet, reads=(file, *plugins))
            for name, kind, file in wanted
        )

    # ------------------------------------------------------------------------------------ up

    def up(self) -> list[str]:
        """Bring up what is not up; the names of the parts that were started."""
        cloud = self.cloud
        began = [part.name for part in self.parts if part.pid() is None]
        if len(began) == len(self.parts):
            self._own_ports()
        self.configure()
        if changed := [part for part in self.parts if part.stale()]:
            self.say(f"configured anew: {', '.join(p.name for p in changed)}")
            stop(changed)
            began += [part.name for part in changed]
        if not began:
            self._settle()
            return []
        database.prepare(cloud)
        self._start(self.ground)
        database.create(cloud)
        if not (cloud.state / "schemas").exists():
            self.say("database and messages are up; making the schemas")
        database.migrate(cloud)
        self._bootstrap()
        if cloud.object_store:
            self._rings()
        self._start((*self.apis, *self.daemons), await_them=False)
        self._once("catalogue", self._catalogue)
        wait(self.apis)
        self.say("APIs are up")
        self._start(self.forks)
        self._once("contents", lambda: contents.fill(cloud))
        self._settle()
        return began

    def _own_ports(self) -> None:
        if taken := [port for port in self.cloud.ports if listens(port)]:
            said = f"ports {', '.join(map(str, taken))} are taken by another program"
            raise BedError(f"cloud {self.cloud.name}: {said}; end it, or give GROUND_TESTBED_PORT")

    def _start(self, parts: Iterable[Part], await_them: bool = True) -> None:
        parts = tuple(parts)
        start([part for part in parts if part.pid() is None])
        if await_them:
            wait(parts)

    def _once(self, name: str, do: Callable[[], None]) -> None:
        """What is done in the life of a cloud only once. It may be interrupted, and is then done again."""
        stamp = self.cloud.state / name
        if not stamp.exists():
            do()
            stamp.touch()

    def _bootstrap(self) -> None:
        """Keystone's first administrator, roles and endpoints."""
        identity = f"{self.cloud.public('identity')}/v3"
        file = str(self.cloud.etc / "keystone" / "keystone.conf")
        words = [self.cloud.program("keystone-manage"), "--config-file", file, "bootstrap"]
        words += ["--bootstrap-region-id", self.cloud.region, "--bootstrap-public-url", identity]
        words += ["--bootstrap-admin-url", identity]
        words += ["--bootstrap-internal-url", f"{self.cloud.internal('identity')}/v3"]
        password = {"OS_BOOTSTRAP_PASSWORD": self.cloud.passwords["admin"]}
        self._once("bootstrap", lambda: database.step(self.cloud, "bootstrap", words, password))

    def _catalogue(self) -> None:
        wait([self.part("identity")])
        contents.fill_catalogue(self.cloud)

    def _rings(self) -> None:
        """Swift's rings, of one device each: where the parts of the object store are."""
        folder, builder = self.cloud.etc / "swift", self.cloud.program("swift-ring-builder")
        for kind in ("account", "container", "object"):
            if (folder / f"{kind}.ring.gz").exists():
                continue
            file = str(folder / f"{kind}.builder")
            Path(file).unlink(missing_ok=True)
            device = f"r1z1-{LOCAL}:{self.cloud.own_port(kind)}/d1"
            for words in (["create", "6", "1", "1"], ["add", device, "1"], ["rebalance"]):
                database.step(self.cloud, "rings", [builder, file, *words])

    def _settle(self) -> None:
        """Wait until the cloud can be used: hypervisors are seen, and there is a place for volumes."""
        logs = self.cloud.logs
        until(f"the hypervisors of {self.cloud.name}", self._hosts_missing, logs)
        self._once("mapped", self._map_hosts)
        until(f"the volume service of {self.cloud.name}", self._volumes_missing, logs)

    def _map_hosts(self) -> None:
        file = str(self.cloud.etc / "nova" / "nova.conf")
        words = [self.cloud.program("nova-manage"), "--config-file", file, "cell_v2", "discover_hosts"]
        database.step(self.cloud, "hosts", words)

    def _hosts_missing(self) -> str | None:
        try:
            services = Api(self.cloud).login().get("compute", "/os-services?binary=nova-compute")["services"]
        except ApiError as error:
            return str(error)
        # A host that somebody has declared down says so until he takes it back.
        seen = {s["host"] for s in services if s["state"] == "up" or s.get("forced_down")}
        missing = sorted(set(self.cloud.hosts) - seen)
        return f"{', '.join(missing)} not up" if missing else None

    def _volumes_missing(self) -> str | None:
        try:
            pools = Api(self.cloud).login().get("block-storage", "/scheduler-stats/get_pools")["pools"]
        except ApiError as error:
            return str(error)
        return None if pools else "no storage pool"

    # ------------------------------------------------------------------------------------ down, and faults

    def down(self) -> list[int]:
        """End everything; pids of what had to be swept up. Raises BedError when a port is still open."""
        stop((*self.forks, *self.daemons, *self.apis))
        stop(self.ground)
        swept = sweep(self.cloud.root)
        deadline = time.monotonic() + patience()
        while still := [port for port in self.cloud.ports if listens(port)]:
            if time.monotonic() > deadline:
                said = f"ports {', '.join(map(str, still))} are still open"
                raise BedError(f"cloud {self.cloud.name}: {said}; by no process of ours that is known")
            time.sleep(0.2)
        return swept

    def purge(self) -> None:
        shutil.rmtree(self.cloud.root, ignore_errors=True)

    def kill(self, name: str) -> None:
        """SIGKILL, as when a machine loses power. A host that is killed keeps its guests in its file."""
        stop([self.part(name)], hard=True)

    def stop(self, name: str) -> None:
        stop([self.part(name)])

    def start(self, name: str) -> None:
        """Start one part, if it does not run, and wait until it is ready."""
        self._start([self.part(name)])

    def fault(self, host: str, faults: dict[str, float | str]) -> None:
        """Let calls of a hypervisor fail ("fail") or take seconds, from the next one on; none: all is well again."""
        write(self.cloud.state_of(host) / "faults.json", json.dumps(faults) + "\n")

    def certificate(self, state: str) -> None:
        """Show a certificate that is valid, or one that has expired, from the next connection on."""
        certificates.server(self.cloud, state)
        if (pid := self.part("front").pid()) is not None:
            os.kill(pid, signal.SIGHUP)
