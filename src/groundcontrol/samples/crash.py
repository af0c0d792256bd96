"""A program that always fails: ends with code 3 after $SECONDS."""

import os
import sys
import time

from groundcontrol.samples.web import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()
    print("crash: will end soon", flush=True)
    time.sleep(float(os.environ.get("SECONDS", "1")))
    print("crash: ending with code 3", flush=True)
    sys.exit(3)
