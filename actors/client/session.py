"""The client's end of a replicated session: sequences, the low mark, and how long the session surely lives.

Each write has a sequence in its session. The *low mark* is the lowest sequence that is neither answered nor given up;
it travels with every batch, and the state machine refuses whatever lies below it without effect (Design, "Exactly
once"; the idea is that of client sessions in Ongaro's thesis, section 6.3). A sequence is taken out only by
:meth:`Session.settle`, so the mark can never pass one that is still open, however batches are lost or reordered.

The client counts the session's life from the *sending* of the last batch that was answered, so it never believes in
one that the cluster has forgotten for longer than its clock is wrong.
"""

from __future__ import annotations

import random


class Session:
    """One session at a time; sequences begin anew with each."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.id = 0
        """0 while there is none."""
        self.ttl = 0.0
        self.nonce = b""
        """Of the opening that is under way; a repeated one opens the same session."""
        self._nonce_since = 0.0
        self._heard = 0.0
        self._next = 1
        self._low = 1
        self._open: set[int] = set()

    @property
    def idle(self) -> bool:
        """Whether no sequence is open."""
        return not self._open

    @property
    def low(self) -> int:
        """The low mark."""
        while self._low < self._next and self._low not in self._open:
            self._low += 1
        return self._low

    def room(self, window: int) -> int:
        """How many more sequences keep all open ones within a window, so that the members can keep the answers."""
        return window - (self._next - self.low)

    def next_sequence(self) -> int:
        """Open a sequence."""
        sequence = self._next
        self._next += 1
        self._open.add(sequence)
        return sequence

    def settle(self, sequence: int) -> None:
        """The write was answered, or given up."""
        self._open.discard(sequence)

    def settle_others(self, open: set[int]) -> None:
        """Only these are open."""
        self._open &= open

    def opening(self, now: float, ttl: float) -> bytes:
        """The nonce for an attempt to open that is made now; a new one if the old one's session may be over already."""
        if not self.nonce or now - self._nonce_since > ttl / 2:
            self.nonce = self._rng.randbytes(16)
            self._nonce_since = now
        return self.nonce

    def opened(self, sent_at: float, session: int, ttl: float) -> None:
        """An attempt sent then opened a session, whose life counts from the first attempt with this nonce.

        An answer to an earlier nonce, or a second one to this, changes nothing.
        """
        if self.id or not self.nonce or sent_at < self._nonce_since:
            return
        self.id, self.ttl = session, ttl
        self._heard = self._nonce_since
        self.nonce = b""
        self._next = self._low = 1

    def heard(self, sent_at: float) -> None:
        """A batch that was sent then was answered: the cluster counts anew from some time later."""
        self._heard = max(self._heard, sent_at)

    def ended(self) -> None:
        """The session is over; every sequence of it must have been settled."""
        self.id = 0
        self.nonce = b""

    def keep_alive_at(self) -> float:
        """When the cluster should hear from this session again."""
        return self._heard + self.ttl / 3

    def may_be_over(self, now: float) -> bool:
        """Whether the cluster may have ended it by now."""
        return now - self._heard >= self.ttl
