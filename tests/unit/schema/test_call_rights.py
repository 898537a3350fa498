"""Every kind of message has a rule: a kind that nobody thought of must not be open to everyone."""

from __future__ import annotations

from typing import get_args

import pytest

from raykeeper.schema.call_rights import RULES, Rule
from raykeeper.schema.commands import Administration, ByUser, ClientWrites, Command
from raykeeper.schema.frames import AskTerm, AsUser, BareRequest, Login
from raykeeper.schema.operations import Operation
from raykeeper.schema.operator_frames import AskFigures, AskStatus

FRAMES = (*get_args(BareRequest), AsUser)


@pytest.mark.parametrize("kind", [*FRAMES, *get_args(Command), *get_args(Operation)], ids=lambda kind: kind.__name__)
def test_has_a_rule(kind: type) -> None:
    assert kind in RULES


def test_nothing_else_has() -> None:
    assert set(RULES) == {*FRAMES, *get_args(Command), *get_args(Operation)}


def test_only_status_terms_and_logins_are_open() -> None:
    assert {kind for kind, rule in RULES.items() if rule is Rule.OPEN} == {AskStatus, AskTerm, AskFigures, Login}


def test_what_clients_send_is_never_taken_for_a_leaders_own() -> None:
    assert all(RULES[kind] is not Rule.LEADER for kind in (*get_args(Administration), ClientWrites, ByUser))
