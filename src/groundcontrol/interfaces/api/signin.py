"""Signing in, and the tokens of whoever signed in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from groundcontrol.interfaces.api import body
from groundcontrol.interfaces.api.answers import encoded
from groundcontrol.interfaces.api.derive import API, ref
from groundcontrol.interfaces.api.operation import Call, Operation
from groundcontrol.kernel.accounts import DAY, LASTS, MOST, Issued, Token
from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, Problem
from groundcontrol.kernel.resource import Key, now
from groundcontrol.kernel.rights import SCOPES
from groundcontrol.kernel.tx import Tx

SHORTEST_LIFE = 60
MISSING = object()


def operations() -> Iterator[Operation]:
    """Everything about who is asking."""
    yield Operation("POST", f"{API}/login", "login", "signing in", "Change a password for a token.", _login,
                    body=ref("LoginInput"), answers={200: ref("NewToken")}, public=True)  # fmt: skip
    yield Operation("GET", f"{API}/whoami", "whoami", "signing in", "Who you are, and what your token may do.",
                    _whoami, answers={200: ref("Whoami")})  # fmt: skip
    yield Operation("GET", f"{API}/tokens", "listTokens", "signing in", "Your tokens, without what is secret.",
                    _tokens, answers={200: ref("TokenList")})  # fmt: skip
    yield Operation("POST", f"{API}/tokens", "createToken", "signing in",
                    "A new token; it is shown this once. It can do no more than the one you ask with.", _create,
                    body=ref("TokenInput"), body_optional=True, answers={201: ref("NewToken")})  # fmt: skip
    yield Operation("DELETE", f"{API}/tokens/{{id}}", "revokeToken", "signing in", "Revoke a token now.", _revoke,
                    answers={200: ref("Revoked")})  # fmt: skip
    yield Operation("PUT", f"{API}/accounts/{{name}}/password", "setPassword", "signing in",
                    "Set a password and revoke the account's tokens. Your own needs the old one.", _password,
                    body=ref("PasswordInput"), answers={200: ref("Revoked")})  # fmt: skip


def _scope(given: Any, own: frozenset[str]) -> frozenset[str]:
    if given is MISSING:
        return own
    if not isinstance(given, list) or not given or not all(isinstance(s, str) and s in SCOPES for s in given):
        raise Invalid(problems=(Problem(f"scope is a list of {', '.join(sorted(SCOPES))}", "scope"),))
    return frozenset(given)


def _expires(given: Any, otherwise: float) -> float:
    if given is MISSING:
        return otherwise
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not SHORTEST_LIFE <= given <= MOST:
        problem = Problem(f"expires is a number of seconds from {SHORTEST_LIFE} to {MOST:.0f}", "expires")
        raise Invalid(problems=(problem,))
    return float(given)


def _issued(token: Issued, status: int) -> Response:
    return encoded({"token": token.token, "expires": now(token.expires), "id": token.id}, status)


async def _login(call: Call) -> Response:
    given = await call.json_object("user", "password", "expires", "scope", "description", required=("user", "password"))
    user, password = body.text(given, "user", 63), body.text(given, "password", 1024)
    scope, expires = _scope(given.get("scope", MISSING), SCOPES), _expires(given.get("expires", MISSING), LASTS)
    description, accounts = body.text(given, "description", 200), call.backend.accounts
    try:
        issued = await call.server.passwords.run(
            lambda: accounts.login(user, password, call.peer, scope=scope, expires=expires, description=description)
        )
    except GroundError as error:
        if error.status in (401, 429):
            call.server.refusals.note(f"user:{user}", "login", Key("Account", "", user), error, call.peer)
        raise
    return _issued(issued, 200)


async def _whoami(call: Call) -> Response:
    who = call.subject
    return encoded(
        {"subject": who.name, "groups": sorted(who.groups), "scope": sorted(who.scope), "expires": now(who.expires)}
    )


async def _tokens(call: Call) -> Response:
    mine = call.backend.accounts.tokens(call.subject.name)
    return encoded({"items": [{**t.as_dict(), "current": t.id == call.subject.token} for t in mine]})


async def _create(call: Call) -> Response:
    """For oneself; with `account` for a robot whose every right one holds."""
    given = await call.json_object("description", "expires", "scope", "account")
    subject, accounts = call.subject, call.backend.accounts
    if not subject.scope & {"write", "admin"}:
        raise Forbidden("your token may not make tokens: its scope lacks 'write'")
    scope, expires = (
        _scope(given.get("scope", MISSING), subject.scope),
        _expires(given.get("expires", MISSING), 30 * DAY),
    )
    more = sorted(scope - subject.scope)
    if more and "admin" not in subject.scope:
        raise Forbidden(f"a token can hand on no more than its own scope; yours lacks {', '.join(more)}")
    description, robot = body.text(given, "description", 200), body.text(given, "account", 63)
    access = call.backend.access

    def act(tx: Tx) -> tuple[Token, Issued]:
        who = f"user:{robot}" if robot else subject.name
        if robot:
            key = Key("Account", "", robot)
            access.require_in(tx, subject, "update", "Account", name=robot)
            if not tx.need(key)["spec"].get("robot"):
                raise Forbidden(f"{robot} is not a robot: people make their own tokens")
            access.require_all_of(tx, subject, robot, f"make a token for {robot}")
        else:
            accounts.still_in(tx, subject)
        token, issued = accounts.issue_in(tx, who, scope, expires, description)
        tx.audit(
            subject.name,
            "create-token",
            Key("Account", "", who.removeprefix("user:")),
            token=token.id,
            scope=sorted(scope),
        )
        return token, issued

    token, issued = await call.write(act)
    accounts.keep(token)
    return _issued(issued, 201)


async def _revoke(call: Call) -> Response:
    identity, subject, backend = call.path["id"], call.subject, call.backend
    if identity != subject.token and not subject.scope & {"write", "admin"}:
        raise Forbidden("your token may revoke itself only: its scope lacks 'write'")

    def act(tx: Tx) -> list[Token]:
        found = backend.accounts.token(identity)
        owner = found.subject.removeprefix("user:") if found else ""
        others = found is not None and found.subject != subject.name
        if found is None or (others and not backend.access.allowed(subject, "update", "Account", name=owner)):
            raise NotFound(f"you have no token {identity}")
        if others:
            backend.access.require_in(tx, subject, "update", "Account", name=owner)
        gone = backend.accounts.revoke_in(tx, identity=identity)
        tx.audit(subject.name, "revoke-token", Key("Account", "", owner), token=identity)
        return gone

    gone = await call.write(act)
    backend.accounts.forget(gone)
    return encoded({"revoked": [t.id for t in gone]})


async def _password(call: Call) -> Response:
    given = await call.json_object("password", "old", required=("password",))
    new, old, name = body.text(given, "password", 1024), body.text(given, "old", 1024), call.path["name"]
    subject, backend = call.subject, call.backend
    own = subject.name == f"user:{name}"
    if own and not subject.scope & {"write", "admin"}:
        raise Forbidden("your token may not change your password: its scope lacks 'write'")
    if own:
        await call.server.passwords.run(lambda: backend.accounts.verify(name, old, call.peer))
    else:
        backend.access.require(subject, "update", "Account", name=name)
    hashed = await call.server.passwords.run(lambda: backend.accounts.hashed(new))

    def act(tx: Tx) -> list[Token]:
        if not own:
            backend.access.require_in(tx, subject, "update", "Account", name=name)
            tx.need(Key("Account", "", name))
            backend.access.require_all_of(tx, subject, name, f"set the password of {name}")
        gone = backend.accounts.set_password_in(tx, name, hashed)
        tx.audit(subject.name, "set-password", Key("Account", "", name), revoked=len(gone))
        return gone

    gone = await call.write(act)
    backend.accounts.forget(gone)
    return encoded({"revoked": [t.id for t in gone]})
