"""A member that has started registers with the cluster: where it runs, and which commands it supports.

The registration goes through the log into the table of members (``store/state/members.py``). From there a launch knows
where to look for the member's data, the supervisor where the member belongs, and a leader which commands all members
support.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ...errors import InvalidArgument, KeeperError
from ...limits import REGISTER_PAUSE_S, REGISTER_TIMEOUT_S
from ...schema.commands import COMMANDS_VERSION, RegisterMember
from ..leader_call import administer, expect
from ..naming import MemberSpec
from ..one_thread import start_thread
from .replica import Replica


def register_in_background(spec: MemberSpec, replica: Replica, serves: Callable[[], bool]) -> None:
    """Register this member as soon as there is a leader; give up when it no longer ``serves``.

    Raises:
        NoThreadLeft: the system has no thread left.
    """
    arguments = (spec, replica, serves)
    start_thread(threading.Thread(target=_register, args=arguments, name="register", daemon=True))


def _register(spec: MemberSpec, replica: Replica, serves: Callable[[], bool]) -> None:
    """Try until the table says so. A member that is not in the configuration yet waits: its leader would refuse."""
    pause = threading.Event()
    command = RegisterMember(spec.member, spec.pin, os.path.dirname(spec.folder), COMMANDS_VERSION)
    while serves() and not _is_known(command, replica):
        if replica.leader and spec.member in replica.state.configuration.members:
            try:
                expect(administer(spec.cluster_name, spec.cluster, command, time.monotonic() + REGISTER_TIMEOUT_S))
                return
            except InvalidArgument:
                return  # it was removed
            except KeeperError:
                pass  # no leader could be reached
            except Exception:
                if serves():
                    raise
                return  # Ray is shutting down
        pause.wait(REGISTER_PAUSE_S)


def _is_known(command: RegisterMember, replica: Replica) -> bool:
    known = replica.state.members.by_id.get(command.member)
    if known is None:
        return False
    return (known.pin, known.base, known.version) == (command.pin, command.base, command.version)
