"""`ground demo`, or `python -m groundcontrol.demo`: sets up, plays the story, and leaves nothing running."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from groundcontrol.demo import processes
from groundcontrol.demo.client import Refused
from groundcontrol.demo.federation import Federation, NotUp
from groundcontrol.demo.manifests import SOURCE
from groundcontrol.demo.observer import NoAnswer, Observer
from groundcontrol.demo.place import Busy, Place
from groundcontrol.demo.repository import GitFailed
from groundcontrol.demo.story import Failed, Story
from groundcontrol.demo.telling import Teller, for_people

PAUSE = 2.0
"""Seconds between the steps when somebody may be watching."""
TROUBLE = (Failed, NotUp, GitFailed, Refused, NoAnswer, OSError, LookupError, ValueError)
STEPS = ("converge", "change", "heal", "drift", "guard", "cut", "return", "crash")


class Stopped(BaseException):
    """Somebody asked us to end."""


def _options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="ground demo",
        description="Three sites on this machine, and a story of faults played on them.",
    )
    parser.add_argument("--once", action="store_true", help="play the story once, stop everything, and exit")
    parser.add_argument("--json", action="store_true", help="last line of standard output: the result as JSON")
    parser.add_argument("--directory", metavar="DIR", help="where to work; default ./ground-demo, or a passing one")
    parser.add_argument("--keep", action="store_true", help="with --once: keep the directory")
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="port of the server; default 8440 or a free one"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """0 when every step held, or somebody stopped what was to last; 1 otherwise; 2 when it could not begin."""
    options = _options(argv)
    teller = for_people(options.json)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _stop)
    passing = options.once and not options.directory
    root = Path(tempfile.mkdtemp(prefix="ground-demo-")) if passing else Path(options.directory or "ground-demo")
    place = Place(root)
    steps: list[dict[str, Any]] = []
    try:
        place.take()
        place.prepare(options.port, passing=options.once)
        _run(place, options.once, teller, steps)
        code = 0 if len(steps) == len(STEPS) and all(step["ok"] for step in steps) else 1
    except Busy as problem:
        print(f"ground demo: {problem}", file=sys.stderr)
        return 2
    except Stopped:
        code = 1 if options.once else 0
    finally:
        if passing and not options.keep:
            shutil.rmtree(root, ignore_errors=True)
    if options.json:
        played = {step["name"]: step for step in steps}
        never = {"ok": False, "seconds": 0.0, "detail": "not played"}
        listed = [played.get(name, {"name": name, **never}) for name in STEPS]
        print(json.dumps({"ok": code == 0, "steps": listed}), flush=True)
    return code


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal ends the story; those that follow do not disturb the cleaning up."""
    for again in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(again, signal.SIG_IGN)
    raise Stopped


def _run(place: Place, once: bool, teller: Teller, steps: list[dict[str, Any]]) -> None:
    """Bring the world up, play, stay (unless `once`), and take it down again whatever happens."""
    teller.title(f"Ground Control demonstration in {place.root}")
    left = processes.left_by_last(place.root, place.sites, place.running)
    if left:
        teller.say(f"ending {len(left)} processes that a demonstration which was killed has left here")
        processes.end(left)
    processes.become_subreaper()
    # Every run begins with an empty server and empty sites; the repository, keys and ports stay.
    shutil.rmtree(place.root / "data", ignore_errors=True)
    place.make_sites()
    world = Federation(place)
    try:
        story = _set_up(world, teller)
        if story is not None:
            _play(story, once, world, teller, steps)
            if not once:
                _stay(world, teller)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        teller.say("\nstopping server, agents and services …")
        world.stop()
        place.remove_sites()
        teller.say("nothing is left running")


def _set_up(world: Federation, teller: Teller) -> Story | None:
    try:
        world.make_repository()
        teller.say("three sites, each an agent of its own behind a proxy of ours: cnaf, bari, recas")
        world.start_sites()
        seconds = world.start_server()
        teller.say(f"the server answers at {world.place.url} (ready after {seconds:.1f} s)")
        world.bootstrap()
        teller.say(f"told it, by API, of the repository {world.repository.url} and what that may declare")
    except TROUBLE as problem:
        teller.judged(False, 0.0, f"the demonstration did not come up: {problem}")
        return None
    place = world.place
    observer = Observer(place.sites, place.origin, place.url, lambda: world.api.token, SOURCE)
    return Story(world, observer, teller)


def _play(story: Story, once: bool, world: Federation, teller: Teller, steps: list[dict[str, Any]]) -> None:
    """Every step in order; after one that failed, the next is tried from a clean state, if that can be reached."""
    hopeless = ""
    for number, (name, (what, act)) in enumerate(story.steps.items(), start=1):
        teller.step(number, len(story.steps), name, what)
        began = time.monotonic()
        if hopeless:
            ok, seconds, detail = False, 0.0, f"not played: {hopeless}"
        else:
            try:
                seconds, detail = act()
                ok = True
            except TROUBLE as problem:
                ok, seconds, detail = False, time.monotonic() - began, str(problem) or type(problem).__name__
        teller.judged(ok, seconds, detail)
        steps.append({"name": name, "ok": ok, "seconds": round(seconds, 3), "detail": detail})
        if not ok and not hopeless and name != "crash":
            try:
                story.restore()
            except TROUBLE as problem:
                hopeless = f"after {name} the services did not come back: {problem}"
        if not once:
            if name == "converge":
                _invite(world, teller)
            time.sleep(PAUSE)
    held = sum(step["ok"] for step in steps)
    teller.say(f"\n{held} of {len(steps)} steps held")


def _invite(world: Federation, teller: Teller) -> None:
    place = world.place
    teller.say(
        f"\nThe address to open:  {place.url}"
        f"\nTo sign in:           ground login {place.url} --user admin --password-stdin < {place.password}"
        f"\nThe repository:       {place.checkout} (change, commit, push)"
        f"\nTo cut a site off:    echo bari > {place.cut}   (and to let it return:  : > {place.cut})"
        "\nThe story goes on by itself. Ctrl-C stops the demonstration and leaves nothing running."
    )


def _stay(world: Federation, teller: Teller) -> None:
    """Until somebody stops us: start again what was killed, cut what is asked to be cut."""
    _invite(world, teller)
    while True:
        for name in world.mend():
            teller.say(f"{name} had ended and was started again")
        for change in world.follow_cuts():
            teller.say(change)
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
