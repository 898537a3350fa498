"""Steps: told to the listener of their thread, and to nobody else; and how the shell shows them."""

from __future__ import annotations

import re
import threading

import pytest

from raykeeper.actors.steps import count, is_counted, listening, step
from raykeeper.cli.shown_steps import ShownProgress, shown_progress, steps_told
from raykeeper.cli.stdio import tell


def test_a_listener_hears_of_each_step_and_its_end_even_if_it_fails() -> None:
    heard: list[tuple[str, bool]] = []
    with step("unheard"), listening(lambda what, begins: heard.append((what, begins))):
        with step("one"), step("two"):
            pass
        with pytest.raises(ValueError, match="x"), step("three"):
            raise ValueError("x")
        other = threading.Thread(target=lambda: step("elsewhere").__enter__())
        other.start()
        other.join()
    assert heard == [
        ("one", True),
        ("two", True),
        ("two", False),
        ("one", False),
        ("three", True),
        ("three", False),
    ]


def test_steps_are_told_with_their_seconds(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with steps_told(), step("waiting"):
        pass
    waiting, whole = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"raykeeper: waiting \.\.\. \d+\.\d s", waiting)
    assert re.fullmatch(r"raykeeper: all of it: \d+\.\d s", whole)


def test_what_is_told_during_a_step_has_a_line_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with steps_told(), step("outer"):
        tell("a warning")
        with step("inner"):
            pass
    said = re.sub(r"\d+\.\d s", "N s", capsys.readouterr().err)
    assert said.splitlines() == [
        "raykeeper: outer ...",
        "raykeeper: a warning",
        "raykeeper: inner ... N s",
        "raykeeper: outer ... N s",
        "raykeeper: all of it: N s",
    ]


def test_nothing_is_shown_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    with steps_told(), step("waiting"):
        pass
    with shown_progress("working") as progress, step("a step"):
        progress.count(3, 7)
    assert capsys.readouterr() == ("", "")


def test_a_bar_has_the_innermost_step_and_what_is_counted() -> None:
    seen: list[dict[str, object]] = []

    class Bar:
        def add_task(self, what: str, total: object) -> int:
            return 0

        def update(self, task: int, **fields: object) -> None:
            seen.append(fields)

    progress = ShownProgress(Bar())
    progress.take_step("outer", True)
    progress.take_step("inner", True)
    progress.count(2, 5)
    progress.take_step("inner", False)
    fresh = {"completed": 0, "total": None}  # what was counted in one step says nothing of the next
    assert seen == [
        {"description": "outer", **fresh},
        {"description": "inner", **fresh},
        {"completed": 2, "total": 5},
        {"description": "outer", **fresh},
    ]


def test_what_is_counted_is_told_to_who_wants_it() -> None:
    counted: list[tuple[float, float | None]] = []
    count(1)
    assert not is_counted()
    with listening(lambda what, begins: None, lambda done, total: counted.append((done, total))), step("one"):
        assert is_counted()
        count(2, 5)
        count(3)
    assert counted == [(2, 5), (3, None)]
