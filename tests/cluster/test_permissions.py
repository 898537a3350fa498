"""Nobody but its owner reads a cluster's data, on real processes."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from lab.ray.tools import Made, kill, serving, wait_until


def wider(folder: Path) -> dict[str, str]:
    """What others may read, write or enter, with its mode."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:  # a database removes files of its own
            continue
        if mode & 0o077 and not path.is_symlink():
            found[str(path.relative_to(folder))] = oct(mode)
    return found


@pytest.mark.core
def test_data_and_backups_are_the_owners_alone(clusters: Made, tmp_path: Path) -> None:
    cluster = clusters.launch()
    with cluster.client(timeout=60) as kv:
        kv.put("secret", "not for all")
        base = next(tmp_path.rglob("m1.lock")).parent
        assert wider(base) == {}
        (tmp_path / "backups").mkdir()
        backup = cluster.backup(str(tmp_path / "backups" / "one.rkbackup"))
        assert stat.S_IMODE(Path(backup.path).stat().st_mode) == 0o600

        # Somebody lets everybody in: the member that starts next lets them out again, and says so.
        member = cluster.members()[0]
        folder = base / member.name
        for path in [base, folder, *folder.rglob("*")]:
            path.chmod(stat.S_IMODE(path.stat().st_mode) | 0o055)
        kill(member.pid)
        wait_until(lambda: serving(cluster), what="all members serve")
        assert wider(folder) == {}
        assert stat.S_IMODE(base.stat().st_mode) == 0o700
        assert kv.get("secret").value == b"not for all"
