"""`ground admin`: what is done on the server's own machine: reference pages, passwords, files of the ledger.

Passwords and the ledger are worked on in the data directory, under the lock a server holds too: never behind
the back of one that runs. What can be done through the running server is said in the refusal.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from groundcontrol.assembly import kinds
from groundcontrol.kernel.accounts import LONGEST, Accounts, ensure_admin
from groundcontrol.kernel.errors import Invalid, NotFound, Unavailable
from groundcontrol.kernel.incarnation import check_id, give_back
from groundcontrol.kernel.ledger import Ledger
from groundcontrol.kernel.resource import Key, did_you_mean
from groundcontrol.kernel.runtime import DATASETS, WITNESS
from groundcontrol.kernel.settings import Settings, load
from groundcontrol.kernel.store import Store
from groundcontrol.kernel.tx import Tx

SUBJECT = "operator:local"
"""Who the audit names: whoever may read and write the data directory."""
LEDGER_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> int:
    """Do one thing and return the exit code; raises GroundError with what is wrong and what to do."""
    options = _parser().parse_args(argv)
    act: Callable[[argparse.Namespace], int] = options.act
    return act(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ground admin", description="What is done on the server's own machine. No command needs the network."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    pages = commands.add_parser("reference", help="write the reference pages from the kinds, settings and errors")
    pages.add_argument("--directory", default="docs/reference", metavar="DIR", help="where (default: docs/reference)")
    pages.add_argument("--examples", metavar="DIR", help="example manifests, KIND.yaml (default: examples beside it)")
    pages.set_defaults(act=_reference)

    described = commands.add_parser("openapi", help="the description of the API, OpenAPI 3.1")
    described.add_argument("--write", metavar="FILE", help="write it there instead of printing it")
    described.set_defaults(act=_openapi)

    password = commands.add_parser("password", help="set the password of an account; its tokens end")
    password.add_argument("user", metavar="USER")
    password.add_argument(
        "--make-admin", action="store_true", help="make the account when it is missing, and give it the role admin"
    )
    password.set_defaults(act=_password)

    restored = commands.add_parser(
        "restored", help="say that the data were put back from a copy: the server then only observes, until released"
    )
    restored.add_argument("--reason", required=True, metavar="TEXT", help="why, for the plan and the audit")
    restored.set_defaults(act=_restored)

    identity = commands.add_parser(
        "installation", help="the id that everything it made carries; or give a new database the id of a lost one"
    )
    identity.add_argument("id", nargs="?", metavar="ID", help="the id of the lost one; it then only observes at first")
    identity.add_argument("--even-so", action="store_true", help="although it owns things under its own id already")
    identity.set_defaults(act=_installation)

    ledger = commands.add_parser("ledger", help="the ledger's files")
    actions = ledger.add_subparsers(dest="verb", metavar="VERB", required=True)
    export = actions.add_parser("export", help="write a dataset as Parquet, one file a month")
    export.add_argument("dataset", metavar="DATASET", choices=[d.name for d in DATASETS], help="%(choices)s")
    export.add_argument("--directory", required=True, metavar="DIR", help="where")
    export.set_defaults(act=_export)
    for one in (password, restored, identity, export):
        _config(one)
    return parser


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="ground.yaml", metavar="FILE", help="the settings (default: ground.yaml)")


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _openapi(options: argparse.Namespace) -> int:
    from groundcontrol.programs.reference import openapi_text

    text = openapi_text(kinds())
    if options.write:
        Path(options.write).write_text(text, encoding="utf-8")
    else:
        print(text, end="")
    return 0


def _reference(options: argparse.Namespace) -> int:
    from groundcontrol.programs.reference import pages, write

    directory = Path(options.directory)
    examples = Path(options.examples) if options.examples else directory.parent / "examples"
    changed = write(directory, pages(examples))
    for path in changed:
        print(f"wrote {path}")
    return 0


# ── an installation whose server is stopped ─────────────────────────────────────────────────────────────────────


@contextmanager
def _stopped(settings: Settings, otherwise: str, restored: str = "") -> Iterator[Store]:
    """The store, held alone. `otherwise`: what to do while a server runs; `restored`: as `Store` has it."""
    data = Path(settings.data)
    database = data / "ground.db"
    if not database.exists():
        raise NotFound(f"there is no installation in {data}; `ground serve` makes it")
    os.umask(0o077)
    store = Store(f"sqlite:///{database}", kinds(), lock=data / "lock", witness=data / WITNESS, restored=restored)
    try:
        store.open()
    except Unavailable as error:
        raise Unavailable(f"{error.message.partition(';')[0]}. {otherwise}") from None
    try:
        yield store
    finally:
        store.close()


def _typed(what: str) -> str:
    """What stands on standard input, without the newline at its end; asked for twice on a terminal."""
    if sys.stdin.isatty():
        first = getpass.getpass(f"{what}: ")
        if getpass.getpass(f"{what}, again: ") != first:
            raise Invalid("the two are not the same; nothing was changed")
        text = first
    else:
        text = sys.stdin.read(LONGEST + 2).removesuffix("\n")
    if not text:
        raise Invalid(f"{what} is empty; give it on standard input")
    return text


def _password(options: argparse.Namespace) -> int:
    settings = load(options.config)
    way = f"Set it through that server: PUT {settings.public_url}/api/v1/accounts/{options.user}/password"
    with _stopped(settings, f"{way}; or stop the server first") as store:
        known = [e.key.name for e in store.entries("Account")]
        if options.user not in known and not options.make_admin:
            raise NotFound(f"there is no Account {options.user}{did_you_mean(options.user, known)}")
        password = _typed(f"New password of {options.user}")
        if options.make_admin:
            ensure_admin(store, options.user, password)
        else:
            Accounts(store).set_password(options.user, password)
        store.write(lambda tx: tx.audit(SUBJECT, "set-password", Key("Account", "", options.user)))
    print(f"the password of {options.user} is set; tokens it had are revoked")
    return 0


def _restored(options: argparse.Namespace) -> int:
    settings = load(options.config)
    with _stopped(settings, "Stop it first: it acts on what it believes to be true", options.reason) as store:
        plan = f"restore:{store.incarnation}"
        store.write(lambda tx: tx.audit(SUBJECT, "restored", Key("Plan", "", plan), reason=options.reason))
    print(f"the server will only observe; start it, look at `ground plan show {plan}`, then `ground approve {plan}`")
    return 0


def _installation(options: argparse.Namespace) -> int:
    settings, id_ = load(options.config), options.id
    with _stopped(settings, "Stop it first") as store:
        before = store.installation
        if id_:
            with store.reading() as conn:
                check_id(conn, id_, even_so=options.even_so)
    if not id_:
        print(before)
        return 0
    why = f"it was given the id {id_} of an installation whose database was lost"
    with _stopped(settings, "Stop it first", why) as store:
        plan = f"restore:{store.incarnation}"

        def give(tx: Tx) -> None:
            give_back(tx.conn, id_, even_so=options.even_so)
            tx.audit(SUBJECT, "installation", Key("Plan", "", plan), before=before, id=id_)

        store.write(give)
    print(f"it is {id_} now and will only observe; start it, look at `ground plan show {plan}`, then approve that")
    return 0


# ── the ledger ──────────────────────────────────────────────────────────────────────────────────────────────────


def _export(options: argparse.Namespace) -> int:
    settings = load(options.config)
    if not settings.ledger_path.exists():
        raise NotFound(f"there is no ledger at {settings.ledger_path}")
    way = "Only it can open the ledger: ask it with POST /api/v1/ledger/query, or stop it for the export"
    with _stopped(settings, way):
        ledger = Ledger(settings.ledger_path, DATASETS, memory_mb=settings.ledger.memory_mb)
        try:
            if not ledger.start(wait=LEDGER_SECONDS):
                raise Unavailable(f"the ledger cannot be opened: {json.dumps(ledger.status()['error'])}")
            written = ledger.export_all(options.dataset, options.directory)
        finally:
            ledger.stop()
    for path in written:
        print(path)
    if not written:
        print(f"dataset {options.dataset} has no facts", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
