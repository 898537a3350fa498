"""A member that has started tells the cluster where it lives and which commands it knows.

What it says goes through the log into the table of members (``store/members.py``): from there a launch knows where to
look for it, the supervisor where its place is, and a leader which commands all members understand.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ..errors import InvalidArgument, KeeperError
from ..limits import REGISTER_PAUSE, REGISTER_TIMEOUT
from ..store.commands import COMMANDS_VERSION, RegisterMember
from .administration import administer, expect
from .seat import Seat
from .server import Server


def register_in_background(seat: Seat, server: Server, serves: Callable[[], bool]) -> None:
    """Tell the cluster of this member, as soon as there is a leader to tell, and for as long as it ``serves``."""
    arguments = (seat, server, serves)
    threading.Thread(target=_register, args=arguments, name="register", daemon=True).start()


def _register(seat: Seat, server: Server, serves: Callable[[], bool]) -> None:
    pause = threading.Event()
    command = RegisterMember(seat.member, seat.pin, os.path.dirname(seat.folder), COMMANDS_VERSION)
    while serves() and not _is_known(command, server):
        if server.leader and seat.member in server.state.configuration.members:
            try:
                expect(administer(seat.cluster_name, seat.cluster, command, time.monotonic() + REGISTER_TIMEOUT))
                return
            except InvalidArgument:
                return  # it was removed
            except KeeperError:
                pass  # no leader could be asked
            except Exception:
                if serves():
                    raise
                return  # Ray is leaving
        pause.wait(REGISTER_PAUSE)


def _is_known(command: RegisterMember, server: Server) -> bool:
    known = server.state.members.by_id.get(command.member)
    if known is None:
        return False
    return (known.pin, known.base, known.version) == (command.pin, command.base, command.version)
