"""How a member asks a peer's actor for a lane: one call at a time, by a handle that it keeps."""

from __future__ import annotations

import concurrent.futures
import socket
from concurrent.futures import Future
from typing import Any

import pytest

from lab.lanes import LaneHost, until
from raykeeper.actors.transport import peer_dialer
from raykeeper.actors.transport.lane import LaneBroken
from raykeeper.actors.transport.peer_dialer import PeerDialer
from raykeeper.actors.transport.peer_lanes import LaneLinks
from raykeeper.limits import LANE_ANSWER_S


class Peer:
    """In place of Ray and the actor of a peer: each call waits until the test answers it."""

    def __init__(self) -> None:
        self.looked_up = 0
        self.calls: list[Future[Any]] = []
        self.gcs_away = False

    def lookup(self, member: int) -> Any:
        if self.gcs_away:
            raise ConnectionError("the GCS does not answer")
        self.looked_up += 1
        return self

    @property
    def lane(self) -> Any:
        return self

    def remote(self, node: str, peer: bool) -> Any:
        assert (node, peer) == ("here", True)
        self.calls.append(Future())
        return self

    def future(self) -> Future[Any]:
        return self.calls[-1]


def test_a_peer_that_does_not_answer_is_not_called_again_until_it_does() -> None:
    """Calls to an actor whose node is gone wait, and all run when it is back: each would take a token."""
    peer, here, there = Peer(), LaneHost(1), LaneHost(2)
    dialer = PeerDialer(cluster=there.lanes.offer_lane("").cluster, member=1, node="here", lookup=peer.lookup)
    links = LaneLinks(member=1, lanes=here.lanes, dial=dialer.dial, hand_over=here.do, clock=lambda: here.now)
    try:
        assert not links.is_open(2)
        until(lambda: len(peer.calls) == 1)
        for _ in range(1000):
            here.now += 60
            assert not links.is_open(2)
        assert links._routes[2].opening
        assert len(peer.calls) == 1
        peer.calls[0].set_result(there.lanes.offer_lane(""))
        until(lambda: links.is_open(2))
    finally:
        for call in peer.calls:
            call.cancel()
        here.close()
        there.close()


def test_a_call_is_waited_for_long_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is given up still waits in Ray, and an answer may be lost. The handle is as good as before."""
    peer = Peer()
    waited: list[float] = []

    class Answer:
        def result(self, timeout: float) -> None:
            waited.append(timeout)
            raise concurrent.futures.TimeoutError

    monkeypatch.setattr(peer, "future", Answer)
    dialer = PeerDialer(cluster=7, member=1, node="here", lookup=peer.lookup)
    for _ in range(2):
        with pytest.raises(LaneBroken, match="does not answer"):
            dialer.dial(2)
    assert waited == 2 * [LANE_ANSWER_S]
    assert peer.looked_up == 1


def test_a_lane_is_opened_again_while_no_name_can_be_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Ray's GCS a call by a handle still arrives. Only one that failed has its peer looked up again."""
    peer, ends = Peer(), socket.socketpair()
    dialer = PeerDialer(cluster=7, member=1, node="here", lookup=peer.lookup)
    opened: list[float] = []

    def opens(offer: object, node: str, member: int, seconds: float) -> socket.socket:
        opened.append(seconds)
        return ends[0]

    def dial(answer: object) -> Any:
        def answered() -> Future[Any]:
            if isinstance(answer, Exception):
                peer.calls[-1].set_exception(answer)
            else:
                peer.calls[-1].set_result(answer)
            return peer.calls[-1]

        monkeypatch.setattr(peer, "future", answered)
        return dialer.dial(2)

    monkeypatch.setattr(peer_dialer, "open_lane", opens)
    there = LaneHost(2)
    try:
        offer = there.lanes.offer_lane("")
        dialer._cluster = offer.cluster
        assert dial(offer) is ends[0]
        peer.gcs_away = True
        assert dial(offer) is ends[0]
        with pytest.raises(LaneBroken):
            dial(None)
        assert dial(offer) is ends[0], "that it has no lane to offer says nothing against the handle"
        assert peer.looked_up == 1
        with pytest.raises(ValueError, match="died"):
            dial(ValueError("the actor died"))
        with pytest.raises(ConnectionError):
            dial(offer)
        peer.gcs_away = False
        assert dial(offer) is ends[0]
        assert peer.looked_up == 2
        assert set(opened) == {peer_dialer.LANE_OPEN_TIMEOUT_S}, "counted from the offer"
    finally:
        there.close()
        for end in ends:
            end.close()
