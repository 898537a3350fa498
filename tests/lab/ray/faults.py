"""What a test does with the fault switch of ``patches/switch.py``: cut, slow down and garble, and see that it bit."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .patches.switch import LOOK

Rule = dict[str, Any]
ANYBODY = "*"
CLIENT = "client"


def rule(fault: str, sender: object = ANYBODY, to: object = ANYBODY, **more: Any) -> Rule:
    """One direction's fault: see ``patches/switch.py``."""
    return {"fault": fault, "sender": str(sender), "to": str(to), **more}


def cut(some: Iterable[object], others: Iterable[object], fault: str = "drop", **more: Any) -> list[Rule]:
    """No frame from any of ``some`` to any of ``others`` arrives, nor the other way."""
    some, others = list(some), list(others)
    return [
        each for a in some for b in others for each in (rule(fault, a, b, **more), rule(fault, b, a, **more)) if a != b
    ]


class Faults:
    """The switch of all processes of the tests' Ray.

    Args:
        path: of its table.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rules: list[Rule] = []
        self._clocks: dict[str, tuple[float, ...]] = {}

    def set(self, *rules: Rule | Iterable[Rule]) -> None:
        """From now on these faults, and no others."""
        self._rules = []
        for each in rules:
            self._rules += [each] if isinstance(each, dict) else list(each)
        self._write()

    def heal(self) -> None:
        """No faults of frames any more."""
        self.set()

    def clock(self, pid: int, wall: float = 0.0, monotonic: float = 0.0) -> None:
        """Set how far a process's clocks are off, in seconds."""
        self._clocks[str(pid)] = (wall, monotonic)
        self._write()

    def step(self, pid: int, seconds: float) -> None:
        """Have a process's clocks step, from wherever they are."""
        wall, monotonic, *drift = self._clocks.get(str(pid), (0.0, 0.0))
        self._clocks[str(pid)] = (wall + seconds, monotonic + seconds, *drift)
        self._write()

    def drift(self, pid: int, rate: float) -> None:
        """Have a process's clocks run fast by this part of a second in each second from now on, or slow."""
        wall, monotonic, *drift = self._clocks.get(str(pid), (0.0, 0.0))
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        so_far = drift[0] * (now - drift[1]) if drift else 0.0
        self._clocks[str(pid)] = (wall + so_far, monotonic + so_far, rate, now)
        self._write()

    def counts(self) -> Counter[str]:
        """How often each fault was done to a frame, in all processes."""
        total: Counter[str] = Counter()
        folder = Path(f"{self._path}.counts")
        for path in folder.iterdir() if folder.exists() else ():
            if path.suffix != ".new":
                total.update(json.loads(path.read_text()))
        return total

    def end(self) -> None:
        """Undo everything."""
        self._clocks.clear()
        self.heal()

    def _write(self) -> None:
        new = self._path.with_name(self._path.name + ".new")
        new.write_text(json.dumps({"rules": self._rules, "clocks": self._clocks}))
        os.replace(new, self._path)
        # A process looks again only when its last look is that old: from then on nobody goes by the table before.
        time.sleep(LOOK)
