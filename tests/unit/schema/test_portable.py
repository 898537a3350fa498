"""What processes of different versions hand to each other."""

from __future__ import annotations

import pickle
import sys

from raykeeper.schema.portable import Portable


class Word(Portable, frozen=True):
    text: str
    count: int = 1


def test_an_older_and_a_newer_process_understand_each_other(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    class Longer(Portable, frozen=True):
        text: str
        count: int = 1
        more: tuple[int, ...] = (7,)

    Longer.__qualname__ = "Word"
    module = sys.modules[__name__]
    old = pickle.dumps(Word("a", 3))
    monkeypatch.setattr(module, "Word", Longer)
    new = pickle.dumps(Longer("b", 4, (1, 2)))
    assert pickle.loads(old) == Longer("a", 3, (7,))
    monkeypatch.undo()
    assert pickle.loads(new) == Word("b", 4)
