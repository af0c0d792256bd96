"""Work that has an end: prints lines for $SECONDS, writes $GROUND_DIR/result, ends with $CODE."""

import os
import sys
import time

from groundcontrol.samples.web import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()
    seconds, code = float(os.environ.get("SECONDS", "1")), int(os.environ.get("CODE", "0"))
    end = time.monotonic() + seconds
    line = 0
    while (left := end - time.monotonic()) > 0:
        line += 1
        print(f"step {line}, {left:.1f} s left", flush=True)
        time.sleep(min(left, max(0.1, seconds / 10)))
    path = os.path.join(os.environ.get("GROUND_DIR", "."), "result")
    with open(path + ".part", "w", encoding="utf-8") as result:
        result.write(f"{line} steps, code {code}\n")
    os.replace(path + ".part", path)
    print(f"done, code {code}", flush=True)
    sys.exit(code)
