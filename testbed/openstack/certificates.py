"""A certificate authority for the clouds, and a server certificate for each, valid or expired as wanted."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from testbed.openstack.layout import Bed, BedError, Cloud, write

STATES = ("valid", "expired")
CONFIG = """\
[ca]
default_ca = here
[here]
dir = {dir}
new_certs_dir = {dir}
database = {dir}/index.txt
serial = {dir}/serial
certificate = {dir}/ca.pem
private_key = {dir}/ca.key
default_md = sha256
unique_subject = no
policy = anything
x509_extensions = server
[anything]
commonName = supplied
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
"""


def authority(bed: Bed) -> None:
    """Make the authority once. It is trusted by nobody who is not told to."""
    folder = bed.authority.parent
    if bed.authority.exists():
        return
    write(folder / "openssl.cnf", CONFIG.format(dir=folder))
    write(folder / "index.txt", "")
    write(folder / "serial", "1000\n")
    key, fresh = folder / "ca.key", folder / "ca.new"
    _key(key)
    words = ["req", "-x509", "-new", "-key", str(key), "-days", "3650", "-subj", "/CN=Ground Control test bed"]
    _openssl(*words, "-config", str(folder / "openssl.cnf"), "-extensions", "authority", "-out", str(fresh))
    fresh.chmod(0o644)
    fresh.replace(bed.authority)


def chain(cloud: Cloud) -> Path:
    """The file that the front of a cloud shows."""
    return cloud.etc / "tls" / "server.pem"


def private_key(cloud: Cloud) -> Path:
    return cloud.etc / "tls" / "server.key"


def server(cloud: Cloud, state: str = "valid") -> None:
    """Write a server certificate: from yesterday for ten years, or one that ended an hour ago."""
    if state not in STATES:
        raise BedError(f"a certificate is {' or '.join(STATES)}, not {state!r}")
    now = datetime.now(UTC)
    begins, ends = now - timedelta(days=1), now + timedelta(days=3650)
    if state == "expired":
        begins, ends = now - timedelta(days=91), now - timedelta(hours=1)
    folder, target = cloud.bed.authority.parent, chain(cloud)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not private_key(cloud).exists():
        _key(private_key(cloud))
    request, fresh = target.with_suffix(".csr"), target.with_suffix(".new")
    config = ["-config", str(folder / "openssl.cnf")]
    _openssl(
        "req", "-new", "-key", str(private_key(cloud)), "-subj", f"/CN={cloud.name}", *config, "-out", str(request)
    )
    dates = ["-startdate", f"{begins:%Y%m%d%H%M%SZ}", "-enddate", f"{ends:%Y%m%d%H%M%SZ}"]
    _openssl("ca", "-batch", "-notext", *config, *dates, "-in", str(request), "-out", str(fresh))
    fresh.replace(target)
    request.unlink()


def _key(path: Path) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.touch(mode=0o600)
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(fresh))
    fresh.replace(path)


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BedError(f"openssl {words[0]} failed: {done.stderr.strip()[-600:]}")
