"""How a rate is divided among the processes that use it: the state that they share, as a value. No I/O.

The state has a share for each holder, and a pool of tokens that no holder has. At every revision of it:

    the rates of all shares together  <= the rate
    the bursts of all shares together, and the pool  <= the burst

Numbers are billionths, and whole, so that sums are exact.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

BILLION = 1_000_000_000


class RateShare(msgspec.Struct, frozen=True, array_like=True):
    """What one holder may use."""

    rate: int = 0
    """Billionths of tokens a second."""
    burst: int = 0
    """Billionths of tokens."""


class RateState(msgspec.Struct, frozen=True):
    """What all holders share."""

    rate: int
    burst: int
    pool: int
    shares: dict[str, RateShare]
    """By the name of the holder."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(RateState).decode


def encoded_state(state: RateState) -> bytes:
    """The state as the value of its key."""
    return _encode(state)


def decoded_state(raw: bytes) -> RateState:
    """The state from the value of its key. Raises ``msgspec.MsgspecError`` if it is none."""
    return _decode(raw)


def without(state: RateState, gone: Collection[str]) -> RateState:
    """The state without holders that are gone; their tokens are gone with them."""
    shares = {name: share for name, share in state.shares.items() if name not in gone}
    return msgspec.structs.replace(state, shares=shares)


def share_for(state: RateState, me: str) -> RateShare:
    """The share that a holder should have now: as much as everybody else, but no more than the others leave."""
    holders = len(state.shares.keys() | {me})
    others = [share for name, share in state.shares.items() if name != me]
    rate = state.rate - sum([share.rate for share in others])
    burst = state.burst - sum([share.burst for share in others])
    return RateShare(max(0, min(rate, state.rate // holders)), max(0, min(burst, state.burst // holders)))


def with_share(state: RateState, me: str, share: RateShare, returned: int) -> tuple[RateState, int]:
    """The state with a holder's new share, and the tokens that the holder takes from the pool.

    Args:
        returned: tokens that the holder no longer has, for the pool.
    """
    old = state.shares.get(me, RateShare())
    shares = {**state.shares, me: share}
    pool = state.pool + returned
    taken = min(pool, max(0, share.burst - old.burst))
    room = state.burst - sum([each.burst for each in shares.values()])
    return msgspec.structs.replace(state, shares=shares, pool=max(0, min(pool - taken, room))), taken


def after_leaving(state: RateState, me: str, returned: int) -> RateState:
    """The state without a holder that leaves, and has these tokens left."""
    shares = {name: share for name, share in state.shares.items() if name != me}
    room = state.burst - sum([each.burst for each in shares.values()])
    return msgspec.structs.replace(state, shares=shares, pool=max(0, min(state.pool + returned, room)))
