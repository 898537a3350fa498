"""Loaded by every Python process of the tests' Ray: breaks a single sync of the product, if a test asks for it.

The file that ``RAYKEEPER_TEST_FAULT`` names holds lines ``action module:function [pid [text]]``: what the call of
``Engine.flush`` or ``LogStore.sync`` from that place in the product comes to, in all processes or only in one, or only
where the log was given an entry with that text just before. ``skip`` does nothing, ``die`` ends the process before
anything is synced, ``fail`` has the disk refuse the fsync, ``slow`` has it take its time, ``slow:2.5`` that number of
seconds, and ``flaky:0.01`` has it refuse such a part of all fsyncs. ``*`` stands for every place. The product itself
knows nothing of this.

``RAYKEEPER_TEST_SWITCH`` names the table of the fault switch (``switch.py``), which is put around frames and clocks;
``RAYKEEPER_TEST_STACKS`` the folder of ``stacks.py``.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

SLOW_SYNC_S = 0.25
_ENGINE = "raykeeper.store.engine.rocks"
_SEGMENTS = "raykeeper.store.log.segments"


def _action(place: str, appended: str = "") -> str:
    try:
        with open(os.environ["RAYKEEPER_TEST_FAULT"], encoding="utf-8") as file:
            lines = [words for line in file if (words := line.split())]
    except FileNotFoundError:
        return ""
    for action, where, *which in lines:
        if (
            where in (place, "*")
            and which[:1] in ([], [str(os.getpid())])
            and all(text in appended for text in which[1:])
        ):
            return action
    return ""


def _weaken(engine: Any, method: str, break_disk: Callable[[Any], None]) -> None:
    real = getattr(engine, method)

    def sync(self: Any) -> None:
        caller = sys._getframe(1)
        place = f"{caller.f_globals['__name__'].rpartition('.')[2]}:{caller.f_code.co_name}"
        action = _action(place, repr(getattr(self, "_appended", "")))
        if action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        kind, _, much = action.partition(":")
        if kind == "slow":
            time.sleep(float(much or SLOW_SYNC_S))  # as in an fsync, other threads go on
        if kind == "fail" or (kind == "flaky" and random.random() < float(much)):
            break_disk(self)
        if action != "skip":
            real(self)

    setattr(engine, method, sync)


def _weaken_engine(module: ModuleType) -> None:
    def break_disk(engine: Any) -> None:
        engine._write_mark = _refuse

    _weaken(module.RocksEngine, "flush", break_disk)


def _weaken_log(module: ModuleType) -> None:
    def break_disk(log: Any) -> None:
        log._file._descriptor = 1_000_000  # fdatasync refuses it

    append = module.SegmentedLog.append

    def remembered(log: Any, *arguments: Any) -> Any:
        log._appended = arguments
        return append(log, *arguments)

    module.SegmentedLog.append = remembered
    _weaken(module.SegmentedLog, "sync", break_disk)


def _refuse(*arguments: Any) -> None:
    """A disk that takes nothing more."""
    raise RuntimeError("IO error: While fsync: Input/output error")


def _newer(module: ModuleType) -> None:
    """A line ``newer commands:COMMANDS_VERSION`` stands for code of a newer version that was just installed: processes
    that start from then on know version 2 of the commands, which brought ``Configure``. ``older`` stands for code that
    does not know that command."""
    module.SINCE[module.Configure] = 2
    if _action("commands:COMMANDS_VERSION") == "newer":
        module.COMMANDS_VERSION = 2
        return
    import msgspec

    decode = module._decode

    def decode_known(data: Any) -> Any:
        command = decode(data)
        if isinstance(command, module.Configure):
            raise msgspec.ValidationError("there is no such command")
        return command

    module._decode = decode_known


def _broken(module: ModuleType) -> None:
    """A line ``broken commands:COMMANDS_VERSION`` stands for code that was just installed and does not start: members
    in processes that start from then on cannot open their data."""

    def fail(*arguments: Any) -> None:
        raise RuntimeError("this version does not start")

    module.check_room = fail


class _Finder(importlib.abc.MetaPathFinder):
    """Does something to modules of the product once they are loaded."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]) -> None:
        self._patches = patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        patch = self._patches.get(name)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            patch(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("RAYKEEPER_TEST_STACKS"):
    import stacks

    stacks.note_at_signal(os.environ["RAYKEEPER_TEST_STACKS"])
_patches: dict[str, Callable[[Any], None]] = {}
if os.environ.get("RAYKEEPER_TEST_FAULT"):
    _patches[_ENGINE] = _weaken_engine
    _patches[_SEGMENTS] = _weaken_log
    if _action("commands:COMMANDS_VERSION") == "broken":
        _patches["raykeeper.actors.member.actor"] = _broken
    elif _action("commands:COMMANDS_VERSION"):
        _patches["raykeeper.schema.commands"] = _newer
if os.environ.get("RAYKEEPER_TEST_SWITCH"):
    import switch

    _patches.update(switch.PATCHES)
if _patches:
    sys.meta_path.insert(0, _Finder(_patches))
