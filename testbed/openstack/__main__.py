"""The command line of the OpenStack test bed: `python3 -m testbed.openstack up`; `--help` lists the rest."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from testbed.openstack import certificates, contents, debian, environments
from testbed.openstack.cloud import Running
from testbed.openstack.layout import Bed, BedError, patience, the_bed
from testbed.openstack.parts import sweep

BEGAN = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGAN:6.1f} s] {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = arguments()
    chosen = parser.parse_args()
    try:
        bed = the_bed()
        chosen.act(bed, chosen)
    except BedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("testbed: interrupted; call it again to go on, or `down`", file=sys.stderr)
        return 130
    return 0


def arguments() -> argparse.ArgumentParser:
    """Every command with what it takes; `act` is the function that does it."""
    parser = argparse.ArgumentParser(
        prog="python3 -m testbed.openstack",
        description="Two independent OpenStack clouds on this machine. docs/guides/testbed.md says more.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(
        name: str, act: Callable[[Bed, argparse.Namespace], None], about: str, *takes: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=about, description=about)
        command.set_defaults(act=act)
        for word in takes:
            command.add_argument(word)
        return command

    add("up", up, "bring up what is not up").add_argument("clouds", nargs="*", metavar="CLOUD")
    command = add("down", down, "end every process")
    command.add_argument("clouds", nargs="*", metavar="CLOUD")
    command.add_argument("--purge", action="store_true", help="and remove every file")
    add("status", status, "what runs, and where the files are")
    add("kill", _on_part(Running.kill), "SIGKILL a part; of a hypervisor, as when its machine dies", "cloud", "part")
    add("stop", _on_part(Running.stop), "end a part", "cloud", "part")
    add("start", _on_part(Running.start), "start a part that is stopped or dead", "cloud", "part")
    command = add("fault", fault, "let calls of a hypervisor fail or wait; without any, none does", "cloud", "host")
    command.add_argument("faults", nargs="*", metavar="CALL=fail|SECONDS", help="spawn=fail, power_off=3.5, …")
    add("certificate", certificate, "show another certificate from the next connection on", "cloud").add_argument(
        "state", choices=certificates.STATES
    )
    return parser


@contextmanager
def locked(bed: Bed) -> Iterator[None]:
    """One of us at a time."""
    bed.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (bed.root / "lock").open("w") as lock:
        deadline = time.monotonic() + 2 * patience()
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BedError(f"another call has held {lock.name} for {2 * patience():.0f} s") from None
                time.sleep(0.5)
        yield


def _running(bed: Bed, names: list[str]) -> list[Running]:
    clouds = [bed.cloud(name) for name in names] or list(bed.clouds)
    return [Running(cloud, lambda text, name=cloud.name: say(f"{name}: {text}")) for cloud in clouds]  # type: ignore[misc]


def up(bed: Bed, chosen: argparse.Namespace) -> None:
    """Everything that is not up yet; several clouds at the same time."""
    if os.geteuid() != 0:
        raise BedError("be root: the parts of a cloud expect it")
    with locked(bed):
        clouds = _running(bed, chosen.clouds)
        logs = bed.root / "log"
        if installed := debian.install(logs / "apt.log"):
            say(f"installed {', '.join(installed)}")
        for release in sorted({running.cloud.release for running in clouds}):
            where = next(r.cloud.environment for r in clouds if r.cloud.release == release)
            if environments.build(release, where, logs / f"environment-{release}.log"):
                say(f"made the Python environment of OpenStack {release}")
        certificates.authority(bed)
        contents.write_clouds_yaml(bed)
        with ThreadPoolExecutor() as pool:
            results = [pool.submit(running.up) for running in clouds]
        failed = []
        for running, result in zip(clouds, results, strict=True):
            try:
                began = result.result()
            except BedError as error:
                failed.append(str(error))
                continue
            what = f"started {len(began)} parts" if len(began) > 6 else f"started {', '.join(began) or 'nothing'}"
            cloud = running.cloud
            say(f"{cloud.name} is up ({what}): OpenStack {cloud.release}, {cloud.public('identity')}/v3")
        if failed:
            raise BedError("\n".join(failed))
    say(f"clouds: {bed.clouds_yaml}; authority: {bed.authority}")


def down(bed: Bed, chosen: argparse.Namespace) -> None:
    """End what runs, and remove the files if asked to."""
    if not bed.root.exists():
        return
    with locked(bed):
        clouds = _running(bed, chosen.clouds)
        with ThreadPoolExecutor() as pool:
            for running, swept in zip(clouds, pool.map(Running.down, clouds), strict=True):
                more = f"; {len(swept)} processes had lost their record" if swept else ""
                say(f"{running.cloud.name} is down{more}")
        if not chosen.purge:
            return
        for running in clouds:
            running.purge()
        if not any(cloud.root.exists() for cloud in bed.clouds):
            sweep(bed.root)
            shutil.rmtree(bed.root)
            with suppress(OSError):  # other test beds may be there
                bed.root.parent.rmdir()
            say("nothing is left")


def status(bed: Bed, _chosen: argparse.Namespace) -> None:
    for running in _running(bed, []):
        cloud = running.cloud
        print(f"{cloud.name}  OpenStack {cloud.release}  {cloud.public('identity')}/v3  logs: {cloud.logs}")
        for part in running.parts:
            pid = part.pid()
            print(f"  {part.name:18} {f'runs, process {pid}' if pid else 'does not run'}")
    print(f"clouds: {bed.clouds_yaml}\nauthority: {bed.authority}")


def _on_part(do: Callable[[Running, str], None]) -> Callable[[Bed, argparse.Namespace], None]:
    def act(bed: Bed, chosen: argparse.Namespace) -> None:
        with locked(bed):
            do(Running(_set_up(bed, chosen.cloud).cloud), chosen.part)

    return act


def _set_up(bed: Bed, name: str) -> Running:
    cloud = bed.cloud(name)
    if not cloud.etc.exists():
        raise BedError(f"cloud {name} has never been up; `up` comes first")
    return Running(cloud)


def fault(bed: Bed, chosen: argparse.Namespace) -> None:
    wanted: dict[str, float | str] = {}
    for item in chosen.faults:
        call, _, how = item.partition("=")
        try:
            wanted[call] = how if how == "fail" else float(how)
        except ValueError:
            raise BedError(f"{item!r}: write CALL=fail or CALL=SECONDS, such as spawn=fail or power_off=3.5") from None
    _set_up(bed, chosen.cloud).fault(chosen.host, wanted)


def certificate(bed: Bed, chosen: argparse.Namespace) -> None:
    with locked(bed):
        _set_up(bed, chosen.cloud).certificate(chosen.state)


if __name__ == "__main__":
    sys.exit(main())
