"""A Source reads from a real sshd and over real https, and from nobody who is not who he says he is."""

from __future__ import annotations

import datetime
import functools
import getpass
import ipaddress
import os
import shlex
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.acceptance import processes
from tests.acceptance.installation import Installation, installation, until
from tests.acceptance.repository import Repository, service
from tests.drivers.git.origin import HttpGit

pytestmark = pytest.mark.acceptance

NAMESPACE = "alpha"


def sshd_program() -> str:
    """Where sshd is. Root installs it where it is missing; others are told, and fail where CI decides."""
    places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    if (found := shutil.which("sshd", path=places)) is None and os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", "openssh-server"]):
            subprocess.run(["apt-get", *words], env=quiet, capture_output=True, timeout=300, check=False)
        found = shutil.which("sshd", path=places)
    if found is None:
        said = "sshd is not installed (Debian: openssh-server)"
        if os.environ.get("CI"):
            pytest.fail(said)
        pytest.skip(said)
    return found


def key_pair(folder: Path, name: str) -> tuple[Path, str]:
    """A private key without passphrase, and its public line."""
    path = folder / name
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path, path.with_suffix(".pub").read_text(encoding="ascii").strip()


class Sshd:
    """sshd on a loopback port of its own, with a host key of its own, which lets one key in."""

    def __init__(self, folder: Path) -> None:
        self.program, self.folder, self.port = sshd_program(), folder, processes.free_port()
        self.process: subprocess.Popen[bytes] | None = None
        host, public = key_pair(folder, "host")
        self.known = f"[127.0.0.1]:{self.port} {public}"
        self.unknown = f"[127.0.0.1]:{self.port} {key_pair(folder, 'another-host')[1]}"
        self.key, line = key_pair(folder, "client")
        self.wrong_key, _ = key_pair(folder, "stranger")
        (folder / "authorized").write_text(f"{line}\n", encoding="ascii")
        self.config = folder / "sshd_config"
        self.config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {host}\nPidFile {folder}/sshd.pid\n"
            f"AuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
            encoding="utf-8",
        )
        if os.geteuid() == 0:  # made by the service where that is started; sshd refuses to be root without it
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)

    def url(self, repository: Repository) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{repository.origin}"

    def start(self) -> None:
        command = [self.program, "-D", "-e", "-f", str(self.config)]
        # Newer ones make an address wait that was refused, and here all of them come from one.
        lenient = ["-o", "PerSourcePenalties=no"]
        if subprocess.run([*command, *lenient, "-t"], capture_output=True, check=False).returncode == 0:
            command += lenient
        with (self.folder / "sshd.log").open("ab") as said:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        until(self._answers, f"sshd answers: {shlex.join(command)}", told=self.log)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()
        scan = ["ssh-keyscan", "-T", "2", "-p", str(self.port), "127.0.0.1"]
        return self.known.split()[2] in subprocess.run(scan, capture_output=True, text=True, check=False).stdout

    def kill(self) -> None:
        """SIGKILL to the one that listens; harmless when it has ended."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return (self.folder / "sshd.log").read_text(encoding="utf-8", errors="replace")[-3000:]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Beside the installation, which must be able to go while servers of git are still up."""
    found = Path(tempfile.mkdtemp(prefix="ground-remotes-", dir="/var/tmp"))
    yield found
    shutil.rmtree(found, ignore_errors=True)


class Authority:
    """Signs certificates for 127.0.0.1, and for no other name."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.key = folder, ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._begin(self.name, self.key).add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
        usage |= {"encipher_only": False, "decipher_only": False, "digital_signature": True}
        made = made.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _begin(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        begun = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key.public_key())
        return begun.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)

    def context(self) -> ssl.SSLContext:
        """What a server of this authority shows."""
        key, here = ec.generate_private_key(ec.SECP256R1()), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = self._begin(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "git")]), key)
        made = made.add_extension(x509.SubjectAlternativeName([here]), False)
        form = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        pem = key.private_bytes(serialization.Encoding.PEM, *form)
        pem += made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        file = self.file.with_suffix(".server")
        file.write_bytes(pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.sslsocket_class = Ended
        return context


class Ended(ssl.SSLSocket):
    """Says that it ends, as TLS wants it said: an end without that may be somebody else's doing, and git refuses it."""

    def shutdown(self, how: int) -> None:
        self.settimeout(2)
        with suppress(OSError, ValueError):
            self.unwrap()
        super().shutdown(how)


class HttpsGit(HttpGit):
    """`git http-backend` behind TLS; whoever reads shows the token."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        super().__init__(folder, "token-of-the-platform")
        self.server.socket = authority.context().wrap_socket(self.server.socket, server_side=True)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def authority(folder: Path) -> Authority:
    return Authority(folder, "authority")


@pytest.fixture(scope="module")
def ground(authority: Authority) -> Iterator[Installation]:
    """An installation whose operator trusts that authority, and the namespace."""
    with pytest.MonkeyPatch.context() as patch:
        given = functools.partial(processes.environment, GIT_SSL_CAINFO=str(authority.file))
        patch.setattr(processes, "environment", given)
        with installation("cnaf") as found:
            found.apply(found.document("Namespace", NAMESPACE, {"group": "experiments/alpha"}))
            yield found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Sshd]:
    found = Sshd(folder)
    try:
        found.start()
        yield found
    finally:
        found.kill()


def keep(ground: Installation, name: str, value: str) -> str:
    """Put a value into the sealed store as a person does; how a Source refers to it."""
    ground.apply(ground.document("Secret", name, {}, NAMESPACE))
    words = ("act", "set", "secret", name, "-n", NAMESPACE, "-i", "key=git", "--input-stdin", "value")
    said = ground.ground(*words, stdin=value)
    assert said.returncode == 0, said.stderr
    return f"secret:{name}/git"


def declare(ground: Installation, name: str, **spec: Any) -> None:
    """A Source with the rights to declare services, which looks often enough that nobody has to tell it."""
    binding = {"role": "admin", "subjects": [f"source:{name}"]}
    ground.apply(
        ground.document("RoleBinding", f"source-{name}", binding),
        ground.document("Source", name, {"namespace": NAMESPACE, "interval": 5, **spec}),
    )


def sync(ground: Installation, name: str) -> None:
    ground.ok("POST", ground.path("sources", name) + "/actions/sync", {})


def note(ground: Installation, name: str) -> str | None:
    """What a service says it was made with; None when it is not there."""
    doc = ground.get("services", name, NAMESPACE)
    return None if doc is None else str(doc["spec"]["env"].get("NOTE"))


def refused(ground: Installation, name: str) -> str:
    """Wait until a Source says, of its newest generation, that it cannot fetch; what it says."""

    def holds() -> Any:
        doc = ground.need("sources", name)
        found = [c for c in doc["status"]["conditions"] if c["type"] == "Ready" and c["status"] != "True"]
        new = [c for c in found if c["observedGeneration"] == doc["metadata"]["generation"]]
        return new[0] if new and "repository " in new[0]["message"] else None

    ready = until(holds, f"{name} says why not", told=lambda: str(ground.get("sources", name)))
    assert ready["reason"] in ("CannotFetch", "Forbidden"), ready
    return str(ready["message"])


def test_ssh_with_a_key_and_the_hosts_key(ground: Installation, server: Sshd, folder: Path) -> None:
    repository = Repository(folder, "repository-good")
    commit = repository.push({"a.yaml": service("ssh-good", note="one")})
    credentials = keep(ground, "good", server.key.read_text(encoding="ascii"))
    declare(ground, "good", repository=server.url(repository), credentials=credentials, knownHosts=server.known)
    ground.applied("good", commit)
    ground.until_ready("sources", "good", reason="Applied")
    assert note(ground, "ssh-good") == "one"
    commit = repository.push({"a.yaml": service("ssh-good", note="two")})
    ground.applied("good", commit)
    assert note(ground, "ssh-good") == "two"
    assert "PRIVATE KEY" not in ground.log("server")
    assert not list((ground.data / "git").glob(".private-*")), "the key is on the disk for one fetch only"


def test_a_proposal_is_pushed_over_ssh_and_only_where_the_server_lets_it(
    ground: Installation, server: Sshd, folder: Path
) -> None:
    repository = Repository(folder, "repository-offer")
    commit = repository.push({"a.yaml": service("ssh-offer", note="one")})
    credentials = keep(ground, "offer", server.key.read_text(encoding="ascii"))
    given = {"repository": server.url(repository), "credentials": credentials, "knownHosts": server.known}
    declare(ground, "offer", **given, proposals={})
    ground.applied("offer", commit)
    wanted = ground.document("Service", "ssh-offer", {"env": {"NOTE": "two"}}, NAMESPACE)
    hook = repository.origin / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\necho nobody may >&2\nexit 1\n")
    hook.chmod(0o755)
    answer = ground.call("POST", "/api/v1/propose", {"documents": [wanted]})
    assert (answer.status, "does not let these credentials push" in answer.message) == (403, True), answer.message
    hook.unlink()
    (made,) = ground.ok("POST", "/api/v1/propose", {"documents": [wanted]})["proposals"]
    assert made["state"] == "pushed"
    repository.git("fetch", "--quiet", "origin")
    assert repository.git("rev-parse", f"origin/{made['branch']}").strip() == made["commit"]
    assert 'NOTE: "two"' in repository.git("show", f"{made['commit']}:a.yaml")
    server.kill()
    try:
        answer = ground.call("POST", "/api/v1/propose", {"documents": [wanted]})
        assert (answer.status, "did not answer" in answer.message) == (503, True), answer.message
    finally:
        server.start()
    (again,) = ground.ok("POST", "/api/v1/propose", {"documents": [wanted]})["proposals"]
    assert (again["state"], again["commit"]) == ("exists", made["commit"])
    assert not list((ground.data / "git").glob(".private-*"))
    assert "PRIVATE KEY" not in ground.log("server")


def test_ssh_to_a_host_that_is_not_the_one_known(ground: Installation, server: Sshd, folder: Path) -> None:
    repository = Repository(folder, "repository-host")
    commit = repository.push({"a.yaml": service("ssh-host", note="one")})
    credentials = keep(ground, "host", server.key.read_text(encoding="ascii"))
    given = {"repository": server.url(repository), "credentials": credentials}
    before = ground.list("services")
    declare(ground, "host", **given, knownHosts=server.unknown)
    said = refused(ground, "host")
    assert "shows a host key that is not known" in said
    assert "known_hosts" in said, "what to do about it"
    ground.patch("sources", "host", knownHosts="")
    assert "host key" in refused(ground, "host"), "a host nobody vouches for is not talked to"
    assert ground.need("sources", "host")["status"]["commit"] == ""
    assert ground.list("services") == before, "nothing else changes"
    ground.patch("sources", "host", knownHosts=server.known)
    ground.applied("host", commit)
    ground.until_ready("sources", "host")
    # From here on it is another host that answers under the name: what was applied stays, and no more comes.
    ground.patch("sources", "host", knownHosts=server.unknown)
    repository.push({"a.yaml": service("ssh-host", note="two")})
    sync(ground, "host")
    said = ground.until_ready("sources", "host", status="Unknown", reason="CannotFetch")["message"]
    assert "shows a host key that is not known" in said
    assert ground.need("sources", "host")["status"]["commit"] == commit
    assert note(ground, "ssh-host") == "one"


def test_ssh_with_a_key_the_server_does_not_know(ground: Installation, server: Sshd, folder: Path) -> None:
    repository = Repository(folder, "repository-client")
    commit = repository.push({"a.yaml": service("ssh-key", note="one")})
    credentials = keep(ground, "client", server.wrong_key.read_text(encoding="ascii"))
    declare(ground, "client", repository=server.url(repository), credentials=credentials, knownHosts=server.known)
    said = refused(ground, "client")
    assert "refused the credentials" in said
    assert "check that the token or key has not expired and may read this repository" in said
    assert "Permission denied (publickey)" in said
    assert "PRIVATE KEY" not in said
    assert note(ground, "ssh-key") is None
    keep(ground, "client", server.key.read_text(encoding="ascii"))
    ground.applied("client", commit)
    ground.until_ready("sources", "client")
    assert note(ground, "ssh-key") == "one"


def test_sshd_is_killed_and_comes_back(ground: Installation, server: Sshd, folder: Path) -> None:
    repository = Repository(folder, "repository-killed")
    commit = repository.push({"a.yaml": service("ssh-killed", note="one")})
    credentials = keep(ground, "killed", server.key.read_text(encoding="ascii"))
    declare(ground, "killed", repository=server.url(repository), credentials=credentials, knownHosts=server.known)
    ground.applied("killed", commit)
    server.kill()
    try:
        later = repository.push({"a.yaml": service("ssh-killed", note="two")})
        sync(ground, "killed")
        said = ground.until_ready("sources", "killed", status="Unknown", reason="CannotFetch")["message"]
        assert "did not answer" in said
        assert ground.need("sources", "killed")["status"]["commit"] == commit
        assert note(ground, "ssh-killed") == "one", "the last state is kept"
    finally:
        server.start()
    ground.applied("killed", later)
    ground.until_ready("sources", "killed")
    assert note(ground, "ssh-killed") == "two"


def test_https_with_a_token_and_an_authority_that_is_trusted(
    ground: Installation, authority: Authority, folder: Path
) -> None:
    repository = Repository(folder, "repository-https")
    commit = repository.push({"a.yaml": service("https-good", note="one")})
    with closing(HttpsGit(folder, authority)) as remote:
        credentials = keep(ground, "token", "another-token")
        url = f"{remote.url}/{repository.origin.name}"
        declare(ground, "https", repository=url, credentials=credentials)
        said = refused(ground, "https")
        assert "refused the credentials" in said
        assert "another-token" not in said
        assert note(ground, "https-good") is None
        keep(ground, "token", remote.password)
        ground.applied("https", commit)
        ground.until_ready("sources", "https", reason="Applied")
        assert note(ground, "https-good") == "one"
        commit = repository.push({"a.yaml": service("https-good", note="two")})
        sync(ground, "https")
        ground.applied("https", commit)
        assert note(ground, "https-good") == "two"
        assert remote.password not in ground.log("server")
        ground.delete("sources", "https")
        ground.until_gone("sources", "https")


def test_https_from_a_server_that_is_not_who_it_says(ground: Installation, authority: Authority, folder: Path) -> None:
    repository = Repository(folder, "repository-impostor")
    commit = repository.push({"a.yaml": service("https-impostor", note="one")})
    credentials = keep(ground, "impostor", "token-of-the-platform")
    with (
        closing(HttpsGit(folder, Authority(folder, "strangers"))) as stranger,
        closing(HttpsGit(folder, authority)) as remote,
    ):
        url = f"{remote.url}/{repository.origin.name}"
        declare(ground, "nobody", repository=f"{stranger.url}/{repository.origin.name}", credentials=credentials)
        declare(ground, "misnamed", repository=url.replace("127.0.0.1", "localhost"), credentials=credentials)
        for name in ("nobody", "misnamed"):
            said = refused(ground, name)
            assert "shows a certificate that is not trusted" in said
            assert "GIT_SSL_CAINFO" in said, "what to do about it"
            assert ground.need("sources", name)["status"]["commit"] == ""
        assert note(ground, "https-impostor") is None
        assert not stranger.authorization + remote.authorization, "nobody was shown the token"
        ground.patch("sources", "misnamed", repository=url)
        ground.applied("misnamed", commit)
        assert note(ground, "https-impostor") == "one"
        for name in ("nobody", "misnamed"):
            ground.delete("sources", name)
            ground.until_gone("sources", name)
