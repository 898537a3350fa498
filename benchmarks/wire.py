"""A wire between network namespaces for kernels without netem: each packet is handed on after a while.

    python benchmarks/wire.py SECONDS DEVICE...

It makes TAP devices with these names, prints ``ready``, and joins them as a switch would, until it is killed; then they
are gone, wherever they were moved to. It goes before other processes: a cable does not wait for a core.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import sys
import time
from collections import deque

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LARGEST = 65_536
MAX_HELD = 100_000
"""Packets on their way; more are dropped, as networks do."""
READS = 64
"""Packets of one device, before the next one has its turn."""
SPIN_S = 60e-6
"""The kernel wakes a sleeper about this much too late."""


class Switch:
    """Packets on their way between devices, each of which takes as long."""

    def __init__(self, delay: float, devices: list[int]) -> None:
        self._delay = delay
        self._devices = devices
        self._places: dict[bytes, int] = {}
        self._held: deque[tuple[float, int, bytes]] = deque()
        """In the order in which they are due."""

    def take(self, now: float, device: int, packet: bytes) -> None:
        """A packet that a device has sent: for the device where its receiver was last heard, or for all others."""
        self._places[packet[6:12]] = device
        known = self._places.get(packet[:6])
        for other in [known] if known is not None else self._devices:
            if other != device and len(self._held) < MAX_HELD:
                self._held.append((now + self._delay, other, packet))

    def due(self, now: float) -> list[tuple[int, bytes]]:
        """The packets whose time has come, with the devices that they are for."""
        ready = []
        while self._held and self._held[0][0] <= now:
            _, device, packet = self._held.popleft()
            ready.append((device, packet))
        return ready

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to do; ``None`` if there is nothing."""
        return max(0.0, self._held[0][0] - now) if self._held else None


def open_device(name: str) -> int:
    """Make a TAP device."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def main() -> None:
    """Carry packets."""
    devices = [open_device(name) for name in sys.argv[2:]]
    switch = Switch(float(sys.argv[1]), devices)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -15)
    print("ready", flush=True)
    while True:
        wait = switch.wait(time.monotonic())
        readable, _, _ = select.select(devices, [], [], None if wait is None else max(0.0, wait - SPIN_S))
        now = time.monotonic()
        for device in readable:
            for _ in range(READS):
                try:
                    switch.take(now, device, os.read(device, LARGEST))
                except OSError:  # there is no more
                    break
        for device, packet in switch.due(time.monotonic()):
            with contextlib.suppress(OSError):  # its host is not up yet, or no more
                os.write(device, packet)


if __name__ == "__main__":
    main()
