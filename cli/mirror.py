"""`raykeeper make-mirror`: keeps a copy of keys in another cluster of ours or in an etcd, or here of theirs.

First the keys as of one revision are copied, then each change after it, in order and revision by revision. A write
whose outcome is unknown is repeated: a put or a delete of the mirror means the same twice. So whatever breaks off, a
connection or the whole command, nothing is lost; ``--rev`` continues where an earlier run has printed that it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

from ..actors.client.results import END, Batch, KeyValue
from ..actors.client.txn_parts import Op
from ..actors.deadline import uncovered
from ..errors import CompactedError, KeeperError, RequestTimeout, Unavailable
from ..limits import GATEWAY_PAGE_ITEMS, MIRROR_REPORT_S, MIRROR_RETRY_S, MIRROR_TXN_OPERATIONS
from .etcd_gateway import Endpoint, endpoint_url
from .gateway_client import GatewayClient, key_after
from .options import (
    BYTES,
    MAX_NUMBER,
    WholeNumber,
    beginning_option,
    common_of_streams,
    given_tls,
    open_client,
    options,
    read_password_file,
    tls_option,
)
from .render import CommandResult, show
from .shown_steps import ShownProgress, shown_progress
from .stdio import tell
from .streaming import signals_raised


class Mirror:
    """Copies keys from one client to another.

    Args:
        source: where the keys are; a handle, or a client of a gateway.
        target: where they are to be.
        prefix: of the keys that are mirrored, at the source.
        renamed: the prefix that they have at the target, in place of that.
        pause: waits before something is tried again.
    """

    def __init__(
        self,
        source: Any,
        target: Any,
        prefix: bytes,
        renamed: bytes,
        pause: Callable[[], None] = lambda: time.sleep(MIRROR_RETRY_S),
    ) -> None:
        self._source = source
        self._target = target
        self._prefix = prefix
        self._renamed = renamed
        self._pause = pause
        self.revision = 0
        """All up to this revision of the source is at the target."""
        self.mirrored = 0
        """How many puts and deletes have been made."""
        self.total: int | None = None
        """How many keys the first copy has, once that is known."""

    def copy(self) -> Iterator[None]:
        """Copy all keys as of the present revision, some at a time."""
        first, end = self._prefix or b"\0", key_after(self._prefix)
        revision: int | None = None
        more = True
        while more:
            page = self._source.range(first, END if end == b"\0" else end, limit=GATEWAY_PAGE_ITEMS, revision=revision)
            if self.total is None:
                self.total = page.count
            revision, more = revision or page.revision, page.more
            self._write([self._put(item) for item in page])
            if page.items:
                first = page.items[-1].key + b"\0"
            yield
        self.revision = revision or 0

    def follow(self) -> Iterator[None]:
        """Make each change after ``revision`` at the target, forever.

        Raises:
            CompactedError: the history that is needed is gone.
        """
        while True:
            try:
                for batch in self._batches():
                    operations = {event.kv.key: self._change(event.type, event.kv) for event in batch.events}
                    self._write(list(operations.values()))
                    self.revision = max(self.revision, batch.revision)
                    yield
                problem = "the source has ended the watch"
            except (Unavailable, RequestTimeout) as error:
                problem = str(error)
            tell(f"warning: {problem}; trying again")
            self._pause()

    def _batches(self) -> Iterator[Batch]:
        start = self.revision + 1
        if isinstance(self._source, GatewayClient):
            yield from self._source.watch(prefix=self._prefix, start_revision=start)
            return
        with self._source.watch(prefix=self._prefix, start_revision=start) as watch:
            yield from watch.batches()

    def _change(self, kind: str, item: KeyValue) -> Op:
        return self._put(item) if kind == "put" else Op.delete(self._name(item.key))

    def _put(self, item: KeyValue) -> Op:
        return Op.put(self._name(item.key), item.raw)

    def _name(self, key: bytes) -> bytes:
        return self._renamed + key[len(self._prefix) :]

    def _write(self, operations: Sequence[Op]) -> None:
        """Make changes at the target, as many at once as any etcd takes; again, until it says that they are made."""
        for begin in range(0, len(operations), MIRROR_TXN_OPERATIONS):
            some = operations[begin : begin + MIRROR_TXN_OPERATIONS]
            while True:
                try:
                    self._target.txn([], some, [])
                    break
                except (Unavailable, RequestTimeout) as error:
                    tell(f"warning: {error}; trying again")
                    self._pause()
            self.mirrored += len(some)


@click.command("make-mirror")
@click.argument("endpoint")
@click.option("--from", "reverse", is_flag=True, help="Mirror what is at ENDPOINT to this cluster.")
@click.option("--prefix", type=BYTES, default="", help="Mirror only keys that start with this.")
@click.option("--dest-prefix", type=BYTES, help="Their prefix at the destination (default: the same).")
@click.option("--no-dest-prefix", is_flag=True, help="At the destination keys have no prefix.")
@click.option("--rev", type=WholeNumber(1, MAX_NUMBER), help="Copy nothing; begin with the changes of this revision.")
@click.option("--once", is_flag=True, help="Copy what is there, and end.")
@click.option("--remote-user", help="User at ENDPOINT.")
@click.option("--remote-password-file", type=click.Path(exists=True, dir_okay=False), help="Its password.")
@options(tls_option, common_of_streams, beginning_option)
def make_mirror(
    cluster: str,
    address: str | None,
    output: str,
    timeout: float,
    endpoint: str,
    reverse: bool,
    prefix: bytes,
    dest_prefix: bytes | None,
    no_dest_prefix: bool,
    rev: int | None,
    once: bool,
    remote_user: str | None,
    remote_password_file: str | None,
) -> None:
    """Copy this cluster's keys to the cluster at ENDPOINT (a proxy of ours, or an etcd), and keep the copy up to date.

    It goes on until a signal comes. Prints how much was mirrored after the first copy, and every half minute. Leases
    are not mirrored, and keys that only the destination has stay.
    """
    if (remote_user is None) != (remote_password_file is None):
        raise click.UsageError("--remote-user and --remote-password-file belong together")
    if no_dest_prefix:
        if dest_prefix:
            raise click.UsageError("--dest-prefix and --no-dest-prefix exclude each other")
        dest_prefix = b""
    remote = GatewayClient(Endpoint(endpoint_url(endpoint), given_tls()), timeout)
    with open_client(cluster, address, timeout) as kv, remote, uncovered():
        if remote_user is not None and remote_password_file is not None:
            remote.gateway.log_in(remote_user, read_password_file(remote_password_file))
        source, target = (remote, kv) if reverse else (kv, remote)
        mirror = Mirror(source, target, prefix, prefix if dest_prefix is None else dest_prefix)
        with signals_raised(), shown_progress("mirroring") as progress:
            try:
                _run(mirror, rev, once, progress, output)
            except CompactedError as error:
                raise KeeperError(f"{error}, so changes would be missing: start again without --rev") from error


def _run(mirror: Mirror, rev: int | None, once: bool, progress: ShownProgress, output: str) -> None:
    if rev is None:
        for _ in mirror.copy():
            progress.count(mirror.mirrored, mirror.total)
        _report(mirror, output)
    else:
        mirror.revision = rev - 1
    if once:
        return
    due = time.monotonic() + MIRROR_REPORT_S
    for _ in mirror.follow():
        progress.count(mirror.mirrored)
        if time.monotonic() >= due:
            due = time.monotonic() + MIRROR_REPORT_S
            _report(mirror, output)


def _report(mirror: Mirror, output: str) -> None:
    fields = {"mirrored": mirror.mirrored, "revision": mirror.revision}
    show(CommandResult(fields, [f"mirrored {mirror.mirrored}, up to revision {mirror.revision}"]), output)
