"""What the README shows, and what `make run` runs, as a stranger would run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import raykeeper

ROOT = Path(raykeeper.__file__).parent


def run(*arguments: str, home: Path) -> str:
    """A process that knows of no Ray, with a home folder of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**environment, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readme_tells_the_truth(scratch: Path) -> None:
    home = scratch / "home"
    home.mkdir()
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    said = run("-c", found[1], home=home).splitlines()
    assert said == ["waiting [b'jobs/1']", "True 3"]
    assert (home / ".raykeeper" / "default" / "m1").is_dir()


def test_the_main_job_is_right_through_a_failover(scratch: Path) -> None:
    said = run("examples/index_stdlib.py", "cluster.yaml", "--limit", "60", home=scratch)
    assert "killed the leader" in said
    assert "equal to a single pass" in said
    assert "writes stood still for" in said
