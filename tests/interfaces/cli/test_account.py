"""Passwords and actions: what is sent, and what is refused before anything is."""

from __future__ import annotations

import pytest

from tests.interfaces.cli.conftest import Ground
from tests.interfaces.cli.fake_api import FakeApi


def test_ones_own_password_needs_the_old_one(ground: Ground, api: FakeApi) -> None:
    found = ground("password", "--password-stdin", stdin="old one\nnew one\n")
    assert found.code == 0, found.err
    (sent,) = api.sent("PUT", "/accounts/ada/password")
    assert sent.body == {"password": "new one", "old": "old one"}
    assert "sign in again" in found.out
    assert "new one" not in found.out + found.err


def test_somebody_elses_needs_only_the_new_one(ground: Ground, api: FakeApi) -> None:
    assert ground("password", "bob", "--password-stdin", stdin="fresh\n").code == 0
    (sent,) = api.sent("PUT", "/accounts/bob/password")
    assert sent.body == {"password": "fresh"}


@pytest.mark.parametrize("stdin", ["", "only one\n", "a\n\n", "a\nb\nc\n"])
def test_wrong_input_changes_nothing(ground: Ground, api: FakeApi, stdin: str) -> None:
    found = ground("password", "--password-stdin", stdin=stdin)
    assert found.code == 2
    assert "the old and the new password" in found.err
    assert api.sent("PUT") == []


def test_nobody_to_ask(ground: Ground, api: FakeApi) -> None:
    assert "use --password-stdin" in ground("password", stdin="").err


def test_an_action_is_sent_with_its_inputs(ground: Ground, api: FakeApi) -> None:
    found = ground(
        "act", "confirm-loss", "site", "bari", "-i", "a=b", "--reason", "now", "--input-stdin", "c", stdin="d\n"
    )
    assert found.code == 0, found.err
    (sent,) = api.sent("POST", "/sites/bari/actions/confirm-loss")
    assert sent.body == {"a": "b", "c": "d", "reason": "now"}


def test_an_action_that_is_not_there_is_refused_by_name(ground: Ground, api: FakeApi) -> None:
    found = ground("act", "confirm-los", "site", "bari")
    assert found.code == 2
    assert 'did you mean "confirm-loss"?' in found.err
    assert api.sent("POST") == []
