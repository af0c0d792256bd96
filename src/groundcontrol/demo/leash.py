"""Start a program that ends with the demonstration: the kernel sends it SIGTERM when its parent dies, even by SIGKILL.

Run as `python -I -S leash.py PARENT PROGRAM ARGUMENT…`; made of the standard library alone and gone after one exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    parent, *command = arguments
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    # The parent may have died before the kernel was asked.
    if os.getppid() != int(parent):
        return 1
    # A Python that ignores SIGINT or SIGTERM would hand that on.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
