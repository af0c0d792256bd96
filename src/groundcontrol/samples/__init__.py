"""Small programs to try Ground Control with: each is one file of the standard library and starts in a blink.

Run as `python -m groundcontrol.samples.web`. They read their settings from the environment the host gives every unit
(GROUND_ADDRESS, GROUND_PORT_<NAME>, GROUND_DIR) and end at once with code 0 on SIGTERM.
"""

SAMPLES: dict[str, str] = {
    "web": "HTTP: text from message.txt or $MESSAGE, /healthz, /info, and /backend through endpoints.json",
    "tcp": "TCP: echoes lines",
    "slow": "the web sample, listening only after $DELAY seconds",
    "flaky": "the web sample, healthy for $SECONDS seconds and then answering /healthz with 500",
    "once": "works for $SECONDS, writes the file `result` and ends with $CODE",
    "crash": "ends with code 3 after $SECONDS",
}
