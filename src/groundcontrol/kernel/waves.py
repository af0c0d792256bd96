"""Which targets of a Run go together: waves are planned here, purely, once, and counted afterwards.

The first waves are small, so that what is wrong shows on few (canaries); of one failure domain (a site, a rack) only so
many go at once, so that what is redundant stays up. The plan is a value: nothing that happens later changes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from groundcontrol.kernel.errors import Invalid, Problem
from groundcontrol.kernel.resource import NAME, Model, selector
from groundcontrol.kernel.run_steps import WORD

MOST_TARGETS = 10_000
MOST_WAVES = 100
"""More is no plan that anybody looks at, and each has a line in the status."""
MOST_TOLD = 10
"""Failed targets that are named in the status; the others are found by their Runs."""
COUNT = r"[1-9][0-9]{0,4}"
SHARE = r"([1-9][0-9]?|100)%"
DOMAIN = r"(spec|status)(\.[A-Za-z0-9_-]+)+|metadata\.labels\.[A-Za-z0-9./_-]+"
UNKNOWN = "?"
"""The failure domain of whatever does not say: all of those may fail together, for all we know."""


class Spread(Model):
    """How failure domains are spared."""

    by: str = Field(max_length=300, pattern=f"^({DOMAIN})$")
    """Path of the failure domain in the target: `spec.site`, `spec.placement.sites` or `metadata.labels.rack`. A list
    is several domains. Targets that do not say are counted as one domain."""
    most: int = Field(default=1, ge=1, le=MOST_TARGETS)
    """Targets of one domain in the same wave."""


class Over(Model):
    """The targets a Run goes over in waves: each of them gets a Run of its own."""

    kind: str = Field(min_length=1, max_length=63)
    """Kind of the targets."""
    namespace: str = Field(default="", max_length=63, pattern=f"^({NAME.pattern}|\\*)?$")
    """Where they are: the Run's own namespace when empty, `*` for all that whoever starts it may see."""
    label_selector: str = Field(default="", max_length=1000)
    """Only those with such labels: `a=b,c!=d,e in (f,g),h,!i`."""
    field_selector: str = Field(default="", max_length=1000)
    """The same over dotted paths of the target."""
    input: str = Field(default="", pattern=f"^({WORD})?$")
    """The procedure's input that takes the name of the target; its only input that names such a resource when empty."""
    namespace_input: str = Field(default="", pattern=f"^({WORD})?$")
    """The input that takes the namespace of the target; needed when that is not the Run's own."""
    waves: list[Annotated[str, Field(pattern=f"^({COUNT}|{SHARE})$")]] = Field(
        default_factory=lambda: ["1", "10%", "100%"], min_length=1, max_length=MOST_WAVES
    )
    """Sizes of the waves, counts or shares of all targets, rounded down; the last one repeats until all are done."""
    spread: Spread | None = None
    """At most so many of one failure domain in a wave; no bound without it."""
    max_failures: str = Field(default="0", pattern=f"^(0|{COUNT}|0%|{SHARE})$")
    """Targets that may fail, a count or a share of all; with one more no further target begins."""
    on_failure: Literal["stop", "ask"] = "stop"
    """What happens when more have failed: the Run fails, or a person says whether it goes on."""
    concurrency: int = Field(default=50, ge=1, le=500)
    """Targets of a wave under way at once; never more than the procedure's own `concurrency`."""
    between: Literal["continue", "ask"] = "continue"
    """Before each wave but the first: go on, or wait until a person has approved."""
    pause: float = Field(default=0, ge=0, le=30 * 86_400)
    """Seconds between the end of a wave and the next."""
    timeout: float = Field(default=86_400, ge=1, le=90 * 86_400)
    """Seconds after which the Run fails for want of an answer."""

    @model_validator(mode="after")
    def _selectors(self) -> Over:
        for text, fields in ((self.label_selector, False), (self.field_selector, True)):
            try:
                selector(text, fields=fields)
            except Invalid as error:
                raise ValueError(error.message) from None
        return self


class Target(NamedTuple):
    """One resource a Run goes over."""

    namespace: str
    name: str
    uid: str
    domains: tuple[str, ...] = ()
    """Its failure domains."""

    @property
    def path(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


Waves = tuple[tuple[Target, ...], ...]


def share_of(text: str, total: int) -> int:
    """A count, or a share of `total` rounded down: `share_of("10%", 25)` is 2."""
    return total * int(text[:-1]) // 100 if text.endswith("%") else int(text)


def domains_of(doc: Mapping[str, Any], by: str) -> tuple[str, ...]:
    """The failure domains of a document, in order; `("?",)` when it does not say."""
    label = by.removeprefix("metadata.labels.")
    at: Any = doc
    if label != by:
        at = (doc["metadata"].get("labels") or {}).get(label)
    else:
        for part in by.split("."):
            at = at.get(part) if isinstance(at, Mapping) else None
    found = at if isinstance(at, list | tuple) else [at]
    return tuple(sorted({str(d) for d in found if isinstance(d, str | int) and d != ""})) or (UNKNOWN,)


def planned(targets: Iterable[Target], sizes: Sequence[str], most: int = 0) -> Waves:
    """Every target in exactly one wave, none larger than its size, at most `most` of one domain in each (0: any).

    In order of namespace and name, whatever order they come in; what is added or gone moves only what is behind it.
    Invalid without targets, with too many of them, and when there would be too many waves."""
    left = sorted(set(targets))
    total = len(left)
    if not total:
        raise Invalid(problems=(Problem("there are no such targets that you may see", "spec.over"),))
    if total > MOST_TARGETS:
        remedy = "select fewer, or start several Runs"
        raise Invalid(problems=(Problem(f"{total} targets; at most {MOST_TARGETS}", "spec.over", remedy=remedy),))
    waves: list[tuple[Target, ...]] = []
    while left:
        if len(waves) == MOST_WAVES:
            remedy = "allow larger waves, or more of one failure domain in a wave"
            message = f"that makes more than {MOST_WAVES} waves of {total} targets"
            raise Invalid(problems=(Problem(message, "spec.over.waves", remedy=remedy),))
        size = max(1, share_of(sizes[min(len(waves), len(sizes) - 1)], total))
        wave, left = _one(left, size, most)
        waves.append(wave)
    return tuple(waves)


def _one(left: Sequence[Target], size: int, most: int) -> tuple[tuple[Target, ...], list[Target]]:
    """The next wave, and what is left."""
    taken: list[Target] = []
    later: list[Target] = []
    full: Counter[str] = Counter()
    for number, target in enumerate(left):
        if len(taken) == size:
            later += left[number:]
            break
        if most and any(full[domain] >= most for domain in target.domains):
            later.append(target)
        else:
            taken.append(target)
            full.update(target.domains)
    return tuple(taken), later


# ── how far it is ───────────────────────────────────────────────────────────────────────────────────────────────────

LEFT, UNDER_WAY, DONE, FAILED, SKIPPED = range(5)
"""The states of a target. Skipped: it was gone before its turn came."""


class Count(NamedTuple):
    """How many targets are in which state."""

    size: int
    left: int
    under_way: int
    done: int
    failed: int
    skipped: int

    @property
    def over(self) -> int:
        return self.done + self.failed + self.skipped

    @property
    def words(self) -> str:
        """`18 done, 1 failed, 1 skipped`, without what there is none of."""
        named = {"done": self.done, "failed": self.failed, "skipped": self.skipped, "under way": self.under_way}
        return ", ".join(f"{n} {word}" for word, n in named.items() if n) or "none begun"


@dataclass
class Tally:
    """How far a Run over many targets is. Targets are numbered through all waves."""

    waves: Waves
    allowed: int
    """Targets that may fail."""
    states: bytearray = field(default_factory=bytearray)
    failures: tuple[str, ...] = ()
    """The first that failed, and why."""
    forgiven: int = 0
    """Failures up to which somebody has said to go on."""

    def __post_init__(self) -> None:
        self.states = self.states or bytearray(sum(map(len, self.waves)))

    @classmethod
    def of(cls, frozen: Mapping[str, Any]) -> Tally | None:
        """As it begins, from what was admitted; None for a Run that goes over nothing."""
        if "waves" not in frozen:
            return None
        waves = tuple(tuple(Target(*target) for target in wave) for wave in frozen["waves"])
        return cls(waves, share_of(frozen["over"]["maxFailures"], sum(map(len, waves))))

    def copy(self) -> Tally:
        return replace(self, states=bytearray(self.states))

    def numbers(self, wave: int) -> range:
        """The numbers of the targets of a wave."""
        first = sum(map(len, self.waves[:wave]))
        return range(first, first + len(self.waves[wave]))

    def target(self, number: int) -> Target:
        for wave in self.waves:
            if number < len(wave):
                return wave[number]
            number -= len(wave)
        raise IndexError(number)

    def mark(self, numbers: Iterable[int], state: int) -> None:
        for number in numbers:
            self.states[number] = state

    def land(self, doc: Mapping[str, Any]) -> None:
        """What came of some: `done` and `skipped` are numbers, `failed` numbers to messages, `back` were not begun."""
        self.mark(doc.get("done", ()), DONE)
        self.mark(doc.get("skipped", ()), SKIPPED)
        self.mark(doc.get("back", ()), LEFT)
        self.mark((number for number, _ in doc.get("failed", ())), FAILED)
        told = [f"{self.target(number).path}: {message}" for number, message in doc.get("failed", ())]
        self.failures = (*self.failures, *told)[:MOST_TOLD]

    def forgive(self) -> None:
        """Somebody goes on although more have failed than may: what fails from now on is counted anew."""
        if self.too_many:
            self.forgiven = self.states.count(FAILED)

    def count(self, wave: int | None = None) -> Count:
        """Of one wave, or of all."""
        states = self.states if wave is None else self.states[self.numbers(wave).start : self.numbers(wave).stop]
        return Count(len(states), *(states.count(state) for state in range(5)))

    def of_state(self, state: int, wave: int | None = None) -> Iterator[int]:
        """The numbers of the targets in that state, in order."""
        numbers = range(len(self.states)) if wave is None else self.numbers(wave)
        number = self.states.find(state, numbers.start, numbers.stop)
        while number >= 0:
            yield number
            number = self.states.find(state, number + 1, numbers.stop)

    @property
    def too_many(self) -> bool:
        """Whether more have failed than may."""
        return self.states.count(FAILED) - self.forgiven > self.allowed


def step_of(wave: int) -> str:
    """The name under which the journal and people speak of a wave: `wave_1` is the first."""
    return f"wave_{wave + 1}"
