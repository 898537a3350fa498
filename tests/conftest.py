"""What all tests share: marks by folder, hypothesis without a clock, signals that work, Ray workers on equal terms; the
stacks of all threads where one fails; and that none leaves anything to the next in its process."""

from __future__ import annotations

import faulthandler
import gc
import math
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from raykeeper.actors import deadline, finalizer_guard

# No deadline, and slow is not ill: a machine that is busy with something else is not a failure. The blob reproduces an
# example anywhere. Where a merge hangs on the outcome (CI), the examples are the same each time; otherwise, new ones.
settings.register_profile(
    "raykeeper",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("raykeeper")

# A shell starts its background jobs with SIGINT and SIGQUIT ignored, nohup with SIGHUP, and Python and all children
# keep that. What tests say of signals must not hang on how the tests were started.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGQUIT, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# Ray starts workers with a niceness of 15. Beside anything that computes at 0, and members are among that, a test's own
# workers would then get next to nothing of a small machine, and lose leases that they could keep anywhere else.
os.environ.setdefault("RAY_worker_niceness", "0")

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        if folder in ("cluster", "simulation"):
            item.add_marker(folder)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test that fails says what all threads were at: of one that waited in vain, that is the reason."""
    report = yield
    if report.failed and call.when != "teardown":
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            report.sections.append(("All threads", file.read()))
    return report


def _changed_by_tests() -> dict[str, Any]:
    """What a test may change for itself, and must restore."""
    thresholds = gc.get_threshold()
    if thresholds[0] == finalizer_guard._DEFERRED_THRESHOLD:  # a client's thread is busy
        thresholds = finalizer_guard._thresholds
    return {
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timer": signal.getitimer(signal.ITIMER_REAL),
        "folder": os.getcwd(),
        "collection": (gc.isenabled(), thresholds),
    }


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """First to be set up, so last to look. What one test leaves makes another fail, long after, and only on a machine
    that is slow."""
    with_ray = request.path.relative_to(_HERE).parts[0] not in ("unit", "fuzz", "simulation")  # it has handlers, too
    before = {} if with_ray else _changed_by_tests()
    yield
    left, _ = deadline.time_left(), deadline._until.set(math.inf)
    assert left == math.inf, "the main thread has a deadline"
    if not with_ray:
        assert _changed_by_tests() == before
