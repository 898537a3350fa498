"""What open consoles share: one answer to each view and user, for a moment.

A page asks for its view every two seconds. However many are open, a proxy makes a view once a second and user at most,
and once at a time: who asks while one is made waits for it. So consoles that are left open in many browsers cost the
members as much as one that asks a little more often. A view that takes many reads is made more rarely, so that all of
them take ``CONSOLE_READS_A_SECOND`` at most. What is shared is the text, and that no member answers, which may
take as long as members are waited for; but not that somebody may not see something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ...limits import CONSOLE_READS_A_SECOND, CONSOLE_SHARED_S, MAX_CONSOLE_ANSWERS
from .rpc_status import RpcCode, RpcError

_SHARED_ERRORS = (RpcCode.UNAVAILABLE, RpcCode.DEADLINE_EXCEEDED)


class ViewOfUser(NamedTuple):
    """Which view, and whose: users see different things."""

    view: str
    user: str


class MadeView(NamedTuple):
    """A view as it is answered, and what it took."""

    body: bytes
    reads: int = 0
    """Reads of the store, if there may be many."""


class _Shared:
    __slots__ = ("answer", "good_until", "making")

    def __init__(self) -> None:
        self.making = asyncio.Lock()
        self.answer: bytes | RpcError = b""
        self.good_until = 0.0


class SharedAnswers:
    """See the module. For the proxy's loop.

    Args:
        clock: in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[ViewOfUser, _Shared] = {}
        self.made = 0
        """Answers that were made, and not shared."""

    async def answer(self, of: ViewOfUser, make: Callable[[], Awaitable[MadeView]]) -> bytes:
        """The answer to a view that one who may ask for it has asked for.

        Raises:
            RpcError: it could not be made.
        """
        shared = self._known.get(of)
        if shared is None:
            self._drop_old()
            shared = _Shared()
            if len(self._known) < MAX_CONSOLE_ANSWERS:
                self._known[of] = shared
        async with shared.making:  # if the one who makes it goes away, the next one does
            if self._clock() >= shared.good_until:
                self.made += 1
                pause = CONSOLE_SHARED_S
                try:
                    made = await make()
                except RpcError as error:
                    if error.code not in _SHARED_ERRORS:
                        raise
                    shared.answer = error
                else:
                    shared.answer = made.body
                    pause = max(pause, made.reads / CONSOLE_READS_A_SECOND)
                shared.good_until = self._clock() + pause
            if isinstance(shared.answer, RpcError):
                raise RpcError(shared.answer.code, shared.answer.text)
            return shared.answer

    def forget(self) -> None:
        """Something was changed here: the next one who asks is to see it."""
        self._known.clear()

    def _drop_old(self) -> None:
        now = self._clock()
        for of, shared in list(self._known.items()):
            if now >= shared.good_until and not shared.making.locked():
                del self._known[of]
