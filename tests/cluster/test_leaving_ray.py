"""A process leaves Ray, by ``ray.shutdown()``, while threads of ours call it: it lives on, attached to no Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray

PROGRAM = """
import faulthandler, sys, threading, time
faulthandler.dump_traceback_later(200, exit=True)
import msgspec
import ray
from raykeeper.actors.deadline import covering
from raykeeper.actors.ray_session import join_ray
from raykeeper.actors.transport.client_actor import ActorTransport
from raykeeper.actors.transport.directory import directory
from raykeeper.schema.operator_frames import AskStatus
import raykeeper

name = sys.argv[1]
frame = msgspec.msgpack.encode(AskStatus())


def refresh(transport, went_on, over):
    while not over.is_set():
        try:
            with covering(3.0):
                directory.member_handles(name, fresh=True)
            went_on.set()
        except (raykeeper.ClusterNotFound, raykeeper.Unavailable):
            return  # the latter, where Ray never answers a call that was under way


def send(transport, went_on, over):
    free = threading.Semaphore(20)

    def done(reply):
        if isinstance(reply, bytes):
            went_on.set()
        free.release()

    while not over.is_set():
        if free.acquire(timeout=0.1):
            transport.send(1, frame, done)


for _ in range(10):
    join_ray()
    over = threading.Event()
    threads = []
    for work in (refresh, send):
        transport, went_on = ActorTransport(name), threading.Event()
        threads.append(threading.Thread(target=work, args=(transport, went_on, over)))
        threads[-1].start()
        went_on.wait()
    ray.shutdown()
    time.sleep(0.02)  # calls that a thread of ours makes now find no Ray, and start none
    assert not ray.is_initialized()
    over.set()
    for thread in threads:
        thread.join()
    assert not ray.is_initialized()
print("left ten times")
"""


def test_a_thread_of_ours_calls_ray_while_the_user_leaves_it(shared: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), shared.name],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "left ten times"
