"""`ground serve`: the whole program in one process. SIGTERM or Ctrl-C stops it in order; the sites go on."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from groundcontrol.kernel.errors import Unavailable
from groundcontrol.kernel.secrets import Redaction
from groundcontrol.kernel.settings import Settings, load

log = logging.getLogger("groundcontrol")

_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class _Fields(logging.Formatter):
    """A constant message with its fields: `time level message key=value …`, or one JSON object per line."""

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = {k: v for k, v in record.__dict__.items() if k not in _RECORD and not k.startswith("color_")}
        # Redaction leaves the text of a trace in place of the exception.
        trace = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        level, message = record.levelname.lower(), record.getMessage()
        if self._json:
            line = {"time": stamp, "level": level, "logger": record.name, "message": message, **fields}
            return json.dumps(line | ({"trace_back": trace} if trace else {}), default=str)
        told = " ".join(f"{k}={_quoted(v)}" for k, v in fields.items())
        return " ".join(p for p in (stamp, level, message, told) if p) + (f"\n{trace}" if trace else "")


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if not text or any(c.isspace() or c in '"=' for c in text) else text


def set_up_log(settings: Settings) -> None:
    """Everything goes to standard error, without what was revealed of secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Fields(settings.log.format == "json"))
    handler.addFilter(Redaction())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log.level.upper())
    for chatty in ("alembic", "httpx", "httpcore", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until told to stop. Exit code 0 after an orderly stop."""
    parser = argparse.ArgumentParser(prog="ground serve", description="Run the control plane on this machine.")
    parser.add_argument("--config", default="ground.yaml", metavar="FILE", help="the settings (default: ground.yaml)")
    parser.add_argument("--check", action="store_true", help="only check the settings")
    options = parser.parse_args(argv)
    settings = load(options.config)
    if options.check:
        print(f"{options.config}: good")
        return 0
    os.umask(0o077)
    set_up_log(settings)
    return run(settings)


def run(settings: Settings) -> int:
    """Open everything, serve, and close everything."""
    import uvicorn

    from groundcontrol.assembly import build
    from groundcontrol.interfaces.api.app import create_app
    from groundcontrol.programs.wiring import backend

    began = time.monotonic()
    runtime = build(settings).open()
    try:
        host, port = settings.address
        config = uvicorn.Config(
            create_app(backend(runtime)),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=True,
            lifespan="on",
            timeout_keep_alive=30,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=64 * 1024,
            ssl_certfile=settings.tls.certificate,
            ssl_keyfile=settings.tls.key,
        )
        server = _server(config)
        runtime.store.on_fenced = _taken_over
        calm_collector()
        took = round(time.monotonic() - began, 2)
        log.info("ready", extra={"address": settings.public_url, "epoch": runtime.store.epoch, "seconds": took})
        server.run()
        if not server.started:
            raise Unavailable(f"cannot listen on {settings.listen}; is something else there?")
    finally:
        runtime.close()
    return 0


def calm_collector() -> None:
    """Look for cycles seldom: what is kept is large and has none, and each full look at it stops everything for a
    quarter of a second with a hundred thousand documents."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def _taken_over() -> None:
    """Two servers on one store (a lock file that does not hold, on some network file systems): the older one ends."""
    log.critical("another server took over this store; this one ends")
    os.kill(os.getpid(), signal.SIGTERM)


def _server(config: Any) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        """As uvicorn's, and ends in order on the first signal, at once on the second."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def ask(number: int, frame: FrameType | None) -> None:
                self.handle_exit(number, frame)

            before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return Server(config)


if __name__ == "__main__":
    sys.exit(main())
