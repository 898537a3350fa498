"""`raykeeper watch`, `lease`, `lock` and `elect` as processes of their own, which are signalled, paused and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from lab.ray.tools import is_alive, leader, wait_until
from raykeeper import Client

TTL = 8.0
"""Seconds, where somebody's end is waited for."""

LONG = ("--ttl", "60")
"""Where nobody is to lose anything, however busy the machine is."""

COMMAND = (sys.executable, "-m", "raykeeper")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def kv(shared: Any) -> Client:
    return shared.client()


@pytest.fixture
def start(shared: Any) -> Iterator[Start]:
    """Starts the command; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []
    environment = {
        **os.environ,
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAYKEEPER_CLUSTER": shared.name,
        "PYTHONUNBUFFERED": "",
    }

    def go(*arguments: str, through: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        process = subprocess.Popen((*through, *COMMAND, *arguments), text=True, env=environment, **pipes)
        started.append(process)
        return process

    yield go
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def line(process: subprocess.Popen[str], seconds: float = 60) -> str:
    """The next line that it prints; fails if none comes."""
    patience = threading.Timer(seconds, process.kill)
    patience.start()
    try:
        printed = process.stdout.readline()
    finally:
        patience.cancel()
    assert printed, f"nothing was printed: {process.stderr.read()}"
    return printed


def end(process: subprocess.Popen[str], number: int = 0) -> tuple[int, str, str]:
    """Send a signal, if one is named: the exit status, the rest of what it printed, and what it said on stderr."""
    if number:
        process.send_signal(number)
    output, said = process.communicate(timeout=180)
    assert "Traceback" not in said
    return process.returncode, output, said


# --- watch -----------------------------------------------------------------------------------------------------------


def test_watch_prints_everything_from_a_revision_on_through_a_change_of_leaders(
    shared: Any, kv: Client, start: Start
) -> None:
    first = kv.put("watched", "0").revision
    watch = start("watch", "watched", "--rev", str(first), "-o", "json")
    for number in range(1, 20):
        if number == 10:
            assert json.loads(line(watch))["kv"]["value"] == "0"  # it is under way
            other = next(each.id for each in shared.members() if each.id != leader(shared).id)
            shared.move_leader(other)
        kv.put("watched", f"{number}")
    seen = [json.loads(line(watch)) for _ in range(19)]
    assert [event["kv"]["value"] for event in seen] == [f"{number}" for number in range(1, 20)]
    assert end(watch, signal.SIGTERM) == (143, "", "")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_watch_ends_cleanly_on_signals(start: Start, number: int, status: int) -> None:
    watch = start("watch", "", "--prefix", "--progress")
    assert line(watch).startswith("progress notify: ")
    assert end(watch, number) == (status, "", "")


def test_watch_ends_cleanly_when_nobody_reads_it_any_more(kv: Client, start: Start) -> None:
    watch = start("watch", "piped", "--progress")
    assert line(watch)
    watch.stdout.close()
    assert watch.wait(timeout=60) == 0
    assert watch.stderr.read() == ""  # it has ended


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_lives_as_long_as_somebody_keeps_it_alive(kv: Client, start: Start) -> None:
    lease = kv.lease(TTL, keep_alive=False)
    kv.put("leased", "v", lease=lease.id)
    keeper = start("lease", "keep-alive", f"{lease.id:x}")
    for _ in range(4):  # one each third of the TTL
        assert line(keeper) == f"lease {lease.id:x} keepalived with TTL(8s)\n"
    assert kv.get("leased") is not None
    keeper.kill()
    wait_until(lambda: kv.get("leased") is None, what="the end of a lease that nobody keeps")


# --- lock ------------------------------------------------------------------------------------------------------------


def waiting_script(ready: Path, *traps: str) -> tuple[str, ...]:
    """A command that tells when it runs, and runs until something ends it."""
    return (
        "--",
        "sh",
        "-c",
        "; ".join([*traps, f"echo $$ >{ready}.new", f"mv {ready}.new {ready}", "while :; do sleep 0.05; done"]),
    )


def started(ready: Path) -> int:
    """The process id of the command, once it runs."""
    wait_until(ready.exists, seconds=60, what="the command under the lock")
    return int(ready.read_text())


def test_lock_hands_sigterm_on_and_leaves_with_the_status_of_its_command(
    kv: Client, start: Start, tmp_path: Path
) -> None:
    lock = start("lock", "a", *LONG, *waiting_script(tmp_path / "ready", "trap 'exit 9' TERM"))
    started(tmp_path / "ready")
    assert kv.lock("a").holder() is not None
    assert end(lock, signal.SIGTERM) == (9, "", "")
    assert kv.lock("a").holder() is None
    killed = start("lock", "a", "--", "sh", "-c", "kill -KILL $$")
    assert end(killed) == (137, "", "")


def test_ctrl_c_reaches_the_command_once(kv: Client, start: Start, tmp_path: Path) -> None:
    """The terminal sends it to both processes; it is not handed on as well."""
    told, terminal = tmp_path / "told", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    trap = f"trap 'echo INT >>{told}' INT; trap 'exit 9' TERM"
    lock = start(
        *("lock", "tty", *LONG, *waiting_script(tmp_path / "ready", trap)),
        through=(sys.executable, "-c", terminal),
        stdin=subprocess.PIPE,
    )
    command = started(tmp_path / "ready")
    lock.stdin.write("\x03")
    lock.stdin.flush()
    wait_until(told.exists, what="Ctrl-C")
    os.kill(command, signal.SIGTERM)  # whatever was handed on has come before
    assert lock.wait(timeout=60) == 9
    assert told.read_text() == "INT\n"


def test_a_second_lock_waits_for_the_first(kv: Client, start: Start, tmp_path: Path) -> None:
    first = start("lock", "queue", *LONG, "-o", "json")
    held = json.loads(line(first))
    lock = kv.lock("queue")
    assert lock.holder().token == held["token"]
    second = start("lock", "queue", *LONG, "--", "sh", "-c", "echo $RAYKEEPER_LOCK_NAME $RAYKEEPER_LOCK_TOKEN")
    wait_until(lambda: len(lock.waiters()) == 1, what="the second one in line")
    assert second.poll() is None
    assert end(start("lock", "queue", "--timeout", "0.2", "--", "true"))[0] == 124
    assert end(first, signal.SIGINT)[0] == 130
    status, said, _ = end(second)
    assert (status, said.split()[0]) == (0, "queue")
    assert int(said.split()[1]) > held["token"]


def test_a_lock_is_free_when_the_process_that_held_it_was_killed(kv: Client, start: Start) -> None:
    holder = start("lock", "killed", "--ttl", f"{TTL}")
    line(holder)
    token = int(line(holder))
    holder.kill()
    lock = kv.lock("killed", ttl=60)
    assert lock.acquire(timeout=60)  # the TTL and a second, and what a busy machine adds
    assert lock.token > token
    lock.release()


def test_a_command_is_ended_when_its_lock_was_lost_in_a_pause(
    kv: Client, start: Start, tmp_path: Path, stopped: list[int]
) -> None:
    lock = start("lock", "paused", "--ttl", f"{TTL}", *waiting_script(tmp_path / "ready"))
    command = started(tmp_path / "ready")
    stopped.append(lock.pid)
    lock.send_signal(signal.SIGSTOP)
    with kv.lock("paused", ttl=60):
        lock.send_signal(signal.SIGCONT)
        status, _, said = end(lock)
        assert (status, said.count("\n")) == (125, 1)
        assert said.startswith("raykeeper: the lock paused is lost: sh -c ")
        assert not is_alive(command)


def test_a_command_writes_under_the_guard_of_its_lock(kv: Client, start: Start) -> None:
    put = f"{sys.executable} -m raykeeper put guarded"
    steal = f"{sys.executable} -m raykeeper lease revoke ${{RAYKEEPER_LOCK_KEY##*/}}"
    script = f"trap '' TERM; {put} 1 --guard && {steal} && {put} 2 --guard"
    lock = start("lock", "guarded", *LONG, "--grace", "60", "--", "sh", "-c", script)
    status, output, said = end(lock)
    assert (status, output.partition(" ")[0]) == (125, "OK\nlease"), said
    assert "raykeeper: the lock is no longer held under the token of this guard" in said
    assert kv.get("guarded").text == "1"


# --- elect -----------------------------------------------------------------------------------------------------------


def test_the_second_candidate_leads_when_the_first_was_killed(kv: Client, start: Start) -> None:
    listener = start("elect", "boss", "--listen", "-o", "json")
    first = start("elect", "boss", "one", "--ttl", f"{TTL}", "-o", "json")
    led = [json.loads(line(first))]
    second = start("elect", "boss", "two", *LONG, "-o", "json")
    space = kv.reserved("election")
    wait_until(lambda: space.range(prefix="boss/p/", count_only=True).count == 2, what="the second candidate")
    first.kill()
    led.append(json.loads(line(second)))
    assert [(each["name"], each["value"]) for each in led] == [("boss", "one"), ("boss", "two")]
    assert led[0]["token"] < led[1]["token"]
    assert [json.loads(line(listener)) for _ in led] == [
        {"token": each["token"], "value": each["value"]} for each in led
    ]
    assert end(second, signal.SIGTERM) == (143, "", "")
    assert kv.election("boss").leader() is None
    assert end(listener, signal.SIGINT) == (130, "", "")
