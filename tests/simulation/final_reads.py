"""The last reads of a run: each object once, until it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulation.checker import NEVER
from simulation.history import COUNTERS, HERD, PAIR, REGISTERS
from simulation.list_append import LISTS
from simulation.proxy import Proxy
from simulation.workload import Worker

if TYPE_CHECKING:
    from simulation.client import Client


def read_all(client: Client) -> int:
    """Read every object once, all at the same time; returns the number of reads."""
    herd = HERD[:1] if "herd" in client.world.profile.mix else ()
    lists = LISTS[:1] if "append" in client.world.profile.mix else ()
    readers = [FinalReader(client, key) for key in (*REGISTERS, *COUNTERS, PAIR[0], *herd, *lists)]
    for reader in readers:
        reader.read()
    return len(readers)


class FinalReader(Worker):
    """Reads one object, until it is answered."""

    def __init__(self, client: Client, key: bytes) -> None:
        self._key = key
        super().__init__(client, 0, Proxy(client) if client.world.profile.proxied else None)
        self.name = "final"

    def _begin(self) -> None:
        """Nothing by itself."""

    def read(self) -> None:
        if self._key in COUNTERS:
            self._do_count(self._key)
        elif self._key in PAIR:
            self._do_pair_get()
        elif self._key in HERD:
            self._do_herd()
        elif self._key in LISTS:
            self._do_lists(always=True)
        else:
            self._do_get(self._key)

    def _next(self, token: int) -> None:
        if token == self._token and not self._answered():
            self.read()

    def _answered(self) -> bool:
        if self._key in LISTS:
            return any(each.client == "final" and each.returned != NEVER for each in self.history.transactions)
        return any(call.client == "final" and call.returned != NEVER for call in self.history.calls.get(self._key, []))
