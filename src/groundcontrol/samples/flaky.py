"""A server that is healthy for $SECONDS and then is not, although it runs: for health checks and roll-backs."""

import os
import time

from groundcontrol.samples import web

if __name__ == "__main__":
    web.end_on_sigterm()
    until = time.monotonic() + float(os.environ.get("SECONDS", "10"))
    web.serve(healthy=lambda: time.monotonic() < until)
