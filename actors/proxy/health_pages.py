"""``/health``, ``/livez`` and ``/readyz``, as etcd 3.5.12 and later have them: to the letter, since probes match texts.

``/health`` answers JSON, in the same words as before 3.5.12; ``exclude`` names alarms that do not count, and
``serializable=true`` asks for the member alone. The other two are made of checks by name, each of which has a path of
its own below theirs (``/readyz/linearizable_read``); ``exclude`` names checks, and ``verbose`` shows
those that succeed. More checks have paths alone, and do not count for the pages: ``/readyz/alarms``, ``/readyz/disk``,
``/readyz/clocks`` (``raykeeper health`` has them, too) and etcd 3.6's ``/readyz/non_learner``. With an alarm NOSPACE a
member still answers reads, as an etcd does; and clocks that differ, or a learner, serve as well as others.
A body of a failure ends in one line feed more, as Go's ``http.Error`` writes it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

from ...limits import STATUS_TIMEOUT_S
from ...schema.operator_frames import MemberStatus
from ..transport.peer_clocks import clocks_that_differ
from .etcd_backend import EtcdBackend, UntimedContext
from .http_exchange import HttpError, HttpExchange
from .member_calls import MemberCalls
from .rpc_status import RpcError

_TEXT = {"content-type": "text/plain; charset=utf-8"}
_NOSNIFF = {**_TEXT, "x-content-type-options": "nosniff"}
_Check = Callable[[], Awaitable[str]]


class HealthPages:
    """Answers requests for the pages; see the module.

    Args:
        backend: the cluster.
        calls: to its members.
    """

    def __init__(self, backend: EtcdBackend, calls: MemberCalls) -> None:
        self._backend = backend
        self._calls = calls
        self._checks: dict[str, dict[str, _Check]] = {
            "livez": {"serializable_read": self._check_member},
            "readyz": {
                "data_corruption": self._check_corruption,
                "serializable_read": self._check_member,
                "linearizable_read": self._check_cluster,
            },
        }
        self._by_name_only: dict[str, dict[str, _Check]] = {
            "readyz": {
                "alarms": self._check_alarms,
                "disk": self._check_disk,
                "clocks": self._check_clocks,
                "non_learner": self._check_learner,
            }
        }
        self.succeeded = 0
        """Answers of ``/health`` that all is well..."""
        self.failed = 0
        """... and that it is not."""
        self.results: Counter[tuple[str, str, str]] = Counter()
        """Checks so far: page, name, and ``success`` or ``error``."""
        self.last: dict[tuple[str, str], bool] = {}
        """How each of them ended last."""

    async def handle(self, exchange: HttpExchange) -> bool:
        """Answer a request, if it is for one of the pages.

        Raises:
            HttpError: 405, it is not a GET.
        """
        page, _, name = exchange.path[1:].partition("/")
        checks = self._checks.get(page)
        if checks is not None and name:
            checks = {**checks, **self._by_name_only.get(page, {})}
        if exchange.path != "/health" and (checks is None or (name and name not in checks)):
            return False
        if exchange.path.endswith("/"):
            return False
        if exchange.method != "GET":
            raise HttpError(405, "Method Not Allowed\n", {"allow": "GET"})
        if checks is None:
            await self._health(exchange)
        else:
            wanted = [name] if name else [each for each in checks if each not in _named(exchange, "exclude")]
            await self._run(exchange, page, {each: checks[each] for each in wanted})
        return True

    async def _health(self, exchange: HttpExchange) -> None:
        serializable = parse_qs(exchange.query).get("serializable", [""])[0] == "true"
        why = await self._why_unhealthy(_named(exchange, "exclude"), serializable)
        body = json.dumps({"health": "false" if why else "true", "reason": why}, separators=(",", ":")).encode()
        if why:
            self.failed += 1
            await exchange.respond(503, body + b"\n", _NOSNIFF)
        else:
            self.succeeded += 1
            await exchange.respond(200, body, _TEXT)

    async def _why_unhealthy(self, excluded: set[str], serializable: bool) -> str:
        """Why the cluster does not serve as it should; empty if it does."""
        status = await self._status()
        for alarm in status.alarms if status else ():
            if alarm.kind not in excluded:
                return f"ALARM {alarm.kind}"
        if status and not serializable and not status.leader:
            return "RAFT NO LEADER"
        error = _why_unreadable(status) if serializable else await self._check_cluster()
        return f"RANGE ERROR:{error}" if error else ""

    async def _run(self, exchange: HttpExchange, page: str, checks: dict[str, _Check]) -> None:
        lines, failed = [], False
        for name, check in checks.items():
            error = await check()
            failed = failed or bool(error)
            self.results[page, name, "error" if error else "success"] += 1
            self.last[page, name] = not error
            lines.append(f"[-]{name} failed: {error}\n" if error else f"[+]{name} ok\n")
        verbose = "verbose" in parse_qs(exchange.query, keep_blank_values=True)
        shown = "".join(lines) if failed or verbose else ""
        text = f"{shown}\n" if failed else f"{shown}ok\n"
        await exchange.respond(503 if failed else 200, text.encode(), _NOSNIFF)

    # -- checks: each returns what is wrong, or an empty text ---------------------------------------------------------

    async def _check_corruption(self) -> str:
        status = await self._status()
        corrupt = status is not None and any(alarm.kind == "CORRUPT" for alarm in status.alarms)
        return "alarm activated: CORRUPT" if corrupt else ""

    async def _check_alarms(self) -> str:
        status = await self._status()
        if status is None:
            return _why_unreadable(status)
        alarms = [f"alarm activated: {alarm.kind}" for alarm in status.alarms]
        return ", ".join(dict.fromkeys(alarms))

    async def _check_disk(self) -> str:
        """A member that has just started has not looked at its disk yet, and says 0."""
        status = await self._status()
        if status is None:
            return _why_unreadable(status)
        reserve = self._backend.limits.reserve_bytes
        return f"{status.free_bytes} bytes are free" if 0 < status.free_bytes < reserve else ""

    async def _check_clocks(self) -> str:
        """Of the leader: it hears all members, and they only it."""
        try:
            status = await self._calls.newest_status(self._backend.member)
        except RpcError as error:
            return error.text
        return "; ".join(clocks_that_differ(status))

    async def _check_learner(self) -> str:
        status = await self._status()
        if status is None:
            return _why_unreadable(status)
        return "not supported for learner" if status.member in status.learners else ""

    async def _check_member(self) -> str:
        return _why_unreadable(await self._status())

    async def _check_cluster(self) -> str:
        try:
            await self._backend.revision(_Brief())
        except RpcError as error:
            return error.text
        return ""

    async def _status(self) -> MemberStatus | None:
        return await self._calls.status(self._backend.member)


def _why_unreadable(status: MemberStatus | None) -> str:
    return "the member does not answer" if status is None else status.why_not_serving


def _named(exchange: HttpExchange, name: str) -> set[str]:
    return set(parse_qs(exchange.query).get(name, ()))


class _Brief(UntimedContext):
    """The context of a check."""

    def time_left(self) -> float:
        """Seconds."""
        return STATUS_TIMEOUT_S
