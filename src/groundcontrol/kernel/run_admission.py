"""Everything that can be known to be wrong with a sequence of steps before it runs.

A value is a literal or exactly one `${path}`; paths are typed and point only backwards, so nothing is computed and
nothing is circular. All of it is judged when a sequence is admitted, with the path of the field that is wrong; what
runs later is a frozen copy of what was judged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from groundcontrol.kernel.errors import Invalid, NotFound
from groundcontrol.kernel.expression import compile_predicate
from groundcontrol.kernel.resource import Kinds, Model, did_you_mean
from groundcontrol.kernel.run_steps import WORD, Act, Input, Step

PATH = re.compile(r"\$\{(\w+(?:\.\w+)*)\}")
Loc = tuple[str | int, ...]
SIGHT = ("state", "output", "attempts", "message", "started", "ended")
"""What a predicate may see of another step."""


class Sequence(Model):
    """Steps in order, with the inputs they use."""

    inputs: dict[str, Input] = Field(default_factory=dict, max_length=50)
    """Name to what may be given."""
    steps: list[Step] = Field(default_factory=list, max_length=200)
    """What is done, in this order."""
    offline: Literal["continue", "hold", "finish-wave"] = "hold"
    """What a site that is cut off does with its part: goes on, stops before the next step, or finishes the wave."""
    concurrency: int = Field(default=50, ge=1, le=10_000)
    """Runs of it under way at once in one namespace; the rest wait as Pending."""

    @model_validator(mode="after")
    def _admissible(self, info: ValidationInfo) -> Sequence:
        # What was admitted once is gone through as it is, also when a later version of us is stricter.
        if not (info.context or {}).get("frozen"):
            refuse(list(check(self)), type(self).__name__)
        return self


class Wrong(NamedTuple):
    """One thing that is wrong, and where."""

    loc: Loc
    message: str

    @property
    def path(self) -> str:
        return ".".join(map(str, self.loc))


def refuse(found: list[Wrong], title: str) -> None:
    """Raise all of it in pydantic's own form, so that whoever wrote the document is told each field."""
    if found:
        raise ValidationError.from_exception_data(
            title,
            [
                InitErrorDetails(type=PydanticCustomError("step", "{why}", {"why": w.message}), loc=w.loc, input=None)
                for w in found[:50]
            ],
        )


# ── what can be judged from the sequence alone ──────────────────────────────────────────────────────────────────────


class _Known(NamedTuple):
    """What a step may refer to."""

    inputs: Mapping[str, Input]
    steps: Mapping[str, Step]
    later: frozenset[str]


def check(sequence: Sequence) -> Iterator[Wrong]:
    """Everything that is wrong with it by itself."""
    if not sequence.steps:
        yield Wrong(("steps",), "there are no steps")
    for name, input in sequence.inputs.items():
        yield from _check_input(("inputs", name), name, input)
    names = [s.name for s in sequence.steps]
    earlier: dict[str, Step] = {}
    for number, step in enumerate(sequence.steps):
        at: Loc = ("steps", number)
        if step.name in earlier:
            yield Wrong((*at, "name"), f"another step is called {step.name!r}")
        known = _Known(sequence.inputs, dict(earlier), frozenset(names[number:]))
        yield from _check_step(at, step, known)
        earlier[step.name] = step


def _check_input(at: Loc, name: str, input: Input) -> Iterator[Wrong]:
    if not re.fullmatch(WORD, name):
        yield Wrong(at, "a name is a letter, then letters, digits and _")
    if (input.type == "resource") != bool(input.kind):
        yield Wrong((*at, "kind"), "kind goes with type resource, and only with it")
    if input.type != "int" and (input.min is not None or input.max is not None):
        yield Wrong((*at, "type"), "min and max go with type int")
    if input.default is not None and (wrong := fits(input, input.default)):
        yield Wrong((*at, "default"), wrong)
    for number, value in enumerate(input.enum):
        if wrong := fits(input.model_copy(update={"enum": []}), value):
            yield Wrong((*at, "enum", number), wrong)


def _check_step(at: Loc, step: Step, known: _Known) -> Iterator[Wrong]:
    if sum(part is not None for part in (step.act, step.wait, step.ask, step.notify)) != 1:
        yield Wrong(at, "a step is exactly one of act, wait, ask and notify")
        return
    roots = frozenset({"inputs", "steps", "run"})
    if step.when:
        yield from _check_predicate((*at, "when"), step.when, roots, known)
    own = known._replace(steps={**known.steps, step.name: step}, later=known.later - {step.name})
    if step.act:
        yield from _check_act((*at, "act"), step.act, known)
        if step.act.restore:
            yield Wrong((*at, "act", "restore"), "restore belongs in undo")
    if step.undo:
        yield from _check_act((*at, "undo"), step.undo, own)
        if step.undo.restore and not (step.act and step.act.set):
            yield Wrong((*at, "undo", "restore"), "there is nothing to restore: the step sets no fields")
    if step.wait:
        if bool(step.wait.kind) != bool(step.wait.name):
            yield Wrong((*at, "wait", "name"), "kind and name go together")
        yield from _check_name((*at, "wait", "name"), step.wait.name, step.wait.kind, known)
        yield from _check_namespace((*at, "wait", "namespace"), step.wait.namespace, known)
        looked = roots | {"resource"} if step.wait.kind else roots
        yield from _check_predicate((*at, "wait", "until"), step.wait.until, looked, known)
    if step.ask:
        yield from _check_value((*at, "ask", "question"), step.ask.question, known)
    if step.notify:
        yield from _check_value((*at, "notify", "message"), step.notify.message, known)
    called = step.act is not None and bool(step.act.verb)
    if not called:
        for name in ("undo",) if not step.act else ():
            if getattr(step, name) is not None:
                yield Wrong((*at, name), "goes with act")
        for name in ("on_unknown", "check", "outputs"):
            if getattr(step, name):
                yield Wrong((*at, _camel(name)), "goes with an act that calls an action")
    if bool(step.check) != (step.on_unknown == "check"):
        yield Wrong((*at, "check"), "check goes with onUnknown: check")
    elif step.check and called:
        yield from _check_predicate((*at, "check"), step.check, roots | {"resource", "before"}, own)
    for name in step.outputs:
        if not re.fullmatch(WORD, name):
            yield Wrong((*at, "outputs", name), "a name is a letter, then letters, digits and _")


def _check_act(at: Loc, act: Act, known: _Known) -> Iterator[Wrong]:
    if act.forms != 1:
        yield Wrong(at, "an act is exactly one of kind with name and verb, set, and restore")
    elif act.set:
        yield from _check_name((*at, "set", "name"), act.set.name, act.set.kind, known)
        yield from _check_namespace((*at, "set", "namespace"), act.set.namespace, known)
        for path, value in act.set.fields.items():
            here = (*at, "set", "fields", path)
            if not re.fullmatch(r"spec(\.[A-Za-z0-9_-]+)+", path):
                yield Wrong(here, "a path is spec.NAME, spec.NAME.NAME and so on")
            yield from _check_value(here, value, known)
    elif not act.restore:
        for name in ("kind", "name", "verb"):
            if not getattr(act, name):
                yield Wrong((*at, name), f"{name} is missing")
        yield from _check_name((*at, "name"), act.name, act.kind, known)
        yield from _check_namespace((*at, "namespace"), act.namespace, known)
        for name, value in act.body.items():
            yield from _check_value((*at, "body", name), value, known)


def _check_name(at: Loc, name: str, kind: str, known: _Known) -> Iterator[Wrong]:
    wrong = list(_check_value(at, name, known))
    yield from wrong
    path = _path(name)
    if wrong or path is None:
        return
    input = known.inputs.get(path[1]) if path[0] == "inputs" else None
    type_ = _type_of(path, known)
    if type_ not in ("string", "resource"):
        yield Wrong(at, f"{'.'.join(path)} is of type {type_}; a name is a string or a resource")
    elif input is not None and input.type == "resource" and input.kind != kind:
        yield Wrong(at, f"inputs.{path[1]} names a {input.kind}, here a {kind} is meant")


def _check_namespace(at: Loc, namespace: str, known: _Known) -> Iterator[Wrong]:
    wrong = list(_check_value(at, namespace, known))
    yield from wrong
    path = _path(namespace)
    if not wrong and path is not None and (type_ := _type_of(path, known)) != "string":
        yield Wrong(at, f"{'.'.join(path)} is of type {type_}; a namespace is a string")


def _check_value(at: Loc, value: Any, known: _Known) -> Iterator[Wrong]:
    if isinstance(value, dict | list):
        if any("${" in text for text in _texts(value)):
            yield Wrong(at, "${…} stands for a whole value, not for a part of one")
        return
    if not isinstance(value, str) or "${" not in value:
        return
    path = _path(value)
    if path is None:
        yield Wrong(at, "a value is a literal or exactly one ${path}; nothing is computed")
    elif wrong := _wrong_path(path, known):
        yield Wrong(at, wrong)


def _check_predicate(at: Loc, text: str, roots: frozenset[str], known: _Known) -> Iterator[Wrong]:
    try:
        predicate = compile_predicate(text, roots)
    except Invalid as error:
        yield Wrong(at, error.message)
        return
    for used in predicate.used:
        path = (used.root, *used.path)
        if used.root in ("inputs", "steps") and not used.path:
            yield Wrong(at, f"write {used.root}.NAME")
        elif used.root == "inputs" and used.path[0] not in known.inputs:
            yield Wrong(at, _wrong_path(path[:2], known))
        elif used.root == "steps":
            sight = used.path[1] if len(used.path) > 1 else ""
            if used.path[0] not in known.steps or (sight == "output" and len(used.path) > 2):
                if wrong := _wrong_path((*path[:2], "output", *path[3:4]), known):
                    yield Wrong(at, wrong)
            elif sight and sight not in SIGHT:
                yield Wrong(at, f"a step has no {sight!r}; it has {', '.join(SIGHT)}")


def _path(value: str) -> tuple[str, ...] | None:
    found = PATH.fullmatch(value)
    return tuple(found[1].split(".")) if found else None


def _wrong_path(path: tuple[str, ...], known: _Known) -> str:
    """What is wrong with a path; empty when nothing is."""
    match path:
        case ("run", "name" | "namespace" | "uid"):
            return ""
        case ("run", *_):
            return f"{'.'.join(path)} is not known; there are run.name, run.namespace and run.uid"
        case ("inputs", name):
            return "" if name in known.inputs else f"there is no input {name!r}{did_you_mean(name, known.inputs)}"
        case ("steps", name, *rest):
            if name in known.later:
                return f"step {name!r} is not over when this is used: only earlier steps can be, else it is circular"
            if name not in known.steps:
                return f"there is no step {name!r}{did_you_mean(name, known.steps)}"
            gives = known.steps[name].gives
            if len(rest) == 2 and rest[0] == "output" and rest[1] in gives:
                return ""
            have = ", ".join(f"steps.{name}.output.{g}" for g in gives) or "nothing"
            return f"step {name!r} does not give {'.'.join(path)}; it gives {have}"
        case _:
            return f"{'.'.join(path)} is not known; a path begins with inputs, steps or run"


def _type_of(path: tuple[str, ...], known: _Known) -> str:
    if path[0] == "inputs":
        return known.inputs[path[1]].type
    return known.steps[path[1]].gives[path[3]] if path[0] == "steps" else "string"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)


# ── what can be judged only here ────────────────────────────────────────────────────────────────────────────────────


def check_against(
    sequence: Sequence, kinds: Kinds, actions: Collection[tuple[str, str]], repeatable: Collection[tuple[str, str]]
) -> Iterator[Wrong]:
    """What is wrong with it in an installation of these kinds and actions."""
    for name, input in sequence.inputs.items():
        if input.kind:
            yield from check_kind(("inputs", name, "kind"), input.kind, kinds)
    for number, step in enumerate(sequence.steps):
        at: Loc = ("steps", number)
        for part, act in (("act", step.act), ("undo", step.undo)):
            if act is not None and act.set is not None:
                yield from check_kind((*at, part, "set", "kind"), act.set.kind, kinds, writes=True)
            elif act is not None and not act.restore:
                yield from _check_action((*at, part), act, kinds, actions)
        if step.wait and step.wait.kind:
            yield from check_kind((*at, "wait", "kind"), step.wait.kind, kinds)
        act = step.act
        if act and act.verb and (act.kind, act.verb) not in repeatable and not step.on_unknown:
            what = f"{act.verb} of a {act.kind} is not repeatable: say what to do when its outcome is not known"
            yield Wrong((*at, "onUnknown"), f"{what} (check, repeat or ask)")


def check_kind(at: Loc, kind: str, kinds: Kinds, *, writes: bool = False) -> Iterator[Wrong]:
    """What is wrong with the name of a kind."""
    try:
        found = kinds.get(kind)
    except NotFound as error:
        yield Wrong(at, error.message)
        return
    if found.__name__ != kind:
        yield Wrong(at, f"write {found.__name__}")
    elif writes and found.info.internal:
        yield Wrong(at, f"{kind} is made by the server only")


def _check_action(at: Loc, act: Act, kinds: Kinds, actions: Collection[tuple[str, str]]) -> Iterator[Wrong]:
    wrong = list(check_kind((*at, "kind"), act.kind, kinds))
    yield from wrong
    if not wrong and (act.kind, act.verb) not in actions:
        known = sorted(verb for kind, verb in actions if kind == act.kind)
        has = f"it has {', '.join(known)}" if known else "it has none"
        yield Wrong((*at, "verb"), f"{act.kind} has no action {act.verb!r}{did_you_mean(act.verb, known)}; {has}")


def fits(input: Input, value: Any) -> str:
    """Why a value is not one of this input; empty when it is."""
    match input.type:
        case "bool" if isinstance(value, bool):
            pass
        case "int" if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
            if input.min is not None and value < input.min:
                return f"{value} is less than {input.min}"
            if input.max is not None and value > input.max:
                return f"{value} is more than {input.max}"
        case "string" | "resource" if isinstance(value, str) and len(value) <= 10_000:
            pass
        case _:
            return f"{str(value)[:60]!r} is not of type {input.type}"
    if input.enum and value not in input.enum:
        return f"{str(value)[:60]!r} is not one of {', '.join(map(str, input.enum))}"
    return ""


def bind(
    sequence: Sequence, given: Mapping[str, Any], exists: Callable[[str, str], bool]
) -> tuple[dict[str, Any], list[Wrong]]:
    """The inputs complete with defaults, and what is wrong with those given. `exists(kind, name)` knows resources."""
    values: dict[str, Any] = {}
    wrong = [
        Wrong(("inputs", name), f"there is no input {name!r}{did_you_mean(name, sequence.inputs)}")
        for name in sorted(set(given) - sequence.inputs.keys())
    ]
    for name, input in sequence.inputs.items():
        value = given.get(name)
        if value is None:
            value = input.default
        if value is None:
            if input.required:
                wrong.append(Wrong(("inputs", name), "is missing"))
            values[name] = None
        elif why := fits(input, value):
            wrong.append(Wrong(("inputs", name), why))
        elif input.type == "resource" and not exists(input.kind, str(value)):
            wrong.append(Wrong(("inputs", name), f"there is no {input.kind} {value}"))
        else:
            values[name] = value
    return values, wrong


def resolve(value: Any, scope: Mapping[str, Any]) -> Any:
    """A literal as it is; a `${path}` as its value in `scope` (`inputs`, `steps`, `run`); Invalid when it has none."""
    path = _path(value) if isinstance(value, str) else None
    if path is None:
        return value
    at: Any = scope
    for part in path:
        if not isinstance(at, Mapping) or part not in at:
            raise Invalid(f"{'.'.join(path)} has no value: the step that gives it was skipped or did not end well")
        at = at[part]
    return at
