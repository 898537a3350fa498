"""Ends an actor when a lease is lost: for an actor that must not go on without it.

::

    lease = kv.lease(10)
    raykeeper.end_actor_when_lost(lease)            # this actor, in one of its methods
    raykeeper.end_actor_when_lost(lock, worker)     # another one

It is ended as by a crash, so Ray restarts it if its ``max_restarts`` allow. What this process lets go of by itself
(``revoke``, ``release``, ``ack``, ``lost.set()``, an object that is dropped, a client that is closed) is not lost.

An actor that is this process ends itself, by the kernel: it needs neither Ray nor the cluster for that, and may be cut
off from both. Another one is killed by Ray, which is asked until it has answered; not once more if Ray has started it
again meanwhile.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

from ...errors import ClusterNotFound, InvalidArgument, Unavailable
from ...limits import LIFE_LOOK_S, MAX_LOSS_WATCHES, RECIPE_CHECK_S
from .. import arguments as check
from ..finalizer_guard import LockFreeEvent, wait_for_any
from ..interruptible import Places
from .hub import this_process
from .leases import LossEvent

if TYPE_CHECKING:
    from ..ray_lives import Life

_log = logging.getLogger("raykeeper.client")
_places = Places(MAX_LOSS_WATCHES)


class LossWatch:
    """What waits for a loss, until it is cancelled or this process lets go; it need not be kept.

    It does not keep what is held. A claim that was finished leaves its lease to the next claim, so it says by an event
    of its own that it was.
    """

    def __init__(self, held: Any, lost: LossEvent, actor: Any, life: Life | None = None) -> None:
        self._lost = lost
        self._finished: LockFreeEvent = getattr(held, "_finished", LockFreeEvent())
        self._actor = actor
        self._life = life
        self._cancelled = LockFreeEvent()
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
            while True:
                wait_for_any((self._lost, self._finished, self._cancelled), RECIPE_CHECK_S)
                lost = self._lost.is_set()
                if self._cancelled.is_set() or self._finished.is_set() or self._lost.released:
                    return
                if lost:
                    self._end_actor()
                    return
        finally:
            self._cancelled.set()
            _places.leave(self, None)

    def _end_actor(self) -> None:
        if self._life is None:
            _log.critical("this actor ends itself: its %s is lost", self._what)
            end_this_process()
            return
        _log.warning("an actor is killed: a %s that it depends on is lost", self._what)
        from .. import ray_lives

        tried: list[int] = []
        """How often the actor had been restarted when it was first to be killed."""
        while not self._cancelled.is_set():
            try:
                if self._kill(ray_lives, self._life, tried):
                    return
            except ClusterNotFound as error:
                _log.error("an actor could not be killed: %s", error)
                return
            except Exception as error:  # Ray's, of many kinds
                _log.warning("an actor could not be killed yet: %s", error)
            self._cancelled.wait(LIFE_LOOK_S)

    def _kill(self, ray: Any, life: Life, tried: list[int]) -> bool:
        """Kill the actor's present process; whether it is over.

        Ray is asked without a deadline: a call that was abandoned may take effect later, on a process that was started
        meanwhile. And one that failed may have taken effect: it is made again only for the same process.
        """
        status = ray.look_at(life)
        if status is not None and status.over:
            return True
        if status is not None:
            if tried and tried[0] != status.process.restarts:
                return True
            tried[:] = [status.process.restarts]
        ray.kill_actor(self._actor)
        return True


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
    life = None
    if actor is None:
        from ..ray_lives import this_actor

        if not this_actor():
            raise InvalidArgument("this process is not an actor: pass the handle of the one to end")
    else:
        from ..ray_lives import life_of

        life = life_of(actor)
        if life.kind != "actor":
            raise InvalidArgument(f"{check.shown(actor)} is not the handle of an actor")
    watch = LossWatch(held, lost, actor, life)
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
