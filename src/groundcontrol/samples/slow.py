"""A server that takes its time to come up: for start periods and for updates that must wait until a unit is ready."""

import os
import time

from groundcontrol.samples import web

if __name__ == "__main__":
    web.end_on_sigterm()
    time.sleep(float(os.environ.get("DELAY", "3")))
    web.serve()
