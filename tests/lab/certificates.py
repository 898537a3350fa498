"""An authority of certificates, for tests of TLS."""

from __future__ import annotations

import os
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

import trustme


class Issued(NamedTuple):
    """Paths of PEM files."""

    certificate: str
    key: str
    authority: str


def replace(path: str, source: str, *, in_place: bool = False) -> None:
    """Have a file be what another one is, and nothing of it tell that but the one thing that must.

    Args:
        in_place: it is written over, so that it has a new time; else another file of the same time takes its name.
    """
    before = os.stat(path).st_mtime_ns
    if in_place:
        shutil.copyfile(source, path)
        os.utime(path, ns=(before + 1, before + 1))
    else:
        shutil.copyfile(source, f"{path}.new")
        os.utime(f"{path}.new", ns=(before, before))
        os.replace(f"{path}.new", path)


class Certificates:
    """An authority, and certificates that it has signed, in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        folder.mkdir(exist_ok=True)
        self._authority.cert_pem.write_to_path(str(folder / "ca.pem"))

    def issue(self, name: str, *, expired: bool = False) -> Issued:
        """A certificate with that common name, for this machine's loopback address; the same name replaces it."""
        until = datetime.now(timezone.utc) - timedelta(days=1) if expired else None
        issued = self._authority.issue_cert("localhost", "127.0.0.1", common_name=name, not_after=until)
        for blob, file in ((issued.cert_chain_pems[0], f"{name}.pem"), (issued.private_key_pem, f"{name}.key")):
            fresh = self._folder / f"{file}.new"  # told from the old one whatever their times are
            blob.write_to_path(str(fresh))
            fresh.replace(self._folder / file)
        return Issued(*(str(self._folder / each) for each in (f"{name}.pem", f"{name}.key", "ca.pem")))
