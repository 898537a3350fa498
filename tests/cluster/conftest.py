"""One local Ray for all cluster tests, and clusters that are gone after the test that made them.

The Ray is the tests' own: it joins nothing that runs on the machine, has its own temporary folder, and ends with the
session. All its processes note what their syncs made durable, and load ``lab/ray/patches/sitecustomize.py``, with which
a test can take a single sync out of the product, and cut, slow down or garble what members and clients say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.ray.crowd import Crowd, gathered
from lab.ray.faults import Faults
from lab.ray.net_hosts import NetHosts, why_not
from lab.ray.patches import switch
from lab.ray.tools import Made, kill_stragglers
from raykeeper.actors.client import hub_pool
from raykeeper.actors.transport import client_actor, client_lanes

PATCHES = Path(__file__).parent.parent / "lab" / "ray" / "patches"


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder with a short path: Ray puts sockets into it, whose paths may not be long."""
    folder = Path(tempfile.mkdtemp(prefix="rkt-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray(scratch: Path) -> Iterator[Path]:
    """The tests' Ray; the folder that the journals of syncs are written to."""
    journals = scratch / "journals"
    journals.mkdir()
    inherited = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PATCHES), os.environ.get("PYTHONPATH", "")])),
        "RAYKEEPER_SYNC_JOURNAL": str(journals),
        "RAYKEEPER_TEST_FAULT": str(scratch / "fault"),
        "RAYKEEPER_TEST_SWITCH": str(scratch / "switch"),
        "RAY_timeout_ms_task_wait_for_death_info": "0",
        # On equal terms with pytest and the programs that tests run: at Ray's niceness of 15 they would starve beside.
        "RAY_worker_niceness": "0",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in inherited.items():
            patch.setenv(name, value)
        _start_ray(str(scratch / "ray"))
        _end_log_monitor(str(scratch / "ray"))
        yield journals
        # As at the end of a process. Ray ends a process in which a thread asks it for something just when it is shut
        # down, and a hub that lingers may ask for members that are gone.
        hub_pool._close_all()
        ray.shutdown()


def _start_ray(temporary: str) -> None:
    """Ray gives its own processes half a minute, which may be too little on a machine that is busy with something else:
    all tests would fail for it."""
    for attempt in range(5):
        try:
            ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=200 * 1024 * 1024,
                _temp_dir=temporary,
            )
            return
        except Exception as error:
            if attempt == 4 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


def _end_log_monitor(temporary: str) -> None:
    """Nobody reads what it collects, and with hundreds of processes that come and go it takes a tenth of a core."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it is somebody else's, or has just ended
            command = process.read_bytes().decode(errors="replace")
            if "/log_monitor.py\0" in command and temporary in command:
                os.kill(int(process.parent.name), signal.SIGKILL)


@pytest.fixture
def clusters(local_ray: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Made]:
    """Launches clusters with their data under ``tmp_path``; whatever runs of them at the end is killed."""
    made = Made(tmp_path, request.node.name)
    yield made
    made.end()


@pytest.fixture(scope="module")
def shared(local_ray: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Any]:
    """One running cluster for all tests of a module that do it no harm."""
    made = Made(tmp_path_factory.mktemp("shared"), request.module.__name__.rpartition(".")[2])
    yield made.launch()
    made.end()


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Process ids that a test has stopped with SIGSTOP: they go on at its end, whatever becomes of it."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def faults(local_ray: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The fault switch of all processes; this one's calls to members go through it too. Healed at the end."""
    monkeypatch.setattr(client_actor.ActorTransport, "_send_call", client_actor.ActorTransport._send_call)
    switch.around_client_calls(client_actor)
    monkeypatch.setattr(client_lanes.ClientLane, "send_request", client_lanes.ClientLane.send_request)
    switch.around_client_lanes(client_lanes)
    faults = Faults(scratch / "switch")
    yield faults
    faults.end()


@pytest.fixture
def hosts() -> Iterator[NetHosts]:
    """Ray nodes as hosts of their own, for one test; it is skipped where the machine cannot make them."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    hosts = NetHosts()
    try:
        hosts.make()
        yield hosts
    finally:
        hosts.end()


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_behind() -> Iterator[None]:
    yield
    kill_stragglers()


@pytest.fixture(scope="session")
def crowd(local_ray: Path) -> Iterator[Crowd]:
    """Processes that use clusters."""
    with gathered() as people:
        yield people
