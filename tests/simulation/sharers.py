"""Clients that run transactions as functions, take tokens of a rate, and slots of a semaphore with weights.

They live in clients as all lodgers do, and use the product's own recipes. ``recipe_book`` says what must hold.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from raykeeper.errors import LeaseLost, LeaseNotFound, LockLost, TransactionConflict
from simulation.checker import Violation
from simulation.coordination import ORDINARY
from simulation.lodgers import Lodger
from simulation.recipe_book import ACCOUNTS, BURST, DOCTORS, LIMIT, OPENING_BALANCE, PER_SECOND, ROOM, balance
from simulation.scripts import SimClient

Function = Callable[[Any], Coroutine[Any, Any, None]]


class Mover(Lodger):
    """Runs functions of which each keeps something that all of them together must keep."""

    _number = 0

    async def act(self, kv: SimClient) -> None:
        await self.rest(0.2)
        self._number += 1
        move = f"{self.client.lives}.{self.name.replace(' ', '.')}.{self._number}".encode()
        function = self.rng.choice((self.transfer, self.transfer, self.look, self.change_duty, self.enter))(move)
        writes = [False]

        async def watched(t: Any) -> None:
            writes[0] = False
            writes[0] = bool(await function(t))  # type: ignore[func-returns-value]

        named = {"request_id": move} if self.rng.random() < 0.3 else {}
        for _ in range(3 if named else 1):  # a task that is run again: what it did before counts
            self.book.recipes.moves.setdefault(move, None)
            try:
                await kv.atomically(watched, **named)
            except (TransactionConflict, *ORDINARY) as error:
                if error.applied is False and not named:
                    self.book.recipes.moves[move] = False
                await self.rest(0.2)
                continue
            if not named:
                self.book.recipes.moves[move] = writes[0]
            return

    def transfer(self, move: bytes) -> Any:
        """Money from one account to another."""
        source, target = self.rng.sample(range(ACCOUNTS), 2)
        amount = self.rng.randrange(1, 10)

        async def function(t: Any) -> bool:
            for number, change in ((source, -amount), (target, amount)):
                key = f"function/account/{number}"
                there = await t.get(key)
                if self.rng.random() < 0.3:
                    await self.rest(0.05)
                t.put(key, b"%d %s" % (balance(None if there is None else there.raw) + change, move))
            return True

        return function

    def look(self, move: bytes) -> Any:
        """At all accounts, one after the other."""

        async def function(t: Any) -> bool:
            total = 0
            for number in range(ACCOUNTS):
                there = await t.get(f"function/account/{number}")
                total += balance(None if there is None else there.raw)
                await self.rest(0.05)
            if total != ACCOUNTS * OPENING_BALANCE:
                raise Violation(f"{self.name} reads accounts of more than one revision: they have {total} in all")
            return False

        return function

    def change_duty(self, move: bytes) -> Any:
        """A doctor on duty may leave if another one is; what is read is not what is written."""
        doctor = self.rng.randrange(DOCTORS)

        async def function(t: Any) -> bool:
            on = []
            for number in range(DOCTORS):
                there = await t.get(f"function/duty/{number}")
                if there is None or there.raw.startswith(b"on"):
                    on.append(number)
            state = b"off" if doctor in on and len(on) > 1 else b"on"
            t.put(f"function/duty/{doctor}", state + b" " + move)
            return True

        return function

    def enter(self, move: bytes) -> Any:
        """A room with so many places; who comes while it is full has somebody leave. What is not there matters."""

        async def function(t: Any) -> bool:
            there = await t.range(prefix="function/room/", keys_only=self.rng.random() < 0.5)
            if len(there.items) < ROOM:
                t.put(b"function/room/" + move, b"in " + move)
                return True
            t.delete(self.rng.choice(there.items).key)
            return await self.mark(t, move)

        return function

    async def mark(self, t: Any, move: bytes) -> bool:
        """What only deletes is told by another key."""
        t.put(f"function/left/{self.name}", b"left " + move)
        return True


class Spender(Lodger):
    """Takes tokens as fast as it gets them, rests, and sometimes gives its share back."""

    async def act(self, kv: SimClient) -> None:
        rng = self.rng
        rate = kv.rate("calls", PER_SECOND, BURST, ttl=rng.choice((1.0, 2.0, 3.0)))
        try:
            for _ in range(rng.randrange(1, 5)):
                for _ in range(rng.randrange(1, 12)):
                    if await rate.acquire(1, timeout=rng.choice((None, 0, 1.0))):
                        self.book.recipes.took(self.name, rate, 1)
                    if self.world.closing:
                        return
                await self.rest(0.5)
        finally:
            if rng.random() < 0.5:
                await rate.close()
            else:
                self._left = rate  # it gives its share back when it is idle, or with the next one that is left


class Porter(Lodger):
    """Takes slots by their weight, writes under the guard, and lets them go or forgets them."""

    NAMES = ("gpus", "cores")

    async def act(self, kv: SimClient) -> None:
        rng = self.rng
        await self.rest(0.3)
        name = rng.choice(self.NAMES)
        semaphore = kv.semaphore(name, LIMIT, ttl=rng.choice((1.0, 2.0, 3.0)))
        weight = rng.choice((1, 1, 2, 3, LIMIT))
        try:
            if not await semaphore.acquire(rng.choice((None, None, 0.5, 4.0)), weight=weight):
                return
        except (LeaseLost, LeaseNotFound):
            return
        held = self.book.recipes.holds(self.name, name, semaphore)
        try:
            for number in range(rng.randrange(1, 5)):
                await semaphore.guard().put(f"slots/{name}", f"{held.token} {number} of {self.name}")
                if not self.world.closing:
                    await self.rest(0.3)
        except (LockLost, *ORDINARY):
            pass
        held.released = True
        if rng.random() < 0.8 or semaphore._holder._ticket is None:
            await semaphore.release()
        else:
            held.lease.lost.set()
        held.lease.forget()
