"""What belongs to the user's process is neither read nor moved: randomness, signals, environment, settings of Python.

A training script seeds ``random`` on every worker with the same number; were ids drawn from there, two workers would
draw the same ones. Read from the source, so that a line that no test runs counts too; and checked at run time.
"""

from __future__ import annotations

import ast
import gc
import locale
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from asyncio import get_event_loop_policy
from pathlib import Path
from typing import Any

import pytest

from lab.collector import thresholds
from lab.onemember import one_member
from lab.patience import PATIENCE
from raykeeper.actors.client.leases import fresh_id
from rooms import name_of, product_files

OWN_GENERATORS = {"random.Random", "random.SystemRandom"}
MOVES = {
    "asyncio.set_event_loop_policy",
    "asyncio.set_event_loop",
    "faulthandler.enable",
    "locale.setlocale",
    "logging.basicConfig",
    "logging.captureWarnings",
    "logging.disable",
    "logging.setLoggerClass",
    "logging.setLogRecordFactory",
    "multiprocessing.set_start_method",
    "decimal.getcontext",
    "decimal.setcontext",
    "os.chdir",
    "os.nice",
    "os.putenv",
    "os.setpriority",
    "os.umask",
    "os.unsetenv",
    "resource.setrlimit",
    "gc.disable",
    "gc.enable",
    "gc.freeze",
    "gc.set_threshold",
    "signal.alarm",
    "signal.pthread_sigmask",
    "signal.set_wakeup_fd",
    "signal.setitimer",
    "signal.siginterrupt",
    "signal.signal",
    "socket.setdefaulttimeout",
    "sys.set_int_max_str_digits",
    "sys.setprofile",
    "sys.setrecursionlimit",
    "sys.setswitchinterval",
    "sys.settrace",
    "time.tzset",
    "threading.setprofile",
    "threading.settrace",
    "threading.stack_size",
    "warnings.filterwarnings",
    "warnings.simplefilter",
}
PROCESSES_OF_OUR_OWN = {
    "actors/transport/descriptors.py",
    "actors/member/actor.py",
    "actors/proxy/proxy_actor.py",
    "actors/process.py",
    "actors/proxy/proxy_listener.py",
    "actors/member/event_loop.py",
    "__main__.py",
}
"""They run in the actor of a member or a proxy, or in the command line's process."""
FOR_A_MOMENT = {
    "actors/finalizer_guard.py": {"gc.set_threshold"},
    "actors/ray_session.py": {"signal.signal"},
}
"""What is as it was a moment later; the files say why, and tests of their own that it is so."""


def used(path: Path) -> set[str]:
    """Dotted names that a file uses, with imports resolved."""
    tree = ast.parse(path.read_text())
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or name] = name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.update({(a.asname or a.name): f"{node.module}.{a.name}" for a in node.names})
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)):
            parts: list[str] = []
            inner: ast.expr = node
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name) and inner.id in names:
                found.add(".".join([names[inner.id], *reversed(parts)]))
    return found


@pytest.mark.parametrize("path", product_files(), ids=name_of)
def test_no_file_draws_from_or_moves_what_is_the_users(path: Path) -> None:
    names = used(path)
    drawn = {name for name in names if name.startswith(("random.", "numpy.random", "np.random"))}
    assert drawn <= OWN_GENERATORS
    name = name_of(path)
    if name not in PROCESSES_OF_OUR_OWN and not name.startswith("cli/"):
        assert names & MOVES == FOR_A_MOMENT.get(name, set())


@pytest.mark.parametrize("path", product_files(), ids=name_of)
def test_the_environment_is_set_by_nobody_but_for_a_moment(path: Path) -> None:
    text = path.read_text()
    if path.name not in {"ray_session.py", "ray_auth.py"} and not name_of(path).startswith("cli/"):
        assert not any(what in text for what in ("os.environ[", "environ.setdefault", "environ.update", "environ.pop"))


@pytest.mark.parametrize("path", product_files(), ids=name_of)
def test_nobody_waits_so_that_a_cancellation_is_lost(path: Path) -> None:
    """Up to Python 3.11 ``asyncio.wait_for`` swallows one that arrives together with the result: ``aio_timeout.within``
    does not."""
    assert "asyncio.wait_for" not in used(path)


def state() -> dict[str, Any]:
    return {
        "random": random.getstate(),
        "locale": locale.setlocale(locale.LC_ALL),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "policy": type(get_event_loop_policy()),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "collector": (gc.isenabled(), thresholds(), gc.get_debug(), list(gc.callbacks)),
        "umask": [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask")],
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "sockets": socket.getdefaulttimeout(),
        "recursion": sys.getrecursionlimit(),
        "digits": sys.get_int_max_str_digits(),
        "traces": (sys.gettrace(), sys.getprofile(), threading.gettrace(), threading.getprofile()),
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": [signal.getitimer(each) for each in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)],
        "processes": multiprocessing.get_start_method(allow_none=True),
        "paths": (list(sys.path), list(sys.path_hooks)),
        "switches": sys.getswitchinterval(),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook),
    }


def test_using_it_moves_nothing() -> None:
    random.seed(1)
    before = state()
    with one_member() as member, member.client() as kv:
        with kv.lock("a"), kv.semaphore("s", 2), kv.rwlock("r").write(), kv.election("e"):
            kv.counter("c").add(1, request_id="once")
            queue = kv.queue("q")
            queue.put("x")
            with queue.claim() as claim:  # type: ignore[union-attr]
                assert claim.item == b"x"
        with kv.partitioner("p", 4) as share:
            assert len(share.mine()) == 4
        with kv.lease(10), kv.registry("t").register("n", "here"), kv.watch("k"), kv.cached(""):
            kv.put("k", "v")
    deadline = time.monotonic() + PATIENCE
    while (now := state()) != before:  # one of our threads may be awake for a moment
        assert time.monotonic() < deadline, now
        time.sleep(0.001)


def test_processes_that_seed_their_randomness_alike_draw_different_leases() -> None:
    random.seed(42)
    one = fresh_id()
    random.seed(42)
    assert fresh_id() != one


def _draw(ids: Any) -> None:
    ids.put(fresh_id())


def test_forked_children_draw_different_leases() -> None:
    context = multiprocessing.get_context("fork")
    ids = context.Queue()
    children = [context.Process(target=_draw, args=(ids,)) for _ in range(2)]
    for child in children:
        child.start()
    drawn = {fresh_id(), *[ids.get(timeout=60) for _ in children]}
    for child in children:
        child.join(PATIENCE)
    assert len(drawn) == 3
