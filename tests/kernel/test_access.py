"""Who may do what, where: one table, and the ways people try to get more than they were given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundcontrol.kernel.access import KINDS, Access, Subject
from groundcontrol.kernel.errors import Forbidden, GroundError, Invalid, NotFound, Unauthenticated
from groundcontrol.kernel.resource import Doc, Key, KindInfo, Kinds, Model, Resource, key_of
from groundcontrol.kernel.rights import Allowed, Right, Where, first_missing
from groundcontrol.kernel.store import Store


class ThingSpec(Model):
    """A thing."""

    size: int = 0
    """Its size."""


class Thing(Resource):
    """Something in a namespace."""

    info: ClassVar[KindInfo] = KindInfo(plural="things", actions=("shake", "log"))
    spec: ThingSpec
    """What it is."""


class Site(Resource):
    """Something of the whole platform."""

    info: ClassVar[KindInfo] = KindInfo(plural="sites", namespaced=False)
    spec: ThingSpec
    """What it is."""


class Source(Resource):
    """A repository that acts by itself."""

    info: ClassVar[KindInfo] = KindInfo(plural="sources", namespaced=False)
    spec: ThingSpec
    """What it is."""


ACCOUNTS = {
    "root": [],
    "olga": [],
    "ada": ["experiments/alpha"],
    "bob": ["experiments/beta"],
    "vic": [],
    "lena": [],
    "sam": ["experiments/alpha/sub"],
    "nobody": [],
}
BINDINGS: dict[str, Doc] = {
    "root": {"role": "admin", "subjects": ["user:root"]},
    "ops": {"role": "operator", "subjects": ["user:olga"]},
    "alpha": {
        "role": "member",
        "subjects": ["group:experiments/alpha"],
        "selector": {"groups": ["experiments/alpha"]},
    },
    "beta": {"role": "member", "subjects": ["group:experiments/beta/**"], "selector": {"namespaces": ["beta"]}},
    "vic": {"role": "viewer", "subjects": ["user:vic"], "selector": {"groups": ["experiments/**"], "sites": ["bari"]}},
    "lena": {
        "role": "member",
        "subjects": ["user:lena"],
        "selector": {"namespaces": ["alpha"], "labels": "team=red", "kinds": ["Thing"]},
    },
    "platform": {"role": "operator", "subjects": ["source:platform"], "selector": {"namespaces": ["alpha"]}},
    "broken": {"role": "gone", "subjects": ["user:nobody"]},
}


def doc(kinds: Kinds, kind: str, name: str, namespace: str = "", labels: Any = None, **spec: Any) -> Doc:
    meta = {"name": name, "namespace": namespace, "labels": labels or {}}
    return kinds.parse({"apiVersion": "ground/v1", "kind": kind, "metadata": meta, "spec": spec})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/ground.db", Kinds([*KINDS, Thing, Site, Source])).open()

    def fill(tx: Any) -> None:
        for name, group in (("alpha", "experiments/alpha"), ("beta", "experiments/beta"), ("deep", "experiments/a/b")):
            tx.create(doc(store.kinds, "Namespace", name, group=group))
        for name, groups in ACCOUNTS.items():
            tx.create(doc(store.kinds, "Account", name, groups=groups))
        for name, spec in BINDINGS.items():
            tx.create(doc(store.kinds, "RoleBinding", name, **spec))

    store.write(fill)
    yield store
    store.close()


@pytest.fixture
def access(store: Store) -> Iterator[Access]:
    access = Access(store)
    yield access
    access.close()


def user(name: str, *scope: str) -> Subject:
    return Subject.user(name, ACCOUNTS[name], scope or ("read", "write", "approve", "admin"))


RED = {"team": "red"}
PLACES = {
    "thing in alpha": ("Thing", "alpha", "x", {}),
    "red thing in alpha": ("Thing", "alpha", "x", RED),
    "thing in beta": ("Thing", "beta", "x", {}),
    "site bari": ("Site", "", "bari", {}),
    "site cern": ("Site", "", "cern", {}),
    "namespace alpha": ("Namespace", "", "alpha", {}),
    "account": ("Account", "", "ada", {}),
    "plan of alpha": ("Plan", "alpha", "p", {}),
}
R, W, A, S = "get", "update", "approve", "shake"
# subject → place → verbs that are allowed, of get, update, approve and the action shake
TABLE: dict[str, dict[str, set[str]]] = {
    "root": {place: {R, W, A, S} for place in PLACES},
    "olga": {place: {R, W, A, S} for place in PLACES} | {"namespace alpha": {R}, "account": {R}},
    "ada": {
        "thing in alpha": {R, W, S},
        "red thing in alpha": {R, W, S},
        "namespace alpha": {R},
        "plan of alpha": {R, W, S},
    },
    "bob": {"thing in beta": {R, W, S}},
    "vic": {
        "thing in alpha": {R},
        "red thing in alpha": {R},
        "thing in beta": {R},
        "site bari": {R},
        "namespace alpha": {R},
        "plan of alpha": {R},
    },
    "lena": {"red thing in alpha": {R, W, S}},
    "sam": {},
    "nobody": {},
}


@pytest.mark.parametrize("verb", [R, W, A, S])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ACCOUNTS)
def test_the_table(access: Access, store: Store, name: str, place: str, verb: str) -> None:
    kind, namespace, called, labels = PLACES[place]
    expected = verb in TABLE[name].get(place, set())
    where: Any = {"namespace": namespace, "name": called, "labels": labels}
    assert access.allowed(user(name), verb, kind, **where) is expected
    if expected:
        access.require(user(name), verb, kind, **where)
        store.write(lambda tx: access.require_in(tx, user(name), verb, kind, **where))
    else:
        with pytest.raises((Forbidden, NotFound)):
            access.require(user(name), verb, kind, **where)
        with pytest.raises((Forbidden, NotFound)):
            store.write(lambda tx: access.require_in(tx, user(name), verb, kind, **where))


def test_what_may_not_be_known_is_not_found(access: Access) -> None:
    def refusal(name: str, verb: str, namespace: str) -> GroundError:
        with pytest.raises((Forbidden, NotFound)) as caught:
            access.require(user(name), verb, "Thing", namespace=namespace, name="x")
        return caught.value

    hidden, missing = refusal("bob", "delete", "alpha"), refusal("bob", "delete", "atlantis")
    assert isinstance(hidden, NotFound)
    assert hidden.message.replace("alpha", "…") == missing.message.replace("atlantis", "…")
    seen = refusal("vic", "delete", "alpha")
    assert isinstance(seen, Forbidden)
    assert "operator" in seen.message
    assert "bob" not in seen.message
    assert "beta" not in seen.message


def test_scope_bounds_what_roles_give(access: Access) -> None:
    where: Any = {"namespace": "alpha", "name": "x"}
    reader = user("root", "read")
    assert access.allowed(reader, "get", "Thing", **where)
    assert access.allowed(reader, "log", "Thing", **where)
    assert not access.allowed(reader, "update", "Thing", **where)
    assert not access.allowed(user("root", "read", "write"), "approve", "Plan")
    assert not access.allowed(user("root", "read", "write"), "create", "RoleBinding", name="x")
    assert access.allowed(user("root", "admin"), "create", "RoleBinding", name="x")
    with pytest.raises(Forbidden, match="scope lacks 'write'"):
        access.require(reader, "update", "Thing", **where)


def test_a_source_has_rights_of_its_own(access: Access) -> None:
    source = Subject.source("platform")
    assert access.allowed(source, "create", "Thing", namespace="alpha", name="x")
    assert not access.allowed(source, "create", "Thing", namespace="beta", name="x")
    assert not access.allowed(source, "create", "Site", name="x")


def test_groups_mean_exactly_that_or_all_below() -> None:
    names = Subject.user("u", ["a/b"]).names
    assert names == {"user:u", "group:a/b", "group:a/**", "group:a/b/**"}
    assert "group:ab/**" not in Subject.user("u", ["abc"]).names


def test_lists_show_what_may_be_seen(access: Access, store: Store) -> None:
    def fill(tx: Any) -> None:
        tx.create(doc(store.kinds, "Thing", "a", "alpha"))
        tx.create(doc(store.kinds, "Thing", "r", "alpha", RED))
        tx.create(doc(store.kinds, "Thing", "b", "beta"))

    store.write(fill)

    def seen(name: str, kind: str = "Thing") -> set[str]:
        test = access.visible(user(name), kind)
        return {e.key.name for e in store.entries(kind) if test(e)}

    assert seen("root") == seen("olga") == {"a", "r", "b"}
    assert seen("ada") == {"a", "r"}
    assert seen("lena") == {"r"}
    assert seen("bob") == {"b"}
    assert seen("nobody") == set()
    assert seen("bob", "Namespace") == {"beta"}
    assert seen("vic", "Namespace") == {"alpha", "beta", "deep"}
    assert access.namespaces(user("root"), "list", "Thing") is None
    assert access.namespaces(user("ada"), "list", "Thing") == {"alpha"}


def test_a_change_of_rights_is_seen_at_once_and_inside_its_own_transaction(access: Access, store: Store) -> None:
    nobody = user("nobody")
    before = access.version
    key = Key("Thing", "alpha", "x")

    def act(tx: Any) -> None:
        with pytest.raises(NotFound):
            access.require_in(tx, nobody, "get", *[key.kind], namespace="alpha", name="x")
        tx.create(doc(store.kinds, "RoleBinding", "new", role="viewer", subjects=["user:nobody"]))
        access.require_in(tx, nobody, "get", "Thing", namespace="alpha", name="x")
        assert not access.allowed(nobody, "get", "Thing", namespace="alpha", name="x"), "others see it once committed"

    store.write(act)
    assert access.version > before
    assert access.allowed(nobody, "get", "Thing", namespace="alpha", name="x")
    store.write(lambda tx: tx.delete(Key("RoleBinding", "", "new")))
    assert not access.allowed(nobody, "get", "Thing", namespace="alpha", name="x")


def test_a_binding_that_was_rolled_back_gives_nothing(access: Access, store: Store) -> None:
    nobody = user("nobody")

    def grants(tx: Any) -> None:
        tx.create(doc(store.kinds, "RoleBinding", "new", role="viewer", subjects=["user:nobody"]))
        access.require_in(tx, nobody, "get", "Thing", namespace="alpha", name="x")
        raise RuntimeError("undone")

    first = store.submit(grants)
    second = store.submit(lambda tx: access.require_in(tx, nobody, "get", "Thing", namespace="alpha", name="x"))
    with pytest.raises(RuntimeError):
        first.result(10)
    with pytest.raises(NotFound):
        second.result(10)


def test_a_disabled_account_changes_nothing(access: Access, store: Store) -> None:
    def disable(tx: Any) -> None:
        account = tx.need(Key("Account", "", "root"))
        account["spec"]["disabled"] = True
        tx.replace(account)
        access.require_in(tx, user("root"), "delete", "Thing", namespace="alpha", name="x")

    with pytest.raises(Unauthenticated):
        store.write(disable)


def test_groups_of_a_token_are_read_anew_when_something_changes(access: Access, store: Store) -> None:
    def leave(tx: Any) -> None:
        account = tx.need(Key("Account", "", "ada"))
        account["spec"]["groups"] = []
        tx.replace(account)
        access.require_in(tx, user("ada"), "update", "Thing", namespace="alpha", name="x")

    with pytest.raises(NotFound):
        store.write(leave)


THING_READER = {"kinds": ["Thing"], "verbs": ["get"]}
ANYTHING = {"kinds": ["*"], "verbs": ["*"]}
DECIDER = {"kinds": ["Namespace", "Account", "Role", "RoleBinding", "Source"], "verbs": ["*"]}


def gives(role: str, may: bool, **where: Any) -> tuple[str, str, Doc, bool]:
    """A case: a binding of that role for somebody else."""
    return "RoleBinding", "new", {"role": role, "subjects": ["user:ghost"], "selector": where}, may


class TestNobodyHandsOnMoreThanTheyHold:
    """The subject `deputy` may write access kinds everywhere, and works in alpha."""

    @pytest.fixture(autouse=True)
    def _deputy(self, store: Store) -> None:
        def act(tx: Any) -> None:
            tx.create(doc(store.kinds, "Account", "deputy", groups=[]))
            tx.create(doc(store.kinds, "Account", "ghost", groups=[]))
            tx.create(doc(store.kinds, "Role", "decider", rules=[DECIDER]))
            tx.create(doc(store.kinds, "RoleBinding", "deputy", role="decider", subjects=["user:deputy"]))
            works = {"role": "member", "subjects": ["user:deputy"], "selector": {"groups": ["experiments/alpha"]}}
            tx.create(doc(store.kinds, "RoleBinding", "deputy-works", **works))

        store.write(act)

    # (kind, name, spec, whether a deputy may)
    CASES: ClassVar[dict[str, tuple[str, str, Doc, bool]]] = {
        "what it holds, where it holds it": gives("member", True, groups=["experiments/alpha"]),
        "in a namespace of its group": gives("viewer", True, namespaces=["alpha"]),
        "narrowed by labels": gives("member", True, namespaces=["alpha"], labels="a=b"),
        "the role admin": ("RoleBinding", "new", {"role": "admin", "subjects": ["user:deputy"]}, False),
        "everywhere": ("RoleBinding", "new", {"role": "viewer", "subjects": ["user:deputy"]}, False),
        "in another namespace": gives("viewer", False, namespaces=["alpha", "beta"]),
        "in the groups below": gives("viewer", False, groups=["experiments/alpha/**"]),
        "more verbs there": gives("operator", False, namespaces=["alpha"]),
        "on a site": gives("viewer", False, sites=["bari"]),
        "what it has itself, deciding": ("RoleBinding", "new", {"role": "decider", "subjects": ["user:ghost"]}, True),
        "a role of everything": ("Role", "new", {"rules": [ANYTHING]}, False),
        "a role of what it has only in alpha": ("Role", "new", {"rules": [THING_READER]}, False),
        "a role of what it holds": ("Role", "new", {"rules": [DECIDER]}, True),
        "its own role, widened": ("Role", "decider", {"rules": [DECIDER, ANYTHING]}, False),
        "a group that has nothing": ("Account", "new", {"groups": ["experiments/none"]}, True),
        "a group that has what it has": ("Account", "deputy", {"groups": ["experiments/alpha"]}, True),
        "a group that has more": ("Account", "deputy", {"groups": ["experiments/beta"]}, False),
        "a namespace of its own": ("Namespace", "new", {"group": "experiments/beta"}, True),
        "another's namespace, moved to its group": ("Namespace", "beta", {"group": "experiments/alpha"}, False),
        "a source without rights": ("Source", "tree", {"size": 1}, True),
        "a source with more rights": ("Source", "platform", {"size": 1}, False),
    }  # fmt: skip

    @pytest.mark.parametrize("case", CASES)
    def test_case(self, access: Access, store: Store, case: str) -> None:
        kind, name, spec, may = self.CASES[case]
        for who, expected in (("deputy", may), ("root", True)):
            subject = Subject.user(who)

            def act(tx: Any, subject: Subject = subject) -> None:
                after = doc(store.kinds, kind, name, **spec)
                before = tx.get(key_of(after))
                access.admit(tx, subject, "update" if before else "create", key_of(after), before, after)

            if expected:
                store.write(act)
            else:
                with pytest.raises(Forbidden, match="may not"):
                    store.write(act)

    def test_a_built_in_name_cannot_be_taken(self, access: Access, store: Store) -> None:
        role = doc(store.kinds, "Role", "viewer", rules=[DECIDER])
        with pytest.raises(Invalid, match="built-in"):
            store.write(lambda tx: access.admit(tx, user("root"), "create", key_of(role), None, role))

    def test_relabelling_does_not_lead_out_of_a_narrow_binding(self, access: Access, store: Store) -> None:
        red = store.write(lambda tx: tx.create(doc(store.kinds, "Thing", "r", "alpha", RED)))
        blue = doc(store.kinds, "Thing", "r", "alpha", {"team": "blue"})
        for before, after in ((red, blue), (blue, red), (None, blue)):
            with pytest.raises((Forbidden, NotFound)):
                store.write(
                    lambda tx, b=before, a=after: access.admit(
                        tx, user("lena"), "update" if b else "create", key_of(a), b, a
                    )
                )

    def test_the_password_of_a_stronger_account(self, access: Access, store: Store) -> None:
        with pytest.raises(Forbidden):
            store.write(lambda tx: access.require_all_of(tx, Subject.user("deputy"), "root", "set a password"))
        store.write(lambda tx: access.require_all_of(tx, Subject.user("deputy"), "ghost", "set a password"))


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("RoleBinding", "subjects", ["ada"]),
        ("RoleBinding", "subjects", ["group:a/*/b"]),
        ("RoleBinding", "subjects", ["group:**"]),
        ("RoleBinding", "selector.labels", "a in b"),
        ("RoleBinding", "selector.groups", ["/a"]),
        ("Account", "groups", ["a//b"]),
        ("Namespace", "group", "a b"),
    ],
)
def test_wrong_words_are_refused_where_they_stand(store: Store, kind: str, path: str, value: Any) -> None:
    spec: Doc = {"role": "viewer", "subjects": ["user:a"]} if kind == "RoleBinding" else {}
    first, _, inner = path.partition(".")
    with pytest.raises(Invalid) as caught:
        doc(store.kinds, kind, "new", **{**spec, first: {inner: value} if inner else value})
    assert f"spec.{path}" in [p.path for p in caught.value.problems]


_names = st.sets(st.sampled_from("abc"), max_size=2).map(frozenset)
_where = st.builds(
    lambda n, g: Where(not (n or g), n, g, frozenset(), n | frozenset(f"in-{x}" for x in g)), _names, _names
)
_right = st.builds(
    lambda kinds, verbs, where: Right(Allowed(frozenset(kinds), frozenset(verbs)), where, ""),
    st.sets(st.sampled_from(["*", "Thing", "Role"]), min_size=1),
    st.sets(st.sampled_from(["*", "get", "update", "approve", "actions", "shake", "migrate"]), min_size=1),
    _where,
)


@given(st.lists(_right, max_size=3).map(tuple), st.lists(_right, max_size=3).map(tuple))
def test_what_is_held_allows_everything_that_is_handed_on(own: Any, wanted: Any) -> None:
    if first_missing(own, wanted) is not None:
        return
    for verb in ("get", "update", "approve", "shake", "migrate", "other"):
        for kind in ("Thing", "Role", "Site"):
            for namespace in ("", "a", "b", "c", "in-a", "in-b", "in-c", "elsewhere"):
                if any(r.allows(verb, kind, namespace, "x", {}) for r in wanted):
                    assert any(r.allows(verb, kind, namespace, "x", {}) for r in own)


def test_actions_do_not_stand_for_what_reaches_below_a_place() -> None:
    where = Where(True, frozenset(), frozenset(), frozenset(), frozenset())
    kinds = frozenset({"*"})
    actions, named, every = (Right(Allowed(kinds, frozenset({v})), where, "") for v in ("actions", "live-migrate", "*"))
    assert actions.covers("reboot", "Server")
    assert not actions.covers("live-migrate", "Server")
    assert named.covers("live-migrate", "Server")
    assert every.covers("live-migrate", "Server")
    assert first_missing((actions,), (named,)) is not None
