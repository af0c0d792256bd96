"""`ground init`: a commented configuration for real use, and the first password."""

from __future__ import annotations

import argparse
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from groundcontrol.kernel.errors import AlreadyExists
from groundcontrol.kernel.settings import example, load


def main(argv: Sequence[str] | None = None) -> int:
    """Write `ground.yaml` and `admin.password` into a directory; nothing that exists is touched."""
    parser = argparse.ArgumentParser(prog="ground init", description="Prepare a new installation.")
    parser.add_argument("directory", nargs="?", default=".", help="where (default: here)")
    parser.add_argument("--user", default="admin", help="name of the first account")
    options = parser.parse_args(argv)
    directory = Path(options.directory).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    config, password = directory / "ground.yaml", directory / "admin.password"
    for path in (config, password):
        if path.exists():
            raise AlreadyExists(f"{path} exists already; remove it, or choose another directory")
    _write(password, secrets.token_urlsafe(18) + "\n")
    text = _with(example(), "    user: admin", f"    user: {json.dumps(options.user)}")
    text = _with(text, "    # password: env:GROUND_ADMIN_PASSWORD", f"    password: {json.dumps(f'file:{password}')}")
    _write(config, text)
    load(config)
    print(f"""wrote {config}
wrote {password} (the password of {options.user}, for you only)

next:
  ground serve --config {config}
  ground login --user {options.user} --password-stdin < {password}
  ground doctor --config {config}""")
    return 0


def _with(text: str, line: str, filled: str) -> str:
    """The example with one of its lines filled in; the comments around it stay."""
    if text.count(f"\n{line}\n") != 1:
        raise ValueError(f"the example has no line {line!r}")
    return text.replace(f"\n{line}\n", f"\n{filled}\n")


def _write(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)


if __name__ == "__main__":
    raise SystemExit(main())
