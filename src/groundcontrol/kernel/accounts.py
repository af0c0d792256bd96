"""Passwords and tokens: who is asking, proven; guessing is slowed down and nothing stolen from the store signs in.

Passwords are kept as scrypt hashes (RFC 7914), tokens as SHA-256 of 256 random bits. An unknown user costs the same
time and the same delays as a known one. Every attempt is counted *before* the password is looked at, so that many
attempts at once are no way around the delay. Tokens are held in memory too: a request must not wait for a disk.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from groundcontrol.kernel import tables
from groundcontrol.kernel.errors import Invalid, NotFound, Problem, TooMany, Unauthenticated
from groundcontrol.kernel.resource import API_VERSION, Doc, Key, now
from groundcontrol.kernel.rights import SCOPES, Subject
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

_c, _t = tables.credentials, tables.tokens

PREFIX = "gct_"
SHORTEST, LONGEST = 8, 1024
"""Characters of a password."""
LASTS = 12 * 3600.0
"""Seconds a token of a login lasts when nothing else was asked."""
MOST = 90 * 86_400.0
"""Seconds a token lasts at most."""
TOKENS_EACH = 200
"""Live tokens of one account."""
ROWS = 10_000
"""Names and addresses whose failures are remembered besides those of accounts; the longest quiet go first."""


@dataclass(frozen=True)
class Slowing:
    """So many failures cost nothing; each one more doubles the wait, up to a most. Forgotten after a quiet time."""

    free: int
    most: float
    quiet: float

    def wait(self, failures: int) -> float:
        return 0.0 if failures <= self.free else min(self.most, 2.0 ** min(failures - self.free - 1, 30))


DAY = 86_400.0
PER_ACCOUNT = Slowing(free=4, most=300.0, quiet=DAY)
PER_PEER = Slowing(free=20, most=300.0, quiet=3600.0)


class Token(NamedTuple):
    """One token, without what is secret."""

    id: str
    """Random, with the token's last four characters behind it."""
    hash: str
    subject: str
    scope: frozenset[str]
    created: float
    expires: float
    description: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "description": self.description,
            "scope": sorted(self.scope),
            "created": now(self.created),
            "expires": now(self.expires),
            "lastFour": self.id[-4:],
        }


class Issued(NamedTuple):
    """A new token: the only time it can be read."""

    token: str
    id: str
    expires: float


class Accounts:
    """The accounts of one store. `work` is the exponent of scrypt's cost; 15 takes about 32 MiB and 80 ms."""

    def __init__(self, store: Store, *, work: int = 15) -> None:
        self._store = store
        self._work = work
        self._dummy = self._hash(secrets.token_urlsafe(16))
        with store.reading() as conn:
            rows = conn.execute(sa.select(_t)).all()
        self._tokens = {r.hash: Token(**{**r._mapping, "scope": frozenset(r.scope.split())}) for r in rows}
        self._by_id = {t.id: t for t in self._tokens.values()}
        self._written: dict[str, Token] = {}
        self._known: dict[str, tuple[int, bool, frozenset[str]]] = {}

    # ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────

    def authenticate(self, token: str) -> Subject:
        """Whose token it is. Unauthenticated when it is unknown, revoked or expired, or its account disabled."""
        found = self._tokens.get(_digest(token))
        if found is None or not token.startswith(PREFIX):
            raise Unauthenticated("the token is not known; sign in again")
        return self._subject(found)

    def again(self, subject: Subject) -> Subject:
        """As `authenticate`, for a subject that was authenticated before; its groups may be others now."""
        found = self._by_id.get(subject.token)
        if found is None:
            raise Unauthenticated("the token was revoked; sign in again")
        return self._subject(found)

    def still_in(self, tx: Tx, subject: Subject) -> None:
        """Unauthenticated when the subject's token is gone as of this moment of the commit."""
        if tx.conn.execute(sa.select(_t.c.id).where(_t.c.id == subject.token)).first() is None:
            raise Unauthenticated("the token was revoked; sign in again")

    def _subject(self, found: Token) -> Subject:
        if found.expires <= self._store.clock():
            raise Unauthenticated("the token has expired; sign in again")
        name = found.subject.removeprefix("user:")
        disabled, groups = self._account(name)
        if disabled:
            raise Unauthenticated(f"the account {name} is disabled or gone")
        return Subject(found.subject, groups, found.scope, found.id, found.expires)

    def _account(self, name: str) -> tuple[bool, frozenset[str]]:
        """(disabled or gone, groups), as the cache has it."""
        entry = self._store.entry(Key("Account", "", name))
        if entry is None:
            return True, frozenset()
        kept = self._known.get(name)
        if kept is None or kept[0] != entry.seq:
            spec = entry.doc["spec"]
            kept = entry.seq, bool(spec.get("disabled")), frozenset(spec.get("groups") or ())
            if len(self._known) > ROWS:
                self._known.clear()
            self._known[name] = kept
        return kept[1], kept[2]

    def issue(
        self, subject: str, scope: Iterable[str] = SCOPES, expires: float = LASTS, description: str = ""
    ) -> Issued:
        """A new token of `subject`, good for `expires` seconds. Blocks."""
        token, issued = self._store.write(lambda tx: self.issue_in(tx, subject, scope, expires, description))
        self.keep(token)
        return issued

    def issue_in(
        self, tx: Tx, subject: str, scope: Iterable[str], expires: float, description: str
    ) -> tuple[Token, Issued]:
        """Write a new token; `keep` it once the transaction is committed."""
        tx.conn.execute(sa.delete(_t).where(_t.c.expires < tx.time - DAY))
        mine = tx.conn.execute(
            sa.select(sa.func.count()).where(_t.c.subject == subject, _t.c.expires > tx.time)
        ).scalar()
        if (mine or 0) >= TOKENS_EACH:
            raise Invalid(f"{subject} has {mine} tokens already; revoke some first")
        text = PREFIX + secrets.token_urlsafe(32)
        token = Token(
            f"{secrets.token_hex(6)}-{text[-4:]}",
            _digest(text),
            subject,
            frozenset(scope),
            tx.time,
            tx.time + min(expires, MOST),
            description,
        )
        tx.conn.execute(sa.insert(_t).values({**token._asdict(), "scope": " ".join(sorted(token.scope))}))
        self._written[token.hash] = token
        return token, Issued(text, token.id, token.expires)

    def keep(self, token: Token) -> None:
        """Let a written token sign in, unless it was revoked between the two."""
        if self._written.pop(token.hash, None):
            self._tokens[token.hash] = self._by_id[token.id] = token

    def tokens(self, subject: str) -> list[Token]:
        """The live tokens of a subject, oldest first."""
        moment = self._store.clock()
        mine = [t for t in list(self._tokens.values()) if t.subject == subject and t.expires > moment]
        return sorted(mine, key=lambda t: (t.created, t.id))

    def token(self, identity: str) -> Token | None:
        """That token, whoever has it."""
        return self._by_id.get(identity)

    def revoke_in(self, tx: Tx, *, identity: str = "", subject: str = "") -> list[Token]:
        """Delete one token, or all of a subject; `forget` them once the transaction is committed."""
        live = [*list(self._tokens.values()), *list(self._written.values())]
        gone = [t for t in live if t.id == identity or (subject and t.subject == subject)]
        if identity and not gone:
            raise NotFound(f"there is no token {identity}")
        condition = _t.c.subject == subject if subject else _t.c.id == identity
        tx.conn.execute(sa.delete(_t).where(condition))
        return gone

    def forget(self, tokens: Iterable[Token]) -> None:
        """Refuse revoked tokens from now on."""
        for token in tokens:
            self._tokens.pop(token.hash, None)
            self._by_id.pop(token.id, None)
            self._written.pop(token.hash, None)

    def revoke(self, identity: str) -> None:
        self.forget(self._store.write(lambda tx: self.revoke_in(tx, identity=identity)))

    # ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────

    def verify(self, user: str, password: str, peer: str) -> str:
        """The hash kept, when the password is right. Unauthenticated when not, TooMany while it has to wait. Blocks."""
        subject, address = f"user:{user}", _peer(peer)
        stored = self._store.write(lambda tx: self._attempt(tx, subject, address))
        good = self._matches(password, stored or self._dummy) and bool(stored)
        disabled, _ = self._account(user)
        if not good or disabled:
            raise Unauthenticated("the user or the password is wrong")
        self._store.write(lambda tx: self._succeeded(tx, subject, address))
        return stored

    @staticmethod
    def _hash_in(tx: Tx, subject: str) -> str:
        row = tx.conn.execute(sa.select(_c.c.hash).where(_c.c.subject == subject)).first()
        return str(row.hash) if row else ""

    def login(
        self,
        user: str,
        password: str,
        peer: str,
        *,
        scope: Iterable[str] = SCOPES,
        expires: float = LASTS,
        description: str = "",
    ) -> Issued:
        """`verify`, then a token; audited. Blocks."""
        verified, subject = self.verify(user, password, peer), f"user:{user}"

        def act(tx: Tx) -> tuple[Token, Issued]:
            if self._hash_in(tx, subject) != verified:
                raise Unauthenticated("the password was changed meanwhile")
            token, issued = self.issue_in(tx, subject, scope, expires, description)
            tx.audit(subject, "login", Key("Account", "", user), token=token.id, peer=peer, scope=sorted(token.scope))
            return token, issued

        token, issued = self._store.write(act)
        self.keep(token)
        return issued

    def set_password(self, user: str, password: str) -> None:
        """Set the password of an account and revoke its tokens. Blocks."""
        hashed = self.hashed(password)
        self.forget(self._store.write(lambda tx: self.set_password_in(tx, user, hashed)))

    def hashed(self, password: str) -> str:
        """What is kept of a password; Invalid when it is too short. Takes its time: not inside a transaction."""
        if not SHORTEST <= len(password) <= LONGEST:
            raise Invalid(
                problems=(
                    Problem(f"a password has {SHORTEST} to {LONGEST} characters", "password", remedy="a longer one"),
                )
            )
        return self._hash(password)

    def set_password_in(self, tx: Tx, user: str, hashed: str) -> list[Token]:
        """Keep a hash; `forget` what is returned once the transaction is committed."""
        subject = f"user:{user}"
        tx.need(Key("Account", "", user))
        tx.conn.execute(sa.delete(_c).where(_c.c.subject == subject))
        tx.conn.execute(sa.insert(_c).values(subject=subject, hash=hashed, failures=0, not_before=0.0))
        return self.revoke_in(tx, subject=subject)

    def _attempt(self, tx: Tx, subject: str, address: str) -> str:
        """Count an attempt that may fail, and return the hash kept; TooMany when it came too early."""
        rows = {r.subject: r for r in tx.conn.execute(sa.select(_c).where(_c.c.subject.in_([subject, address])))}
        wait = max((r.not_before - tx.time for r in rows.values()), default=0.0)
        if wait > 0:
            raise TooMany(f"too many attempts to sign in; wait {wait:.0f} s", retry_after=max(1.0, round(wait)))
        for name, slowing in ((subject, PER_ACCOUNT), (address, PER_PEER)):
            row = rows.get(name)
            # The time of the last attempt is not kept; when its delay ended is as good.
            failures = 1 if row is None or row.not_before < tx.time - slowing.quiet else row.failures + 1
            values = {"failures": failures, "not_before": tx.time + slowing.wait(failures)}
            if row is None:
                self._prune(tx)
                tx.conn.execute(sa.insert(_c).values(subject=name, hash="", **values))
            else:
                tx.conn.execute(sa.update(_c).where(_c.c.subject == name).values(**values))
        return str(rows[subject].hash) if subject in rows else ""

    @staticmethod
    def _prune(tx: Tx) -> None:
        count = tx.conn.execute(sa.select(sa.func.count()).where(_c.c.hash == "")).scalar() or 0
        if count >= ROWS:
            quiet = sa.select(_c.c.subject).where(_c.c.hash == "").order_by(_c.c.not_before).limit(ROWS // 10)
            tx.conn.execute(sa.delete(_c).where(_c.c.subject.in_(quiet)))

    @staticmethod
    def _succeeded(tx: Tx, subject: str, address: str) -> None:
        tx.conn.execute(sa.update(_c).where(_c.c.subject == subject).values(failures=0, not_before=0.0))
        # The address keeps its earlier failures: one good account must not buy guesses at others.
        one_less = {"failures": sa.case((_c.c.failures > 0, _c.c.failures - 1), else_=0), "not_before": tx.time}
        tx.conn.execute(sa.update(_c).where(_c.c.subject == address).values(**one_less))

    def _hash(self, password: str) -> str:
        salt = secrets.token_bytes(16)
        return f"scrypt${self._work}${salt.hex()}${_scrypt(password, salt, self._work).hex()}"

    @staticmethod
    def _matches(password: str, stored: str) -> bool:
        _, work, salt, hashed = stored.split("$")
        return hmac.compare_digest(_scrypt(password[:LONGEST], bytes.fromhex(salt), int(work)), bytes.fromhex(hashed))


def ensure_admin(store: Store, user: str, password: str, *, work: int = 15) -> None:
    """An account with that password and the role admin everywhere; what exists of it already stays. Blocks."""
    accounts = Accounts(store, work=work)
    hashed = accounts.hashed(password)

    def act(tx: Tx) -> list[Token]:
        if tx.get(Key("Account", "", user)) is None:
            tx.create(_doc(store, "Account", user, {"description": "first administrator"}))
        name = f"admin-{user}"[:63].rstrip("-.")
        if tx.get(Key("RoleBinding", "", name)) is None:
            tx.create(_doc(store, "RoleBinding", name, {"role": "admin", "subjects": [f"user:{user}"]}))
        tx.audit("server", "ensure-admin", Key("Account", "", user))
        return accounts.set_password_in(tx, user, hashed)

    accounts.forget(store.write(act))


def _doc(store: Store, kind: str, name: str, spec: dict[str, Any]) -> Doc:
    return store.kinds.parse({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})


def _scrypt(password: str, salt: bytes, work: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << work, r=8, p=1, maxmem=1 << 28)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def _peer(address: str) -> str:
    """One row per address; per /64 for IPv6, where one host has as many addresses as it likes."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"peer:{address[:64]}"
    if found.version == 6:
        return f"peer:{ipaddress.ip_network((int(found) >> 64 << 64, 64))}"
    return f"peer:{found}"
