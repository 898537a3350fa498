"""Processes that watch, and those that read what was written long ago."""

from __future__ import annotations

import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from raykeeper import KeeperError
from raykeeper.errors import CompactedError

from .journal import FAIL, OK, UNKNOWN
from .work import ORDINARY, Thread, item_fields

if TYPE_CHECKING:
    from .worker import Worker

PAGE = 3
"""Keys in a page."""
Progress = tuple[int, int, int | None]
"""What a watch says of itself: all up to a revision was delivered, when so many events were; and if this was asked for,
the newest revision that the process had been told of before."""


class Watcher(Thread):
    """Watches a range for a while, from now or from the past, and notes all that it sees."""

    how: dict[str, Any] = {}
    """What it asks for in addition."""

    @staticmethod
    def event(event: Any) -> list[Any]:
        """What it notes of one."""
        value = None if event.type == "delete" else event.kv.text
        return [event.kv.mod_revision, event.kv.key.decode(), value]

    def act(self) -> None:
        epoch = self.epoch()
        where = self.rng.choice(
            (
                {"prefix": f"r/{epoch:05}/"},
                {"prefix": f"p/{epoch:05}/"},
                {"key": f"r/{epoch:05}/1"},
                {"prefix": "c/"},
                {"prefix": "g/"},
                {"prefix": "r/"},
            )
        )
        newest = max(1, self.newest)
        start = 0 if self.rng.random() < 0.5 else max(1, newest - self.rng.randrange(50))
        number = self.journal.begin(self.name, "begin_watch", **where, start=start)
        try:
            watch = self.kv.watch(**where, **self.how, start_revision=start or None, timeout=8.0)
        except (KeeperError, CompactedError) as error:
            ordinary = isinstance(error, (*ORDINARY, CompactedError))
            self.journal.end(number, FAIL, error=repr(error), **({} if ordinary else {"unexpected": True}))
            return
        position = watch.revision if not start else start - 1
        self.journal.end(number, OK, revision=position)
        number = self.journal.begin(self.name, "watch", **where, position=position)
        events: list[Any] = []
        progress: list[Progress] = []
        try:
            with watch:
                upto = self.seen(self.follow(watch, position, events, progress))
            self.journal.end(number, OK, upto=upto, events=events, progress=self.said(watch, progress))
        except CompactedError as error:
            said = self.said(watch, progress)
            self.journal.end(number, FAIL, events=events, progress=said, compacted=error.compact_revision)
        except Exception:
            error, said = traceback.format_exc(), self.said(watch, progress)
            self.journal.end(number, UNKNOWN, events=events, progress=said, error=error, unexpected=True)

    def follow(self, watch: Any, position: int, events: list[Any], progress: list[Progress]) -> int:
        """Take events for a while, and note after each of them, and whenever there is none, up to where the watch says
        that all were delivered; the last of these."""
        until = time.monotonic() + self.rng.uniform(2.0, 12.0)
        upto = position
        # The last revision is whole only once the watch says so: what is left of it is taken, too.
        while (time.monotonic() < until and not self.worker.stopping.is_set()) or (events and upto < events[-1][0]):
            event = watch.next(timeout=0.5)
            if event is not None:
                events.append(self.event(event))
            elif self.worker.abandoned.is_set():
                break
            if watch.revision != upto or not progress:  # it may not go back: the verdict looks
                upto = watch.revision
                progress.append((upto, len(events), None))
        return upto

    def said(self, watch: Any, progress: list[Progress]) -> list[Progress]:
        """All that the watch has said of its progress."""
        return progress


class PrevWatcher(Watcher):
    """Sees with each change what was there before."""

    how = {"prev": True}

    @staticmethod
    def event(event: Any) -> list[Any]:
        """With the revision and the value before; ``None`` where there was no such key, or that is compacted."""
        before = None if event.prev is None else [event.prev.mod_revision, event.prev.text]
        return [*Watcher.event(event), before]


class BatchWatcher(Watcher):
    """Takes whole revisions, with the notices that nothing has happened."""

    def follow(self, watch: Any, position: int, events: list[Any], progress: list[Progress]) -> int:
        upto = position
        timer = threading.Timer(self.rng.uniform(2.0, 12.0), watch.cancel)
        timer.daemon = True
        timer.start()
        try:
            for batch in watch.batches():
                events += [self.event(event) for event in batch.events]
                upto = batch.revision
                progress.append((upto, len(events), None))
        finally:
            timer.cancel()
        return upto


class EtcdWatcher(Watcher):
    """The same over gRPC, through proxies, which it asks for progress every half a second."""

    def __init__(self, worker: Worker, name: str) -> None:
        super().__init__(worker, name)
        self.kv: Any = worker.etcd
        self.how = {"known": lambda: worker.newest}

    def said(self, watch: Any, progress: list[Progress]) -> list[Progress]:
        return [*progress, *watch.progress]


class FarReader(Thread):
    """Reads the keys of any time since the campaign began, in pages that are all of one revision."""

    def act(self) -> None:
        epoch = self.rng.randrange(self.epoch() + 1)
        prefix = self.rng.choice(("r/", "p/", f"r/{epoch:05}/", f"p/{epoch:05}/", f"l/{epoch:05}/"))
        at_once = self.rng.random() < 0.3

        def call() -> dict[str, Any]:
            found = self.kv.range(prefix=prefix, limit=0 if at_once else PAGE, timeout=8.0)
            items, revision = list(found), found.revision
            while found.more:
                after = items[-1].key + b"\0"
                end = prefix[:-1].encode() + b"0"
                found = self.kv.range(after, end, limit=PAGE, revision=revision, timeout=8.0)
                items += found
            self.seen(revision)
            return {"items": [item_fields(item) for item in items], "revision": revision}

        self.do("pages", call, prefix=prefix)
        self.worker.stopping.wait(self.rng.uniform(0, 1.0))
