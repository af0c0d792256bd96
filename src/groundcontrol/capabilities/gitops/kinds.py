"""A git repository that says what should be here: where it is, whose rights it has, and what came of it."""

from __future__ import annotations

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from groundcontrol.kernel.resource import NAME, Column, KindInfo, Model, Resource, Status

_REFERENCE = re.compile(r"secret:[a-z0-9][a-z0-9.-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


class Verify(Model):
    """Whose signature the newest commit must carry."""

    signatures: Literal["none", "ssh", "gpg"] = "none"
    """`none`: any commit counts; `ssh` or `gpg`: only one signed by somebody listed."""
    allowed_signers: str = Field(default="", max_length=1 << 18)
    """For `ssh` the lines of an allowed_signers file (see ssh-keygen(1)); for `gpg` armoured public keys."""

    @model_validator(mode="after")
    def _somebody_is_listed(self) -> Self:
        if self.signatures != "none" and not self.allowed_signers.strip():
            raise ValueError(f"signatures: {self.signatures} needs allowedSigners: nobody could sign")
        return self


class Proposals(Model):
    """Changes of the files that are pushed as branches, for people to look at and merge."""

    branch_prefix: str = Field(
        default="ground/", max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9][A-Za-z0-9_-]*)*[/-]$"
    )
    """How the names of the branches begin; the resource and a digest of the change follow. Ends with `/` or `-`."""
    author: str = Field(
        default="Ground Control <ground@localhost>",
        max_length=200,
        pattern=r"^[^<>\x00-\x1f\x7f]+ <[^<>\s\x00-\x1f\x7f]+@[^<>\s\x00-\x1f\x7f]+>$",
    )
    """Author and committer of the commits, `Name <mail@example.org>`. Who asked stands in the message."""
    most: int = Field(default=20, ge=1, le=1000)
    """How many such branches may be there at a time; more are refused until some are merged or deleted."""


class SourceSpec(Model):
    """Which files of which repository are applied, and how."""

    repository: str = Field(min_length=1, max_length=2000)
    """Where to fetch from: `https://host/path.git` or `git@host:path.git`; without user and password."""
    branch: str = Field(default="main", min_length=1, max_length=255)
    """The branch that is applied."""
    path: str = Field(default=".", max_length=1000)
    """The folder of the repository whose YAML files are applied, with all folders below it."""
    interval: int = Field(default=60, ge=5, le=86400)
    """Seconds from one look at the repository to the next, when no webhook tells of a change."""
    credentials: str | None = None
    """`secret:NAME/KEY` of what the git server asks for: an access token, `user:password`, or a private ssh key."""
    known_hosts: str = Field(default="", max_length=1 << 16)
    """For ssh: the server's lines of a known_hosts file. A server that is not listed is not talked to."""
    webhook_secret: str | None = None
    """`secret:NAME/KEY` of what the git server signs its webhooks with; without it webhooks are refused."""
    verify: Verify = Field(default_factory=Verify)
    """Whose signature the newest commit must carry."""
    subject: str = Field(default="", max_length=253, pattern=r"^((user|source|group):[A-Za-z0-9][A-Za-z0-9._@/-]*)?$")
    """Whose rights it acts with; `source:` and its own name when empty."""
    proposals: Proposals | None = None
    """How a proposed change is pushed as a branch of its own, with `credentials`; without this it is a diff only."""
    prune: bool = True
    """Whether a resource that leaves the files is deleted; otherwise it is reported and stays."""
    namespace: str = Field(default="", max_length=63, pattern=f"^({NAME.pattern})?$")
    """The namespace of documents that name none, and of the secrets named here."""
    suspend: bool = False
    """Leave everything as it is until this is false again."""

    @model_validator(mode="after")
    def _path_stays_inside(self) -> Self:
        if self.path.startswith("/") or ".." in self.path.split("/"):
            raise ValueError("path is a folder inside the repository, for example sites/bari")
        return self

    @model_validator(mode="after")
    def _proposals_are_apart(self) -> Self:
        if self.proposals is not None and self.branch.startswith(self.proposals.branch_prefix):
            raise ValueError("proposals.branchPrefix is the beginning of branch: what is proposed would be applied")
        return self

    @model_validator(mode="after")
    def _secrets_are_references(self) -> Self:
        # Checked here and not by a pattern of the field, whose error would repeat what may be the secret itself.
        for name, value in (("credentials", self.credentials), ("webhookSecret", self.webhook_secret)):
            if value is not None and not _REFERENCE.fullmatch(value):
                raise ValueError(f"{name} is given as secret:NAME/KEY, never as the value itself")
        return self


class SourceProblem(Model):
    """Something in the files that could not be applied; what it was before stays."""

    file: str = ""
    """Path in the repository."""
    line: int = 0
    """Line, counted from 1; 0 when the whole file is meant."""
    kind: str = ""
    """Kind of the resource, when it could be read."""
    name: str = ""
    """`namespace/name` of the resource, when it could be read."""
    message: str
    """What is wrong."""
    remedy: str = ""
    """What to do about it."""


class SourceCommit(Model):
    """One commit of the branch."""

    sha: str
    """Its name."""
    author: str = ""
    """Who wrote it, as it claims."""
    time: str = ""
    """When it was committed, as it claims, RFC 3339 in UTC."""
    subject: str = ""
    """First line of its message."""


class SourceStatus(Status):
    """What was fetched, what was applied, and what was wrong."""

    commit: str = ""
    """The commit applied last, in full."""
    revision: str = ""
    """The first characters of `commit`, for tables."""
    fetched_commit: str = ""
    """The newest commit seen; another than `commit` while that waits, is held, or cannot be applied."""
    applied_at: str = ""
    """When `commit` was applied, RFC 3339 in UTC."""
    fetched_at: str = ""
    """When the repository last answered, RFC 3339 in UTC."""
    rewritten: bool = False
    """The newest commit was not built upon the one applied before: the branch was force-pushed."""
    resources: int = 0
    """How many resources the files declare."""
    problems: list[SourceProblem] = Field(default_factory=list)
    """What could not be applied: the first hundred."""
    problem_count: int = 0
    """How many problems there are in all."""
    commits: list[SourceCommit] = Field(default_factory=list)
    """The last few commits of the branch, newest first."""


class Source(Resource):
    """A folder of a git repository whose files say what should be here."""

    info: ClassVar[KindInfo] = KindInfo(
        plural="sources",
        namespaced=False,
        short=("src",),
        columns=(
            Column("Ready", "conditions.Ready"),
            Column("Repository", "spec.repository"),
            Column("Branch", "spec.branch"),
            Column("Commit", "status.revision"),
            Column("Applied", "age:status.appliedAt"),
            Column("Problems", "status.problemCount", wide=True),
        ),
        actions=("sync",),
    )

    kind: Literal["Source"] = "Source"
    """Name of the kind."""
    spec: SourceSpec
    """Which files of which repository are applied, and how."""
    status: SourceStatus = Field(default_factory=SourceStatus)
    """What was fetched, what was applied, and what was wrong."""

    @property
    def subject(self) -> str:
        """Whose rights it acts with."""
        return self.spec.subject or f"source:{self.metadata.name}"
