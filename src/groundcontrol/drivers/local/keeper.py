"""The parent of a host's units: it outlives the agent, so units survive it and their exit codes are still known.

Started as `python -I -S keeper.py ROOT` and made of the standard library alone, because it stays for as long as any
unit does and everything it imports is memory. It is also the one place where processes are forked: it has one thread,
so forking is safe, and it takes one order at a time, so a run (named by its nonce) is started once or never:

    fork → the child waits → the keeper writes `run` (pid, start time, boot id) → the child may go → exec

If the keeper is killed before the child may go, the child reads end-of-file and ends. Orders arrive on a unix socket as
a four-byte length and JSON; the answer carries the order's `n`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
from typing import Any

VERSION = 1
LOG_KEEP = 16 << 20
"""Bytes of a log that always stay."""
LOG_BOUND = 32 << 20
"""Bytes on disk at which the head of a log is given back."""
IDLE = 3.0
"""Seconds without an agent and without a unit after which the keeper ends."""

PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def replace_file(path: str, content: dict[str, Any]) -> None:
    """Write JSON so that a reader sees all of it or none. No fsync: what it describes does not survive a power cut."""
    descriptor = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, json.dumps(content).encode())
    finally:
        os.close(descriptor)
    os.rename(f"{path}.tmp", path)


def bound_log(path: str) -> None:
    """Give the head of a long log back to the disk; byte offsets of what stays do not move."""
    try:
        status = os.stat(path)
        if status.st_blocks * 512 <= LOG_BOUND:
            return
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        hole = max(0, status.st_size - LOG_KEEP) & ~4095
        mode = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        if not hole or _libc.fallocate(descriptor, mode, 0, hole) != 0:
            os.ftruncate(descriptor, 0)  # A file system without holes: the bound matters more than the text.
    finally:
        os.close(descriptor)


class Keeper:
    """Takes orders from agents, forks, waits, and writes how each run ended."""

    def __init__(self, root: str) -> None:
        self.root = root
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            self.boot = boot.read().strip()
        self.children: dict[int, dict[str, Any]] = {}
        self.started: dict[str, int] = {}
        self.void: dict[str, None] = {}
        self.agents: dict[int, tuple[socket.socket, bytearray]] = {}
        self.poll = select.poll()
        self.idle_since = time.monotonic()

    def listen(self) -> bool:
        """Take the lock and the socket; False when another keeper serves this root."""
        place = os.open(f"{self.root}/keeper", os.O_RDONLY | os.O_DIRECTORY)
        self.lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=place)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        # Through /proc, because the path of a unix socket may have 107 bytes only.
        path = f"/proc/self/fd/{place}/socket"
        if os.path.lexists(path):
            os.unlink(path)
        self.listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(path)
        self.listener.listen(16)
        self.poll.register(self.listener, select.POLLIN)
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.poll.register(self.wake, select.POLLIN)
        return True

    def serve(self) -> None:
        """Work until there is nothing left to keep."""
        next_logs = 0.0
        while True:
            for descriptor, _ in self.poll.poll(500):
                if descriptor == self.wake:
                    os.read(self.wake, 4096)
                elif self.listener is not None and descriptor == self.listener.fileno():
                    self.accept()
                else:
                    self.receive(descriptor)
            self.reap()
            now = time.monotonic()
            if now >= next_logs:
                next_logs = now + 0.5
                for unit in self.unit_folders():
                    bound_log(f"{unit}/log")
            if self.agents or self.children:
                self.idle_since = now
            elif now - self.idle_since > IDLE or self.listener is None or not os.path.isdir(self.root):
                return

    def note(self, text: str) -> None:
        """Into `keeper/errors`, which is our standard error; `logging` would cost every host a megabyte."""
        os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n".encode())

    def unit_folders(self) -> list[str]:
        try:
            return [entry.path for entry in os.scandir(f"{self.root}/units")]
        except OSError:
            return []

    def accept(self) -> None:
        assert self.listener is not None
        agent, _ = self.listener.accept()
        peer = struct.unpack("3i", agent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if peer not in (os.geteuid(), 0):
            agent.close()
            return
        self.agents[agent.fileno()] = (agent, bytearray())
        self.poll.register(agent, select.POLLIN)

    def receive(self, descriptor: int) -> None:
        agent, buffer = self.agents[descriptor]
        try:
            piece = agent.recv(1 << 20)
        except OSError:
            piece = b""
        buffer += piece
        while len(buffer) >= 4 and len(buffer) >= 4 + (size := int.from_bytes(buffer[:4], "big")):
            order = json.loads(bytes(buffer[4 : 4 + size]))
            del buffer[: 4 + size]
            try:
                answer = getattr(self, "do_" + order["do"])(order)
            except Exception as problem:  # An order that fails must not end the parent of every unit.
                answer = {"error": f"{type(problem).__name__}: {problem}"}
            self.send(agent, {"n": order["n"], **answer})
        if not piece:
            self.poll.unregister(descriptor)
            del self.agents[descriptor]
            agent.close()

    def send(self, agent: socket.socket, message: dict[str, Any]) -> None:
        body = json.dumps(message).encode()
        try:
            # Never waits for an agent that does not read: the truth is in the files as well.
            agent.send(len(body).to_bytes(4, "big") + body, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            return

    def do_hello(self, order: dict[str, Any]) -> dict[str, Any]:
        return {"version": VERSION, "pid": os.getpid()}

    def do_retire(self, order: dict[str, Any]) -> dict[str, Any]:
        """Make room for a keeper of another version; go on waiting for what was started here."""
        if self.listener is not None:
            self.poll.unregister(self.listener)
            self.listener.close()
            self.listener = None
            os.close(self.lock)
        return {}

    def do_void(self, order: dict[str, Any]) -> dict[str, Any]:
        """Say whether a run was started; if it was not, it never will be."""
        pid = self.started.get(order["run"], 0)
        if not pid:
            self.give_up(order["run"])
        return {"pid": pid}

    def give_up(self, run: str) -> None:
        self.void[run] = None
        if len(self.void) > 10_000:
            self.void.pop(next(iter(self.void)))

    def do_probe(self, order: dict[str, Any]) -> dict[str, Any]:
        """Run a health command; its end is told to the agents as `probe`."""
        return self.fork(order, {"probe": order["n"]}, "/dev/null", None)

    def do_spawn(self, order: dict[str, Any]) -> dict[str, Any]:
        run, unit = order["run"], order["unit"]
        if run in self.void or self.listener is None:
            return {"error": "this run was given up"}
        if run in self.started:
            return {"pid": self.started[run], "ticks": start_ticks(self.started[run])}
        return self.fork(order, {"run": run, "unit": unit}, f"{unit}/log", f"{unit}/run")

    def fork(self, order: dict[str, Any], about: dict[str, Any], log: str, record: str | None) -> dict[str, Any]:
        """Start one process; answer `pid` and `ticks`, and `error` when its program cannot be executed."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        output = os.open(log, flags if record else os.O_WRONLY, 0o600)
        go_out, go_in = os.pipe()
        told_out, told_in = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_in)
            os.close(told_out)
            become(order, output, go_out, told_in)
        for descriptor in (output, go_out, told_in):
            os.close(descriptor)
        ticks = start_ticks(pid)
        self.children[pid] = about
        if record:
            self.started[order["run"]] = pid
            about = {"run": order["run"], "pid": pid, "ticks": ticks, "boot": self.boot, "started": time.time()}
            replace_file(record, about)
        os.write(go_in, b"g")
        os.close(go_in)
        readable = select.select([told_out], [], [], 5.0)[0]
        problem = os.read(told_out, 4096).decode() if readable else ""
        os.close(told_out)
        return {"pid": pid, "ticks": ticks, "error": problem} if problem else {"pid": pid, "ticks": ticks}

    def reap(self) -> None:
        """Write how runs ended, then let their zombies go: whoever sees a pid gone finds the file."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            about = self.children.pop(ended.si_pid, None)
            if about and "run" in about:
                try:
                    replace_file(f"{about['unit']}/exit", {"run": about["run"], "code": code, "time": time.time()})
                except OSError as problem:  # The unit's folder was removed, or the disk is full: the code is lost.
                    self.note(f"cannot write how {about['unit']} ended: {problem}")
                self.started.pop(about["run"], None)
                self.give_up(about["run"])
            elif about:
                for agent, _ in list(self.agents.values()):
                    self.send(agent, {"n": 0, "probe": about["probe"], "code": code})
            os.waitpid(ended.si_pid, 0)


def become(order: dict[str, Any], output: int, go: int, told: int) -> None:
    """In the child: take the unit's identity and limits, wait for the word, execute. Never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in range(1, signal.NSIG):
            if number not in (signal.SIGKILL, signal.SIGSTOP) and signal.getsignal(number) is not None:
                signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.setsid()
        if os.read(go, 1) != b"g":
            os._exit(0)  # The keeper died before it could write down that this process exists.
        for path in order["cgroups"]:
            try:
                with open(path, "w", encoding="ascii") as members:
                    members.write("0")
            except OSError:
                continue  # Best effort; the host reads back what holds.
        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.umask(0o077)
        os.chdir(order["cwd"])
        for name, soft, hard in order["rlimits"]:
            resource.setrlimit(getattr(resource, name), (soft, hard))
        if order["uid"] is not None:
            os.setgroups([])
            os.setresgid(order["uid"], order["uid"], order["uid"])
            os.setresuid(order["uid"], order["uid"], order["uid"])
        if _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
        if told != 3:
            told = os.dup2(told, 3, inheritable=False)
        os.closerange(4, 1 << 20)
        os.execvpe(order["argv"][0], order["argv"], order["env"])
    except BaseException as problem:
        failed = getattr(problem, "errno", None)
        reason = f"cannot start {order['argv'][0]}: {os.strerror(failed) if failed else problem}"
        if failed == errno.EAGAIN:
            reason += " (the limit of processes is reached)"
        try:
            os.write(1, f"ground: {reason}\n".encode())
            os.write(told, reason.encode()[:4000])
        finally:
            os._exit(127)


def main() -> int:
    keeper = Keeper(sys.argv[1])
    if not keeper.listen():
        return 0
    # The starter waits for the end of the first process: the socket listens by then.
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    keeper.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
