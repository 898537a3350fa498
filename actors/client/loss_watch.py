"""Ends an actor when a lease is lost: for an actor that must not go on without it.

::

    lease = kv.lease(10)
    raykeeper.end_actor_when_lost(lease)            # this actor, in one of its methods
    raykeeper.end_actor_when_lost(lock, worker)     # another one

It is ended as by a crash, so Ray restarts it if its ``max_restarts`` allow. What this process lets go of by itself
(``revoke``, ``release``, ``ack``, an object that is dropped, a client that is closed) is not lost.

An actor that is this process ends itself, by the kernel: it needs neither Ray nor the cluster for that, and may be cut
off from both. Another one is killed by Ray, which is asked until it has answered.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import weakref
from typing import Any

from ...errors import InvalidArgument, KeeperError, Unavailable
from ...limits import LIFE_ANSWER_S, LIFE_LOOK_S, MAX_LOSS_WATCHES, RECIPE_CHECK_S
from .. import arguments as check
from ..deadline import covering
from ..interruptible import Places
from .hub import this_process
from .leases import LossEvent

_log = logging.getLogger("raykeeper.client")
_places = Places(MAX_LOSS_WATCHES)


class LossWatch:
    """What waits for a loss, until it is cancelled; it need not be kept."""

    def __init__(self, held: Any, lost: LossEvent, actor: Any) -> None:
        self._held = weakref.ref(held)
        self._lost = lost
        self._actor = actor
        self._cancelled = threading.Event()
        self._what = type(held).__name__

    def cancel(self) -> None:
        """The actor is not ended any more. Cancelling twice is not an error."""
        self._cancelled.set()

    @property
    def active(self) -> bool:
        """Whether the actor is ended if what is held is lost."""
        return not self._cancelled.is_set()

    def _run(self) -> None:
        try:
            while not self._cancelled.is_set():
                if self._lost.wait(RECIPE_CHECK_S):
                    over = getattr(self._held(), "over", False)  # a claim that is over leaves its lease to the next one
                    if not (self._cancelled.is_set() or self._lost.released or over):
                        self._end_actor()
                    return
        finally:
            self._cancelled.set()
            _places.leave(self, None)

    def _end_actor(self) -> None:
        if self._actor is None:
            _log.critical("this actor ends itself: its %s is lost", self._what)
            end_this_process()
            return
        _log.warning("an actor is killed: a %s that it depends on is lost", self._what)
        from ..ray_lives import kill_actor

        while not self._cancelled.is_set():
            try:
                with covering(LIFE_ANSWER_S):
                    kill_actor(self._actor)
                return
            except Unavailable:
                time.sleep(LIFE_LOOK_S)
            except KeeperError as error:
                _log.error("an actor could not be killed: %s", error)
                return


def end_this_process() -> None:
    """End this process by the kernel, at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def end_actor_when_lost(held: Any, actor: Any = None) -> LossWatch:
    """End an actor as soon as something that this process holds is lost.

    ::

        with kv.lock("shard-7") as lock:
            raykeeper.end_actor_when_lost(lock)      # in a method of the actor
            work()

    It ends as if it had crashed: Ray restarts it if its ``max_restarts`` allow. Nothing happens if this process lets go
    by itself: by ``release``, ``revoke`` or ``ack``, by dropping the object, or by closing the client.

    Args:
        held: a ``Lease``, a lock, semaphore, election or claim that is held, or anything with such a ``lost``.
        actor: the handle of the actor; ``None`` is the one that this process is.

    Returns:
        What has ``cancel()``. It need not be kept.

    Raises:
        InvalidArgument: nothing is held; or there is no such actor.
        Unavailable: too many of these calls wait in this process.
    """
    lost = getattr(held, "lost", None)
    if not isinstance(lost, LossEvent) or lost._process != this_process():
        raise InvalidArgument(f"{check.shown(held)} is nothing that this process holds")
    if actor is None:
        from ..ray_lives import this_actor

        if not this_actor():
            raise InvalidArgument("this process is not an actor: pass the handle of the one to end")
    else:
        from ..ray_lives import life_of

        if life_of(actor).kind != "actor":
            raise InvalidArgument(f"{check.shown(actor)} is not the handle of an actor")
    watch = LossWatch(held, lost, actor)
    try:
        if not _places.take(watch):
            raise Unavailable(f"{MAX_LOSS_WATCHES} losses are waited for in this process: no more", applied=False)
        threading.Thread(target=watch._run, name="raykeeper-loss", daemon=True).start()
    except BaseException:
        watch.cancel()
        _places.leave(watch, None)
        raise
    return watch


def _in_child() -> None:
    global _places
    _places = Places(MAX_LOSS_WATCHES)


os.register_at_fork(after_in_child=_in_child)
