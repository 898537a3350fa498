"""What the console shows besides keys: the cluster, its events, what is in use, leases and clients.

Each view is made of what a user's own calls would get, by that user's hub: the members check the rights. Lists are cut
where ``limits.py`` says, and tell how many there are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import KeeperError, Unavailable
from ...limits import (
    CONSOLE_CLIENTS,
    CONSOLE_CLIENTS_READ,
    CONSOLE_EVENTS,
    CONSOLE_LEASES,
    CONSOLE_LOAD_ROWS,
    CONSOLE_NAMES,
    CONSOLE_NODES_S,
    PROXY_TIMEOUT_S,
)
from ...schema.frames import LeaseStatus, LeaseStatuses
from ...schema.key_spaces import RESERVED_SPACE
from ...schema.operator_frames import MemberStatus
from ..client.aio_timeout import on_thread, within
from ..client.client_info import client_info, owner_info
from ..client.core.in_flight import LeaseQuestion
from ..client.leases import LeaseInfo
from ..client.load_tables import ClientTop, PrefixTop, merged
from ..client.view import Call, Steps
from ..deadline import covering
from ..naming import member_name
from ..recipes.in_use import Survey, why_stuck
from ..recipes.in_use_fields import LISTS, in_use_fields
from ..recipes.sync_async import unquoted
from ..transport.missing_lanes import missing_lanes
from ..transport.peer_clocks import clocks_that_differ
from .console_forms import bad_request, client_form, id_form, key_form, name_form
from .etcd_backend import CallContext, EtcdBackend
from .etcd_errors import LEASE_NOT_FOUND, NO_LEADER, TIMED_OUT, from_keeper_error
from .member_calls import MemberCalls

_log = logging.getLogger("raykeeper.proxy")

NodeAddresses = Callable[[], Mapping[str, str]]


class NodeBook:
    """The addresses of Ray's nodes, as they were a moment ago. Ray may block, so it is asked on a thread.

    Args:
        ask: gives them; ``None`` if there is no Ray.
    """

    def __init__(self, ask: NodeAddresses | None) -> None:
        self._ask = ask
        self._known: Mapping[str, str] = {}
        self._good_until = 0.0

    async def addresses(self) -> Mapping[str, str]:
        """By node id; what was known before, if Ray does not answer soon."""
        if self._ask is not None and time.monotonic() >= self._good_until:
            self._good_until = time.monotonic() + CONSOLE_NODES_S
            asked = asyncio.wrap_future(on_thread("nodes", _in_time, self._ask))
            try:
                if await within(CONSOLE_NODES_S, asked):
                    self._known = asked.result()
            except Exception as error:  # Ray's, of many kinds
                _log.debug("Ray does not tell the nodes' addresses: %s", error)
        return self._known


def _in_time(ask: NodeAddresses) -> Mapping[str, str]:
    """On a thread that ends before the next one begins, whatever Ray does."""
    with covering(CONSOLE_NODES_S):
        return ask()


async def show_cluster(backend: EtcdBackend, calls: MemberCalls, nodes: NodeBook) -> dict[str, Any]:
    """The cluster and its members, as each member says it now.

    Raises:
        RpcError: no member answers.
    """
    known = list(calls.members())
    found = dict(zip(known, await asyncio.gather(*map(calls.status, known)), strict=True))
    statuses = {member: status for member, status in found.items() if status is not None}
    best = max(statuses.values(), key=lambda status: status.applied_index, default=None)
    if best is None:
        raise NO_LEADER.error()
    addresses = await nodes.addresses()
    leaders = [status for status in statuses.values() if status.role == "leader"]
    leader = max(leaders, key=lambda status: status.term, default=None)
    members = [
        _member(member, statuses.get(member), best, leader, addresses)
        for member in sorted({*best.voters, *best.learners})
    ]
    serving = {each["id"] for each in members if not each["why_not_serving"]}
    halves = [half for half in (best.voters, best.outgoing) if half]
    spare = min((len(serving & set(half)) - len(half) // 2 - 1 for half in halves), default=-1)
    return {
        "cluster": best.cluster_name,
        "cluster_id": id_form(best.cluster),
        "proxy_member": backend.member,
        "leader": leader.member if leader is not None else 0,
        "leading_for": leader.leading_for if leader is not None else 0.0,
        "term": max(status.term for status in statuses.values()),
        "revision": max(status.revision for status in statuses.values()),
        "compact_revision": best.compact_revision,
        "sessions": best.session_count,
        "spare": spare,
        "quota_bytes": backend.limits.quota_bytes,
        "reserve_bytes": backend.limits.reserve_bytes,
        "members": members,
        "alarms": _alarms(
            best, leader, spare, members, {each: status.without_lane for each, status in statuses.items()}
        ),
    }


def _member(
    member: int,
    status: MemberStatus | None,
    best: MemberStatus,
    leader: MemberStatus | None,
    addresses: Mapping[str, str],
) -> dict[str, Any]:
    """One row; a member that does not answer is shown where it lived last."""
    record = next((each for each in best.table if each.id == member), None)
    last = record.pin.removeprefix("node:") if record is not None else ""
    row: dict[str, Any] = {
        "id": member,
        "name": member_name(member),
        "voter": member in best.voters,
        "silent_for": leader.silent.get(member) if leader is not None else None,
    }
    if status is None:
        row["lost_since"] = best.lost_since.get(member)
        return {**row, "role": "silent", "address": last, "why_not_serving": "it does not answer"}
    return {
        **row,
        "role": "learner" if status.role == "follower" and member in best.learners else status.role,
        "role_for": status.role_for,
        "term": status.term,
        "commit_index": status.commit_index,
        "applied_index": status.applied_index,
        "last_log_index": status.last_log_index,
        "lag": max(0, leader.commit_index - status.applied_index) if leader is not None else 0,
        "lag_seconds": leader.lacking_for.get(member, 0.0) if leader is not None else 0.0,
        "revision": status.revision,
        "db_size": status.db_size,
        "db_size_in_use": min(status.db_size, status.db_size_in_use),
        "free_bytes": status.free_bytes,
        "node": status.node,
        "address": addresses.get(status.node, "") or last,
        "pid": status.pid,
        "why_not_serving": status.why_not_serving,
        "without_lane": {member_name(to): why for to, why in sorted(status.without_lane.items())},
    }


def _alarms(
    best: MemberStatus,
    leader: MemberStatus | None,
    spare: int,
    members: list[dict[str, Any]],
    without_lane: Mapping[int, Mapping[int, str]],
) -> list[str]:
    """What an operator should see to, the worst first."""
    silent = [each for each in members if each["why_not_serving"]]
    alarms = [f"{member_name(each.member)} {each.kind}: {each.message}" for each in best.alarms]
    alarms += [f"{each['name']} does not serve: {each['why_not_serving']}" for each in silent]
    alarms += missing_lanes(without_lane, leader.member if leader is not None else 0)
    if leader is None:
        return ["no member leads", *alarms]
    alarms += clocks_that_differ(leader)
    voter_lost = any(each["voter"] for each in silent)
    return ["one more loss stops writes", *alarms] if spare == 0 and voter_lost else alarms


async def show_events(backend: EtcdBackend, calls: MemberCalls) -> dict[str, Any]:
    """What has happened to the cluster of late, the newest first."""
    found = await calls.events(backend.member)
    events = [
        {
            "number": number,
            "at": each.at,
            "kind": each.kind,
            "member": each.member,
            "text": name_form(each.text.encode()),
        }
        for number, each in found[-CONSOLE_EVENTS:]
    ]
    return {"events": events[::-1], "total": len(found)}


async def show_in_use(backend: EtcdBackend, which: str) -> dict[str, Any]:
    """Who holds and who waits, of one of the lists; what is stuck comes first.

    Raises:
        RpcError: there is no such list, or it cannot be read.
    """
    kinds = LISTS.get(which)
    if kinds is None:
        raise bad_request(f"there is no list {which[:100]!r}; there are: {', '.join(LISTS)}")
    items: list[dict[str, Any]] = []
    reads = 0

    async def look() -> None:
        nonlocal reads
        for kind in kinds:
            survey = Survey(backend.handle, kind, CONSOLE_NAMES)
            names = await survey.look()
            reads += survey.reads
            for found in names:
                name = key_form(found.name)
                fields = in_use_fields(found)
                for each in (*fields["holders"], *fields["waiters"]):
                    each["what"] = name_form(each["what"].encode(errors="replace"))
                    each["session"] = id_form(each["session"])
                items.append({**fields, "name": name["key"], "path": name["path"]})

    try:
        if not await within(PROXY_TIMEOUT_S, look()):
            raise TIMED_OUT.error()
    except KeeperError as error:
        raise from_keeper_error(error) from error
    items.sort(key=lambda each: (not each["stuck"], each["name"]))
    return {which: items, "most": CONSOLE_NAMES, "reads": reads}


# --- leases ----------------------------------------------------------------------------------------------------------


async def show_leases(backend: EtcdBackend, context: CallContext) -> dict[str, Any]:
    """The leases, those that end first; who made them, and since when. The leader gives no more than are shown."""
    found = await backend.run(_ask_leases(LeaseQuestion(owners=True, most=CONSOLE_LEASES)), context)
    leases = sorted(found.leases, key=lambda lease: lease.remaining)  # a member of an older version gives all
    return {"leases": [_lease(each) for each in leases[:CONSOLE_LEASES]], "total": max(found.total, len(leases))}


async def show_lease(backend: EtcdBackend, lease: int, context: CallContext) -> dict[str, Any]:
    """One lease and the keys that hang on it.

    Raises:
        RpcError: it has ended.
    """
    answer = await backend.run(_ask_leases(LeaseQuestion((lease,), keys=True, owners=True)), context)
    found = answer.leases
    if not found:
        raise LEASE_NOT_FOUND.error()
    keys = sorted(found[0].keys)
    shown = [_attached(backend, key) for key in keys[:CONSOLE_LEASES]]
    return {**_lease(found[0]), "keys": shown, "key_count": len(keys)}


def _ask_leases(question: LeaseQuestion) -> Steps[LeaseStatuses]:
    answer = yield Call(question)
    if not isinstance(answer, LeaseStatuses):
        raise Unavailable(f"the cluster answered {type(answer).__name__} to a question about leases")
    return answer


def _lease(status: LeaseStatus) -> dict[str, Any]:
    owner = owner_info(status.owner)
    info = LeaseInfo(status.id, status.ttl, status.remaining, (), owner)
    return {
        "id": id_form(status.id),
        "ttl": status.ttl,
        "remaining": status.remaining,
        "task": owner.task if owner is not None else "",
        "since": owner.since if owner is not None else 0.0,
        "client": client_form(owner.client) if owner is not None else None,
        "stuck": why_stuck(info),
    }


def _attached(backend: EtcdBackend, stored: bytes) -> dict[str, Any]:
    """A key of a lease: a user's, or what a lock, a queue or the like keeps, which is shown by that one's name."""
    if stored.startswith(backend.space):
        return {"kind": "key", **key_form(stored[len(backend.space) :])}
    kind, _, rest = stored.removeprefix(RESERVED_SPACE).partition(b"/")
    return {"kind": name_form(kind), "key": name_form(unquoted(rest.partition(b"/")[0])), "path": ""}


# --- load ------------------------------------------------------------------------------------------------------------


async def show_load(calls: MemberCalls) -> dict[str, Any]:
    """What loads the cluster, a second over the last five: by client and by prefix, and what was slow of late.

    Raises:
        RpcError: the user may not know, or no member answers.
    """
    known = list(calls.members())
    answers = dict(zip(known, await asyncio.gather(*map(calls.load, known)), strict=True))
    shown = {member: answer for member, answer in answers.items() if answer is not None}
    if not shown:
        raise NO_LEADER.error()
    silent = tuple([member_name(member) for member in known if member not in shown])
    found = merged(shown, silent, CONSOLE_LOAD_ROWS)
    clients = [
        {
            **_rates(each),
            "source": name_form(each.source.encode(errors="replace")),
            "client": None if each.client is None else client_form(each.client),
        }
        for each in found.clients
    ]
    prefixes = [
        {**_rates(each), "prefix": name_form(each.prefix), "reserved": each.reserved} for each in found.prefixes
    ]
    slow = [
        {"member": each.member, "at": each.at, "took": each.took, "what": name_form(each.what.encode(errors="replace"))}
        for each in found.slow[-CONSOLE_LOAD_ROWS:]
    ]
    return {"clients": clients, "prefixes": prefixes, "slow": slow[::-1], "silent": list(silent)}


def _rates(row: ClientTop | PrefixTop) -> dict[str, float]:
    return {"puts": row.puts, "gets": row.gets, "events": row.events, "bytes": row.bytes}


# --- clients ---------------------------------------------------------------------------------------------------------


async def show_clients(backend: EtcdBackend, calls: MemberCalls) -> dict[str, Any]:
    """The clients, those with the most leases first."""
    found, more = await calls.clients(backend.member, CONSOLE_CLIENTS_READ)
    clients = sorted(map(client_info, found), key=lambda client: (-client.leases, client.since, client.session))
    shown = [client_form(each) for each in clients[:CONSOLE_CLIENTS]]
    return {"clients": shown, "total": len(clients), "more": more}
