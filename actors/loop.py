"""The thread that owns a member's server, and what of it other threads may touch.

The server does one turn at a time and knows neither threads nor sockets. Here is the thread that calls it, as soon as
something waits in the inbox or has come by lane, and at the latest when its clock says so. An error in a turn is a bug
or a broken disk: the process ends at once, with a line that says why, and Ray starts it anew over its data. It must not
live on half dead. What would meet every process of this version alike is said in the member's status instead.
"""

from __future__ import annotations

import faulthandler
import os
import random
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from ..limits import (
    BACKGROUND_THREADS,
    HASH_WORK_SHARE,
    LANE_OPEN_TIMEOUT,
    MAX_BREATH,
    MIN_CALL_PATIENCE,
    Settings,
    decode_settings,
)
from ..store.commands import CommandUnknown
from ..store.folder import DataMissing, MemberFolder, StateDamaged
from .clock import member_clock
from .events import BackgroundDone, Unreachable
from .inbox import Inbox
from .protocol import MemberStatus
from .server import Server
from .service import Service
from .transport.calls import Calls
from .transport.lane_frames import HAS_LANES, LaneBroken, LaneOffer, open_lane
from .transport.lanes import Lanes
from .transport.peer_lanes import PeerLanes
from .vigil import Vigil


class Breather:
    """Rests so long after each slice of work that the work takes no more than its share of a core. For one thread."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def __call__(self) -> None:
        """Rest for what was worked since the last rest."""
        worked = time.monotonic() - self._since
        time.sleep(min(MAX_BREATH, worked * (1 / HASH_WORK_SHARE - 1)))
        self._since = time.monotonic()


class Spot(NamedTuple):
    """Where a member's process is."""

    node: str
    """Ray node id."""
    host: str
    """The node's address."""


class Loop:
    """A serving member: its server, its service, its transport, and the thread that drives them.

    Args:
        folder: the opened data; closed at the end.
        lookup: finds the actor of a member (see ``Calls``).
        status: what the member says of itself.
        spot: where lanes may be opened to it; without, all goes by calls.
        gave_up: told why the loop has ended by itself, its data closed; on a thread of its own.
    """

    def __init__(
        self,
        folder: MemberFolder,
        lookup: Callable[[int], Any],
        status: Callable[[], MemberStatus],
        spot: Spot | None = None,
        gave_up: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._gave_up = gave_up
        settings = decode_settings(folder.state.settings) if folder.state.settings else Settings()
        timings, limits = settings.timings, settings.limits
        self.inbox = Inbox(limits, member_clock)
        self._workers = ThreadPoolExecutor(max_workers=BACKGROUND_THREADS, thread_name_prefix="background")
        self._lookup = lookup
        self.transport = Calls(
            cluster=folder.identity.cluster,
            member=folder.identity.member,
            lookup=lookup,
            deliver=self.inbox.put_frame,
            unreachable=lambda member: self.inbox.put_own(Unreachable(member)),
            give_up_after=max(MIN_CALL_PATIENCE, timings.election_timeout),
            clock=member_clock,
        )
        self.server = Server(
            folder=folder,
            timings=timings,
            limits=limits,
            send=self.transport.send,
            clock=member_clock,
            rng=random.Random(),
            background=self._background,
            breathe=Breather(),
        )
        self.service = Service(self.server, self.inbox.put_event, member_clock, status)
        self._vigil = Vigil(self.server.node, random.Random())
        self._lanes: Lanes | None = None
        if spot is not None and settings.lanes and HAS_LANES:
            self._lanes = self._open_lanes(spot)
        self._stop: str | None = None
        self._thread = threading.Thread(target=self._run, name="member loop", daemon=True)

    def _open_lanes(self, spot: Spot) -> Lanes:
        identity = self.server.folder.identity
        lanes = Lanes(
            cluster=identity.cluster,
            member=identity.member,
            node=spot.node,
            host=spot.host,
            submit=self.service.submit,
            take_in=self.transport.take_in,
            came=lambda member: peers.came(member),
            lost=lambda member: self._lane_lost(peers, member),
            gone=self._lane_gone,
        )

        def dial(member: int) -> socket.socket:
            deadline = time.monotonic() + LANE_OPEN_TIMEOUT
            offer = self._lookup(member).lane.remote(True).future().result(LANE_OPEN_TIMEOUT)
            if offer is None or offer.cluster != identity.cluster:
                raise LaneBroken(f"member {member} offers no lane")
            return open_lane(offer, spot.node, identity.member, deadline - time.monotonic())

        peers = PeerLanes(
            member=identity.member,
            lanes=lanes,
            dial=dial,
            hand_over=lambda then: self.inbox.put_own(BackgroundDone(then)),
            clock=member_clock,
        )
        self.inbox.sockets = lanes
        self.transport.lanes = peers
        return lanes

    def _lane_lost(self, peers: PeerLanes, member: int) -> None:
        peers.lost(member)
        self.server.node.report_unreachable(member)

    def _lane_gone(self, member: int) -> None:
        self._vigil.gone(member, member_clock(), self.server.timings.election_timeout)

    def lane(self, peer: bool) -> LaneOffer | None:
        """How to open a lane to this member; ``None`` if there are to be none, or no more. Any thread."""
        return None if self._lanes is None else self._lanes.offer(peer=peer)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self, why: str) -> None:
        """Answer everybody who waits, close the data, and come back when all that is done."""
        self._stop = why
        self.inbox.wake()
        self._thread.join()
        self.transport.close()
        if self._lanes is not None:
            self._lanes.close()
        self._workers.shutdown(wait=False)

    def _background(self, work: Callable[[], None], then: Callable[[Exception | None], None]) -> None:
        def run() -> None:
            error: Exception | None = None
            try:
                work()
            except Exception as caught:
                error = caught
            self.inbox.put_own(BackgroundDone(lambda: then(error)))

        self._workers.submit(run)

    def _run(self) -> None:
        try:
            server, transport, inbox, vigil = self.server, self.transport, self.inbox, self._vigil
            while self._stop is None:
                received, events = inbox.take(min(server.next_wakeup(), vigil.due, transport.due))
                if vigil.due <= (now := member_clock()):
                    vigil.campaign(now)
                server.turn(transport.begin(received), events)
                transport.end()
                if transport.due <= now:
                    transport.tell()
            received, events = inbox.close()
            server.turn(transport.begin(received), events)
            transport.end()
            server.stop(self._stop)
        except CommandUnknown as error:
            self._give_up(f"CommandUnknown: {error}")
        except (StateDamaged, DataMissing) as error:
            die(f"member {self.server.folder.identity.member}: {type(error).__name__}: {error}")
        except BaseException:
            die(f"the loop of member {self.server.folder.identity.member} failed")

    def _give_up(self, why: str) -> None:
        """What a process of this version cannot do the next one cannot either: end in order, and say so."""
        print(f"raykeeper: member {self.server.folder.identity.member}: {why}", file=sys.stderr, flush=True)
        self.inbox.close()
        self.server.stop(why)
        threading.Thread(target=self._gave_up, args=(why,), name="gave up", daemon=True).start()


def die(why: str) -> None:
    """End the process at once: Ray starts it anew."""
    print(f"raykeeper: {why}; ending the process", file=sys.stderr)
    traceback.print_exc()
    sys.stderr.flush()
    faulthandler.disable()
    os._exit(1)
