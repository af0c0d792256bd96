"""What the demonstration's repository declares: three sites, two groups with their people, six services."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from groundcontrol.demo.observer import LABEL, Wanted
from groundcontrol.demo.place import SITES, Place

SOURCE = "platform"
HTTP, TCP = 8080, 7000
GREETING = "Hello from Ground Control.\n"
ARCHIVE = "Archive, first edition.\n"

TOPOLOGY = {
    "cnaf": ("bologna", "A", "A12"),
    "bari": ("recas-ba", "1", "R3"),
    "recas": ("recas-ba", "2", "R7"),
}
REGIONS = {"cnaf": "north", "bari": "south", "recas": "south"}
SERVES = {"cnaf": "alpha", "bari": "alpha", "recas": "beta"}
"""Without root a site cannot keep the processes of two groups apart, and takes those of one only."""
GROUPS = {
    "alpha": ("experiments/alpha", "ada", ("web", "portal", "archive")),
    "beta": ("experiments/beta", "bruno", ("slow", "echo", "ingest")),
}
ALL = tuple(f"{namespace}/{name}" for namespace, (_, _, names) in GROUPS.items() for name in names)


class State(NamedTuple):
    """What changes between commits; everything else of the tree is always the same."""

    version: str = "1"
    """VERSION of every service."""
    greeting: str = GREETING
    """What `web` says."""
    archive: str = ARCHIVE
    """What `archive` says."""


def path_of(service: str) -> str:
    """The file that declares a service, `namespace/name`."""
    namespace, name = service.split("/")
    return f"groups/{namespace}/{name}.yaml"


def tree(place: Place, state: State) -> dict[str, str]:
    """Every file of the repository: path to text."""
    files = {"README.md": README}
    for site in SITES:
        files[f"sites/{site}.yaml"] = _site(place, site)
    for namespace, (group, member, _) in GROUPS.items():
        files[f"groups/{namespace}/namespace.yaml"] = _group(namespace, group, member)
    return files | {path_of(name): text for name, text in services(state).items()}


def services(state: State) -> dict[str, str]:
    """The six services: `namespace/name` to YAML."""
    return {
        name: SERVICES[name].format(
            version=state.version,
            label=LABEL,
            name=name.split("/")[1],
            namespace=name.split("/")[0],
            greeting=json.dumps(state.greeting),
            archive=json.dumps(state.archive),
        )
        for name in ALL
    }


def wanted(state: State) -> dict[str, Wanted]:
    """The same for the observer, by name."""
    version, says = state.version, state.greeting
    listed = (
        Wanted("alpha/web", "http", HTTP, version=version, says=says),
        Wanted("alpha/portal", "http", HTTP, version=version, says="Portal", behind=says),
        Wanted("alpha/archive", "http", HTTP, replicas=2, version=version, says=state.archive, apart=True),
        Wanted("beta/slow", "http", HTTP, version=version, says="Slow but sure"),
        Wanted("beta/echo", "tcp", TCP, version=version),
        Wanted("beta/ingest", "nothing", version=version, says="done, code 0", once=True),
    )
    return {one.name: one for one in listed}


def bootstrap(place: Place, repository: str) -> list[dict[str, Any]]:
    """What cannot come from the repository: where it is, and what it may declare."""
    source = {
        "repository": repository,
        "branch": "main",
        "interval": 10,
        "webhookSecret": "secret:webhook/token",
    }
    binding = {"role": "admin", "subjects": [f"source:{SOURCE}"]}
    return [
        {"apiVersion": "ground/v1", "kind": "RoleBinding", "metadata": {"name": f"source-{SOURCE}"}, "spec": binding},
        {"apiVersion": "ground/v1", "kind": "Source", "metadata": {"name": SOURCE}, "spec": source},
    ]


def settings(place: Place) -> str:
    """`ground.yaml`, the settings of the demonstration's server."""
    agents = "\n".join(f"    agents/{site}: {json.dumps(f'file:{place.agent_token(site)}')}" for site in SITES)
    return f"""\
# Settings of the demonstration's server. `ground init` writes a file with every setting explained.
data: {json.dumps(str(place.root / "data"))}
listen: 127.0.0.1:{place.ports["server"]}
accounts:
  admin:
    user: admin
    password: {json.dumps(f"file:{place.password}")}
observe:
  # Here a site counts as unreachable after seconds, so that the story can be watched.
  waitSeconds: 1
  staleAfterSeconds: 4
secrets:
  # What Source and Sites name as secret:NAME/KEY.
  platform:
    webhook/token: {json.dumps(f"file:{place.hook_token}")}
{agents}
sources:
  # The repository lies on this machine. Not for servers whose Sources are declared by strangers.
  allowFile: true
"""


def _site(place: Place, site: str) -> str:
    datacentre, room, rack = TOPOLOGY[site]
    return f"""\
apiVersion: ground/v1
kind: Site
metadata:
  name: {site}
  labels: {{country: it, serves: {SERVES[site]}}}
spec:
  driver: local
  # The demonstration's own proxy in front of the agent: what `cut` cuts.
  endpoint: http://127.0.0.1:{place.ports[f"proxy-{site}"]}
  credentials: secret:agents/{site}
  region: {REGIONS[site]}
  topology: {{datacentre: {datacentre}, room: "{room}", rack: {rack}}}
"""


def _group(namespace: str, group: str, member: str) -> str:
    return f"""\
apiVersion: ground/v1
kind: Namespace
metadata: {{name: {namespace}}}
spec:
  group: {group}
  description: Services of the {namespace} experiment
---
apiVersion: ground/v1
kind: Account
metadata: {{name: {member}}}
spec:
  groups: [{group}]
  description: Member of the {namespace} experiment
---
apiVersion: ground/v1
kind: RoleBinding
metadata: {{name: {namespace}-members}}
spec:
  role: member
  subjects: ["group:{group}"]
  selector: {{groups: [{group}]}}
"""


_HEAD = """\
apiVersion: ground/v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
  labels: {{app: {name}}}
spec:
"""
_AT = "  placement: {{siteSelector: serves={namespace}}}\n"
_HTTP = """\
  ports: {{http: 8080}}
  health: {{kind: http, path: /healthz, interval: 0.3, timeout: 1, failures: 2}}
  resources: {{cores: 0.25, memoryMb: 256}}
  env: {{{label}: {namespace}/{name}, VERSION: "{version}"}}
"""

SERVICES: Mapping[str, str] = {
    "alpha/web": _HEAD + "  sample: web\n" + _AT + _HTTP + "  files:\n    message.txt: {greeting}\n",
    "alpha/portal": _HEAD
    + "  # Starts once `web` is available; finds its addresses in endpoints.json and asks it at /backend.\n"
    + "  sample: web\n  dependsOn: [web]\n"
    + _AT
    + _HTTP
    + '  files:\n    message.txt: "Portal: see /backend for what web says.\\n"\n',
    "alpha/archive": _HEAD
    + "  # Two replicas, never on one site: one of them outlives the loss of any site.\n"
    + "  sample: web\n  replicas: 2\n  placement: {{siteSelector: serves={namespace}, spread: site}}\n"
    + _HTTP
    + "  files:\n    message.txt: {archive}\n",
    "beta/slow": _HEAD
    + "  # Answers three seconds after it was started.\n"
    + "  sample: slow\n"
    + _AT
    + _HTTP.replace('VERSION: "{version}"', 'VERSION: "{version}", DELAY: "3"').replace(
        "failures: 2", "failures: 2, startPeriod: 10"
    )
    + '  files:\n    message.txt: "Slow but sure.\\n"\n',
    "beta/echo": _HEAD
    + "  # No HTTP: healthy while its TCP port takes connections.\n"
    + "  sample: tcp\n"
    + _AT
    + "  ports: {{tcp: 7000}}\n"
    + "  health: {{kind: tcp, interval: 0.3, timeout: 1, failures: 2}}\n"
    + "  resources: {{cores: 0.25, memoryMb: 256}}\n"
    + '  env: {{{label}: {namespace}/{name}, VERSION: "{version}"}}\n',
    "beta/ingest": _HEAD
    + "  # Works for a second and is done.\n"
    + "  sample: once\n"
    + _AT
    + "  runOnce: true\n  restart: never\n"
    + "  resources: {{cores: 0.25, memoryMb: 256}}\n"
    + '  env: {{{label}: {namespace}/{name}, VERSION: "{version}", SECONDS: "1"}}\n',
}

README = """\
# What the demonstration federation should be

Three sites in `sites/`, two groups in `groups/`, six services. Change a file, commit, push, and watch:

    git commit -am 'Say something else' && git push
"""
