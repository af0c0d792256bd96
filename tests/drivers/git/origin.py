"""Real git repositories to fetch from, made in a folder, and a small http server in front of `git http-backend`."""

import base64
import os
import subprocess
import threading
from collections.abc import Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pygit2

LINK, SUBMODULE = 0o120000, 0o160000


class Origin:
    """A bare repository as a git server has it; `commit` is what people push."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.repository = pygit2.init_repository(str(path), bare=True, initial_head="main")
        self.clock = 1_700_000_000

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    def head(self, branch: str = "main") -> str:
        return str(self.repository.references[f"refs/heads/{branch}"].target)

    def commit(
        self,
        files: Mapping[str, str | bytes],
        *,
        branch: str = "main",
        remove: Iterable[str] = (),
        rewrite: bool = False,
        subject: str = "change",
        special: Mapping[str, int] | None = None,
    ) -> str:
        repo, ref = self.repository, f"refs/heads/{branch}"
        parents = [] if rewrite or ref not in repo.references else [repo.references[ref].target]
        index = pygit2.Index()
        if parents:
            index.read_tree(repo[parents[0]].tree)
        for path in remove:
            index.remove(path)
        for path, text in files.items():
            blob = repo.create_blob(text.encode() if isinstance(text, str) else text)
            index.add(pygit2.IndexEntry(path, blob, 0o100644))
        for path, mode in (special or {}).items():
            target = repo.create_blob(b"../elsewhere") if mode == LINK else pygit2.Oid(hex="1" * 40)
            index.add(pygit2.IndexEntry(path, target, mode))
        self.clock += 1
        who = pygit2.Signature("Ada", "ada@example.org", self.clock, 0)
        new = repo.create_commit(None, who, who, subject, index.write_tree(repo), parents)
        repo.references.create(ref, new, force=True)
        return str(new)

    def delete_branch(self, branch: str) -> None:
        self.repository.references.delete(f"refs/heads/{branch}")


class HttpGit:
    """`git http-backend` on loopback with a password, and the ways in which a server may be unwell."""

    def __init__(self, root: Path, password: str = "", username: str = "git") -> None:
        self.password = password
        self.username = username
        self.authorization: list[str] = []
        self.status = 0
        """When set, every answer has this status."""
        self.redirect = ""
        self.stall = threading.Event()
        """When set, requests are answered by silence until `released` is."""
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.answer(self, root)

            do_POST = do_GET

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, request: BaseHTTPRequestHandler, root: Path) -> None:
        header = request.headers.get("Authorization", "")
        self.authorization.append(header)
        if self.stall.is_set():
            self.released.wait(30)
            return
        if self.redirect:
            request.send_response(301)
            request.send_header("Location", self.redirect + request.path)
            request.end_headers()
            return
        if self.status:
            request.send_error(self.status)
            return
        expected = "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        if self.password and header != expected:
            request.send_response(401)
            request.send_header("WWW-Authenticate", 'Basic realm="git"')
            request.end_headers()
            return
        path, _, query = request.path.partition("?")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        env = {
            "PATH": os.defpath,
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "REQUEST_METHOD": request.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        request.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)
