"""What the README shows, and what `make run` runs, as a new user would run it."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from lab.ray.programs import ROOT, run_program
from lab.ray.tools import wait_until


def test_the_readme_tells_the_truth(scratch: Path) -> None:
    home = scratch / "home"
    home.mkdir()
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    said = run_program("-c", found[1], HOME=str(home)).splitlines()
    assert said == ["waiting [b'jobs/1']", "True 3"]
    assert (home / ".raykeeper" / "default" / "m1").is_dir()


def test_the_main_job_is_right_though_a_worker_and_the_leader_are_killed(scratch: Path) -> None:
    temporary = scratch / "t"
    temporary.mkdir()
    where = {"HOME": str(scratch), "TMPDIR": str(temporary)}
    said = run_program("examples/index_stdlib.py", "cluster.yaml", "--limit", "60", **where)

    worker, held = found(r"killed worker (\d), which held (\d+) claims", said)
    leader = found(r"killed the cluster's leader, (\w+)", said)
    assert found(r"worker killed +│ worker (\d) at [\d.]+ s, with (\d+) claims", said) == [worker, held]
    assert found(r"leader killed +│ (\w+) at ", said) == leader

    # At most one of the victim's records was on its way when it was killed; all other claims came back, to others.
    back, to = found(r"claims that came back +│ (\d+), to workers \[([\d, ]+)\]", said)
    assert int(held) >= 2
    assert int(held) - 1 <= int(back) <= int(held)
    assert worker not in to.split(", ")
    soonest, latest = found(r"taken again after +│ ([\d.]+) to ([\d.]+) s", said)
    assert 0 < float(soonest) <= float(latest)

    assert float(found(r"writes stood still for +│ ([\d.]+) s", said)[0]) > 0
    assert "equal to a single pass" in said
    assert "A worker died" not in said, "Ray's notices of the kills fill the terminal"
    assert list(temporary.glob("rk-*")) == []
    wait_until(lambda: not descendants(temporary), what="the end of all its processes")


def descendants(temporary: Path) -> list[str]:
    """Processes that were started with this folder for temporary files, as all are that the job has started."""
    running = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it is somebody else's, or has just ended
            if f"TMPDIR={temporary}\0".encode() in environment.read_bytes():
                running.append(environment.parent.name)
    return running


def found(pattern: str, said: str) -> list[str]:
    """The groups of a pattern in what was said."""
    match = re.search(pattern, said)
    assert match is not None, f"no {pattern!r} in:\n{said}"
    return list(match.groups())
