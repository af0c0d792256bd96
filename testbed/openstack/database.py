"""The databases of a cloud: made once, and brought to the schema of its release by OpenStack's own programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from testbed.openstack import settings
from testbed.openstack.debian import PATH
from testbed.openstack.layout import BedError, Cloud, write
from testbed.openstack.parts import tail

LONGEST = 1200
"""Seconds one step may take; on a quiet machine they take five to twenty."""


def folder(cloud: Cloud) -> Path:
    return cloud.root / "mariadb"


def prepare(cloud: Cloud) -> None:
    """The files of an empty MariaDB. Runs as root, so that it works below a home directory that is closed to others."""
    target = folder(cloud)
    if target.exists():
        return
    # In one piece or not at all.
    fresh = target.with_name("mariadb.new")
    shutil.rmtree(fresh, ignore_errors=True)
    words = ["--auth-root-authentication-method=socket", "--auth-root-socket-user=root", "--skip-test-db"]
    command = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={fresh}", *words]
    step(cloud, "mariadb-install", command)
    fresh.replace(target)


def command(cloud: Cloud) -> tuple[str, ...]:
    """MariaDB for a test: nothing is lost when it is killed, something may be when the machine is."""
    return (
        *("/usr/sbin/mariadbd", "--no-defaults", "--user=root", f"--datadir={folder(cloud)}", "--skip-networking"),
        *(f"--socket={cloud.socket('mariadb')}", f"--pid-file={cloud.run / 'mariadb.pid'}", "--max-connections=600"),
        *("--innodb-buffer-pool-size=128M", "--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"),
        *("--performance-schema=OFF", "--skip-name-resolve", "--character-set-server=utf8mb3"),
    )


def sql(cloud: Cloud, text: str) -> str:
    """Run statements as the database's root; what they answer, without headings."""
    try:
        done = subprocess.run(
            ["mariadb", "--no-defaults", "--user=root", "-N", "-S", str(cloud.socket("mariadb"))],
            env={"PATH": PATH},
            input=text,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BedError(f"the database of {cloud.name} did not answer in {LONGEST} s") from None
    if done.returncode:
        raise BedError(f"the database of {cloud.name} said {done.stderr.strip()[:400]}")
    return done.stdout


def create(cloud: Cloud) -> None:
    """The databases and the one user who may do everything in them."""
    who = "'openstack'@'localhost'"
    lines = [f"CREATE DATABASE IF NOT EXISTS {name} CHARACTER SET utf8mb3;" for name in settings.DATABASES]
    lines.append(f"CREATE USER IF NOT EXISTS {who} IDENTIFIED BY '{cloud.passwords['database']}';")
    lines += [f"GRANT ALL ON {name}.* TO {who};" for name in settings.DATABASES]
    sql(cloud, "\n".join(lines))


def migrate(cloud: Cloud) -> None:
    """Bring all schemas up to date, several at a time; done once for each lock file."""
    stamp = cloud.state / "schemas"
    made_from = (cloud.environment / "made-from").read_text()
    if stamp.exists() and stamp.read_text() == made_from:
        return
    words = {
        "keystone": ["db_sync"],
        "placement": ["db", "sync"],
        "glance": ["db_sync"],
        "neutron": ["upgrade", "heads"],
        "cinder": ["db", "sync"],
    }
    programs = {"neutron": "neutron-db-manage"}
    with ThreadPoolExecutor() as pool:
        lanes = [pool.submit(_nova, cloud)]
        for name, wanted in words.items():
            program = cloud.program(programs.get(name, f"{name}-manage"))
            lanes.append(pool.submit(step, cloud, f"schema-{name}", [program, *_file(cloud, name), *wanted]))
    for lane in lanes:
        lane.result()
    write(stamp, made_from)


def _file(cloud: Cloud, service: str) -> list[str]:
    return ["--config-file", str(settings.file_of(cloud, service))]


def _nova(cloud: Cloud) -> None:
    manage = [cloud.program("nova-manage"), *_file(cloud, "nova")]
    cell0 = ["cell_v2", "map_cell0", "--database_connection", settings.database_url(cloud, "nova_cell0")]
    # The second sync also makes cell 0, which has to be known by then.
    for words in (["api_db", "sync"], cell0, ["db", "sync"]):
        step(cloud, "schema-nova", [*manage, *words])
    if not sql(cloud, "SELECT id FROM nova_api.cell_mappings WHERE name = 'cell1'"):
        step(cloud, "schema-nova", [*manage, "cell_v2", "create_cell", "--name", "cell1"])


def step(cloud: Cloud, name: str, words: list[str], environ: dict[str, str] | None = None) -> None:
    """Run one program to its end. Raises BedError with the end of its log."""
    log = cloud.logs / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    clean = {"PATH": f"{os.path.dirname(words[0])}:{PATH}", "LANG": "C.UTF-8", "HOME": str(cloud.state)}
    with log.open("ab") as out:
        try:
            done = subprocess.run(
                words,
                env=clean | {"PYTHONWARNINGS": "ignore"} | (environ or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                timeout=LONGEST,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BedError(f"{name} of {cloud.name} took longer than {LONGEST} s; see {log}") from None
    if done.returncode:
        raise BedError(f"{name} of {cloud.name} failed ({done.returncode}); see {log}\n{tail(log)}")
