"""The imagined network: it loses, doubles, reorders, delays and cuts, all by its seed alone.

Members are known by their ids, clients by negative numbers. A link is a direction: a cut may be one-way.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from raykeeper.raft.messages import Message


@dataclass(slots=True)
class Weather:
    """How bad the network is at the moment."""

    delay: float = 0.002
    """Mean seconds on the way."""
    loss: float = 0.0
    """Share of frames that never arrive."""
    double: float = 0.0
    """Share of frames that arrive a second time, some time later."""
    reorder: float = 0.0
    """Share of frames that are held up long enough to be overtaken."""
    hold: float = 0.2
    """Up to how many seconds they are held up."""


class Network:
    """Carries frames between members, and calls between clients and members.

    Args:
        rng: decides every fate.
        after: schedules a callback this many seconds from now.
    """

    def __init__(self, rng: random.Random, after: Callable[..., None]) -> None:
        self._rng = rng
        self._after = after
        self.weather = Weather()
        self.cut_links: dict[tuple[int, int], int] = {}
        """Links that are cut, and how many cuts lie on each."""
        self.lost = 0
        self.doubled = 0
        self.held = 0

    def cut(self, links: Iterable[tuple[int, int]]) -> Callable[[], None]:
        """Cut links; the result undoes exactly this cut, once."""
        chosen = [link for link in links if link[0] != link[1]]
        for link in chosen:
            self.cut_links[link] = self.cut_links.get(link, 0) + 1

        def heal() -> None:
            healed, chosen[:] = list(chosen), []
            for link in healed:
                left = self.cut_links.get(link, 0) - 1
                if left > 0:
                    self.cut_links[link] = left
                else:
                    self.cut_links.pop(link, None)

        return heal

    def heal(self) -> None:
        """Undo everything."""
        self.cut_links.clear()
        self.weather = Weather()

    def reaches(self, sender: int, receiver: int) -> bool:
        """Whether the link is whole at this moment."""
        return (sender, receiver) not in self.cut_links

    def _delay(self) -> float:
        weather = self.weather
        delay = weather.delay * (0.5 + self._rng.expovariate(2.0))
        if weather.reorder and self._rng.random() < weather.reorder:
            self.held += 1
            delay += self._rng.random() * weather.hold
        return delay

    def carry(self, sender: int, receiver: int, deliver: Callable[..., None], *content: object) -> bool:
        """Bring something over a link: never, once or twice. False if it is known here to be lost."""
        if self.cut_links and (sender, receiver) in self.cut_links:
            self.lost += 1
            return False
        weather = self.weather
        if weather.loss and self._rng.random() < weather.loss:
            self.lost += 1
            return False
        self._after(self._delay(), self._arrive, sender, receiver, deliver, content)
        if weather.double and self._rng.random() < weather.double:
            self.doubled += 1
            self._after(
                self._delay() + self._rng.random() * weather.hold, self._arrive, sender, receiver, deliver, content
            )
        return True

    def _arrive(self, sender: int, receiver: int, deliver: Callable[..., None], content: tuple[object, ...]) -> None:
        if self.cut_links and (sender, receiver) in self.cut_links:
            self.lost += 1
            return
        deliver(*content)

    def carry_messages(
        self, sender: int, messages: Sequence[Message], deliver: Callable[[int, Sequence[Message]], None]
    ) -> list[int]:
        """Bring messages to their receivers, those for one receiver together unless the weather tears them apart.

        Returns:
            The receivers that are known not to be reached.
        """
        frames: dict[int, list[Message]] = {}
        for message in messages:
            frames.setdefault(message.to, []).append(message)
        unreached = []
        for receiver, frame in frames.items():
            if len(frame) > 1 and self.weather.reorder:
                for message in frame:
                    self.carry(sender, receiver, deliver, receiver, (message,))
            elif not self.carry(sender, receiver, deliver, receiver, frame):
                unreached.append(receiver)
        return unreached
