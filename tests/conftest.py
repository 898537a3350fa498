"""What all tests share: marks by folder, hypothesis without a clock, signals that work, Ray workers on equal terms."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No deadline, and slow is not ill: a machine that is busy with something else is not a failure. The blob reproduces an
# example anywhere.
settings.register_profile("raykeeper", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
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
