"""Every error is a KeeperError, is exported, and keeps all it says when it crosses a process border."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import cloudpickle
import pytest

import raykeeper
from raykeeper import errors

ALL = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.KeeperError)
]  # fmt: skip


def example(kind: type[errors.KeeperError]) -> errors.KeeperError:
    if kind is errors.SpecError:
        return errors.SpecError("cluster.yaml", "members", "a whole number")
    if kind is errors.CompactedError:
        return errors.CompactedError(7, applied=None)
    return kind("went wrong", applied=None)


@pytest.mark.parametrize("kind", ALL)
def test_each_error_is_public_and_a_keeper_error(kind: type[errors.KeeperError]) -> None:
    assert getattr(raykeeper, kind.__name__) is kind
    assert kind.__name__ in raykeeper.__all__
    assert kind.__doc__


@pytest.mark.parametrize("kind", ALL)
def test_each_error_says_what_to_try_and_has_its_line_on_the_page(kind: type[errors.KeeperError]) -> None:
    assert "remedy" in vars(kind), "its own, not that of its base"
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}` | ")]
    assert len(rows) == 1
    assert rows[0].endswith(f" | {kind.remedy} |")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_each_error_survives_pickling_whole(kind: type[errors.KeeperError], pickler: object) -> None:
    error = example(kind)
    again = pickle.loads(pickler.dumps(error))  # type: ignore[attr-defined]
    assert type(again) is kind
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_a_note_and_a_new_attribute_survive_pickling() -> None:
    error = errors.Unavailable("no quorum", applied=None)
    error.member = 3  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(error))
    assert (again.member, again.applied) == (3, None)


def test_applied_is_false_unless_said_otherwise() -> None:
    assert errors.KeeperError("x").applied is False
    assert errors.RequestTimeout("x", applied=None).applied is None


def test_what_each_error_says() -> None:
    assert str(errors.CompactedError(7)) == "revisions below 7 are compacted"
    assert errors.CompactedError(7).compact_revision == 7
    assert str(errors.SpecError("f", "", "text")) == "f: expected text"
    assert issubclass(errors.InvalidArgument, ValueError)
