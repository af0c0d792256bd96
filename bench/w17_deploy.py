"""W17: 50 servers on a real cloud until all are ACTIVE: openstacksdk alone against our driver, in turns, same cloud.

Ours creates with a mark and notices by looking, as the kernel does; the SDK's way is a create and a wait for each. It
needs `GROUND_TEST_CLOUDS` (a clouds.yaml) and the extra `openstack`. With `--fill N` also what looking at N servers
costs.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from bench._kernel import told
from groundcontrol.drivers.openstack import connect
from groundcontrol.kernel.errors import NotFound
from groundcontrol.ports.cloud import Mark

AT_ONCE = 5
PATIENCE = 900.0
FLAVOR, IMAGE = "m1.tiny", "debian-12"


def entry(name: str) -> dict[str, Any]:
    """One cloud of the file."""
    text = Path(os.environ["GROUND_TEST_CLOUDS"]).read_text(encoding="utf-8")
    return dict(yaml.safe_load(text)["clouds"][name])


def opened(told_: dict[str, Any]) -> Any:
    """Our driver on it."""
    auth = dict(told_["auth"])
    address = auth.pop("auth_url")
    options = {"region": told_["region_name"], "lookSeconds": "60"}
    if "cacert" in told_:
        options["caCert"] = told_["cacert"]
    return connect("site/bench", address, json.dumps(auth), options, 120.0)


def mark() -> Mark:
    return Mark(
        installation="i-bench", owner="u-bench", owner_key="Server bench/w17", change=f"c-{secrets.token_hex(12)}"
    )


def with_sdk(told_: dict[str, Any], count: int, flavor: str, image: str) -> tuple[float, list[str]]:
    """Seconds until all are ACTIVE, and their ids."""
    import openstack

    cloud = openstack.connect(
        load_yaml_config=False,
        load_envvars=False,
        auth=told_["auth"],
        region_name=told_["region_name"],
        cacert=told_.get("cacert"),
    )
    prefix = f"w17-sdk-{secrets.token_hex(3)}"

    def one(number: int) -> str:
        made = cloud.compute.create_server(name=f"{prefix}-{number}", flavor_id=flavor, image_id=image, networks="none")
        cloud.compute.wait_for_server(made, wait=PATIENCE, interval=2)
        return str(made.id)

    cloud.compute.get("/servers?limit=1")
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ids = list(pool.map(one, range(count)))
    return time.perf_counter() - began, ids


def with_driver(cloud: Any, count: int, flavor: str, image: str) -> tuple[float, list[str]]:
    """The same with our driver: created, and seen by looking."""
    prefix = f"w17-our-{secrets.token_hex(3)}"
    sequence = cloud.look().sequence
    began = time.perf_counter()

    def one(number: int) -> str:
        fields = {"name": f"{prefix}-{number}", "flavor": flavor, "image": image, "networks": []}
        return str(cloud.create("server", "", fields, mark()).id)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = pool.map(one, range(count))
        ids = list(waiting)
    while True:
        seen = cloud.look()
        ready = {t.id for t in seen.things if t.type == "server" and t.state == "ready"}
        if set(ids) <= ready:
            return time.perf_counter() - began, ids
        if time.perf_counter() - began > PATIENCE:
            raise SystemExit(f"{len(set(ids) - ready)} of {count} servers are not ACTIVE after {PATIENCE:.0f} s")
        sequence = cloud.wait(sequence, 2.0)


def gone(cloud: Any, ids: list[str]) -> None:
    """Delete and wait until it is proved."""

    def one(id: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            cloud.delete("server", id)
            try:
                cloud.get("server", id)
            except NotFound:
                return
            time.sleep(1.0)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, ids))


def looking(told_: dict[str, Any], servers: int, minutes: float) -> dict[str, Any]:
    """What it costs to look: everything once, and then a while in which nothing happens."""
    cloud = opened(told_)
    try:
        began, spent = time.perf_counter(), time.process_time()
        seen = cloud.look()
        first, cpu, calls = time.perf_counter() - began, time.process_time() - spent, seen.facts.calls
        number = sum(t.type == "server" for t in seen.things)
        began, spent, sequence = time.perf_counter(), time.process_time(), seen.sequence
        while time.perf_counter() - began < minutes * 60:
            sequence = cloud.wait(sequence, 2.0)
        took = (time.perf_counter() - began) / 60
        return {
            "servers": number,
            "things": len(seen.things),
            "complete": seen.complete,
            "firstSeconds": round(first, 2),
            "firstCalls": calls,
            "firstCpuSeconds": round(cpu, 2),
            "steadyCallsPerMinute": round((cloud.look().facts.calls - calls) / took, 1),
            "steadyCpuSecondsPerMinute": round((time.process_time() - spent) / took, 2),
        }
    finally:
        cloud.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cloud", default="north", help="entry of the clouds.yaml; its quota must allow the servers")
    parser.add_argument("--servers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fill", type=int, default=0, help="servers to look at")
    parser.add_argument("--minutes", type=float, default=2.0, help="how long nothing happens then")
    options = parser.parse_args()
    if not os.environ.get("GROUND_TEST_CLOUDS"):
        print("w17: not measured: set GROUND_TEST_CLOUDS to a clouds.yaml, for example the test bed's")
        return
    told_ = entry(options.cloud)
    cloud = opened(told_)
    things = cloud.look().things
    flavor = next(t.id for t in things if (t.type, t.name) == ("flavor", FLAVOR))
    image = next(t.id for t in things if (t.type, t.name) == ("image", IMAGE))
    sdk, ours = [], []
    made: list[str] = []
    try:
        for _ in range(options.rounds):
            for way, times in ((with_driver, ours), (with_sdk, sdk)):
                seconds, ids = way(cloud if way is with_driver else told_, options.servers, flavor, image)
                made += ids
                times.append(seconds)
                gone(cloud, ids)
                made = []
        if options.rounds:
            best = min(ours) / min(sdk)
            figures = {"sdkSeconds": sdk, "ourSeconds": ours, "oursOverSdk": best}
            words = (
                f"{options.servers} servers: ours {min(ours):.1f} s, the SDK alone {min(sdk):.1f} s, {best:.2f} times"
            )
            rounded = {k: _round(v) for k, v in figures.items()}
            told("w17", words, servers=options.servers, atOnce=AT_ONCE, **rounded)
        if options.fill:
            seconds, made = with_driver(cloud, options.fill, flavor, image)
            figures = looking(told_, options.fill, options.minutes)
            words = f"{figures['servers']} servers: first look {figures['firstSeconds']} s"
            told("w17-looking", words, fillSeconds=seconds, **figures)
    finally:
        gone(cloud, made)
        cloud.close()


def _round(value: Any) -> Any:
    return [round(v, 2) for v in value] if isinstance(value, list) else round(value, 3)


if __name__ == "__main__":
    main()
