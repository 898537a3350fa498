"""A thread that is started when it is first needed, whatever interrupts that."""

from __future__ import annotations

import sys
import threading
from types import FrameType
from typing import Any

import pytest

from lab.patience import PATIENCE
from raykeeper.actors.background import LazyThread
from raykeeper.actors.one_thread import OneThread


class Interrupt(BaseException):
    pass


def interrupted(thread: LazyThread, place: int) -> bool:
    """Call ``ensure_started``, interrupted at the line that it comes to so-manieth; whether it comes to so many."""
    places = [0]

    def look(frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            places[0] += 1
            if places[0] == place:
                raise Interrupt
        return look

    code = OneThread.start.__code__
    sys.settrace(lambda frame, *_: look if frame.f_code is code else None)
    try:
        thread.ensure_started()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


def test_an_interrupt_anywhere_leaves_a_thread_that_can_be_started() -> None:
    place = 0
    while True:
        place += 1
        ran = threading.Event()
        thread = LazyThread(ran.set, "test")
        came = interrupted(thread, place)
        thread.ensure_started()
        assert ran.wait(PATIENCE), place
        if not came:
            break
    assert place > 4


def test_it_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """... also if a signal handler asks for it while it is being started."""
    started: list[str] = []

    class Thread:
        def __init__(self, **named: Any) -> None:
            self.name = named["name"]

        def start(self) -> None:
            thread.ensure_started()
            started.append(self.name)

    thread = LazyThread(lambda: None, "test")
    monkeypatch.setattr(threading, "Thread", Thread)
    thread.ensure_started()
    thread.ensure_started()
    assert started == ["test"]
