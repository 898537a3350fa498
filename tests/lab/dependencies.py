"""Whether what RayKeeper is built on is current: `make audit`, before a release. It needs a package index.

For each package that the product imports: is the newest version allowed by the range in ``pyproject.toml``, and is it
the one that the tests run with? A fault that was mended in a dependency is in its newest version, or nowhere. Ranges
that shut the newest version out are to be widened, or their reason stands beside them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version

from packaging.requirements import Requirement
from packaging.version import Version

from rooms import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def requirements() -> list[Requirement]:
    """The packages that the product needs, with their ranges."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(each) for each in project["dependencies"]]


def newest(name: str) -> str:
    """The newest version that the package index has for this Python."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = re.match(r"\S+ \(([^)]+)\)", done.stdout)
    if found is None:
        raise SystemExit(f"the package index does not answer for {name}: {done.stderr.strip()}")
    return found[1]


def findings(needed: Sequence[Requirement], latest: Callable[[str], str], installed: Callable[[str], str]) -> list[str]:
    """What is not current, one line each."""
    found = []
    for each in needed:
        last, here = latest(each.name), installed(each.name)
        if not each.specifier.contains(last):
            found.append(f"{each.name}: {last} is out, and {each.specifier} does not allow it")
        elif Version(here) < Version(last):
            found.append(f"{each.name}: {last} is out, and the tests ran with {here}")
    return found


def main() -> None:
    """Print what is not current; the exit status says whether anything was."""
    found = findings(requirements(), newest, version)
    for line in found or ["all dependencies are current"]:
        print(line)
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
