"""What a lease is bound to: ``lease(ttl, bound_to=...)``.

=============  ======================================================================================================
``"process"``  this process: the cluster ends the lease when the kernel says that it is dead (decision 17)
``"ttl"``      nothing: only silence for its TTL ends it
an actor       that actor: it ends with it for good, not while it is restarted
``"job"``      this process's Ray job
``"driver"``   the driver of that job
=============  ======================================================================================================

A life that is this very process, and cannot be restarted, is the process: the same as ``"process"``. Every other life
is looked at by the process that keeps the lease alive (:mod:`life_monitor`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import InvalidArgument, Unavailable
from ...limits import MAX_LIVES
from .. import arguments as check
from ..deadline import covering
from ..one_thread import NoThreadLeft
from .life_monitor import life_monitor

if TYPE_CHECKING:
    from ..ray_lives import Life


class Binding(NamedTuple):
    """What ends a lease beside its TTL.

    Attributes:
        owned: whether the cluster ends it with this process; ``None`` if that depends on whether this actor can be
            restarted, which Ray is to be asked.
        life: what else it ends with, or ``None``.
    """

    owned: bool | None
    life: Life | None = None


_restartable: dict[str, bool] = {}
"""By actor id, for those that this process has been."""


def binding_of(bound_to: Any, keep_alive: bool = True) -> Binding:
    """What a user's ``bound_to`` means. Waits for nothing.

    Raises:
        InvalidArgument: it is nothing that a lease can be bound to, or not here.
        Unavailable: too many lives are looked at by this process.
    """
    if bound_to is None:
        return Binding(keep_alive)
    if isinstance(bound_to, str) and bound_to in ("process", "ttl"):
        return Binding(bound_to == "process")
    if isinstance(bound_to, (str, bytes, int, float)) and bound_to not in ("job", "driver"):
        choices = '"process", "ttl", "job", "driver" or the handle of an actor'
        raise InvalidArgument(f"bound_to must be {choices}, not {check.shown(bound_to)}")
    from ..ray_lives import is_this_process, life_of

    life = life_of(bound_to)
    if life_monitor.full(life):
        raise Unavailable(f"leases of this process are bound to {MAX_LIVES} actors and jobs: no more", applied=False)
    if not is_this_process(life):
        return Binding(False, life)
    if life.kind == "actor":
        restartable = _restartable.get(life.id)
        return Binding(None if restartable is None else not restartable, life)
    return Binding(True, None if life.kind == "driver" else life)


def settled(binding: Binding, seconds: float) -> Binding:
    """The same, with Ray's answer to what was open, before a lease is made. Waits for it, if anything was.

    Args:
        seconds: at most.

    Raises:
        Unavailable: Ray does not answer, or no thread is left that could look after the life.
    """
    owned, life = binding
    if life is None:
        return binding
    try:
        life_monitor.start()
    except NoThreadLeft as error:
        raise Unavailable(f"nothing could look after {life}: {error}", applied=False) from None
    if owned is not None:
        return binding
    from ..ray_lives import look_at

    with covering(seconds):
        status = look_at(life)
    if status is None:
        return Binding(False, life)
    _restartable[life.id] = status.restartable
    return Binding(not status.restartable, life)
