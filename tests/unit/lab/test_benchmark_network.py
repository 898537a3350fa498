"""Hosts on one machine: the wire between them, and that nothing of them is left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from namespaces import Hosts, run, why_not
from wire import Switch

from lab.patience import PATIENCE

HERE, THERE, THIRD = b"a" * 6, b"b" * 6, b"c" * 6
BROADCAST = b"\xff" * 6


def test_packets_are_handed_on_in_order_and_not_before_their_time() -> None:
    switch = Switch(0.5, [1, 2, 3])
    assert switch.wait(0.0) is None
    switch.take(10.0, 1, BROADCAST + HERE + b"who")
    switch.take(10.1, 2, HERE + THERE + b"I")
    assert switch.wait(10.2) == pytest.approx(0.3)
    assert switch.due(10.49) == []
    assert [device for device, _ in switch.due(10.5)] == [2, 3]  # to all but its sender
    assert switch.due(10.7) == [(1, HERE + THERE + b"I")]  # where its receiver was heard
    assert switch.wait(10.7) is None


def test_a_receiver_that_was_not_heard_is_looked_for_everywhere() -> None:
    switch = Switch(0.0, [1, 2, 3])
    switch.take(0.0, 1, THIRD + HERE)
    assert [device for device, _ in switch.due(0.0)] == [2, 3]
    switch.take(0.0, 3, HERE + THIRD)
    switch.take(0.0, 1, THIRD + HERE)
    switch.take(0.0, 1, HERE + HERE)  # to itself
    assert [device for device, _ in switch.due(0.0)] == [1, 3]


def test_hosts_are_as_far_apart_as_they_should_be_and_leave_nothing() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    program = (
        "import socket, sys, time, network\n"
        "print(sorted(network._round_trip(sys.argv[1]))[0])\n"
    )  # fmt: skip
    with Hosts(2, 0.01) as hosts:
        sleeper = subprocess.Popen([*hosts.inside(1), "sleep", "600"])
        done = run(*hosts.inside(0), sys.executable, "-c", program, hosts.addresses[1], env=_environment())
        names = hosts.names
    assert 0.02 <= float(done.stdout) < 0.2
    assert sleeper.wait(PATIENCE) != 0
    assert not any(name in run("ip", "netns", "list").stdout for name in names)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
