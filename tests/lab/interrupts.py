"""Doing something with an exception raised at the nth of the places where Python runs handlers of signals."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raykeeper

_OURS = str(Path(raykeeper.__file__).parent / "actors")
_HANDLERS_RUN_AFTER = {
    "RESUME",
    "CALL",
    "CALL_FUNCTION",
    "CALL_METHOD",
    "CALL_FUNCTION_EX",
    "CALL_KW",
    "JUMP_BACKWARD",
}


class Interrupt(BaseException):
    """As ``KeyboardInterrupt``."""


class Interrupted:
    """Does something, with an exception at the nth place.

    It is raised at the instruction after a call, where Python raises it in the call. So code that is looked at leaves
    no ``try`` by an expression that is a call.
    """

    def __init__(self, place: int) -> None:
        self.left = place
        self.where = ""
        """The function that was interrupted."""
        self._last: dict[Any, str] = {}

    def run(self, work: Callable[[], object]) -> bool:
        """Whether there were that many places."""
        sys.settrace(lambda frame, *_: self._look if frame.f_code.co_filename.startswith(_OURS) else None)
        try:
            work()
        except Interrupt:
            pass
        finally:
            sys.settrace(None)
            self._last.clear()
        return self.left == 0

    def _look(self, frame: Any, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "exception":
            self._last[frame] = "RAISED"  # no handler runs between a call that raises and what catches that
        if event == "opcode":
            before = self._last.get(frame)
            self._last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if before is None or before in _HANDLERS_RUN_AFTER:
                self.left -= 1
                if self.left == 0:
                    sys.settrace(None)
                    self.where = frame.f_code.co_name
                    raise Interrupt
        return self._look
