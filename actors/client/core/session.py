"""The client's end of a replicated session: sequences, the low mark, and how long the session surely lives.

Each write has a sequence number in its session (thesis 6.3). The *low mark* is the lowest sequence that is neither
answered nor given up. It travels with every batch; the state machine forgets the answers below it, and refuses any
later copy of a write below it without effect. A sequence leaves the set of open ones only when it is settled, so the
low mark never passes an open one, however batches are lost or reordered.

The client counts the session's life from the *sending* of the last batch that was answered. The cluster counts from a
later moment, so the client never relies on a session that the cluster has forgotten, clock drift aside.
"""

from __future__ import annotations

import random


class ClientSession:
    """The current session of a hub; sequences start from 1 in each."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.id = 0
        """0 while there is no session."""
        self.ttl = 0.0
        """Seconds after which the cluster ends a session that it has not heard from."""
        self.nonce = b""
        """Of the attempt to open a session that is in progress; a repeated attempt opens the same session."""
        self._nonce_since = 0.0
        self._heard = 0.0
        """Sending time of the last batch that was answered."""
        self._next = 1
        self._low = 1
        self._open: set[int] = set()
        """Sequences that are neither answered nor given up."""

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
        """How many sequences may be opened with all open ones within ``window``: members keep that many answers."""
        return window - (self._next - self.low)

    def next_sequence(self) -> int:
        """Assign the next sequence, which is open from now on."""
        sequence = self._next
        self._next += 1
        self._open.add(sequence)
        return sequence

    def settle(self, sequence: int) -> None:
        """The write of this sequence was answered, or given up."""
        self._open.discard(sequence)

    def keep_open_only(self, open: set[int]) -> None:
        """Settle all sequences but these."""
        self._open &= open

    def opening_nonce(self, now: float, ttl: float) -> bytes:
        """The nonce for an attempt to open a session now; a new one if the old one's session may have ended already."""
        if not self.nonce or now - self._nonce_since > ttl / 2:
            self.nonce = self._rng.randbytes(16)
            self._nonce_since = now
        return self.nonce

    def opened(self, sent_at: float, session: int, ttl: float) -> None:
        """The attempt sent at ``sent_at`` opened a session. Its life counts from the first attempt with this nonce.

        A reply to an earlier nonce, or a second reply to this one, changes nothing.
        """
        if self.id or not self.nonce or sent_at < self._nonce_since:
            return
        self.id, self.ttl = session, ttl
        self._heard = self._nonce_since
        self.nonce = b""
        self._next = self._low = 1

    def renewed(self, sent_at: float) -> None:
        """A batch sent at ``sent_at`` was answered: the cluster counts the session's TTL from some later moment."""
        self._heard = max(self._heard, sent_at)

    def ended(self) -> None:
        """The session is over. All its sequences must have been settled: its writes are never sent in another one."""
        self.id = 0
        self.nonce = b""

    def keep_alive_at(self) -> float:
        """When the cluster should hear from this session again."""
        return self._heard + self.ttl / 3

    def may_be_over(self, now: float) -> bool:
        """Whether the cluster may have ended the session by now."""
        return now - self._heard >= self.ttl
