"""The plan of waves: every target once, no wave too large, no failure domain hit too hard, and always the same."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from groundcontrol.kernel.errors import Invalid
from groundcontrol.kernel.run_journal import Entry, progress_of
from groundcontrol.kernel.waves import (
    DONE,
    FAILED,
    LEFT,
    MOST_TARGETS,
    MOST_WAVES,
    UNDER_WAY,
    Over,
    Tally,
    Target,
    domains_of,
    planned,
    share_of,
    step_of,
)

DOMAINS = ("bari", "cnaf", "recas", "?")
SIZES = st.one_of(st.integers(1, 30).map(str), st.integers(1, 100).map(lambda n: f"{n}%"))
TARGETS = st.lists(
    st.builds(
        Target,
        st.sampled_from(["", "alpha", "beta"]),
        st.integers(0, 99).map(lambda n: f"m{n:02}"),
        st.just("uid"),
        st.lists(st.sampled_from(DOMAINS), min_size=1, max_size=2, unique=True).map(lambda d: tuple(sorted(d))),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda t: t[:2],
)
RULES = st.tuples(st.lists(SIZES, min_size=1, max_size=5), st.integers(0, 5))


def sizes_of(sizes: list[str], waves: int, total: int) -> list[int]:
    """What each wave may have, said once more in other words."""
    given = [int(s) if "%" not in s else max(1, int(s.strip("%")) * total // 100) for s in sizes]
    return given[:waves] + [given[-1]] * (waves - len(given))


@given(TARGETS, RULES)
def test_a_plan(targets: list[Target], rules: tuple[list[str], int]) -> None:
    sizes, most = rules
    waves = planned(targets, sizes, most)
    assert Counter(t for wave in waves for t in wave) == Counter(targets), "every target exactly once"
    assert all(waves), "no wave is empty"
    for wave, size in zip(waves, sizes_of(sizes, len(waves), len(targets)), strict=True):
        assert len(wave) <= size
        hit = Counter(domain for target in wave for domain in target.domains)
        assert not most or max(hit.values()) <= most


@given(TARGETS, RULES, st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_found_says_nothing(
    targets: list[Target], rules: tuple[list[str], int], chance: random.Random
) -> None:
    other = list(targets)
    chance.shuffle(other)
    assert planned(other, *rules) == planned(targets, *rules)


@given(TARGETS, RULES)
def test_no_wave_leaves_out_what_would_have_had_room(targets: list[Target], rules: tuple[list[str], int]) -> None:
    sizes, most = rules
    waves = planned(targets, sizes, most)
    limits = sizes_of(sizes, len(waves), len(targets))
    for number, wave in enumerate(waves):
        if len(wave) == limits[number]:
            continue
        hit = Counter(domain for target in wave for domain in target.domains)
        for target in (t for later in waves[number + 1 :] for t in later):
            assert most, "without failure domains a wave is full"
            assert any(hit[domain] >= most for domain in target.domains)


@given(TARGETS, st.lists(st.integers(1, 30).map(str), min_size=1, max_size=5), st.integers(0, 5), st.data())
def test_what_goes_or_comes_behind_moves_nothing_before(
    targets: list[Target], sizes: list[str], most: int, data: st.DataObject
) -> None:
    """Of counts; a share is of how many there are."""
    ordered = sorted(targets)
    cut = data.draw(st.integers(1, len(ordered)))
    waves, fewer = planned(ordered, sizes, most), planned(ordered[:cut], sizes, most)
    kept = set(ordered[:cut])
    place = {t: n for n, wave in enumerate(fewer) for t in wave}
    assert place == {t: n for n, wave in enumerate(waves) for t in wave if t in kept}


@given(TARGETS, RULES)
def test_within_a_wave_by_name(targets: list[Target], rules: tuple[list[str], int]) -> None:
    for wave in planned(targets, *rules):
        assert list(wave) == sorted(wave)


def test_twelve_over_three_sites() -> None:
    targets = [Target("a", f"{site}-{n}", "u", (site,)) for site in ("x", "y", "z") for n in range(4)]
    waves = planned(targets, ["1", "25%", "100%"], 2)
    assert [[t.name for t in wave] for wave in waves] == [
        ["x-0"],
        ["x-1", "x-2", "y-0"],
        ["x-3", "y-1", "y-2", "z-0", "z-1"],
        ["y-3", "z-2", "z-3"],
    ]


def many(count: int, domain: str = "?") -> list[Target]:
    return [Target("", f"m{n:05}", "u", (domain,)) for n in range(count)]


def test_what_is_no_plan() -> None:
    with pytest.raises(Invalid, match="no such targets"):
        planned([], ["1"])
    with pytest.raises(Invalid, match=f"at most {MOST_TARGETS}"):
        planned(many(MOST_TARGETS + 1), ["100%"])
    with pytest.raises(Invalid, match=f"more than {MOST_WAVES} waves of {MOST_WAVES + 1} targets"):
        planned(many(MOST_WAVES + 1), ["1"])
    with pytest.raises(Invalid, match="more of one failure domain"):
        planned(many(MOST_WAVES + 1), ["100%"], 1)


def test_as_many_as_may_be() -> None:
    waves = planned(many(MOST_TARGETS), ["1", "10%", "100%"])
    assert [len(wave) for wave in waves] == [1, 1000, 8999]


def test_shares_are_rounded_down_and_a_wave_is_never_empty() -> None:
    assert [share_of(s, 25) for s in ("10%", "100%", "0%", "0", "7")] == [2, 25, 0, 0, 7]
    assert [len(w) for w in planned(many(5), ["10%"])] == [1] * 5


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("spec.site", ("cnaf",)),
        ("spec.placement.sites", ("a", "b")),
        ("metadata.labels.topology.example.org/rack", ("r1",)),
        ("metadata.labels.none", ("?",)),
        ("spec.none.below", ("?",)),
        ("spec.placement", ("?",)),
        ("spec.empty", ("?",)),
    ],
)
def test_failure_domains_of_a_document(by: str, expected: tuple[str, ...]) -> None:
    spec = {"site": "cnaf", "placement": {"sites": ["b", "a", "a"]}, "empty": ""}
    doc = {"metadata": {"labels": {"topology.example.org/rack": "r1"}}, "spec": spec}
    assert domains_of(doc, by) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("waves", []),
        ("waves", ["0"]),
        ("waves", ["0%"]),
        ("waves", ["101%"]),
        ("waves", ["01"]),
        ("waves", ["-1"]),
        ("waves", ["half"]),
        ("waves", ["٣"]),
        ("maxFailures", "many"),
        ("spread", {"by": "metadata.annotations.x"}),
        ("spread", {"by": "spec.site", "most": 0}),
        ("labelSelector", "a=b c"),
        ("fieldSelector", "=b"),
        ("namespace", "No Name"),
        ("concurrency", 0),
    ],
)
def test_rules_that_cannot_be(field: str, value: Any) -> None:
    Over.model_validate({"kind": "Machine"})
    with pytest.raises(ValidationError):
        Over.model_validate({"kind": "Machine", field: value})


# ── counting ────────────────────────────────────────────────────────────────────────────────────────────────────────


def tally(sizes: list[int], allowed: str = "1") -> Tally:
    number = iter(range(1000))
    waves = [[["ns", f"m{next(number)}", "u"] for _ in range(size)] for size in sizes]
    found = Tally.of({"waves": waves, "over": {"maxFailures": allowed}})
    assert found is not None
    return found


def test_counting() -> None:
    found = tally([1, 3])
    found.mark([0, 1, 2], UNDER_WAY)
    found.land({"done": [0], "failed": [[1, "it broke"]], "skipped": [3]})
    assert found.count(0) == (1, 0, 0, 1, 0, 0)
    assert found.count(1) == (3, 0, 1, 0, 1, 1)
    assert found.count(1).words == "1 failed, 1 skipped, 1 under way"
    assert found.count().over == 3
    assert found.failures == ("ns/m1: it broke",)
    assert [list(found.of_state(s)) for s in (LEFT, UNDER_WAY, DONE, FAILED)] == [[], [2], [0], [1]]
    assert [found.target(n).name for n in range(4)] == ["m0", "m1", "m2", "m3"]


def test_too_many_failures_are_forgiven_once() -> None:
    found = tally([10])
    found.land({"failed": [[0, ""]]})
    assert not found.too_many
    found.forgive()
    assert found.forgiven == 0, "there was nothing to forgive"
    found.land({"failed": [[1, ""]]})
    assert found.too_many
    found.forgive()
    assert not found.too_many
    found.land({"failed": [[2, ""]]})
    assert not found.too_many
    found.land({"failed": [[3, ""]]})
    assert found.too_many


def test_a_copy_is_another_one() -> None:
    found = tally([2])
    other = found.copy()
    other.mark([0], DONE)
    assert found.count().done == 0


def test_progress_can_be_gone_on_with() -> None:
    """What is known of the first entries and the rest of them come to the same as all of them."""
    waves = [[["ns", f"m{n}", "u"]] for n in range(3)]
    frozen = {"sequence": {"steps": []}, "over": {"maxFailures": "0"}, "waves": waves}
    lines: list[tuple[str, str, Any]] = [("", "admitted", frozen), ("", "begun", {})]
    for wave in range(3):
        lines.append((step_of(wave), "launched", {"targets": [wave]}))
        lines.append((step_of(wave), "landed", {"done": [wave]} if wave < 2 else {"failed": [[2, "no"]]}))
        lines.append((step_of(wave), "done", {}))
    entries = [Entry(n, step, state, float(n), 1, doc) for n, (step, state, doc) in enumerate(lines, 1)]
    whole = progress_of(entries)
    assert whole.tally is not None
    assert whole.tally.too_many
    for cut in range(1, len(entries)):
        known = progress_of(entries[:cut])
        assert progress_of(entries[cut:], known) == whole
        assert known.last == cut, "what was known is left as it was"
