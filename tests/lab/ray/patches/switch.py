"""The fault switch: what becomes of frames between members, and between clients and members, in running processes.

It is not part of the product, and cannot be reached in one that is installed: ``sitecustomize`` beside this file loads
it into the processes of a test's own Ray if ``RAYKEEPER_TEST_SWITCH`` names a file, and puts it around the places where
frames leave (for members ``ActorLink._send_call`` by call and ``LaneLink.send`` by lane, for clients
``ActorTransport._send_call`` and ``ClientLane.send_request``) and around the system's clock.

The file holds a table as JSON, and each process looks whether it has changed, so a fault outlives the processes that it
meets::

    {"rules": [{"sender": "1", "to": "2", "fault": "delay", "share": 0.5, "seconds": [0.1, 2.0]}],
     "clocks": {"4711": [3600.0, -7200.0]}}

``sender`` and ``to`` are member ids, ``client``, or ``*``. A rule holds for frames of that direction, whether they are
calls or the answers to calls; both ends' rules work in the process that made the call. Faults:

``drop``       the frame is lost; a caller that waits for an answer gets an error after ``seconds``, as of a broken link
``hold``       the frame waits, and is delivered when the rule is gone: late, as after a network that was cut
``delay``      it takes ``seconds`` (drawn for each, so frames overtake each other)
``duplicate``  it is delivered once more after ``seconds``
``truncate``, ``garble``  a random part is missing, or wrong

``flap`` ``[on, off]`` makes a rule hold only for ``on`` seconds out of ``on + off``. ``clocks`` says by process id how
far the wall clock and the monotonic clock are off, and, if two more numbers follow, what part of each second more they
count since a time of the system's monotonic clock. What was done is counted in ``<file>.counts/<pid>``.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

LOOK = 0.02
"""Seconds between two looks at the file, and at frames that are held."""
DEFAULT_SECONDS = (0.5, 2.0)

_monotonic = time.monotonic
_wall = time.time
_wall_ns = time.time_ns


class Lost(Exception):
    """A frame was lost on its way."""


class Switch:
    """Reads the table, and decides.

    Args:
        path: of the table; a file that is not there means no faults.
    """

    def __init__(self, path: str, seed: int | None = None) -> None:
        self._path = path
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._looked = -1.0
        self._mark: tuple[int, int] | None = None
        self._rules: list[dict[str, Any]] = []
        self.clocks: dict[str, list[float]] = {}
        self.counts: Counter[str] = Counter()

    def look(self) -> None:
        """Read the table, if it has changed."""
        now = _monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        try:
            stat = os.stat(self._path)
            mark = (stat.st_mtime_ns, stat.st_ino)
            if mark == self._mark:
                return
            with open(self._path, encoding="utf-8") as file:
                table = json.load(file)
        except FileNotFoundError:
            mark, table = None, {}
        self._rules = table.get("rules", [])
        self.clocks = table.get("clocks", {})
        self._mark = mark

    def _active(self, sender: str, to: str) -> list[dict[str, Any]]:
        self.look()
        return [
            rule
            for rule in self._rules
            if rule.get("sender", "*") in ("*", sender) and rule.get("to", "*") in ("*", to) and _on(rule)
        ]

    def held(self, sender: str, to: str) -> bool:
        """Whether frames of that direction have to wait now."""
        return any(rule["fault"] == "hold" for rule in self._active(sender, to))

    def copies(self, sender: str, to: str, frame: bytes) -> list[tuple[float, bytes]]:
        """What arrives of a frame, and after how many seconds; a negative delay: never, and that is known then."""
        delay, repeat = 0.0, []
        for rule in self._active(sender, to):
            fault = rule["fault"]
            if fault == "hold" or self._rng.random() >= rule.get("share", 1.0):
                continue
            self.count(fault)
            seconds = self._rng.uniform(*rule.get("seconds", DEFAULT_SECONDS))
            if fault == "drop":
                return [(-max(seconds, 1e-3), b"")]
            if fault == "delay":
                delay += seconds
            elif fault == "duplicate":
                repeat.append(seconds)
            elif fault == "truncate":
                frame = frame[: self._rng.randrange(max(1, len(frame)))]
            elif fault == "garble":
                frame = self._garbled(frame)
            else:
                raise ValueError(f"no such fault: {fault}")
        return [(delay, frame), *((delay + seconds, frame) for seconds in repeat)]

    def _garbled(self, frame: bytes) -> bytes:
        wrong = bytearray(frame or b"?")
        for _ in range(self._rng.randrange(1, 8)):
            wrong[self._rng.randrange(len(wrong))] ^= self._rng.randrange(1, 256)
        return bytes(wrong)

    def count(self, fault: str) -> None:
        with self._lock:
            self.counts[fault] += 1

    def offset(self, which: int) -> float:
        """How far this process's wall clock (0) or monotonic clock (1) is off."""
        self.look()
        clock = self.clocks.get(str(os.getpid()), (0.0, 0.0))
        drift = clock[2] * (time.clock_gettime(time.CLOCK_BOOTTIME) - clock[3]) if len(clock) > 2 else 0.0
        return float(clock[which] + drift)

    def report(self) -> None:
        """Write down what was done so far."""
        folder = self._path + ".counts"
        os.makedirs(folder, exist_ok=True)
        with self._lock:
            counts = json.dumps(self.counts)
        with open(os.path.join(folder, f"{os.getpid()}.new"), "w", encoding="utf-8") as file:
            file.write(counts)
        os.replace(file.name, file.name.removesuffix(".new"))


def _on(rule: dict[str, Any]) -> bool:
    flap = rule.get("flap")
    return flap is None or _monotonic() % (flap[0] + flap[1]) < flap[0]


class Post:
    """Brings frames as the switch will have it, late ones on a thread of its own.

    Args:
        switch: decides.
    """

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self._changed = threading.Condition()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._held: list[tuple[str, str, Callable[[], None]]] = []
        self._numbers = itertools.count()
        threading.Thread(target=self._run, name="fault switch", daemon=True).start()

    def call(
        self,
        sender: str,
        to: str,
        frame: bytes,
        bring: Callable[[bytes], Future[bytes]],
        again: Callable[[bytes], None],
    ) -> Future[bytes]:
        """Make a call whose frame and answer go through the switch.

        Args:
            bring: makes the call itself.
            again: takes the answers to what was only a copy.
        """
        outcome: Future[bytes] = Future()
        first = threading.Semaphore()

        def settle(result: bytes | BaseException) -> None:
            if not first.acquire(blocking=False):
                if isinstance(result, bytes):
                    again(result)
            elif isinstance(result, bytes):
                outcome.set_result(result)
            else:
                outcome.set_exception(result)

        def answered(done: Future[bytes]) -> None:
            error = done.exception()
            if error is not None:
                settle(error)
            else:
                self.send(to, sender, done.result(), settle, settle)

        def make(copy: bytes) -> None:
            try:
                bring(copy).add_done_callback(answered)
            except Exception as error:
                settle(error)

        self.send(sender, to, frame, make, settle)
        return outcome

    def send(
        self, sender: str, to: str, frame: bytes, bring: Callable[[bytes], Any], lost: Callable[[BaseException], None]
    ) -> None:
        """Send a frame one way through the switch."""
        if self.switch.held(sender, to):
            self.switch.count("hold")
            with self._changed:
                self._held.append((sender, to, lambda: bring(frame)))
                self._changed.notify()
            return
        for delay, copy in self.switch.copies(sender, to, frame):
            if delay == 0:
                bring(copy)
            elif delay > 0:
                self._later(delay, lambda copy=copy: bring(copy))  # type: ignore[misc]
            else:
                self._later(-delay, lambda: lost(Lost("a frame was lost")))

    def _later(self, delay: float, what: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (_monotonic() + delay, next(self._numbers), what))
            self._changed.notify()

    def _run(self) -> None:
        reported: Counter[str] = Counter()
        while True:
            ready: list[Callable[[], None]] = []
            with self._changed:
                self._changed.wait(LOOK if self._due or self._held else 10 * LOOK)
                now = _monotonic()
                while self._due and self._due[0][0] <= now:
                    ready.append(heapq.heappop(self._due)[2])
                still = []
                for sender, to, what in self._held:
                    if self.switch.held(sender, to):
                        still.append((sender, to, what))
                    else:
                        ready.append(what)
                self._held = still
            for what in ready:
                try:
                    what()
                except Exception as error:  # of one call: the next ones are not to suffer
                    print(f"fault switch: {error!r}")
            if self.switch.counts != reported:
                reported = Counter(self.switch.counts)
                self.switch.report()


_post: Post | None = None


def post() -> Post:
    """This process's."""
    global _post
    if _post is None:
        _post = Post(Switch(os.environ["RAYKEEPER_TEST_SWITCH"]))
    return _post


def around_calls(module: Any) -> None:
    """Put the switch around what members say to each other."""
    real = module.ActorLink._send_call

    def _send_call(self: Any, handle: Any, method: str, frame: bytes) -> Future[bytes]:
        def again(answer: bytes) -> None:
            if answer:
                self._transport._receive(answer, None)

        sender, to = str(self._transport._member), str(self.member)
        return post().call(sender, to, frame, lambda copy: real(self, handle, method, copy), again)

    module.ActorLink._send_call = _send_call


def around_client_calls(module: Any) -> None:
    """Put the switch around what clients and members say to each other."""
    real = module.ActorTransport._send_call

    def _send_call(self: Any, member: int, name: str, frame: bytes) -> Future[bytes]:
        self._method(member, name)  # raises what the real one would
        return post().call(
            "client", str(member), frame, lambda copy: real(self, member, name, copy), lambda answer: None
        )

    module.ActorTransport._send_call = _send_call


def around_peer_lanes(module: Any) -> None:
    """The same for lanes between members: there are no answers on them, and nobody hears of a frame that is lost."""
    real = module.LaneLink.send

    def send(self: Any, frame: bytes) -> bool:
        lane = self.lane
        if lane is None:
            return False
        sender, to = str(self.sender), str(self.to)
        post().send(sender, to, frame, lambda copy: real(self, copy), lambda error: None)
        return True

    module.LaneLink.send = send


def around_client_lanes(module: Any) -> None:
    """The same for lanes between clients and members."""
    real = module.ClientLane.send_request

    def send_request(self: Any, frame: bytes, done: Any, waiter: Any = None) -> bool:
        if self._ended:
            return False

        def bring(copy: bytes) -> Future[bytes]:
            future: Future[bytes] = Future()

            def answered(reply: bytes | Exception) -> None:
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

            if not real(self, copy, answered):
                raise Lost("the lane takes no frame")
            return future

        def finished(future: Future[bytes]) -> None:
            error = future.exception()
            done(future.result() if error is None else error)

        post().call("client", str(self.member), frame, bring, lambda answer: None).add_done_callback(finished)
        return True

    module.ClientLane.send_request = send_request


def around_clock(module: Any) -> None:
    """Put the switch around a member's clocks: the system's monotonic one, and Python's wall clock in that process."""
    real = module.system_clock
    module.system_clock = lambda: real() + post().switch.offset(1)
    time.time = lambda: _wall() + post().switch.offset(0)
    time.time_ns = lambda: _wall_ns() + int(post().switch.offset(0) * 1e9)


def around_client_clock(module: Any) -> None:
    """The same for the clock of a client's hub."""
    real = module.clock
    module.clock = lambda: real() + post().switch.offset(1)


PATCHES = {
    "raykeeper.actors.transport.peer_transport": around_calls,
    "raykeeper.actors.transport.client_actor": around_client_calls,
    "raykeeper.actors.transport.peer_lanes": around_peer_lanes,
    "raykeeper.actors.transport.client_lanes": around_client_lanes,
    "raykeeper.actors.member.clock": around_clock,
    "raykeeper.actors.client.hub": around_client_clock,
}
"""What is done to which module of the product once it is loaded."""
