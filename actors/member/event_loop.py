"""The thread that owns a member's replica.

The replica does one turn at a time and knows neither threads nor sockets. This thread calls it as soon as something
waits in the inbox or has arrived by lane, and at the latest when its next deadline comes. An error in a turn is a bug
or a broken disk: the process ends at once, says why in its log, and Ray starts it again on the same data. It must not
go on half dead. An error that every process of this version would meet again is reported in the member's status
instead.
"""

from __future__ import annotations

import faulthandler
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from ...schema.commands import CommandUnknown
from ...schema.operator_frames import MemberStatus
from ...store.data_dir import DataDir, DataMissing, StateDamaged
from ...telemetry import Telemetry
from ..log_files import flush_log
from ..logs import MemberLog
from ..one_thread import NoThreadLeft, start_thread
from ..transport.lane import LaneOffer
from .clock import member_clock
from .inbox import TurnInput
from .member_metrics import MemberMetrics
from .wiring import ProcessLocation, wire


class EventLoop:
    """A serving member: its replica, its request handler, its transport, and the thread that drives them.

    Args:
        folder: the opened data; closed at the end.
        lookup, status, location: see ``wiring.wire``.
        gave_up: told why the loop has ended by itself, after its data was closed; on a thread of its own.
        telemetry: the process's; by default, one of its own.
    """

    def __init__(
        self,
        folder: DataDir,
        lookup: Callable[[int], Any],
        status: Callable[[], MemberStatus],
        location: ProcessLocation | None = None,
        gave_up: Callable[[str], None] = lambda why: None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self._gave_up = gave_up
        self._log = MemberLog("member", folder.identity.cluster_name, folder.identity.name)
        self.telemetry = telemetry or Telemetry()
        """Where its figures are collected."""
        parts = wire(folder, lookup, status, location, self.telemetry)
        self.inbox = parts.inbox
        self.replica = parts.replica
        self.handler = parts.handler
        self.backups = parts.backups
        """Those that this member makes."""
        self.transport = parts.transport
        self._poller = parts.poller
        self._failover = parts.failover
        self._lanes = parts.lanes
        self._workers = parts.workers
        self._stop: str | None = None
        self._turn_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="member loop", daemon=True)
        try:
            metrics = MemberMetrics(parts.replica, parts.handler, parts.inbox, parts.transport, parts.lanes, status)
            self._forget_figures = self.telemetry.add(metrics.families)
        except BaseException:
            self._close_parts()
            raise

    def lane(self, node: str, peer: bool) -> LaneOffer | None:
        """How a process on that Ray node opens a lane to this member; ``None`` if it has none to offer. Any thread."""
        return None if self._lanes is None else self._lanes.offer_lane(node, peer=peer)

    def start(self) -> None:
        """Start to serve. Raises ``NoThreadLeft`` if the system has no thread left."""
        start_thread(self._thread)

    def stop(self, why: str) -> None:
        """Answer all waiting callers and close the data; returns when that is done. It need not have been started."""
        self._forget_figures()
        self.replica.slow.close()
        self._stop = why
        self.inbox.wake()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            self.inbox.close()
            self.replica.stop(why)
        self._close_parts()

    def _close_parts(self) -> None:
        """End the lanes, the threads and the links to peers."""
        self.transport.close()
        if self._lanes is not None:
            self._lanes.close()
        for workers in self._workers:
            workers.shutdown(wait=False)

    def _run(self) -> None:
        """One turn for each batch until the loop is stopped, then one more for what was left in the inbox. No
        exception leaves this thread: each ends the process, or the loop in order."""
        replica, failover, poller = self.replica, self._failover, self._poller
        try:
            while self._stop is None:
                batch = poller.wait(min(replica.next_wakeup(), failover.due))
                if failover.due < math.inf and failover.due <= (now := member_clock()):
                    failover.campaign(now)
                self._turn(batch)
            self._turn(self.inbox.close())
            replica.stop(self._stop)
        except CommandUnknown as error:
            self._give_up(f"CommandUnknown: {error}")
        except (StateDamaged, DataMissing) as error:
            die(self._log, f"{type(error).__name__}: {error}")
        except BaseException:
            die(self._log, "its loop failed")

    def stuck_for(self) -> float:
        """For how many seconds the present turn has lasted; 0 between turns. Any thread."""
        began = self._turn_began
        return 0.0 if began is None else time.monotonic() - began

    def _turn(self, batch: TurnInput) -> None:
        self._turn_began = time.monotonic()
        self.replica.turn(self.transport.begin_turn(batch.frames), batch.events)
        self.transport.end_turn()
        self._turn_began = None

    def _give_up(self, why: str) -> None:
        """Stop in order and say why: a new process of this version could do no better."""
        self._log.error("serves no longer: %s", why)
        self._forget_figures()
        self.replica.slow.close()
        self.inbox.close()
        self.replica.stop(why)
        try:
            start_thread(threading.Thread(target=self._gave_up, args=(why,), name="gave up", daemon=True))
        except NoThreadLeft:
            die(self._log, "cannot say why it serves no longer")


def die(log: MemberLog, why: str) -> NoReturn:
    """End the process at once, with the present exception in the log: Ray starts it again."""
    log.critical("%s; ending the process", why, exc_info=True)
    flush_log()
    faulthandler.disable()
    os._exit(1)
