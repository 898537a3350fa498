"""Keeping an eye on the keys of all that a process holds: whoever's key is deleted has lost it.

The lease tells soon enough that a place is gone if its time is over or it was revoked. Somebody may delete the key
alone, as an operator would to take a lock away; then a watch tells. With asyncio that is a task for each place held.
For blocking handles one thread of the process looks after all of them: it waits for a word from any of their watches,
so what it costs depends on how many keys go, not on how many there are.

It is a thread of ours on which no code of the user's runs (:mod:`..client.undisturbed`), and it makes no call that
waits.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import weakref
from collections import deque
from typing import NamedTuple

from ...errors import CompactedError, KeeperError
from ...limits import RECIPE_LOOK, RECIPE_MAX_PAUSE
from ..client.handle import Client
from ..client.leases import Loss
from ..client.undisturbed import OurThread
from ..client.watch import Feed, wanted


class _Seen(NamedTuple):
    """A place to be looked after. It is held weakly: one that is forgotten is not kept alive by this."""

    space: Client
    place: weakref.ref[object]
    key: bytes
    start: int
    lost: Loss

    @property
    def over(self) -> bool:
        return self.place() is None or self.lost.is_set()


class _Eye(Feed):
    """The watch of one key. Whenever it has something to tell it is put into a queue."""

    def __init__(self, seen: _Seen, news: queue.SimpleQueue[_Eye | _Seen]) -> None:
        self.seen = seen
        self._news = news
        seen.space._hub(0)
        share = seen.space._share
        assert share is not None
        asked = wanted(seen.space._view, seen.key, None, None, seen.start, False, "delete")
        super().__init__(share, seen.space._view, asked, self)

    def wake(self) -> None:
        """The hub says that there is something to take."""
        self._news.put(self)

    def gone(self) -> bool:
        """Whether the key is gone, as far as this watch tells.

        Raises:
            CompactedError: it may have gone where nobody can look any more.
        """
        return self._pop() is not None

    def end(self) -> None:
        """Look no longer."""
        self._end()


class Eyes:
    """The thread, and what it looks after."""

    def __init__(self) -> None:
        self._news: queue.SimpleQueue[_Eye | _Seen] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def keep_on(self, space: Client, place: object, key: bytes, start: int, lost: Loss) -> None:
        """Have ``lost`` set when the key is deleted at a revision from ``start`` on, until it is set or the place is
        forgotten."""
        self._news.put(_Seen(space, weakref.ref(place), key, start, lost))
        if not self._started:
            with self._starting:
                if not self._started:
                    threading.Thread(target=self._run, name="raykeeper-holds", daemon=True).start()
                    self._started = True

    def _run(self) -> None:
        thread = OurThread()
        new: deque[tuple[float, _Seen]] = deque()
        eyes: set[_Eye] = set()
        look_at = time.monotonic() + RECIPE_LOOK
        while True:
            # What is held only for a moment is spared the watch, which misses nothing by beginning later.
            until = min(new[0][0] if new else look_at, look_at)
            thread.rest()
            word = None
            with contextlib.suppress(queue.Empty):
                waits = bool(new or eyes)
                word = self._news.get(timeout=max(0.0, until - time.monotonic()) if waits else None)
            thread.wake()
            now = time.monotonic()
            if isinstance(word, _Seen):
                new.append((now + RECIPE_MAX_PAUSE, word))
            elif word is not None:
                self._hear(word, eyes)
            word = None
            while new and new[0][0] <= now:
                self._open(new.popleft()[1], eyes)
            if now >= look_at:
                look_at = now + RECIPE_LOOK
                for eye in [eye for eye in eyes if eye.seen.over]:
                    self._close(eye, eyes)

    def _open(self, seen: _Seen, eyes: set[_Eye]) -> None:
        if not seen.over:
            with contextlib.suppress(KeeperError):  # the lease itself tells, soon enough
                eyes.add(_Eye(seen, self._news))

    def _hear(self, eye: _Eye, eyes: set[_Eye]) -> None:
        try:
            gone = eye.gone()
        except CompactedError:
            self._close(eye, eyes)
            name = f"raykeeper-looks-{eye.seen.key!r}"
            threading.Thread(target=self._look_again, args=(eye.seen,), name=name, daemon=True).start()
            return
        except KeeperError:
            gone = False
        if gone:
            eye.seen.lost.set()
        if gone or eye._over:
            self._close(eye, eyes)

    def _close(self, eye: _Eye, eyes: set[_Eye]) -> None:
        eyes.discard(eye)
        with contextlib.suppress(KeeperError):
            eye.end()

    def _look_again(self, seen: _Seen) -> None:
        """History is gone that a watch needs: look at the present, on a thread of its own, and go on from there."""
        with contextlib.suppress(KeeperError):
            now = seen.space.range(seen.key, keys_only=True)
            if now.items:
                self._news.put(seen._replace(start=now.revision + 1))
            else:
                seen.lost.set()


eyes = Eyes()


def _in_child() -> None:
    eyes.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_in_child)
