"""Notices by which a shell finds a proxy on its node without asking Ray: one file for each proxy that serves.

They lie in a folder of the user who runs the proxy, which nobody else may write or read: ``/run/user/UID/raykeeper``,
or ``/tmp/raykeeper-UID`` where the system makes no such folder. So a shell follows only a notice of its own user. A
proxy leaves its notice once its port is open, and takes it away before it closes. One that was killed leaves a stale
notice: it names a process that has ended (by its id and the time of its start, since ids are used again), and counts
for nothing. Each proxy that starts deletes the stale ones, and the sockets that nobody listens on.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from .limits import MAX_NOTICE_BYTES, RELAY_SWEEP_AGE_S


class ProxyNotice(NamedTuple):
    """What a proxy says of itself.

    Attributes:
        cluster: the cluster's name.
        id: the cluster's id.
        ray: the address of the Ray that the cluster runs on.
        url: where it listens.
        cert_file: with TLS, the file of the certificate that it shows.
        client_cert: whether it asks for the certificate of each client.
        pid: its process.
        started: when that started, in ticks of the kernel's clock; 0 where that is not known.
        relay: the Unix socket, in the same folder, by which it hands frames on to members; empty for none.
    """

    cluster: str
    id: int
    ray: str
    url: str
    cert_file: str
    client_cert: bool
    pid: int
    started: int
    relay: str = ""


def notices_folder() -> str:
    """Where the notices of this user's proxies are; ``RAYKEEPER_RUNTIME_DIR`` overrides it."""
    given = os.environ.get("RAYKEEPER_RUNTIME_DIR")
    if given:
        return given
    runtime = f"/run/user/{os.getuid()}"
    return os.path.join(runtime, "raykeeper") if _is_ours(runtime) else f"/tmp/raykeeper-{os.getuid()}"


def start_of(pid: int) -> int:
    """When a process started, in ticks of the kernel's clock; 0 if it has ended, or if the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def leave_notice(notice: ProxyNotice) -> str:
    """Write the notice of a proxy of this process, and delete what others have left that were killed; returns its path.

    A notice that cannot be read may be one of another version: it stays while the process in its name runs.

    Raises:
        OSError: the folder cannot be had, or is not this user's alone.
    """
    folder = _own_folder()
    used = {notice.relay}
    for path, found in _notices(folder):
        if found is not None and _runs(found):
            used.add(found.relay)
        elif found is not None or not _lives(_process_in(path)):
            _delete(path)
            if found is not None and os.path.dirname(found.relay) == folder:
                _delete(found.relay)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith("relay-") and path not in used and _is_left(path):
            _delete(path)
    path = os.path.join(folder, f"proxy-{notice.pid}-{os.urandom(4).hex()}.json")
    descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(notice._asdict(), file)
    os.rename(f"{path}.new", path)
    return path


def relay_path() -> str:
    """Where a proxy of this process may put its socket: a new name each time.

    Raises:
        OSError: the folder cannot be had, or is not this user's alone.
    """
    return os.path.join(_own_folder(), f"relay-{os.urandom(4).hex()}")


def _is_left(path: str) -> bool:
    """Whether it is a socket that nobody listens on. A proxy may be killed before it has left the notice that names it;
    one that was made just now may be about to be listened on."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode) and found.st_uid == os.getuid():
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return time.time() - found.st_mtime > RELAY_SWEEP_AGE_S
    return False


def _delete(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _own_folder() -> str:
    folder = notices_folder()
    os.makedirs(folder, mode=0o700, exist_ok=True)
    if not _is_ours(folder):
        raise PermissionError(f"{folder} must belong to this user alone")
    return folder


def withdraw_notice(path: str) -> None:
    """Take a notice away, if it is still there."""
    _delete(path)


def find_notice(cluster: str, ray: str) -> ProxyNotice | None:
    """The notice of a proxy of this node that serves the cluster of that name on that Ray; ``None`` if there is none.

    Args:
        cluster: the name.
        ray: the address of the Ray, as ``host:port``.
    """
    folder = notices_folder()
    if not _is_ours(folder):
        return None
    for _, notice in _notices(folder):
        if notice is not None and (notice.cluster, notice.ray) == (cluster, ray) and _runs(notice):
            return notice
    return None


def _notices(folder: str) -> Iterator[tuple[str, ProxyNotice | None]]:
    """The notices in a folder, with ``None`` for a file that is not one."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        if name.startswith("proxy-") and name.endswith(".json"):
            yield path, _read(path)


def _read(path: str) -> ProxyNotice | None:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not _is_private(os.fstat(file.fileno())):
                return None
            said = json.loads(file.read(MAX_NOTICE_BYTES))
        notice = ProxyNotice(*(said[name] for name in ProxyNotice._fields))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    kinds = (str, int, str, str, str, bool, int, int, str)
    fits = all(type(value) is kind for value, kind in zip(notice, kinds, strict=True))
    return notice if fits and notice.pid > 0 else None


def _runs(notice: ProxyNotice) -> bool:
    """Whether the process that left the notice still runs."""
    started = start_of(notice.pid)
    if started or notice.started:
        return started == notice.started
    return _lives(notice.pid)  # the system does not say when


def _lives(pid: int) -> bool:
    """Whether this user has such a process."""
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError):
        return False
    return pid > 0


def _process_in(path: str) -> int:
    """The process in the name of a notice; 0 if there is none."""
    pid = os.path.basename(path).removeprefix("proxy-").partition("-")[0]
    return int(pid) if pid.isdecimal() and len(pid) < 20 else 0


def _is_ours(folder: str) -> bool:
    """Whether it is a folder that only this user may use."""
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _is_private(found)


def _is_private(found: os.stat_result) -> bool:
    return found.st_uid == os.getuid() and not found.st_mode & 0o077
