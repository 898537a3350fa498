"""Frames that cost a server work and bring it none, counted: PINGs, SETTINGS, empty frames, streams opened and reset.

Honest clients send some of each: Go's measures the line with a PING for each batch of answers, every client sends
window updates for what it gets, and cancels calls. So what is allowed grows with what was sent, and only more than
``MAX_FLOOD_FRAMES`` or ``MAX_FLOOD_RESETS`` beyond that, within ``PROXY_FLOOD_S``, ends the connection (RFC 9113, 10.5;
CVE-2019-9512 to -9518, CVE-2023-44487).
"""

from __future__ import annotations

from ...limits import MAX_FLOOD_FRAMES, MAX_FLOOD_RESETS, PROXY_FLOOD_S
from .http2_frames import ENHANCE_YOUR_CALM, Http2Error

_FRAMES_PER_ANSWER = 4
"""Window updates of stream and connection, a PING, and one to spare."""


class FloodGuard:
    """Counts for one connection."""

    def __init__(self) -> None:
        self._since = 0.0
        self._frames = 0
        self._resets = 0
        self._sent_before = 0

    def count_frame(self, now: float, sent: int) -> None:
        """A frame without use has come.

        Args:
            now: monotonic seconds.
            sent: how many frames of data this connection has sent so far.

        Raises:
            Http2Error: there were too many.
        """
        self._frames += 1
        allowed = MAX_FLOOD_FRAMES + _FRAMES_PER_ANSWER * (sent - self._sent_before)
        if self._frames > allowed and not self._new_window(now, sent):
            raise Http2Error(ENHANCE_YOUR_CALM, "too many frames without use")

    def count_reset(self, now: float, sent: int) -> None:
        """A call was reset or refused before it had an answer. Arguments and error as above."""
        self._resets += 1
        if self._resets > MAX_FLOOD_RESETS and not self._new_window(now, sent):
            raise Http2Error(ENHANCE_YOUR_CALM, "too many calls reset")

    def _new_window(self, now: float, sent: int) -> bool:
        """Whether the time in which was counted is over; a new one begins."""
        if now - self._since < PROXY_FLOOD_S:
            return False
        self._since, self._frames, self._resets, self._sent_before = now, 1, 0, sent
        return True
