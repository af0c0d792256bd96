"""How the demonstration speaks: steps, what is waited for, and what was judged, for a terminal or for a log."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import time
from typing import TextIO

BOLD, DIM, GREEN, RED, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[32m", "\x1b[31m", "\x1b[0m"
EVERY = 2.0
"""Seconds between lines of progress where nothing can be overwritten."""


class Teller:
    """Writes to one stream; overwrites the line of progress on a terminal only."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._open = False
        """A line of progress stands at the cursor."""
        self._told = ("", 0.0)
        self._began = time.monotonic()

    def title(self, text: str) -> None:
        self._line(f"{self._paint(BOLD, text)}\n")

    def say(self, text: str = "") -> None:
        """A paragraph, indented."""
        self._line("".join(f"  {line}".rstrip() + "\n" for line in text.split("\n")))

    def step(self, number: int, of: int, name: str, what: str) -> None:
        self._began = time.monotonic()
        self._line(f"\n{self._paint(BOLD, f'{number}/{of} {name:<9}')} {what}\n")

    def did(self, text: str) -> None:
        """One thing that was done."""
        self._line(f"    {text}\n")

    def waits(self, text: str) -> None:
        """What is waited for now."""
        seconds = time.monotonic() - self._began
        line = f"    … {text}"
        if self._terminal:
            width = max(20, shutil.get_terminal_size().columns - 10)
            shown = line if len(line) <= width else line[: width - 1] + "…"
            self._write(f"\r\x1b[K{self._paint(DIM, f'{shown} ({seconds:.0f} s)')}")
            self._open = True
        elif text != self._told[0] and time.monotonic() - self._told[1] > EVERY:
            self._told = (text, time.monotonic())
            self._line(f"{line}\n")

    def judged(self, ok: bool, seconds: float, detail: str) -> None:
        """The verdict on a step."""
        sign = self._paint(GREEN, "✓ held") if ok else self._paint(RED, "✗ failed")
        self._line(f"    {sign} ({seconds:.1f} s): {detail}\n")

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self._terminal else text

    def _line(self, text: str) -> None:
        self._write(("\r\x1b[K" if self._open else "") + text)
        self._open = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except UnicodeEncodeError:
            self._stream.write(text.encode("ascii", "replace").decode())
        except (BrokenPipeError, ValueError):
            # Nobody reads any more; what has been started still has to be stopped in order.
            _give_up(self._stream)
            self._stream = io.StringIO()


def _give_up(stream: TextIO) -> None:
    """What is still in the buffer must not complain when Python flushes it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def for_people(json_wanted: bool) -> Teller:
    """Standard output belongs to the JSON when there is one."""
    return Teller(sys.stderr if json_wanted else sys.stdout)
